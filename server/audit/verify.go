package audit

import (
	"errors"
	"fmt"
	"time"
)

// VerifyOptions says from where to verify.
type VerifyOptions struct {
	// From is a point kept elsewhere. The records before it must be those it was
	// taken from: it is a fault if the journal does not reach it or has another chain
	// value there. It stands for segments before it that were archived; those that
	// are there are verified. Optional.
	From *Anchor

	// AllowMissingStart accepts a journal whose first segments were archived,
	// although no anchor says what was in them.
	AllowMissingStart bool
}

// Report is what Verify read.
type Report struct {
	Journal   string    // the journal's id, hex
	First     Anchor    // where verification began
	Last      Anchor    // where it ended; worth keeping elsewhere
	Segments  int       // files read
	Records   uint64    // records verified
	Notes     uint64    // of these, notes of the journal itself
	Bytes     int64     // of these records in their files
	FirstTime time.Time // of the first and last record; zero if there are none
	LastTime  time.Time
	Live      bool  // a writer has the journal open
	Unproven  int64 // bytes of an unfinished commit at the end of a live journal
}

// Verify reads the journal in dir and checks headers, names, checksums, sequence,
// chain, the continuity of segments, that nothing stands where nothing should, and
// that the end known to have been durable (head file) is there. The report covers
// what was read up to the error. A *[Fault] says what is wrong with the journal
// first; any other error says why it could not be read.
//
// It can run beside the writer. What the writer has not finished is then not a
// fault; without a writer it is a FaultTornTail, which the next Open cuts off.
func Verify(dir string, opts VerifyOptions) (Report, error) {
	return verify(osFS{}, dir, opts)
}

func verify(fsys fileSystem, dir string, opts VerifyOptions) (Report, error) {
	var rep Report
	live, err := writerLives(dir)
	if err != nil {
		return rep, fmt.Errorf("verify audit journal: %w", err)
	}
	rep.Live = live
	// The head is read before the list, the list before the records: each covers at
	// least what the one before it promised, also while a writer goes on.
	v := verifier{fsys: fsys, dir: dir, opts: opts, rep: &rep}
	var found bool
	if v.id, v.head, found, v.headErr = readHead(fsys, dir); !found && v.headErr == nil {
		v.headErr = errors.New("there is no head file")
	}
	firsts, err := listSegments(fsys, dir)
	if err != nil {
		return rep, err
	}
	if len(firsts) == 0 {
		if !found {
			return rep, fmt.Errorf("%w in %s", ErrNoJournal, dir)
		}
		return rep, &Fault{Kind: FaultMissingEnd, Detail: "there is a head file but no segment"}
	}
	if err := v.begin(firsts[0]); err != nil {
		return rep, err
	}
	for i, first := range firsts {
		if err := v.segment(first, i == 0, i == len(firsts)-1); err != nil {
			return rep, err
		}
	}
	return rep, v.finish()
}

// verifier carries what Verify knows from one segment to the next.
type verifier struct {
	fsys    fileSystem
	dir     string
	opts    VerifyOptions
	id      journalID
	head    Anchor
	headErr error
	at      Anchor
	anchor  bool // opts.From was met and matched
	rep     *Report
}

// begin checks that something stands for what is before the first segment.
func (v *verifier) begin(first uint64) error {
	from := v.opts.From
	switch {
	case from == nil && first > 0 && !v.opts.AllowMissingStart:
		return &Fault{
			Kind: FaultMissingStart, Segment: segmentName(first),
			Detail: fmt.Sprintf("the journal begins with record %d; if older segments were archived, verify from an anchor", first),
		}
	case from != nil && first > from.Count:
		return &Fault{
			Kind: FaultMissingStart, Segment: segmentName(first), Seq: from.Count,
			Detail: fmt.Sprintf("the journal begins with record %d, after the anchor", first),
		}
	}
	return nil
}

// reached compares the point reached with the points known from elsewhere.
func (v *verifier) reached(at Anchor, segment string, off int64) error {
	if from := v.opts.From; from != nil && at.Count == from.Count {
		if at.Hash != from.Hash {
			return &Fault{
				Kind: FaultAnchor, Segment: segment, Offset: off, Seq: at.Count,
				Detail: "chain value " + at.Hash.String() + ", anchor " + from.Hash.String(),
			}
		}
		v.anchor = true
	}
	if v.headErr == nil && at.Count == v.head.Count && at.Hash != v.head.Hash {
		return &Fault{
			Kind: FaultHead, Segment: segment, Offset: off, Seq: at.Count,
			Detail: "the head file has another chain value for this point",
		}
	}
	return nil
}

func (v *verifier) segment(first uint64, isFirst, isLast bool) error {
	s, err := openSegment(v.fsys, v.dir, first)
	if err != nil {
		return err
	}
	defer s.Close()
	start := s.header.start
	if isFirst {
		if v.headErr != nil {
			v.id = s.header.id
		}
		v.rep.Journal = s.header.id.String()
		v.rep.First, v.rep.Last, v.at = start, start, start
	}
	v.rep.Segments++
	if s.header.id != v.id {
		return &Fault{
			Kind: FaultSegmentHeader, Segment: s.name, Seq: first,
			Detail: "it belongs to another journal (" + s.header.id.String() + ")",
		}
	}
	if start != v.at {
		f := &Fault{Segment: s.name, Seq: v.at.Count}
		switch {
		case start.Count > v.at.Count:
			f.Kind, f.Detail = FaultSegmentGap, fmt.Sprintf("the segment begins with record %d", start.Count)
		case start.Count < v.at.Count:
			f.Kind, f.Detail = FaultSegmentOrder, fmt.Sprintf("the segment begins with record %d", start.Count)
		default:
			f.Kind, f.Detail = FaultChain, "the segment's header does not follow from the segment before it"
		}
		return f
	}
	if err := v.reached(v.at, s.name, s.off); err != nil {
		return err
	}
	for {
		if err := v.records(s); err != nil {
			return err
		}
		err := v.tail(s, isLast)
		var fault *Fault
		if !v.rep.Live || !isLast || !errors.As(err, &fault) {
			return err
		}
		// What is read through a buffer is of two moments: records of the later one
		// prove more than the earlier one shows.
		if on, readErr := s.overtaken(); !on {
			return errors.Join(err, readErr)
		}
	}
}

func (v *verifier) records(s *segmentReader) error {
	for {
		rec, err := s.next()
		if err != nil || rec == nil {
			return err
		}
		v.rep.Records++
		if rec.Kind == KindNote {
			v.rep.Notes++
		}
		if v.rep.FirstTime.IsZero() {
			v.rep.FirstTime = rec.Time
		}
		v.rep.LastTime = rec.Time
		v.rep.Bytes += s.off - rec.Offset
		v.at = s.at
		v.rep.Last = s.at
		if err := v.reached(s.at, s.name, rec.Offset); err != nil {
			return err
		}
	}
}

func (v *verifier) tail(s *segmentReader, isLast bool) error {
	t, err := s.readTail()
	if err != nil || t.clean {
		return err
	}
	if !isLast {
		if t.records == 0 {
			return s.fault(FaultTrailingData, "a finished segment has something other than zeros after this place")
		}
		return s.fault(FaultRecord, "damaged; %d whole records follow", t.records)
	}
	proven := t.proven
	if v.headErr == nil {
		proven = max(proven, v.head.Count)
	}
	switch {
	case proven > s.at.Count:
		return s.fault(FaultRecord, "damaged, although %d records are known to have been durable; %d whole records follow",
			proven, t.records)
	case v.rep.Live:
		v.rep.Unproven = t.end - s.off
		return nil
	default:
		return s.fault(FaultTornTail, "%d bytes of an unfinished commit", t.end-s.off)
	}
}

// finish checks that nothing is missing at the end.
func (v *verifier) finish() error {
	if v.headErr == nil && v.at.Count < v.head.Count {
		return &Fault{
			Kind: FaultMissingEnd, Seq: v.at.Count,
			Detail: fmt.Sprintf("%d records are known to have been durable", v.head.Count),
		}
	}
	if from := v.opts.From; from != nil && !v.anchor {
		return &Fault{
			Kind: FaultMissingEnd, Seq: v.at.Count,
			Detail: fmt.Sprintf("the journal ends here, the anchor was taken after %d records", from.Count),
		}
	}
	if v.headErr != nil {
		return &Fault{Kind: FaultHead, Seq: v.at.Count, Detail: v.headErr.Error()}
	}
	return nil
}
