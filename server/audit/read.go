package audit

import (
	"bytes"
	"fmt"
	"iter"
)

// Read streams the records of the journal in dir, from number from on, in order.
// Each is checked against the chain; the records before from in the same segment
// are checked too, older segments are not read. After an error, a *[Fault] if the
// journal is damaged, the sequence ends. It also ends, without an error, where an
// unfinished commit begins: what is there is not yet, or never was, a record.
//
// It can run beside the writer, whose newest records it may return before they are
// durable. The caller owns the records.
func Read(dir string, from uint64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if err := read(dir, from, yield); err != nil {
			yield(Record{}, err)
		}
	}
}

// read returns nil once yield returned false.
func read(dir string, from uint64, yield func(Record, error) bool) error {
	fsys := osFS{}
	firsts, err := listSegments(fsys, dir)
	if err != nil {
		return err
	}
	if len(firsts) == 0 {
		return fmt.Errorf("%w in %s", ErrNoJournal, dir)
	}
	if firsts[0] > from {
		return &Fault{
			Kind: FaultMissingStart, Segment: segmentName(firsts[0]), Seq: from,
			Detail: fmt.Sprintf("the journal here begins with record %d", firsts[0]),
		}
	}
	for len(firsts) > 1 && firsts[1] <= from {
		firsts = firsts[1:]
	}
	var at Anchor
	for i, first := range firsts {
		more, end, err := readSegment(fsys, dir, first, from, at, i == len(firsts)-1, yield)
		if err != nil || !more {
			return err
		}
		at = end
	}
	return nil
}

// readSegment yields the records of one segment. at is where the segment before it
// ended, or zero. more is false if the consumer wants no more.
func readSegment(fsys fileSystem, dir string, first, from uint64, at Anchor, isLast bool,
	yield func(Record, error) bool,
) (more bool, end Anchor, err error) {
	s, err := openSegment(fsys, dir, first)
	if err != nil {
		return false, at, err
	}
	defer s.Close()
	if at != (Anchor{}) && s.header.start != at {
		return false, at, &Fault{
			Kind: FaultSegmentGap, Segment: s.name, Seq: at.Count,
			Detail: "the segment does not follow from the one before it",
		}
	}
	for {
		rec, err := s.next()
		if err != nil {
			return false, s.at, err
		}
		if rec == nil {
			on, err := s.endOrFault(isLast)
			if err != nil || !on {
				return err == nil, s.at, err
			}
			continue
		}
		if rec.Seq < from {
			continue
		}
		out := *rec
		out.Payload = bytes.Clone(rec.Payload)
		if !yield(out, nil) {
			return false, s.at, nil
		}
	}
}

// endOrFault judges what is no record, after next. on is true where a writer has
// made one of it meanwhile.
func (s *segmentReader) endOrFault(isLast bool) (on bool, err error) {
	t, err := s.readTail()
	if err != nil || t.clean || isLast && t.proven <= s.at.Count {
		return false, err
	}
	if isLast {
		if on, err := s.overtaken(); on || err != nil {
			return on, err
		}
	}
	return false, s.fault(FaultRecord, "damaged; %d whole records follow", t.records)
}
