package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// segment is the file that records go to.
type segment struct {
	name string
	path string
	file file
	size int64
	// written is how much of it has been written once, with zeros at least: all of
	// it, but for a segment that was needed at once.
	written int64
	info    fs.FileInfo // which file it is
}

// spare is a preallocated file that becomes the next segment.
type spare struct {
	file          file
	size, written int64
}

type preparation struct {
	spare *spare
	err   error
}

// eagerZeroBytes of a segment that is needed at once are written when it is
// created; the rest is only reserved, so that a new journal opens quickly. Such a
// segment is left for the next one once they are full.
const eagerZeroBytes = 1 << 20

// newSpare makes a file of size bytes of zeros under the spare's name, on the disk,
// and writes the first written bytes of it: syncing a write to blocks that were
// reserved but never written costs a file-system transaction, about half as much
// again. A spare that an earlier process left is used if it is whole and empty.
func newSpare(fsys fileSystem, dir string, size, written int64) (*spare, error) {
	path := filepath.Join(dir, spareName)
	if s := reuseSpare(fsys, path, size); s != nil {
		return s, nil
	}
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old spare segment: %w", err)
	}
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create spare segment: %w", err)
	}
	err = f.Allocate(size)
	if errors.Is(err, errors.ErrUnsupported) {
		written = size
		err = checkFree(fsys, dir, size)
	}
	for off := int64(0); err == nil && off < written; off += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), written-off)], off)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		// Give the space back at once: others on this disk may need it.
		return nil, errors.Join(fmt.Errorf("preallocate audit segment of %d bytes: %w", size, err), f.Close(), fsys.Remove(path))
	}
	return &spare{file: f, size: size, written: written}, nil
}

// checkFree keeps a file system without preallocation from being filled to the last
// block by each attempt.
func checkFree(fsys fileSystem, dir string, size int64) error {
	free, err := fsys.FreeBytes(dir)
	if err == nil && free < size {
		err = unix.ENOSPC
	}
	return err
}

// reuseSpare returns nil if there is no usable spare.
func reuseSpare(fsys fileSystem, path string, size int64) *spare {
	f, err := fsys.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	w := window{r: f, size: size}
	info, err := f.Stat()
	ok := err == nil && info.Size() == size && info.Mode().IsRegular()
	for off := int64(0); ok && off < size; off += windowBytes {
		b, err := w.at(off, windowBytes)
		ok = err == nil && len(b) > 0 && allZero(b)
	}
	// It may be a copy with holes instead of reserved blocks.
	if !ok || f.Allocate(size) != nil || f.Sync() != nil {
		f.Close()
		return nil
	}
	return &spare{file: f, size: size, written: size}
}

// fill writes the header and the first records into s and syncs it. It does not
// yet have a segment's name.
func (s *spare) fill(id journalID, start Anchor, created time.Time, records []byte) error {
	h := segmentHeader{id: id, start: start, created: created}
	if err := writeSync(s.file, append(h.encode(), records...), 0); err != nil {
		return fmt.Errorf("write header of new audit segment: %w", err)
	}
	return nil
}

// publish gives s its name as the segment that begins with record first. renamed is
// true once it has the name, perhaps not yet durably.
func (s *spare) publish(fsys fileSystem, dir string, first uint64) (seg *segment, renamed bool, err error) {
	name := segmentName(first)
	path := filepath.Join(dir, name)
	info, err := s.file.Stat()
	if err != nil {
		return nil, false, fmt.Errorf("stat new audit segment: %w", err)
	}
	if err := fsys.Rename(filepath.Join(dir, spareName), path); err != nil {
		return nil, false, fmt.Errorf("name new audit segment: %w", err)
	}
	if err := fsys.SyncDir(dir); err != nil {
		return nil, true, fmt.Errorf("sync audit directory: %w", err)
	}
	return &segment{name: name, path: path, file: s.file, size: s.size, written: s.written, info: info}, true, nil
}

// prepare starts making the next segment in the background.
func (j *Journal) prepare() {
	w := &j.w
	w.preparing = true
	w.nextRetry = time.Time{}
	fsys, dir, size, out := j.opts.fs, j.dir, j.opts.SegmentBytes, w.prepared
	go func() {
		s, err := newSpare(fsys, dir, size, size)
		out <- preparation{s, err}
	}()
}

// adopt takes what prepare made.
func (j *Journal) adopt(p preparation) {
	w := &j.w
	w.preparing = false
	if p.err != nil {
		if w.nextErr == nil {
			j.opts.Logger.Error("next audit segment cannot be preallocated: when this one is full up to the reserve, operations will be refused",
				"dir", j.dir, "left_bytes", w.seg.size-w.durableOff, "reserve_bytes", j.opts.ReserveBytes, "err", p.err)
		}
		w.nextErr = p.err
		w.nextRetry = time.Now().Add(j.opts.RetryInterval)
		return
	}
	if w.nextErr != nil {
		j.opts.Logger.Info("next audit segment is preallocated again", "dir", j.dir)
	}
	w.next, w.nextErr, w.nextRetry = p.spare, nil, time.Time{}
	j.mu.Lock()
	j.refused = false
	j.mu.Unlock()
}

// awaitNext waits for the preparation of the next segment, starting it if need be.
func (j *Journal) awaitNext() {
	if !j.w.preparing {
		j.prepare()
	}
	j.enterIO()
	p := <-j.w.prepared
	j.leaveIO()
	j.adopt(p)
}

// rotate makes the next segment the current one.
func (j *Journal) rotate() {
	w := &j.w
	if !j.sync() { // only the last segment may hold what is not on the disk
		return
	}
	next := w.next
	w.next = nil
	j.enterIO()
	var seg *segment
	renamed := false
	err := next.fill(j.id, w.durable, j.opts.Now(), nil)
	if err == nil {
		seg, renamed, err = next.publish(j.opts.fs, j.dir, w.durable.Count)
	}
	j.leaveIO()
	switch {
	case err == nil:
		j.replace(seg, segmentHeaderBytes, true)
	case renamed || !errors.Is(err, unix.ENOSPC):
		next.file.Close()
		j.observe(Commit{Synced: true, Err: err})
		j.fail(err)
	default:
		// The current segment is unharmed, and so is its reserve.
		next.file.Close()
		j.adopt(preparation{err: err})
	}
}

// replace makes seg the current segment, with used bytes of it on the disk, and
// closes the old one. A finished segment gives back the space that it did not use.
func (j *Journal) replace(seg *segment, used int64, trim bool) {
	w := &j.w
	old, end := w.seg, w.durableOff
	w.seg, w.durableOff = seg, used
	j.mu.Lock()
	j.segment = seg
	j.mu.Unlock()
	j.enterIO()
	var err error
	if trim {
		err = old.file.Truncate(end)
	}
	err = errors.Join(err, old.file.Close())
	j.leaveIO()
	if err != nil {
		j.opts.Logger.Warn("finished audit segment not trimmed", "segment", old.name, "err", err)
	}
}
