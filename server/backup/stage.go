package backup

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keyhold/keyhold/server"
)

// stageName is the folder within the data folder in which a restore makes ready
// what goes there. It begins the names of those in the other target folders, each on
// its own file system, which other installations may share: these end in random
// letters.
const stageName = ".keyhold-restore"

// targets are the folders that a restore fills.
type targets struct {
	data, audit string
	tokens      string // SoftHSM's folder of tokens; empty where no token is restored

	// kept tells that the journal is left as it is.
	kept bool

	mark *os.File
	plan plan
	// stages are the stages in audit and tokens, by folder.
	stages map[string]string
	// sync makes the names in a folder durable.
	sync func(dir string) error
}

// claim makes the data folder if need be, and the mark in it. It takes back what
// an interrupted restore left. Nobody else restores there until done or undo.
func claim(cfg *server.Config, keepJournal bool) (*targets, error) {
	t := &targets{kept: keepJournal, stages: make(map[string]string), sync: syncDir}
	var err error
	if t.data, err = filepath.Abs(cfg.DataDir); err != nil {
		return nil, err
	}
	if t.audit, err = filepath.Abs(cfg.Audit.Dir); err != nil {
		return nil, err
	}
	madeData, err := makeDir(t.data)
	if err != nil {
		return nil, err
	}
	if err := ownedByCaller(t.data); err != nil {
		return nil, err
	}
	// A mistake shall not leave a mark in an installation, not even for a moment.
	if marked, err := exists(server.RestoreMark(cfg)); err != nil {
		return nil, err
	} else if !marked {
		if err := t.emptyData(); err != nil {
			return nil, err
		}
	}
	interrupted, err := t.lock(server.RestoreMark(cfg))
	if err != nil {
		return nil, err
	}
	if err := t.takeBack(interrupted); err != nil {
		return nil, errors.Join(err, t.mark.Close())
	}
	if madeData {
		t.plan.Made = []string{t.data}
	}
	return t, nil
}

// ownedByCaller refuses to fill the folder of another user, who could not open
// what is put there.
func ownedByCaller(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at the data folder: %w", err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, and this is user %d; hint: run it as the daemon's user", dir, st.Uid, os.Geteuid())
	}
	return nil
}

// makeDir makes a folder, not its parents, where it is missing.
func makeDir(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return false, fmt.Errorf("make the folder: %w; hint: as root, `install -d -m 700 -o %d %s`", err, os.Geteuid(), dir)
	}
	if err != nil {
		return false, fmt.Errorf("make the folder: %w; hint: make its parent first, or correct the configuration", err)
	}
	return true, syncDir(filepath.Dir(dir))
}

// lock makes the mark, or finds that of an interrupted restore.
func (t *targets) lock(path string) (interrupted bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		interrupted = true
		f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return false, fmt.Errorf("mark the data folder: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || err == nil && !stillThere(f, path) {
		err = errors.New("another restore is at work there")
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("mark the data folder %s: %w", t.data, err), f.Close())
	}
	t.mark = f
	return interrupted, syncDir(t.data)
}

// stillThere tells whether path leads to f: another process may have removed it
// between opening and locking.
func stillThere(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	found, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, found)
}

// stage returns the stage in one of the target folders; for others than the data
// folder, once prepare has named it.
func (t *targets) stage(dir string) string {
	if dir == t.data {
		return dataStage(dir)
	}
	return t.stages[dir]
}

func dataStage(data string) string { return filepath.Join(data, stageName) }

// undo takes all back and removes the mark. The targets are as they were.
func (t *targets) undo() error {
	if err := t.plan.undo(t.data, t.sync); err != nil {
		return errors.Join(fmt.Errorf("%w; hint: run `keyholdd restore` again, it goes on with taking back", err), t.mark.Close())
	}
	if err := t.unmark(); err != nil {
		return err
	}
	if slices.Contains(t.plan.Made, t.data) {
		_ = os.Remove(t.data) // only where it is empty
	}
	return nil
}

// unmark removes the mark: from then on the daemon may start.
func (t *targets) unmark() error {
	if err := os.Remove(t.mark.Name()); err != nil {
		return errors.Join(err, t.mark.Close())
	}
	return errors.Join(syncDir(t.data), t.mark.Close())
}

// prepare checks that the targets are empty and makes the stages.
func (t *targets) prepare() error {
	if err := t.emptyData(); err != nil {
		return err
	}
	dirs := []string{t.data}
	if !t.kept {
		dirs = append(dirs, t.audit)
	}
	if t.tokens != "" {
		dirs = append(dirs, t.tokens)
	}
	// The data folder's stage first, since the plan is in it.
	if err := os.Mkdir(t.stage(t.data), 0o700); err != nil {
		return err
	}
	for _, dir := range dirs[1:] {
		if found, err := exists(dir); err != nil {
			return err
		} else if !found {
			t.plan.Made = append(t.plan.Made, dir)
		}
		t.stages[dir] = filepath.Join(dir, stageName+"-"+strings.ToLower(rand.Text()))
		t.plan.Stages = append(t.plan.Stages, t.stages[dir])
	}
	if err := t.savePlan(); err != nil {
		return err
	}
	for _, dir := range dirs[1:] {
		if _, err := makeDir(dir); err != nil {
			return err
		}
		if dir == t.audit {
			if err := empty(dir, ""); err != nil {
				return err
			}
		}
		if err := os.Mkdir(t.stage(dir), 0o700); err != nil {
			return err
		}
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// emptyData wants nothing in the data folder but the folder of the journal, empty
// unless the journal is kept.
func (t *targets) emptyData() error {
	if err := empty(t.data, t.audit); err != nil || t.kept {
		return err
	}
	if found, err := exists(t.audit); err != nil || !found {
		return err
	}
	return empty(t.audit, "")
}

// empty wants nothing in a folder but what a restore, or a file system, has made,
// and the folder except, or a symbolic link to it.
func empty(dir, except string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), stageName), e.Name() == "restore.unfinished", e.Name() == "keyhold.lock", e.Name() == "lost+found":
		case sameFolder(filepath.Join(dir, e.Name()), except):
		default:
			return fmt.Errorf("%s is not empty (there is %s): %w; hint: a restore overwrites nothing. If an installation is there, stop it and move its folders away; keep them, they may hold newer records", dir, e.Name(), fs.ErrExist)
		}
	}
	return nil
}

// sameFolder tells whether two paths lead to one folder. A journal on a disk of its
// own may be behind a link.
func sameFolder(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil || !one.IsDir() {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// commit moves what is staged to its places.
func (t *targets) commit(moves []move) error {
	if err := t.planMoves(moves); err != nil {
		return err
	}
	folders := make(map[string]bool)
	for _, m := range moves {
		if found, err := exists(m.To); err != nil {
			return err
		} else if found {
			return fmt.Errorf("%s: %w: it was not there before", m.To, fs.ErrExist)
		}
		if err := os.Rename(m.From, m.To); err != nil {
			return fmt.Errorf("put in place: %w", err)
		}
		folders[filepath.Dir(m.To)] = true
	}
	for dir := range folders {
		if err := t.sync(dir); err != nil {
			return err
		}
	}
	return nil
}

// done takes the mark away after commit, and removes the stages. From here on
// nothing is taken back.
func (t *targets) done() error {
	if err := t.unmark(); err != nil {
		return err
	}
	if err := t.plan.clear(t.data); err != nil {
		return fmt.Errorf("all is in place, but what was staged is not removed: %w; hint: remove it", err)
	}
	return nil
}
