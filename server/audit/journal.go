package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Errors that callers tell apart with errors.Is. Whatever keeps a record from being
// written is an ErrUnavailable; ErrFull and ErrClosed are special cases of it.
var (
	// ErrUnavailable means that the journal cannot be written now. The record may or
	// may not be found in it later; nobody may rely on either.
	ErrUnavailable = errors.New("audit journal cannot be written")
	// ErrFull means that only the reserve is left, or not even that. Nothing was
	// written.
	ErrFull = fmt.Errorf("%w: no space left", ErrUnavailable)
	// ErrClosed means that Close was called. Nothing was written.
	ErrClosed = fmt.Errorf("%w: it is closed", ErrUnavailable)
	// ErrRecordSize means that a call breaks a limit of Options, or has an empty
	// payload. Nothing was written.
	ErrRecordSize = errors.New("audit record size")
	// ErrNoJournal means that there is no journal in the directory.
	ErrNoJournal = errors.New("no audit journal")
	// ErrLocked means that another process has the journal open.
	ErrLocked = errors.New("audit journal is in use by another process")
	// ErrDamaged means that acknowledged records are damaged or missing. The error
	// also holds a *Fault that says where.
	ErrDamaged = errors.New("audit journal is damaged; `keyhold audit verify` shows where, docs/audit-format.md what to do")
)

// Journal is an open journal: the one writer of its directory. Its methods may be
// called concurrently.
type Journal struct {
	opts Options
	dir  string
	lock *os.File
	id   journalID

	requests sync.Pool
	wake     chan struct{} // cap 1: there is something in queue, or closing was set
	quit     chan struct{} // closed when nothing waits any more: ends the watchers
	done     chan struct{} // closed when the committer has ended
	watchers sync.WaitGroup
	closeErr error // set before done is closed

	// failed is nil while the journal can be written; it is what Append fails fast
	// with. It is derived from causes.
	failed  atomic.Pointer[error]
	epoch   time.Time    // base of ioSince, monotonic
	ioSince atomic.Int64 // since epoch, when the committer entered the operating system; 0 if it is not there

	mu    sync.Mutex
	queue []*request // waiting; their Append calls may still withdraw them
	// inflight are taken by the committer. Whoever removes a request from here, under
	// mu, is the one to finish it: the committer, or the watchdog if the disk hangs.
	inflight []*request
	closing  bool
	durable  Anchor
	segment  *segment // the current one, for the watcher
	head     file
	causes   [numCauses]error
	refused  bool // a Normal record was refused since a next segment was last ready
	status   Status

	w writer // the committer's own
}

// cause is a reason why the journal cannot be written. Each has one owner, which
// sets and clears it.
type cause int

const (
	causeIO    cause = iota // a write or sync failed: committer
	causeLost               // files are not where they were: identity watcher
	causeStall              // the disk hangs: watchdog
	numCauses
)

// request is one Append. It belongs to the caller until it is in queue, and again
// after done was received from.
type request struct {
	payloads   [][]byte
	kind       Kind
	class      Class
	durability Durability
	size       int64
	done       chan struct{} // cap 1
	first      uint64
	err        error
}

// Append adds one record per payload, in order and next to each other, and returns
// the sequence number of the first. When it returns nil, all of them are as durable
// as durability says. On an error none may be relied on: it is ctx's error if ctx
// ended while the records still waited for their turn (they are then not
// written), ErrRecordSize, or an ErrUnavailable. Once their turn has come, Append
// waits for the outcome, at most about Options.StallTimeout.
//
// Append does not keep the payloads. It does not look into them; text must not
// contain the byte 0xFF, which valid UTF-8 never does (docs/audit-format.md, Damage
// and recovery).
func (j *Journal) Append(ctx context.Context, class Class, durability Durability, payloads ...[]byte) (uint64, error) {
	size, err := j.checkSize(payloads)
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("append audit record: %w", err)
	}
	if failed := j.failed.Load(); failed != nil {
		return 0, *failed
	}
	if durability == DefaultDurability {
		durability = j.opts.Durability
	}
	r, ok := j.requests.Get().(*request)
	if !ok {
		r = &request{done: make(chan struct{}, 1)}
	}
	r.kind, r.class, r.durability, r.size = KindEvent, class, durability, size
	r.payloads = append(r.payloads[:0], payloads...)
	err = j.submit(ctx, r)
	first := r.first
	r.err = nil
	clear(r.payloads) // keep no one's memory
	j.requests.Put(r)
	return first, err
}

func (j *Journal) checkSize(payloads [][]byte) (int64, error) {
	if len(payloads) == 0 || len(payloads) > j.opts.MaxBatch {
		return 0, fmt.Errorf("%w: %d records in one call, allowed are 1 to %d", ErrRecordSize, len(payloads), j.opts.MaxBatch)
	}
	var size int64
	for _, p := range payloads {
		if len(p) == 0 || len(p) > j.opts.MaxRecordBytes {
			return 0, fmt.Errorf("%w: %d bytes, allowed are 1 to %d", ErrRecordSize, len(p), j.opts.MaxRecordBytes)
		}
		size += int64(recordSize(len(p)))
	}
	// A call goes into one segment, so it must fit in an empty one.
	if room := j.opts.SegmentBytes - segmentHeaderBytes - j.opts.ReserveBytes; size > room {
		return 0, fmt.Errorf("%w: %d bytes in one call, a segment has room for %d", ErrRecordSize, size, room)
	}
	return size, nil
}

// submit hands r over and waits until it is finished or withdrawn.
func (j *Journal) submit(ctx context.Context, r *request) error {
	j.mu.Lock()
	if j.closing {
		j.mu.Unlock()
		return ErrClosed
	}
	j.queue = append(j.queue, r)
	first := len(j.queue) == 1
	j.mu.Unlock()
	if first { // else the one who was first has woken the committer
		j.poke()
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
	}
	if j.withdraw(r) {
		return fmt.Errorf("append audit record: %w", ctx.Err())
	}
	<-r.done
	return r.err
}

func (j *Journal) poke() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// withdraw takes r out of the queue. It returns false if r is no longer there.
func (j *Journal) withdraw(r *request) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.queue, r)
	if i < 0 {
		return false
	}
	j.queue = slices.Delete(j.queue, i, i+1)
	return true
}

// finish ends the wait of those requests. The caller must have removed them from
// queue or inflight.
func finish(requests []*request, err error) {
	for _, r := range requests {
		r.err = err
		r.done <- struct{}{}
	}
}

// Healthy returns nil if records can be written, else why not (an ErrUnavailable).
func (j *Journal) Healthy() error {
	if failed := j.failed.Load(); failed != nil {
		return *failed
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closing:
		return ErrClosed
	case j.refused, j.status.Full:
		return ErrFull
	}
	return nil
}

// Status is how much room a journal has.
type Status struct {
	// SegmentLeft is what is left of the current segment, in bytes, the reserve
	// included.
	SegmentLeft int64
	// SpareReady means that the next segment is preallocated. It need not be while
	// less than half is used of what was written of the current one beforehand.
	SpareReady bool
	// SpareFailed means that the last attempt to preallocate it failed.
	SpareFailed bool
	// Full means that Normal records of usual size are refused.
	Full bool
}

// Status returns how much room there is, for metrics and alerts.
func (j *Journal) Status() Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.status
}

// usualRecordBytes is the payload for which a journal must have room to be healthy.
const usualRecordBytes = 4096

// publish tells what Status returns.
func (j *Journal) publish() {
	w := &j.w
	s := Status{
		SegmentLeft: w.seg.size - w.durableOff - int64(len(w.buf)),
		SpareReady:  w.next != nil,
		SpareFailed: w.nextErr != nil,
	}
	usual := int64(recordSize(min(usualRecordBytes, j.opts.MaxRecordBytes)))
	s.Full = s.SpareFailed && s.SegmentLeft-j.opts.ReserveBytes < usual
	if s == w.status {
		return
	}
	w.status = s
	j.mu.Lock()
	j.status = s
	j.mu.Unlock()
}

// Durable returns the newest point known to be on the disk.
func (j *Journal) Durable() Anchor {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

// Close stops accepting records, writes and syncs what waits, and closes the
// journal. It returns when that is done or ctx ends; the work then goes on, and
// Close may be called again to wait for it.
func (j *Journal) Close(ctx context.Context) error {
	j.mu.Lock()
	j.closing = true
	j.mu.Unlock()
	j.poke()
	select {
	case <-j.done:
		return j.closeErr
	case <-ctx.Done():
		return fmt.Errorf("close audit journal: %w", ctx.Err())
	}
}

// setCause sets or, with nil, clears one reason for being unavailable. It reports
// whether that changed anything between nil and not nil.
func (j *Journal) setCause(c cause, err error) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := (j.causes[c] == nil) != (err == nil)
	j.causes[c] = err
	all := errors.Join(j.causes[:]...)
	if all == nil {
		j.failed.Store(nil)
		return changed
	}
	if !errors.Is(all, ErrUnavailable) {
		all = fmt.Errorf("%w: %w", ErrUnavailable, all)
	}
	j.failed.Store(&all)
	return changed
}

func (j *Journal) headPath() string { return filepath.Join(j.dir, headName) }

// enterIO and leaveIO bracket what the committer asks of the operating system.
func (j *Journal) enterIO() {
	j.ioSince.Store(max(1, int64(time.Since(j.epoch))))
}

func (j *Journal) leaveIO() {
	j.ioSince.Store(0)
}
