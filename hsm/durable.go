package hsm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// durable makes the changes of a token's objects survive a loss of power, where the token does not do so itself: SoftHSM writes its files
// without ever syncing them. A token of another make keeps its own promise, and durable does nothing for it.
//
// SoftHSM's folder of a token holds one file per object, its lock files, token.object, and generation, a counter that makes other processes
// look again. An object is made or destroyed by writing or removing its file and writing generation.
type durable struct {
	dir   string               // empty: nothing to do
	fsync func(*os.File) error // (*os.File).Sync

	mu    sync.Mutex
	known map[string]bool // objects' files that are durable, and perhaps some that are gone
}

// softhsmMaker is what SoftHSM says in CK_TOKEN_INFO.manufacturerID.
const softhsmMaker = "SoftHSM project"

// newDurable finds the folder of the connection's token. A SoftHSM whose folder is not found cannot be used: its keys would be lost in silence.
func newDurable(c *conn) (*durable, error) {
	dir := c.t.cfg.TokenDir
	if dir == "" {
		if trimPadding(c.info.ManufacturerID) != softhsmMaker {
			return &durable{fsync: (*os.File).Sync}, nil
		}
		var err error
		if dir, err = softhsmTokenDir(c.m.conf(), c.info.SerialNumber); err != nil {
			return nil, fmt.Errorf("the folder of SoftHSM token %q, which must be synced after changes: %w; name it in the configuration (TokenDir)", c.t.label, err)
		}
	}
	d := &durable{dir: dir, fsync: (*os.File).Sync}
	names, _, err := d.unknown()
	if err != nil {
		return nil, &deviceError{fmt.Errorf("folder of token %q: %w", c.t.label, err)}
	}
	d.note(names)
	// What was written before this process, or by a process that was killed, was never synced either. Files that cannot change any more were
	// probably written back long ago; the counters are cheap to sync at any rate.
	if err := d.syncFiles("generation", "token.object"); err != nil {
		return nil, err
	}
	return d, d.syncDir(dir)
}

// tokenDir returns the folder, empty where there is none.
func (d *durable) tokenDir() string {
	if d == nil {
		return ""
	}
	return d.dir
}

// sync makes the creations and destructions since the last call durable. It compares names, and reads no file but those it syncs. On error the
// next call does the work again.
func (d *durable) sync() error {
	if d.dir == "" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	names, all, err := d.unknown()
	if err != nil {
		return d.fail(err)
	}
	if err := d.syncFiles(append(names, "generation", "token.object")...); err != nil {
		return d.fail(err)
	}
	if err := d.syncDir(d.dir); err != nil {
		return d.fail(err)
	}
	d.note(names)
	if len(d.known) > 2*all+knownGone {
		d.known = nil
		if names, _, err = d.unknown(); err != nil {
			return d.fail(err)
		}
		d.note(names)
	}
	return nil
}

// knownGone is how many names of files that are gone are kept at any rate: forgetting them takes a second look at the folder.
const knownGone = 1024

func (d *durable) fail(err error) error {
	return unavailable("make the token's objects durable: %w", err)
}

// syncFiles syncs files of the folder. One that is gone was removed by another process: the folder's sync is its durability.
func (d *durable) syncFiles(names ...string) error {
	for _, name := range names {
		f, err := os.Open(filepath.Join(d.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = d.fsync(f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// syncDir syncs a folder's entries.
func (d *durable) syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.fsync(f)
}

// unknown lists the objects' files that are not known, and counts all. It keeps no list of the others: a folder of 10,000 keys has twice as many
// files, and is read for each new key.
func (d *durable) unknown() (names []string, all int, err error) {
	f, err := os.Open(d.dir)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	for {
		part, err := f.Readdirnames(1024)
		for _, n := range part {
			if !strings.HasSuffix(n, ".object") {
				continue
			}
			all++
			if !d.known[n] {
				names = append(names, n)
			}
		}
		if errors.Is(err, io.EOF) {
			return names, all, nil
		}
		if err != nil {
			return nil, 0, err
		}
	}
}

// note makes names known.
func (d *durable) note(names []string) {
	if d.known == nil {
		d.known = map[string]bool{}
	}
	for _, n := range names {
		d.known[n] = true
	}
}

// softhsmConfPath is the configuration that SoftHSM would read now: SOFTHSM2_CONF, else the user's, else the system's.
func softhsmConfPath() string {
	if p := os.Getenv("SOFTHSM2_CONF"); p != "" {
		return p
	}
	if home := os.Getenv("HOME"); home != "" {
		p := filepath.Join(home, ".config", "softhsm2", "softhsm2.conf")
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	for _, p := range []string{"/etc/softhsm/softhsm2.conf", "/etc/softhsm2.conf", "/opt/homebrew/etc/softhsm/softhsm2.conf", "/usr/local/etc/softhsm/softhsm2.conf"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// softhsmTokenDir finds the folder of the token with that serial number: SoftHSM names the folder with a UUID, and takes its last 16 hex
// digits for the serial number.
func softhsmTokenDir(conf, serial string) (string, error) {
	root, err := softhsmRoot(conf)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return "", err
	}
	var found []string
	for _, e := range entries {
		if e.IsDir() && serialOfUUID(e.Name()) == serial {
			found = append(found, filepath.Join(root, e.Name()))
		}
	}
	if len(found) != 1 {
		return "", &deviceError{fmt.Errorf("%d folders below %s belong to serial number %s", len(found), root, serial)}
	}
	return found[0], nil
}

// serialOfUUID returns the serial number of the token in a folder, empty when the name is no UUID.
func serialOfUUID(name string) string {
	if len(name) != 36 || name[8] != '-' || name[13] != '-' || name[18] != '-' || name[23] != '-' {
		return ""
	}
	return name[19:23] + name[24:36]
}

// maxConfBytes bounds SoftHSM's configuration.
const maxConfBytes = 1 << 20

// softhsmRoot reads directories.tokendir from SoftHSM's configuration, and checks that objects are kept in files.
func softhsmRoot(conf string) (string, error) {
	if conf == "" {
		return "", errors.New("SoftHSM has no configuration file")
	}
	f, err := os.Open(conf)
	if err != nil {
		return "", err
	}
	defer f.Close()
	root := ""
	lines := bufio.NewScanner(io.LimitReader(f, maxConfBytes))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case name == "directories.tokendir":
			root = value
		case name == "objectstore.backend" && value != "file":
			return "", fmt.Errorf("SoftHSM's objectstore.backend is %q in %s: only \"file\" is supported", value, conf)
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	if root == "" {
		return "", fmt.Errorf("%s names no directories.tokendir", conf)
	}
	return filepath.Clean(root), nil
}
