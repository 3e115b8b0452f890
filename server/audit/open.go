package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Open opens the journal in dir for writing. It reads the last segment to its end,
// cuts off an unfinished commit there, and goes on. The directory is made with mode
// 0700 if Options.Create allows a new journal.
//
// It fails with ErrNoJournal, with ErrLocked, or with ErrDamaged and a *[Fault] if
// records that were acknowledged are not whole: nothing is changed then. Damage in
// older segments is for Verify to find.
func Open(dir string, opts Options) (*Journal, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("open audit journal: %w", err)
	}
	if err := checkDir(dir, &opts); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open audit journal: %w", err)
	}
	o := opening{dir: dir, opts: &opts, fsys: opts.fs}
	if err := o.open(); err != nil {
		o.closeFiles()
		lock.Close()
		return nil, fmt.Errorf("open audit journal in %s: %w", dir, err)
	}
	j := &Journal{
		opts: opts, dir: dir, lock: lock, id: o.id,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
		epoch: time.Now(), durable: o.at, segment: o.seg, head: o.head,
	}
	j.w = writer{
		seg: o.seg, durableOff: o.off, durable: o.at, tip: o.at, ackedAt: o.at,
		prepared: make(chan preparation, 1),
	}
	j.watchers.Add(2)
	go j.watchFiles()
	go j.watchDisk()
	go j.run()
	return j, nil
}

// checkDir makes sure that there is a private directory.
func checkDir(dir string, opts *Options) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && opts.Create:
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("create audit directory: %w", err)
		}
		if err := opts.fs.SyncDir(filepath.Dir(dir)); err != nil {
			return fmt.Errorf("create audit directory: %w", err)
		}
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s does not exist", ErrNoJournal, dir)
	case err != nil:
		return fmt.Errorf("open audit journal: %w", err)
	case !info.IsDir():
		return fmt.Errorf("open audit journal: %s is not a directory", dir)
	case info.Mode().Perm()&0o077 != 0:
		opts.Logger.Warn("audit directory is open to other users; hint: chmod 700", "dir", dir, "mode", info.Mode().Perm().String())
	}
	return nil
}

// opening is the state of Open.
type opening struct {
	dir  string
	opts *Options
	fsys fileSystem

	id   journalID
	seg  *segment
	head file
	off  int64  // where the next record goes in seg
	at   Anchor // the point there
}

func (o *opening) closeFiles() {
	if o.seg != nil {
		o.seg.file.Close()
	}
	if o.head != nil {
		o.head.Close()
	}
}

func (o *opening) open() error {
	headID, head, found, headErr := readHead(o.fsys, o.dir)
	if headErr != nil && !isFormatError(headErr) {
		return headErr
	}
	usable := found && headErr == nil
	firsts, err := listSegments(o.fsys, o.dir)
	if err != nil {
		return damaged(err)
	}
	if len(firsts) == 0 {
		if usable && head.Count > 0 {
			return damaged(&Fault{
				Kind:   FaultMissingEnd,
				Detail: fmt.Sprintf("there are no segments, but %d records are known to have been durable", head.Count),
			})
		}
		if !o.opts.Create {
			return ErrNoJournal
		}
		return o.create()
	}
	s, t, err := o.readLast(firsts[len(firsts)-1], headID, head, usable)
	if err != nil {
		return err
	}
	o.id, o.at, o.off = s.header.id, s.at, s.off
	if err := o.openLast(s.name); err != nil {
		return err
	}
	var notes []byte
	if !t.clean {
		if notes, err = o.noteTail(s, t); err != nil {
			return err
		}
	}
	if !usable {
		if notes, err = o.noteHead(notes, found); err != nil {
			return err
		}
	}
	if err := o.goOn(s.at, t, notes); err != nil {
		return err
	}
	if usable {
		o.head, err = o.fsys.OpenFile(filepath.Join(o.dir, headName), os.O_RDWR, 0)
		if err == nil {
			err = writeSync(o.head, appendHead(nil, o.id, o.at), 0)
		}
		return err
	}
	o.head, err = createHead(o.fsys, o.dir, o.id, o.at)
	return err
}

// isFormatError tells a head file that could be read and makes no sense, after a
// crash perhaps, from one that could not be read.
func isFormatError(err error) bool {
	var pathErr *fs.PathError
	return !errors.As(err, &pathErr)
}

// create makes a new journal. The head comes last: before it, there is nothing
// that a crash could leave half done.
func (o *opening) create() error {
	if _, err := io.ReadFull(o.opts.Rand, o.id[:]); err != nil {
		return fmt.Errorf("draw journal id: %w", err)
	}
	next, err := newSpare(o.fsys, o.dir, o.opts.SegmentBytes, min(eagerZeroBytes, o.opts.SegmentBytes))
	if err != nil {
		return err
	}
	o.at = Anchor{Hash: genesis(o.id)}
	o.off = segmentHeaderBytes
	if o.head, err = createHead(o.fsys, o.dir, o.id, o.at); err == nil {
		o.seg, err = startSegment(o.fsys, o.dir, o.id, next, o.at, o.opts.Now(), nil, nil, 0)
	}
	if err != nil {
		next.file.Close()
		return err
	}
	o.opts.Logger.Info("audit journal created", "dir", o.dir, "journal", o.id.String())
	return nil
}

// damaged marks a fault as ErrDamaged. Other errors, of reading, stay what they are.
func damaged(err error) error {
	var fault *Fault
	if errors.As(err, &fault) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// readLast reads the last segment and decides whether what it finds can be the work
// of a crash.
func (o *opening) readLast(first uint64, headID journalID, head Anchor, usable bool) (*segmentReader, tail, error) {
	s, err := openSegment(o.fsys, o.dir, first)
	if err != nil {
		return nil, tail{}, damaged(err)
	}
	defer s.Close()
	if usable && s.header.id != headID {
		return nil, tail{}, damaged(&Fault{Kind: FaultHead, Segment: s.name, Seq: first, Detail: "the head file is of another journal"})
	}
	for {
		if usable && s.at.Count == head.Count && s.at.Hash != head.Hash {
			return nil, tail{}, damaged(s.fault(FaultHead, "the head file has another chain value for this point"))
		}
		rec, err := s.next()
		if err != nil {
			return nil, tail{}, damaged(err)
		}
		if rec == nil {
			break
		}
	}
	t, err := s.readTail()
	if err != nil {
		return nil, t, err
	}
	proven := t.proven
	if usable {
		proven = max(proven, head.Count)
	}
	if proven <= s.at.Count {
		return s, t, nil
	}
	if t.clean {
		return nil, t, damaged(s.fault(FaultMissingEnd, "the journal ends here, but %d records are known to have been durable", proven))
	}
	return nil, t, damaged(s.fault(FaultRecord, "damaged, although %d records are known to have been durable; %d whole records follow",
		proven, t.records))
}

// openLast opens the last segment for writing and makes what was read in it durable:
// before a crash it may only have been written. So may its name: whoever was killed
// between renaming it and syncing the directory has left nothing else to be seen of
// that, and records would be acknowledged in a file that a loss of power takes back.
// The head's name is made durable with it.
func (o *opening) openLast(name string) error {
	path := filepath.Join(o.dir, name)
	f, err := o.fsys.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = o.fsys.SyncDir(o.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	o.seg = &segment{name: name, path: path, file: f, size: info.Size(), written: info.Size(), info: info}
	// A copy restored from elsewhere may have holes where blocks should be reserved.
	if err := f.Allocate(info.Size()); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		o.opts.Logger.Warn("rest of the audit segment is not preallocated", "segment", name, "err", err)
	}
	return nil
}

// noteTail notes the unfinished commit that goOn will cut off.
func (o *opening) noteTail(s *segmentReader, t tail) ([]byte, error) {
	o.opts.Logger.Warn("audit journal ends in an unfinished commit, which nobody was told is durable: cutting it off",
		"segment", s.name, "offset", s.off, "bytes", t.end-s.off, "whole_records", t.records, "kept_records", s.at.Count)
	payload, err := note(o.opts, noteTornTail,
		Member{"segment", s.name},
		Member{"offset", strconv.FormatInt(s.off, 10)},
		Member{"bytes", strconv.FormatInt(t.end-s.off, 10)})
	if err != nil {
		return nil, err
	}
	var records []byte
	records, o.at = appendNote(nil, o.at, o.opts, payload)
	return records, nil
}

// noteHead notes that there was no usable head file.
func (o *opening) noteHead(records []byte, found bool) ([]byte, error) {
	what := "missing"
	if found {
		what = "damaged"
	}
	o.opts.Logger.Warn("audit head file is not usable: a loss of the newest records cannot be told from a crash; making a new one",
		"dir", o.dir, "head", what, "records", o.at.Count)
	payload, err := note(o.opts, NoteHeadRenewed, Member{"headFile", what})
	if err != nil {
		return nil, err
	}
	records, o.at = appendNote(records, o.at, o.opts, payload)
	return records, nil
}

// goOn makes ready to append: what t found beyond start is erased, and notes are
// written from there on. That needs no disk space unless the segment is at its end.
func (o *opening) goOn(start Anchor, t tail, notes []byte) error {
	if o.off+int64(len(notes)) > o.seg.size {
		return o.goOnInNew(start, notes)
	}
	if len(notes) == 0 {
		return nil
	}
	// The erasure is on the disk before anything is written over it. A crash between
	// leaves an unfinished commit, as before.
	for off := o.off; off < t.end; off += int64(len(zeros)) {
		if _, err := o.seg.file.WriteAt(zeros[:min(int64(len(zeros)), t.end-off)], off); err != nil {
			return fmt.Errorf("erase unfinished commit: %w", err)
		}
	}
	if err := o.seg.file.Sync(); err != nil {
		return fmt.Errorf("erase unfinished commit: %w", err)
	}
	if err := writeSync(o.seg.file, notes, o.off); err != nil {
		return fmt.Errorf("write note: %w", err)
	}
	o.off += int64(len(notes))
	return nil
}

// goOnInNew begins a new segment with notes and cuts the last one off at start.
func (o *opening) goOnInNew(start Anchor, notes []byte) error {
	next, err := newSpare(o.fsys, o.dir, o.opts.SegmentBytes, min(eagerZeroBytes, o.opts.SegmentBytes))
	if err != nil {
		return err
	}
	seg, err := startSegment(o.fsys, o.dir, o.id, next, start, o.opts.Now(), notes, o.seg, o.off)
	if err != nil {
		next.file.Close()
		return err
	}
	o.seg.file.Close()
	o.seg, o.off = seg, segmentHeaderBytes+int64(len(notes))
	return nil
}
