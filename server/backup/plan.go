package backup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// planName is the file in the data folder's stage that says what is moved.
const planName = "plan.json"

// maxPlanBytes bounds a plan that is read.
const maxPlanBytes = 256 << 20

// plan says what a restore does to the targets, so that an interrupted one can be
// taken back. Nothing of it was ever in use: the daemon does not start while the mark
// is there. But an operator may have put files of their own in its places: a move is
// taken back only where To is what was moved.
type plan struct {
	// Stages are the restore's own folders, but that in the data folder, which is
	// always one.
	Stages []string `json:"stages"`
	// Made are the target folders that it made because they were missing.
	Made  []string `json:"made"`
	Moves []move   `json:"moves"`
}

// move is a rename.
type move struct {
	From string   `json:"from"`
	To   string   `json:"to"`
	What identity `json:"what"`
}

// identity tells a file or folder from any other that may stand in its place later.
// A rename keeps all of it. The inode alone is not enough: its number is given again
// once the file is gone. The device is left out: it may have another number after a
// reboot.
type identity struct {
	Inode    uint64 `json:"inode"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // ns since 1970
	// Objects is, for the folder of a token, the SHA-256 of what identifies its
	// objects, hex. A folder's own size and time are left out: some file systems
	// change them when it is moved.
	Objects string `json:"objects,omitempty"`
}

// identify returns the identity of what stands at path, and follows no link.
func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return identity{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return identity{Inode: st.Ino, Size: st.Size, Modified: unix.TimespecToNsec(st.Mtim)}, nil
	}
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return identity{}, err
	}
	h := sha256.New()
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".object") {
			continue
		}
		object, err := identify(filepath.Join(path, e.Name()))
		if err != nil {
			return identity{}, err
		}
		if e.Name() == "token.object" {
			// A login writes it, that of doctor too.
			object.Size, object.Modified = 0, 0
		}
		fmt.Fprintf(h, "%q %+v\n", e.Name(), object)
	}
	return identity{Inode: st.Ino, Objects: hex.EncodeToString(h.Sum(nil))}, nil
}

// planMoves notes what is about to be moved.
func (t *targets) planMoves(moves []move) (err error) {
	for i := range moves {
		// A power failure must not change the times either.
		if err := t.sync(moves[i].From); err != nil {
			return err
		}
		if moves[i].What, err = identify(moves[i].From); err != nil {
			return err
		}
	}
	t.plan.Moves = moves
	return t.savePlan()
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

// takeBack takes back what an interrupted restore did, by its plan. One that was not
// interrupted may have left stages, where it was killed after it took its mark away:
// these are removed, and nothing else. Its installation has been in use since.
func (t *targets) takeBack(interrupted bool) error {
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
	if !interrupted {
		return old.clear(t.data)
	}
	return old.undo(t.data, t.sync)
}

// undo takes moves and stages back; the data folder and its mark stay. Where
// something else stands in a place it takes nothing back and says so.
func (p *plan) undo(data string, sync func(dir string) error) error {
	done, err := p.moved()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(done) {
		if err := os.Rename(m.To, m.From); err != nil {
			return fmt.Errorf("take back %s: %w", m.To, err)
		}
	}
	// All moves, not only these: the process may have been killed right here. A power
	// failure must not bring back what no plan and no mark tell of any more.
	synced := make(map[string]bool)
	for _, m := range p.Moves {
		dir := filepath.Dir(m.To)
		if synced[dir] {
			continue
		}
		synced[dir] = true
		if err := sync(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take back: %w", err)
		}
	}
	if err := p.clear(data); err != nil {
		return fmt.Errorf("remove what was staged: %w", err)
	}
	for _, dir := range slices.Backward(p.Made) {
		if dir != data {
			_ = os.Remove(dir) // only where it is empty
		}
	}
	return sync(data)
}

// moved returns the moves that have happened.
func (p *plan) moved() (done []move, err error) {
	for _, m := range p.Moves {
		waits, err := exists(m.From)
		if err != nil {
			return nil, err
		}
		if waits {
			continue // and what is at To was never the restore's
		}
		found, err := identify(m.To)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case found != m.What:
			return nil, fmt.Errorf("%s: %w, and not what the interrupted restore put there, or changed since; nothing was taken back; hint: move it away, run `keyholdd restore` again, which takes back the rest, and put it back then if it is to be kept", m.To, fs.ErrExist)
		default:
			done = append(done, m)
		}
	}
	return done, nil
}

// clear removes the stages; that in the data folder, in which the plan is, last.
func (p *plan) clear(data string) error {
	for _, dir := range slices.Backward(p.Stages) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(dataStage(data))
}
