package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Span is a journal from its first segment to a point that is on the disk for
// good: what a copy of the journal may hold. What is before End never changes.
type Span struct {
	Journal  string // the journal's id, hex
	First    Anchor
	End      Anchor
	Segments []SegmentPart
	Head     []byte // what the head file of a copy says
	Live     bool   // a writer has the journal open
}

// SegmentPart is the beginning of a segment's file that belongs to a Span.
type SegmentPart struct {
	Name string // in the journal's folder
	Size int64  // bytes from the file's start
}

// HeadName is the name of the head file.
const HeadName = headName

// NoteHeadRenewed is the eventName of the note that Open found no usable head file:
// records before it may be missing that nobody knows of.
const NoteHeadRenewed = "AuditJournalHeadRenewed"

const (
	// settlePause is the time between two looks at the head file.
	settlePause = 10 * time.Millisecond
	// settleWait is how long a writer may take: far beyond its own StallTimeout.
	settleWait = time.Minute
)

// Durable returns the newest point that the writer of the journal in dir has noted
// as being on the disk; there may be newer ones. ErrNoJournal where there is none.
func Durable(ctx context.Context, dir string) (Anchor, error) {
	for attempt := 0; ; attempt++ {
		_, at, found, err := readHead(osFS{}, dir)
		switch {
		case err == nil && found:
			return at, nil
		case err == nil:
			return at, fmt.Errorf("%w: %s has no head file", ErrNoJournal, dir)
		case attempt == lockAttempts || ctx.Err() != nil:
			return at, fmt.Errorf("read the audit journal's head file in %s: %w", dir, errors.Join(err, ctx.Err()))
		}
		time.Sleep(settlePause) // the writer may be at it just now
	}
}

// Settle waits until all records that are in the journal now are known to be on
// the disk, and returns the journal up to there, or a bit beyond, verified as
// Verify does. A record whose Append has returned before Settle is called is in
// it. It returns a ctx's error if the writer does not come that far within a minute,
// ErrNoJournal, or a *[Fault].
//
// It changes nothing, and runs beside the writer, who knows best what is on the
// disk. Where there is none, all whole records are taken and synced, as Open does.
func Settle(ctx context.Context, dir string) (Span, error) {
	s := settling{fsys: osFS{}, dir: dir}
	if err := s.settle(ctx); err != nil {
		return Span{}, fmt.Errorf("settle audit journal in %s: %w", dir, err)
	}
	return s.span, nil
}

type settling struct {
	fsys fileSystem
	dir  string
	span Span
	id   journalID
}

func (s *settling) settle(ctx context.Context) (err error) {
	if s.span.Live, err = writerLives(s.dir); err != nil {
		return err
	}
	target, err := s.whole()
	if err != nil {
		return err
	}
	end := target
	if s.span.Live {
		if end, err = s.await(ctx, target.Count); err != nil {
			return err
		}
	}
	firsts, err := listSegments(s.fsys, s.dir)
	if err != nil {
		return err
	}
	var at Anchor
	for i, first := range firsts {
		if i > 0 && at.Count >= end.Count {
			break // begun since
		}
		if at, err = s.segment(ctx, first, i, at, end); err != nil {
			return err
		}
	}
	if at != end {
		return &Fault{Kind: FaultMissingEnd, Seq: at.Count, Detail: fmt.Sprintf("%d records are known to have been durable", end.Count)}
	}
	s.span.Journal, s.span.End, s.span.Head = s.id.String(), end, appendHead(nil, s.id, end)
	return nil
}

// whole returns the point after the last whole record, and checks that nothing
// proves that there were more. Where nobody writes it makes that point durable.
func (s *settling) whole() (Anchor, error) {
	// The head is read before the records: they cover what it promises.
	_, head, found, headErr := readHead(s.fsys, s.dir)
	firsts, err := listSegments(s.fsys, s.dir)
	if err != nil {
		return Anchor{}, err
	}
	if len(firsts) == 0 {
		return Anchor{}, ErrNoJournal
	}
	r, err := openSegment(s.fsys, s.dir, firsts[len(firsts)-1])
	if err != nil {
		return Anchor{}, err
	}
	defer r.Close()
	for {
		rec, err := r.next()
		if err != nil {
			return Anchor{}, err
		}
		if rec == nil {
			break
		}
	}
	if s.span.Live {
		return r.at, nil // the writer goes on, and what it has told is checked later
	}
	t, err := r.readTail()
	if err != nil {
		return Anchor{}, err
	}
	proven := t.proven
	if found && headErr == nil {
		proven = max(proven, head.Count)
	}
	if proven > r.at.Count {
		return Anchor{}, r.fault(FaultRecord, "damaged or missing, although %d records are known to have been durable", proven)
	}
	f, err := os.Open(filepath.Join(s.dir, r.name))
	if err != nil {
		return Anchor{}, err
	}
	return r.at, errors.Join(f.Sync(), f.Close())
}

// await waits until the writer says that count records are on the disk.
func (s *settling) await(ctx context.Context, count uint64) (Anchor, error) {
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	pause := time.NewTicker(settlePause)
	defer pause.Stop()
	for {
		// The writer may be at it just now: what makes no sense is read again.
		_, head, found, err := readHead(s.fsys, s.dir)
		if found && err == nil && head.Count >= count {
			return head, nil
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return Anchor{}, fmt.Errorf("the writer has not told that %d records are on the disk (it has told of %d): %w", count, head.Count, errors.Join(ctx.Err(), err))
		}
	}
}

// segment checks a segment up to end, and adds what belongs to the span.
func (s *settling) segment(ctx context.Context, first uint64, i int, at, end Anchor) (Anchor, error) {
	if err := ctx.Err(); err != nil {
		return at, err
	}
	r, err := openSegment(s.fsys, s.dir, first)
	if err != nil {
		return at, err
	}
	defer r.Close()
	switch {
	case i == 0:
		s.id, s.span.First = r.header.id, r.header.start
	case r.header.id != s.id:
		return at, r.fault(FaultSegmentHeader, "it belongs to another journal (%s)", r.header.id)
	case r.header.start != at:
		return at, r.fault(FaultSegmentGap, "the segment does not follow from the one before it, which ends with %d records", at.Count)
	}
	for r.at.Count < end.Count {
		rec, err := r.next()
		if err != nil {
			return at, err
		}
		if rec == nil {
			t, err := r.readTail()
			if err == nil && !t.clean {
				err = r.fault(FaultRecord, "damaged; %d whole records follow", t.records)
			}
			if err != nil {
				return at, err
			}
			break
		}
	}
	s.span.Segments = append(s.span.Segments, SegmentPart{Name: r.name, Size: r.off})
	return r.at, nil
}
