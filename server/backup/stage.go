package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/keyhold/keyhold/server"
)

// stageName is the folder within each target folder, and so on its file system,
// in which a restore makes everything ready.
const stageName = ".keyhold-restore"

// planName is the file in the data folder's stage that says what is moved.
const planName = "plan.json"

// maxPlanBytes bounds a plan that is read.
const maxPlanBytes = 256 << 20

// plan says what a restore does to the targets, so that an interrupted one can be
// taken back: Stages are its own folders, Made those that it made because they
// were missing. A move has happened where To is there and From is not. Nothing of
// it was ever in use: the daemon does not start while the mark is there.
type plan struct {
	Stages []string `json:"stages"`
	Made   []string `json:"made"`
	Moves  []move   `json:"moves"`
}

type move struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// targets are the folders that a restore fills.
type targets struct {
	data, audit string
	tokens      string // SoftHSM's folder of tokens; empty where no token is restored

	// kept tells that the journal is left as it is.
	kept bool

	mark *os.File
	plan plan
}

// claim makes the data folder if need be, and the mark in it. It takes back what
// an interrupted restore left. Nobody else restores there until done or undo.
func claim(cfg *server.Config, keepJournal bool) (*targets, error) {
	t := &targets{kept: keepJournal}
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
	if interrupted {
		err = t.takeBack()
	} else {
		// Without a mark, what a finished restore may have left undoes nothing: its
		// installation has been in use since.
		err = os.RemoveAll(t.stage(t.data))
	}
	if err != nil {
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

func (t *targets) stage(dir string) string { return filepath.Join(dir, stageName) }

// takeBack takes back what an interrupted restore did, by its plan.
func (t *targets) takeBack() error {
	f, err := os.Open(filepath.Join(t.stage(t.data), planName))
	if errors.Is(err, fs.ErrNotExist) {
		// It stopped before it did anything but, perhaps, make its stage here.
		return os.RemoveAll(t.stage(t.data))
	}
	if err != nil {
		return fmt.Errorf("read what the interrupted restore did: %w", err)
	}
	defer f.Close()
	var old plan
	b, err := io.ReadAll(io.LimitReader(f, maxPlanBytes))
	if err == nil {
		err = json.Unmarshal(b, &old)
	}
	if err != nil {
		return fmt.Errorf("read what the interrupted restore did: %w", err)
	}
	return old.undo(t.data)
}

// undo takes moves and stages back; the data folder and its mark stay.
func (p *plan) undo(data string) error {
	for _, m := range slices.Backward(p.Moves) {
		waits, err := exists(m.From)
		if err != nil {
			return err
		}
		placed, err := exists(m.To)
		if err != nil {
			return err
		}
		if waits || !placed {
			continue
		}
		if err := os.Rename(m.To, m.From); err != nil {
			return fmt.Errorf("take back %s: %w", m.To, err)
		}
	}
	// The plan is in the data folder's stage, which goes last.
	for _, dir := range slices.Backward(p.Stages) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what was staged: %w", err)
		}
	}
	for _, dir := range slices.Backward(p.Made) {
		if dir != data {
			_ = os.Remove(dir) // only where it is empty
		}
	}
	return syncDir(data)
}

// undo takes all back and removes the mark. The targets are as they were.
func (t *targets) undo() error {
	if err := t.plan.undo(t.data); err != nil {
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
	t.plan.Stages = []string{t.stage(t.data)}
	if err := os.Mkdir(t.stage(t.data), 0o700); err != nil {
		return err
	}
	if err := t.savePlan(); err != nil {
		return err
	}
	for _, dir := range dirs[1:] {
		if found, err := exists(dir); err != nil {
			return err
		} else if !found {
			t.plan.Made = append(t.plan.Made, dir)
		}
		t.plan.Stages = append(t.plan.Stages, t.stage(dir))
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
			// Of a restore that was finished and then killed.
			if err := os.RemoveAll(t.stage(dir)); err != nil {
				return err
			}
		}
		if err := os.Mkdir(t.stage(dir), 0o700); err != nil {
			return fmt.Errorf("%w; hint: it is of another restore; if none is at work, remove it", err)
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
// and the folder except.
func empty(dir, except string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Name() == stageName, e.Name() == "restore.unfinished", e.Name() == "keyhold.lock", e.Name() == "lost+found":
		case path == except && e.IsDir():
		default:
			return fmt.Errorf("%s is not empty (there is %s): %w; hint: a restore overwrites nothing. If an installation is there, stop it and move its folders away; keep them, they may hold newer records", dir, e.Name(), fs.ErrExist)
		}
	}
	return nil
}

// savePlan writes the plan, whole or not at all.
func (t *targets) savePlan() error {
	b, err := json.Marshal(t.plan)
	if err != nil {
		return err
	}
	path := filepath.Join(t.stage(t.data), planName)
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = createFile(path+".new", func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("note what is about to be done: %w", err)
	}
	return nil
}

// commit moves what is staged to its places.
func (t *targets) commit(moves []move) error {
	t.plan.Moves = moves
	if err := t.savePlan(); err != nil {
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
		if err := syncDir(dir); err != nil {
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
	for _, dir := range slices.Backward(t.plan.Stages) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("all is in place, but what was staged is not removed: %w; hint: remove it", err)
		}
	}
	return nil
}
