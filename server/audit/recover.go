package audit

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// Names of the notes that the journal writes about itself.
const (
	noteTornTail = "AuditJournalTailCut"   // Open cut off an unfinished commit
	noteFailure  = "AuditJournalRecovered" // a write or sync had failed
)

// note encodes a note's payload.
func note(opts *Options, name string, facts ...Member) ([]byte, error) {
	var id [16]byte
	if _, err := io.ReadFull(opts.Rand, id[:]); err != nil {
		return nil, fmt.Errorf("draw event id: %w", err)
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 9562, section 5.4
	x := hex.EncodeToString(id[:])
	e := Event{
		UserIdentity: UserIdentity{Type: "AWSService", InvokedBy: "keyhold"},
		EventTime:    opts.Now(),
		EventName:    name,
		EventID:      x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:],
		EventType:    TypeService,
		Additional:   facts,
	}
	return e.AppendJSON(nil), nil
}

// appendNote appends a note as the record after at.
func appendNote(buf []byte, at Anchor, opts *Options, payload []byte) ([]byte, Anchor) {
	h := recordHeader{
		kind: KindNote, flags: flagProtected,
		seq: at.Count, nanos: opts.Now().UnixNano(), floor: at.Count,
	}
	buf, sum := appendRecord(buf, h, payload, &at.Hash)
	return buf, Anchor{Count: at.Count + 1, Hash: sum}
}

// tryRecover makes the journal writable again after a failed write or sync.
func (j *Journal) tryRecover() {
	w := &j.w
	w.retryDue = time.Time{}
	if w.preparing { // it uses the spare's name
		j.awaitNext()
	}
	j.enterIO()
	err := j.recover()
	j.leaveIO()
	if err != nil {
		j.opts.Logger.Warn("audit journal cannot recover yet", "dir", j.dir, "err", err)
		j.setCause(causeIO, fmt.Errorf("%w: %w", ErrUnavailable, err))
		w.retryDue = time.Now().Add(j.opts.RetryInterval)
		return
	}
	j.setCause(causeIO, nil)
	j.opts.Logger.Info("audit journal recovered", "dir", j.dir, "segment", w.seg.name, "durable_records", w.durable.Count)
	j.writeHead()
}

// recover goes on in a new segment. After a failed sync nothing in the page cache
// proves anything (the kernel reports a failure once and then takes the pages for
// clean), so the old segment is read again up to the last point that an earlier
// sync covered, cut off there, and never written again. Acknowledged records
// beyond that point come from memory.
func (j *Journal) recover() error {
	w := &j.w
	if w.durable.Count > firstOf(w.seg) {
		if err := j.checkDurable(); err != nil {
			return err
		}
	}
	payload, err := note(&j.opts, noteFailure,
		Member{"cause", j.causeIOText()},
		Member{"segment", w.seg.name},
		Member{"offset", strconv.FormatInt(w.durableOff, 10)},
		Member{"recordsWrittenAgain", strconv.FormatUint(w.tip.Count-w.durable.Count, 10)})
	if err != nil {
		return err
	}
	records, tip := appendNote(w.buf[:len(w.buf):len(w.buf)], w.tip, &j.opts, payload)
	next := w.next
	w.next = nil
	if next == nil {
		if next, err = newSpare(j.opts.fs, j.dir, j.opts.SegmentBytes, min(eagerZeroBytes, j.opts.SegmentBytes)); err != nil {
			return err
		}
	}
	if segmentHeaderBytes+int64(len(records)) > next.size {
		next.file.Close()
		return fmt.Errorf("%d acknowledged bytes do not fit in a segment", len(records))
	}
	seg, err := startSegment(j.opts.fs, j.dir, j.id, next, w.durable, j.opts.Now(), records, w.seg, w.durableOff)
	if err != nil {
		next.file.Close()
		return err
	}
	w.durable, w.tip = tip, tip
	w.resetBuffer()
	j.mu.Lock()
	j.durable = tip
	j.refused = false
	j.mu.Unlock()
	w.nextErr, w.nextRetry = nil, time.Time{}
	j.replace(seg, segmentHeaderBytes+int64(len(records)), false)
	return nil
}

// startSegment makes next the segment that begins at start with records. old, which
// may be nil, is first cut off at end. A crash in between leaves a journal that
// Open understands: the new segment gets its name last.
func startSegment(fsys fileSystem, dir string, id journalID, next *spare, start Anchor, created time.Time,
	records []byte, old *segment, end int64,
) (*segment, error) {
	if err := next.fill(id, start, created, records); err != nil {
		return nil, err
	}
	// A segment without records is replaced: the new one gets the same name.
	if old != nil && firstOf(old) != start.Count {
		if err := old.file.Truncate(end); err != nil {
			return nil, fmt.Errorf("cut off %s: %w", old.name, err)
		}
		if err := old.file.Sync(); err != nil {
			return nil, fmt.Errorf("sync cut-off of %s: %w", old.name, err)
		}
	}
	seg, _, err := next.publish(fsys, dir, start.Count)
	return seg, err
}

func firstOf(s *segment) uint64 {
	first, _ := parseSegmentName(s.name)
	return first
}

func (j *Journal) causeIOText() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.causes[causeIO]; err != nil {
		return err.Error()
	}
	return ""
}

// checkDurable reads the current segment again, from the disk as far as the system
// lets us, and compares it with what was acknowledged.
func (j *Journal) checkDurable() error {
	w := &j.w
	f, err := j.opts.fs.OpenFile(w.seg.path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("read audit segment again: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return fmt.Errorf("read audit segment again: %w", err)
	} else if !os.SameFile(info, w.seg.info) {
		return fmt.Errorf("%s is not the file that was written", w.seg.path)
	}
	f.DropCache()
	s, err := newSegmentReader(w.seg.name, f, w.durableOff)
	if err != nil {
		return err
	}
	for {
		rec, err := s.next()
		if err != nil {
			return err
		}
		if rec == nil {
			break
		}
	}
	if s.at != w.durable || s.off != w.durableOff {
		return fmt.Errorf("%w: %w", ErrDamaged,
			s.fault(FaultRecord, "%d records were on the disk before a write failed", w.durable.Count))
	}
	return nil
}
