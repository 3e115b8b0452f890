package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Record is one record of the journal.
type Record struct {
	Seq       uint64    // its place, from 0
	Time      time.Time // when it was written, UTC
	Kind      Kind
	Protected bool   // appended with class Protected
	Payload   []byte // an event in JSON, if the program wrote it
	Leaf      Hash   // SHA-256 of the record's bytes: header and payload
	Chain     Hash   // chain value after it
	Segment   string // file name
	Offset    int64  // where in the segment it begins

	floor uint64
}

// FaultKind is what is wrong with a journal.
type FaultKind string

// The kinds of faults, as docs/audit-format.md lists them.
const (
	FaultSegmentName   FaultKind = "segment-name"   // the name is not what the header says, or no name of ours
	FaultSegmentHeader FaultKind = "segment-header" // damaged, or of another journal
	FaultSegmentGap    FaultKind = "segment-gap"    // records between two segments are missing
	FaultSegmentOrder  FaultKind = "segment-order"  // a segment begins before the one ahead of it ends
	FaultMissingStart  FaultKind = "missing-start"  // the first records are not there, and no anchor covers them
	FaultMissingEnd    FaultKind = "missing-end"    // records known to have been durable are not there
	FaultRecord        FaultKind = "record"         // damaged bytes where a record was
	FaultSequence      FaultKind = "sequence"       // a whole record with a wrong sequence number
	FaultChain         FaultKind = "chain"          // a whole record that does not follow from those before it
	FaultTrailingData  FaultKind = "trailing-data"  // something other than zeros after the last record of a finished segment
	FaultTornTail      FaultKind = "torn-tail"      // an unfinished commit at the very end; Open cuts it off
	FaultHead          FaultKind = "head"           // the head file is missing, damaged, or contradicts the records
	FaultAnchor        FaultKind = "anchor"         // the records are not those that the given anchor was taken from
)

// Fault is the first thing found wrong with a journal.
type Fault struct {
	Kind    FaultKind
	Segment string // file name; empty if it is not about one
	Offset  int64  // in that file
	Seq     uint64 // the record that is, or should be, there
	Detail  string
}

func (f *Fault) Error() string {
	where := ""
	if f.Segment != "" {
		where = fmt.Sprintf(" in %s at offset %d", f.Segment, f.Offset)
	}
	return fmt.Sprintf("audit journal: %s%s, record %d: %s", f.Kind, where, f.Seq, f.Detail)
}

// window reads a file through a buffer. Slices that it returns are valid until the
// next call.
type window struct {
	r    io.ReaderAt
	size int64 // shrinks if the file turns out to be shorter
	off  int64 // file offset of buf[0]
	buf  []byte
}

const windowBytes = 1 << 20

// at returns n bytes from off, fewer only at the end of the file.
func (w *window) at(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), max(0, w.size-off)))
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		want := int(min(int64(max(n, windowBytes)), w.size-off))
		if cap(w.buf) < want {
			w.buf = make([]byte, want)
		}
		w.buf, w.off = w.buf[:want], off
		got, err := w.r.ReadAt(w.buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			w.buf = w.buf[:0]
			return nil, err
		}
		w.buf = w.buf[:got]
		if got < want {
			w.size = off + int64(got)
			n = min(n, got)
		}
	}
	return w.buf[off-w.off:][:n], nil
}

// segmentReader reads the records of one segment in order and checks each against
// the chain.
type segmentReader struct {
	name   string
	f      io.Closer
	w      window
	header segmentHeader
	off    int64
	at     Anchor // the point reached
	rec    Record
}

// openSegment opens the segment that begins with record first and reads its
// header. A damaged header or a name that belies it is a *Fault.
func openSegment(fsys fileSystem, dir string, first uint64) (*segmentReader, error) {
	name := segmentName(first)
	f, err := fsys.OpenFile(filepath.Join(dir, name), os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open audit segment: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("stat audit segment: %w", err)
	}
	s, err := newSegmentReader(name, f, info.Size())
	if err == nil && s.header.start.Count != first {
		err = &Fault{
			Kind: FaultSegmentName, Segment: name, Seq: first,
			Detail: fmt.Sprintf("its header says that it begins with record %d", s.header.start.Count),
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	s.f = f
	return s, nil
}

func newSegmentReader(name string, r io.ReaderAt, size int64) (*segmentReader, error) {
	s := &segmentReader{name: name, w: window{r: r, size: size}, off: segmentHeaderBytes}
	b, err := s.w.at(0, segmentHeaderBytes)
	if err != nil {
		return nil, fmt.Errorf("read audit segment %s: %w", name, err)
	}
	if s.header, err = parseSegmentHeader(b); err != nil {
		return nil, &Fault{Kind: FaultSegmentHeader, Segment: name, Detail: err.Error()}
	}
	s.at = s.header.start
	return s, nil
}

func (s *segmentReader) Close() error { return s.f.Close() }

func (s *segmentReader) fault(kind FaultKind, format string, args ...any) *Fault {
	return &Fault{Kind: kind, Segment: s.name, Offset: s.off, Seq: s.at.Count, Detail: fmt.Sprintf(format, args...)}
}

// next returns the next record, valid until the following call. It returns nil
// when what follows is not a whole record: tail then tells what it is. A whole
// record in the wrong place is a *Fault, which no crash can cause.
func (s *segmentReader) next() (*Record, error) {
	b, err := s.w.at(s.off, recordHeaderBytes)
	if err != nil {
		return nil, fmt.Errorf("read audit segment %s at %d: %w", s.name, s.off, err)
	}
	n, ok := payloadLength(b)
	if !ok {
		return nil, nil
	}
	if b, err = s.w.at(s.off, recordSize(n)); err != nil {
		return nil, fmt.Errorf("read audit segment %s at %d: %w", s.name, s.off, err)
	}
	size, err := parseRecord(b, &s.rec)
	if errors.Is(err, errBadFields) {
		return nil, s.fault(FaultRecord, "%v", err)
	}
	if err != nil {
		return nil, nil //nolint:nilerr // what is no record is for readTail to judge
	}
	switch {
	case s.rec.Seq != s.at.Count:
		return nil, s.fault(FaultSequence, "a record with number %d is there", s.rec.Seq)
	case s.rec.floor > s.rec.Seq:
		return nil, s.fault(FaultRecord, "claims that %d records were durable before it", s.rec.floor)
	case s.rec.Chain != chain(&s.at.Hash, &s.rec.Leaf):
		return nil, s.fault(FaultChain, "it does not follow from the records before it")
	}
	s.rec.Segment, s.rec.Offset = s.name, s.off
	s.off += int64(size)
	s.at = Anchor{Count: s.at.Count + 1, Hash: s.rec.Chain}
	return &s.rec, nil
}

// overtaken tells whether a whole record is there after all, where next found none:
// the writer went on while the segment was read. next reads it from the file then.
func (s *segmentReader) overtaken() (bool, error) {
	s.w.buf = s.w.buf[:0]
	b, err := s.w.at(s.off, recordHeaderBytes)
	if err != nil {
		return false, fmt.Errorf("read audit segment %s at %d: %w", s.name, s.off, err)
	}
	n, ok := payloadLength(b)
	if !ok {
		return false, nil
	}
	if b, err = s.w.at(s.off, recordSize(n)); err != nil {
		return false, fmt.Errorf("read audit segment %s at %d: %w", s.name, s.off, err)
	}
	var rec Record
	_, err = parseRecord(b, &rec)
	return err == nil, nil
}

// tail describes what follows the last whole record of a segment.
type tail struct {
	clean   bool   // zeros, or nothing, to the end of the file
	end     int64  // past the last byte that is not zero
	records int    // whole records beyond the damage
	proven  uint64 // this many records were durable once, say those records
}

// readTail is called after next returned nil. It looks through the rest of the
// segment for records beyond the damage: a crash damages only what was not yet
// synced, so a record that was written after a sync covering the damaged place
// proves that it was no crash.
func (s *segmentReader) readTail() (tail, error) {
	t := tail{clean: true}
	const step = 4096 // what is zero goes by in such strides
	for off := s.off; off < s.w.size; {
		b, err := s.w.at(off, step)
		if err != nil {
			return t, fmt.Errorf("read audit segment %s at %d: %w", s.name, off, err)
		}
		if len(b) == 0 {
			break
		}
		if allZero(b) {
			off += int64(len(b))
			continue
		}
		t.clean = false
		t.end = off + int64(len(bytes.TrimRight(b, "\x00")))
		next := off + int64(len(b))
		for ; off < next; off += recordAlign {
			if b, err = s.w.at(off, recordHeaderBytes); err != nil {
				return t, fmt.Errorf("read audit segment %s at %d: %w", s.name, off, err)
			}
			n, ok := payloadLength(b)
			if !ok {
				continue
			}
			if b, err = s.w.at(off, recordSize(n)); err != nil {
				return t, fmt.Errorf("read audit segment %s at %d: %w", s.name, off, err)
			}
			var rec Record
			size, err := parseRecord(b, &rec)
			if err != nil && !errors.Is(err, errBadFields) {
				continue
			}
			t.records++
			if err == nil {
				t.proven = max(t.proven, rec.floor)
				t.end = max(t.end, off+int64(size))
				off += int64(size) - recordAlign
			}
		}
		off = max(off, next)
	}
	return t, nil
}
