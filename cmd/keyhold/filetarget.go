package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
)

// partialPattern names files that are being written. A file of such a name that
// is left over comes from a process that was killed, and can be deleted.
const partialPattern = ".keyhold-*.partial"

// target is where a result goes. A file appears under its name when it is
// complete; until then it has another name, and a mode of 0600.
type target struct {
	path  string
	mode  fs.FileMode
	force bool

	// straight is what is written to as it is: standard output, a device, a
	// pipe. Nothing can be taken back from there.
	straight func() (io.WriteCloser, error)

	mu   sync.Mutex // guards the rest: discard may come at any time
	file *os.File   // the partial one
	over bool       // it has its name, or was discarded
}

// findTarget looks whether the result may go to out. What may change until it
// is written is looked at again then.
func (a *app) findTarget(out string, src *source, v *fileVerb) (*target, error) {
	if out == "-" {
		return a.stdoutTarget(src)
	}
	t := &target{path: out, mode: 0o600, force: v.force}
	if src.regular() && src.file != nil {
		t.mode = src.info.Mode().Perm()
	}
	info, err := os.Lstat(out)
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(out)
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the folder %s does not exist", dir)
		}
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	if followed, err := os.Stat(out); err == nil && !followed.IsDir() && !followed.Mode().IsRegular() && v.out != "" {
		t.straight = func() (io.WriteCloser, error) { return openDevice(out) }
		return t, nil
	}
	switch {
	case src.same(info):
		return nil, fmt.Errorf("%s is the source itself", out)
	case info.IsDir():
		return nil, fmt.Errorf("%s is a folder", out)
	case !v.force:
		return nil, errExists(out)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file (%s), so it is not replaced", out, info.Mode().Type())
	}
	return t, nil
}

// openDevice opens what was seen not to be a regular file. If it has become one
// since, it is not written to: it would be overwritten in place.
func openDevice(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		err = fmt.Errorf("%s was replaced by a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func errExists(path string) error {
	return withHint(fmt.Errorf("%s exists", path), "--force replaces it")
}

func (a *app) stdoutTarget(src *source) (*target, error) {
	if a.isTerminal(a.stdout) {
		return nil, withHint(errors.New("standard output is a terminal"), "say with --out where the result goes, or pipe it")
	}
	if f, ok := a.stdout.(interface{ Stat() (fs.FileInfo, error) }); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && src.same(info) {
			return nil, fmt.Errorf("%s is both read and written", src.name)
		}
	}
	return &target{path: "-", straight: func() (io.WriteCloser, error) { return stdout{a}, nil }}, nil
}

// stdout writes to standard output and leaves it open.
type stdout struct{ a *app }

func (s stdout) Write(p []byte) (int, error) {
	if err := s.a.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s stdout) Close() error { return nil }

// write lets fill make the contents, and gives the file its name. When it
// fails, nothing is left behind.
func (t *target) write(fill func(io.Writer) error) error {
	if t.straight != nil {
		w, err := t.straight()
		if err != nil {
			return err
		}
		return errors.Join(fill(w), w.Close())
	}
	f, err := t.create()
	if err != nil {
		return err
	}
	defer t.discard()
	if err := fill(f); err != nil {
		return err
	}
	// The mode before the name: under its name it never has another.
	if err := f.Chmod(t.mode); err != nil && runtime.GOOS != "windows" {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return t.publish()
}

var errDiscarded = errors.New("interrupted")

func (t *target) create() (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil, errDiscarded
	}
	f, err := os.CreateTemp(filepath.Dir(t.path), partialPattern) // mode 0600
	if err != nil {
		return nil, err
	}
	t.file = f
	return f, nil
}

// discard removes what was written, unless it has its name already.
func (t *target) discard() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || t.file == nil {
		t.over = true
		return
	}
	t.over = true
	// The name first: whoever writes into it still, writes into nothing.
	_ = os.Remove(t.file.Name())
	t.file.Close()
}

// publish gives the file its name. It does not replace another file unless it
// was told to, also not one that has come since it was looked at.
func (t *target) publish() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return errDiscarded
	}
	if err := t.file.Close(); err != nil {
		return err
	}
	var err error
	if t.force {
		err = os.Rename(t.file.Name(), t.path)
	} else {
		err = renameNew(t.file.Name(), t.path)
	}
	if err != nil {
		return err
	}
	t.over = true
	if err := syncFolder(filepath.Dir(t.path)); err != nil {
		return fmt.Errorf("%s is written, but may not survive a loss of power: %w", t.path, err)
	}
	return nil
}

// renameNew renames a file to a name that must be free.
func renameNew(from, to string) error {
	err := os.Link(from, to)
	switch {
	case err == nil:
		return os.Remove(from)
	case errors.Is(err, fs.ErrExist):
		return errExists(to)
	case noHardLinks(err):
		return renameReserved(from, to)
	}
	return err
}

// noHardLinks tells whether err of os.Link says that the file system has none,
// as FAT, many a FUSE and some network file systems do.
func noHardLinks(err error) bool {
	for _, e := range []syscall.Errno{syscall.EPERM, syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK, syscall.EXDEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// renameReserved is renameNew for file systems without hard links. An empty
// file reserves the name; only who does not look overwrites it. If the file
// does not get the name, the reservation is taken back.
func renameReserved(from, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return errExists(to)
	}
	if err != nil {
		return err
	}
	reserved, err := f.Stat()
	f.Close()
	if err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		if now, statErr := os.Lstat(to); statErr == nil && os.SameFile(now, reserved) && now.Size() == 0 {
			return errors.Join(err, os.Remove(to))
		}
		return err
	}
	return nil
}

// syncFolder makes a new name durable.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // it has no such thing
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// Some file systems cannot, and say so.
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
