package softhsmconfig

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/keyhold/keyhold/hsm"
)

// pinBytes is the entropy of a PIN. As base32 text it has 32 characters, which
// is within what SoftHSM (4 to 255) and hardware tokens commonly take.
const pinBytes = 20

// maxLabelBytes is the width of CK_TOKEN_INFO.label (PKCS#11 v2.40, 3.2).
const maxLabelBytes = 32

// Options say which token to make.
type Options struct {
	Dir    string // where configuration, token and PIN files live; created 0700 when missing
	Label  string // of the token, 1 to 32 printable ASCII characters without blank, / and \
	Module string // path of the SoftHSM library. Optional: Locate
}

// A Token says where a token and what belongs to it are. It holds no secret.
type Token struct {
	Module    string // path of the PKCS#11 library
	Conf      string // absolute path of the SoftHSM configuration, for SOFTHSM2_CONF
	TokenDir  string // folder of all tokens of that configuration
	Label     string
	PINFile   string // user PIN, 0600
	SOPINFile string // security officer's PIN, 0600: needed only to reset a lost user PIN. Keep it elsewhere in production
	Created   bool   // false: it was there already
}

// Use points SoftHSM at the token's configuration, for this process only. It
// must happen before the module is initialised, and while several
// configurations are in use, before each of them is.
func (t Token) Use() error { return os.Setenv(EnvConf, t.Conf) }

// initMu serialises Init within the process: SOFTHSM2_CONF, which it sets for
// a moment, is process-wide. A token is initialised once in its life, so there
// is no contention to speak of.
//
//nolint:gochecknoglobals // guards the process environment, which is global
var initMu sync.Mutex

// Init makes sure that opts.Dir holds a configuration and a token of the given
// label, and its PIN files. A token that exists is left as it is; several
// tokens, one call each, may share a directory. It must not be called while
// the module is in use by this process: SoftHSM would not read the staging
// configuration (noticed and reported, nothing is harmed). Two processes must
// not call it on the same directory at once.
//
// When it returns nil the token and its PINs are durable.
func Init(ctx context.Context, opts Options) (Token, error) {
	if err := checkLabel(opts.Label); err != nil {
		return Token{}, err
	}
	module := opts.Module
	if module == "" {
		var err error
		if module, err = Locate(); err != nil {
			return Token{}, err
		}
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return Token{}, fmt.Errorf("directory %s: %w", opts.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Token{}, fmt.Errorf("create %s: %w", dir, err)
	}
	conf, err := WriteConfig(dir)
	if err != nil {
		return Token{}, err
	}
	t := Token{
		Module: module, Conf: conf, TokenDir: filepath.Join(dir, tokenDirName), Label: opts.Label,
		PINFile:   filepath.Join(dir, opts.Label+".pin"),
		SOPINFile: filepath.Join(dir, opts.Label+".so-pin"),
	}
	initMu.Lock()
	defer initMu.Unlock()
	err = t.init(ctx, dir)
	return t, err
}

// init does the work of Init. The user PIN file is the last thing to come to
// its place: where it is, the token is complete.
func (t *Token) init(ctx context.Context, dir string) error {
	ready := filepath.Join(dir, t.Label+".ready")
	if exists, err := exists(ready); err != nil {
		return err
	} else if exists { // an earlier Init stopped in the middle of finish
		t.Created = true
		return t.finish(ready)
	}
	if exists, err := exists(t.PINFile); err != nil || exists {
		return err
	}
	if err := t.refuseOrphan(ctx); err != nil {
		return err
	}
	if err := t.stage(ctx, dir, ready); err != nil {
		return err
	}
	t.Created = true
	return t.finish(ready)
}

// refuseOrphan refuses to make a second token beside one of the same label
// whose PIN file is gone: the first one's keys would be hidden by it.
func (t *Token) refuseOrphan(ctx context.Context) error {
	entries, err := os.ReadDir(t.TokenDir)
	if err != nil {
		return fmt.Errorf("read token directory: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	restore := swapConf(t.Conf)
	defer restore()
	info, err := hsm.InspectModule(ctx, t.Module)
	if err != nil {
		return fmt.Errorf("look for token %q: %w", t.Label, err)
	}
	for _, slot := range info.Slots {
		if slot.Initialized && slot.Label == t.Label {
			return fmt.Errorf("token %q exists in %s but its PIN file %s does not; restore the file from a backup, or move both away to start anew", t.Label, t.TokenDir, t.PINFile)
		}
	}
	return nil
}

// stage initialises the token in a staging folder, makes it and its PINs
// durable, and gives the folder the name ready with one rename. Until then a
// crash leaves nothing that counts, after it everything that finish needs.
func (t *Token) stage(ctx context.Context, dir, ready string) error {
	stage := filepath.Join(dir, stageName)
	// What a crash left here was never used: no key can be in it.
	if err := os.RemoveAll(stage); err != nil {
		return fmt.Errorf("clear staging folder: %w", err)
	}
	defer os.RemoveAll(stage)
	tokens := filepath.Join(stage, tokenDirName)
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return fmt.Errorf("create staging folder: %w", err)
	}
	conf, err := writeConfig(filepath.Join(stage, confName), tokens)
	if err != nil {
		return err
	}
	userPIN, soPIN := newPIN(), newPIN()
	defer clear(userPIN)
	defer clear(soPIN)

	restore := swapConf(conf)
	_, err = hsm.InitToken(ctx, hsm.InitConfig{Module: t.Module, Label: t.Label, SOPIN: soPIN, UserPIN: userPIN})
	restore()
	if err != nil {
		return fmt.Errorf("initialise token %q: %w", t.Label, err)
	}
	if _, err := onlyEntry(tokens); err != nil {
		return fmt.Errorf("initialise token %q: %w: is the module in use by this process already?", t.Label, err)
	}
	if err := writeFileDurably(filepath.Join(stage, pinName), userPIN); err != nil {
		return fmt.Errorf("write user PIN: %w", err)
	}
	if err := writeFileDurably(filepath.Join(stage, soPINName), soPIN); err != nil {
		return fmt.Errorf("write SO PIN: %w", err)
	}
	// SoftHSM never syncs its files.
	if err := syncTree(stage); err != nil {
		return fmt.Errorf("sync token: %w", err)
	}
	if err := os.Rename(stage, ready); err != nil {
		return fmt.Errorf("commit token: %w", err)
	}
	return syncDir(dir)
}

// finish moves the parts of a complete token from ready to their places: the
// token, the SO PIN, then the user PIN. It may be repeated after a crash.
func (t *Token) finish(ready string) error {
	tokens := filepath.Join(ready, tokenDirName)
	folder, err := onlyEntry(tokens)
	switch {
	case err == nil:
		if err := os.Rename(filepath.Join(tokens, folder), filepath.Join(t.TokenDir, folder)); err != nil {
			return fmt.Errorf("put token in its place: %w", err)
		}
	case !errors.Is(err, errEmpty): // empty: moved by an earlier attempt
		return fmt.Errorf("finish initialisation of token %q: %w", t.Label, err)
	}
	if err := syncDir(t.TokenDir); err != nil {
		return fmt.Errorf("sync token directory: %w", err)
	}
	for _, move := range []struct{ from, to string }{{soPINName, t.SOPINFile}, {pinName, t.PINFile}} {
		err := os.Rename(filepath.Join(ready, move.from), move.to)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put PIN file in its place: %w", err)
		}
	}
	if err := syncDir(filepath.Dir(ready)); err != nil {
		return fmt.Errorf("sync %s: %w", filepath.Dir(ready), err)
	}
	if exists, err := exists(t.PINFile); err != nil {
		return err
	} else if !exists {
		return fmt.Errorf("finish initialisation of token %q: the PIN is neither in %s nor in %s; restore it from a backup", t.Label, ready, t.PINFile)
	}
	if err := os.RemoveAll(ready); err != nil {
		return fmt.Errorf("remove staging folder: %w", err)
	}
	return nil
}

var errEmpty = errors.New("folder is empty")

// onlyEntry returns the name of the one entry of dir.
func onlyEntry(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	switch {
	case err != nil:
		return "", err
	case len(entries) == 0:
		return "", fmt.Errorf("%s: %w", dir, errEmpty)
	case len(entries) > 1:
		return "", fmt.Errorf("%s has %d entries, want 1", dir, len(entries))
	}
	return entries[0].Name(), nil
}

// newPIN returns a random PIN; the caller zeroes it.
func newPIN() []byte {
	raw := make([]byte, pinBytes)
	defer clear(raw)
	rand.Read(raw) // never fails (crypto/rand)
	pin := make([]byte, base32.StdEncoding.EncodedLen(len(raw)))
	base32.StdEncoding.Encode(pin, raw)
	return pin
}

// swapConf sets SOFTHSM2_CONF and returns what puts the old value back.
func swapConf(conf string) (restore func()) {
	old, had := os.LookupEnv(EnvConf)
	os.Setenv(EnvConf, conf) // fails only for malformed names and NUL bytes; Config refuses those
	return func() {
		if had {
			os.Setenv(EnvConf, old)
		} else {
			os.Unsetenv(EnvConf)
		}
	}
}

// checkLabel keeps the label usable as a file name and as CK_TOKEN_INFO.label,
// which is blank-padded: a trailing blank would be lost.
func checkLabel(label string) error {
	bad := strings.ContainsFunc(label, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == '\\' })
	if label == "" || len(label) > maxLabelBytes || bad || label[0] == '.' {
		return fmt.Errorf("token label %q: want 1 to %d printable ASCII characters, no blank, / or \\, not beginning with a dot", label, maxLabelBytes)
	}
	return nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// syncTree makes every file and folder below dir durable, and dir itself.
func syncTree(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !(entry.IsDir() || entry.Type().IsRegular()) {
			return err
		}
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
}
