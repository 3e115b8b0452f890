package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// file is an open file of the journal. Methods may be called concurrently.
type file interface {
	io.ReaderAt
	io.WriterAt
	// Sync puts everything written so far on the disk, with the metadata needed to
	// read it back.
	Sync() error
	// Allocate reserves disk space for size bytes and makes the file that long.
	// errors.ErrUnsupported means that the file system cannot.
	Allocate(size int64) error
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
	// DropCache asks that later reads come from the disk. A hint.
	DropCache()
	Close() error
}

// fileSystem is what the journal needs of the operating system, so that tests can
// make it fail.
type fileSystem interface {
	OpenFile(path string, flag int, perm fs.FileMode) (file, error)
	Rename(from, to string) error
	Remove(path string) error
	ReadDir(dir string) ([]string, error) // names, sorted
	// SyncDir makes created, renamed and removed names durable.
	SyncDir(dir string) error
	Stat(path string) (fs.FileInfo, error)
	// FreeBytes is what an unprivileged user may still write.
	FreeBytes(dir string) (int64, error)
}

type osFS struct{}

var _ fileSystem = osFS{}

func (osFS) OpenFile(path string, flag int, perm fs.FileMode) (file, error) {
	f, err := os.OpenFile(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f, fd: int(f.Fd())}, nil
}

func (osFS) Rename(from, to string) error          { return os.Rename(from, to) }
func (osFS) Remove(path string) error              { return os.Remove(path) }
func (osFS) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }
func (osFS) ReadDir(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) FreeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // Bsize has other types on other systems
}

// osFile adds to os.File what needs the descriptor; the embedded file keeps it
// open. See files_linux.go and files_other.go.
type osFile struct {
	*os.File
	fd int
}

const (
	segmentPrefix = "journal-"
	segmentSuffix = ".khj"
	spareName     = "journal-next.tmp"
	headName      = "head"
)

// segmentName returns the name of the segment whose first record is seq. Names
// sort as numbers do.
func segmentName(seq uint64) string {
	return fmt.Sprintf("%s%020d%s", segmentPrefix, seq, segmentSuffix)
}

// parseSegmentName is the inverse of segmentName. ok is false for other names.
func parseSegmentName(name string) (seq uint64, ok bool) {
	digits, isSegment := strings.CutPrefix(name, segmentPrefix)
	digits, hasSuffix := strings.CutSuffix(digits, segmentSuffix)
	if !isSegment || !hasSuffix || len(digits) != 20 {
		return 0, false
	}
	seq, err := strconv.ParseUint(digits, 10, 64)
	return seq, err == nil
}

// listSegments returns the first sequence numbers of the segments in dir, in
// order.
func listSegments(fsys fileSystem, dir string) ([]uint64, error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list audit journal: %w", err)
	}
	var firsts []uint64
	for _, name := range names {
		if seq, ok := parseSegmentName(name); ok {
			firsts = append(firsts, seq)
		} else if strings.HasSuffix(name, segmentSuffix) {
			return nil, &Fault{
				Kind: FaultSegmentName, Segment: name,
				Detail: "a file with the suffix of a segment has no segment's name",
			}
		}
	}
	return firsts, nil
}

// readHead reads the head file. found is false if there is none; err says that
// there is one and it cannot be used.
func readHead(fsys fileSystem, dir string) (id journalID, at Anchor, found bool, err error) {
	f, err := fsys.OpenFile(filepath.Join(dir, headName), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return id, at, false, nil
	}
	if err != nil {
		return id, at, true, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, headBytes+1))
	if err == nil {
		id, at, err = parseHead(b)
	}
	return id, at, true, err
}

// writeSync writes p and makes it durable, with all that was written before.
func writeSync(f file, p []byte, off int64) error {
	if _, err := f.WriteAt(p, off); err != nil {
		return err
	}
	return f.Sync()
}

// createHead makes the head file durable, with its directory entry.
func createHead(fsys fileSystem, dir string, id journalID, at Anchor) (file, error) {
	f, err := fsys.OpenFile(filepath.Join(dir, headName), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create head file: %w", err)
	}
	err = writeSync(f, appendHead(nil, id, at), 0)
	if err == nil {
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write head file: %w", err), f.Close())
	}
	return f, nil
}

const (
	lockAttempts = 20
	lockPause    = 25 * time.Millisecond
)

// lockDir takes the writer's lock on dir. A verifier holds the lock for an
// instant to see whether a writer lives, hence the few attempts.
func lockDir(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for i := range lockAttempts {
		if i > 0 {
			time.Sleep(lockPause)
		}
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return d, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
	}
	d.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
	}
	return nil, fmt.Errorf("lock %s: %w", dir, err)
}

// writerLives reports whether a process has dir open as a journal.
func writerLives(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close() // also gives the lock back
	err = unix.Flock(int(d.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
