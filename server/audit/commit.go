package audit

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// writer is the state of the committer goroutine; no other goroutine touches it
// once Open has returned.
type writer struct {
	seg *segment
	// buf are the records from durableOff on in seg: all that is not known to be on
	// the disk. The first written bytes of it are in the file. Of these the first
	// acked bytes were acknowledged (durability Written): they are kept here so that
	// a failed sync cannot lose them.
	buf        []byte
	durableOff int64
	durable    Anchor // at durableOff
	written    int
	acked      int
	ackedAt    Anchor // after acked
	tip        Anchor // after buf

	syncDue  time.Time // when written bytes must be synced; zero if there are none
	retryDue time.Time // after a failure: when to try to recover

	next       *spare // the next segment, ready; may be nil
	nextErr    error  // why it is not ready, since the last attempt
	nextRetry  time.Time
	preparing  bool
	prepared   chan preparation // cap 1
	headFailed bool             // the head file could not be written; logged
	status     Status           // as last published

	batch, refused []*request // scratch of take
}

// verdict is what take found at the front of the queue.
type verdict int

const (
	verdictIdle   verdict = iota // nothing waits, or it was taken
	verdictRotate                // the front needs the next segment, which is ready
	verdictAwait                 // the front needs the next segment, which is not ready yet
)

// run is the committer goroutine.
func (j *Journal) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		busy := j.step()
		wait := j.housekeep()
		if busy {
			continue
		}
		j.mu.Lock()
		ended := j.closing && len(j.queue) == 0
		j.mu.Unlock()
		if ended {
			j.shutdown()
			return
		}
		timer.Reset(wait)
		select {
		case <-j.wake:
		case p := <-j.w.prepared:
			j.adopt(p)
		case <-timer.C:
		}
	}
}

// step does one piece of work and reports whether there may be more.
func (j *Journal) step() bool {
	if failed := j.failed.Load(); failed != nil {
		j.failQueue(*failed)
		return false
	}
	// Whoever is about to append gets on the same sync: under load this makes
	// commits larger, and costs nothing where nobody else runs. A batch is large
	// enough.
	if !j.batchWaits() {
		runtime.Gosched()
	}
	batch, refused, v := j.take()
	if len(refused) > 0 {
		finish(refused, ErrFull)
	}
	switch {
	case len(batch) > 0:
		j.commit(batch)
	case v == verdictRotate:
		j.rotate()
	case v == verdictAwait:
		j.awaitNext()
	default:
		return false
	}
	return true
}

// batchWaits tells whether a call with several records waits.
func (j *Journal) batchWaits() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.queue, func(r *request) bool { return len(r.payloads) >= fewRecords })
}

// fewRecords is how many records one call must have to be a commit by itself.
const fewRecords = 8

// failQueue fails all that wait.
func (j *Journal) failQueue(err error) {
	j.mu.Lock()
	waiting := j.queue
	j.queue = nil
	j.mu.Unlock()
	finish(waiting, err)
}

// take moves requests from the front of the queue to inflight, as many as go into
// one commit in this segment, and picks out those that a full disk refuses. It takes
// none where the next segment is ready and the rest of this one was never written.
// Its results are valid until the next call.
func (j *Journal) take() (batch, refused []*request, v verdict) {
	w := &j.w
	batch, refused = w.batch[:0], w.refused[:0]
	j.mu.Lock()
	defer j.mu.Unlock()
	used := w.durableOff + int64(len(w.buf))
	if w.next != nil && used > w.seg.written && len(j.queue) > 0 {
		return batch, refused, verdictRotate // to where a sync costs less
	}
	rest := w.seg.size - used
	var bytes int64
	var records, i int
loop:
	for ; i < len(j.queue); i++ {
		r := j.queue[i]
		room := rest - bytes
		if r.class == Normal && w.next == nil {
			room -= j.opts.ReserveBytes
		}
		switch {
		case r.size <= room:
		case w.next != nil:
			v = verdictRotate
			break loop
		case w.nextErr == nil:
			v = verdictAwait
			break loop
		default:
			j.refused = true
			refused = append(refused, r)
			continue
		}
		records += len(r.payloads)
		bytes += r.size
		if len(batch) > 0 && (records > j.opts.MaxBatch || bytes > maxCommitBytes) {
			break
		}
		batch = append(batch, r)
	}
	n := copy(j.queue, j.queue[i:])
	clear(j.queue[n:])
	j.queue = j.queue[:n]
	j.inflight = append(j.inflight[:0], batch...)
	w.batch, w.refused = batch, refused
	return batch, refused, v
}

// encode appends the records of batch to buf. Payloads are read here and not after:
// once the operating system is involved, the watchdog may send callers away.
func (j *Journal) encode(batch []*request) (records int, anySynced, anyWritten bool) {
	w := &j.w
	h := recordHeader{nanos: j.opts.Now().UnixNano(), floor: w.durable.Count}
	for _, r := range batch {
		r.first = w.tip.Count
		h.kind, h.flags = r.kind, 0
		if r.class == Protected {
			h.flags = flagProtected
		}
		for _, p := range r.payloads {
			h.seq = w.tip.Count
			w.buf, w.tip.Hash = appendRecord(w.buf, h, p, &w.tip.Hash)
			w.tip.Count++
		}
		records += len(r.payloads)
		if r.durability == Written {
			anyWritten = true
		} else {
			anySynced = true
		}
	}
	return records, anySynced, anyWritten
}

// commit writes one batch and ends the wait of its requests.
func (j *Journal) commit(batch []*request) {
	w := &j.w
	start := len(w.buf)
	records, mustSync, anyWritten := j.encode(batch)
	began := time.Now()
	j.enterIO()
	_, err := w.seg.file.WriteAt(w.buf[w.written:], w.durableOff+int64(w.written))
	if err == nil {
		w.written = len(w.buf)
		mustSync = mustSync || len(w.buf) >= maxUnsyncedBytes
		if anyWritten {
			j.acknowledgeWritten()
		}
		if mustSync {
			err = w.seg.file.Sync()
		}
	}
	j.leaveIO()
	j.observe(Commit{Records: records, Bytes: len(w.buf) - start, Synced: mustSync, Elapsed: time.Since(began), Err: err})
	if err != nil {
		j.fail(err)
		return
	}
	if mustSync {
		j.synced()
	}
	j.finishInflight(nil, nil)
	if mustSync {
		j.writeHead()
	}
}

// acknowledgeWritten ends the wait of those who only wanted a write. From then on
// all of buf counts as acknowledged: what lies between must come along to keep the
// chain.
func (j *Journal) acknowledgeWritten() {
	w := &j.w
	w.acked, w.ackedAt = len(w.buf), w.tip
	if w.syncDue.IsZero() {
		w.syncDue = time.Now().Add(j.opts.SyncInterval)
	}
	j.finishInflight(func(r *request) bool { return r.durability == Written }, nil)
}

// finishInflight finishes the taken requests that match (all, if match is nil) and
// that the watchdog has not sent away.
func (j *Journal) finishInflight(match func(*request) bool, err error) {
	w := &j.w
	mine := w.batch[:0]
	j.mu.Lock()
	if match == nil {
		mine = append(mine, j.inflight...)
		j.inflight = j.inflight[:0]
	} else {
		keep := j.inflight[:0]
		for _, r := range j.inflight {
			if match(r) {
				mine = append(mine, r)
			} else {
				keep = append(keep, r)
			}
		}
		j.inflight = keep
	}
	j.mu.Unlock()
	finish(mine, err)
}

// synced notes that all of buf is on the disk.
func (j *Journal) synced() {
	w := &j.w
	w.durableOff += int64(len(w.buf))
	w.durable = w.tip
	w.syncDue = time.Time{}
	w.resetBuffer()
	j.mu.Lock()
	j.durable = w.durable
	j.mu.Unlock()
}

// resetBuffer empties buf; a buffer that one huge call made is given back.
func (w *writer) resetBuffer() {
	if cap(w.buf) > 2*maxCommitBytes {
		w.buf = nil
	}
	w.buf = w.buf[:0]
	w.written, w.acked, w.ackedAt = 0, 0, w.durable
}

// sync makes what is written durable. It returns false after a failure.
func (j *Journal) sync() bool {
	w := &j.w
	if len(w.buf) > 0 {
		began := time.Now()
		j.enterIO()
		err := w.seg.file.Sync()
		j.leaveIO()
		j.observe(Commit{Synced: true, Elapsed: time.Since(began), Err: err})
		if err != nil {
			j.fail(err)
			return false
		}
		j.synced()
		j.writeHead()
	}
	return true
}

// writeHead records the durable point in the head file, without a sync: if it gets
// lost, it only says less than it could. A failure is not the appends' failure,
// they are in the journal.
func (j *Journal) writeHead() {
	w := &j.w
	var b [headBytes]byte
	j.enterIO()
	_, err := j.head.WriteAt(appendHead(b[:0], j.id, w.durable), 0)
	j.leaveIO()
	if err != nil && !w.headFailed {
		j.opts.Logger.Warn("audit head file not written: a loss of the newest records might go unnoticed", "dir", j.dir, "err", err)
	}
	w.headFailed = err != nil
}

// fail fails what is taken and what waits and makes the journal unavailable until
// it has recovered. What was acknowledged stays in buf.
func (j *Journal) fail(err error) {
	w := &j.w
	err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	first := j.setCause(causeIO, err)
	if first {
		j.opts.Logger.Error("audit journal failed, operations are refused until it recovers",
			"dir", j.dir, "segment", w.seg.name, "durable_records", w.durable.Count, "err", err)
	}
	w.buf = w.buf[:w.acked]
	w.tip = w.ackedAt
	w.written = 0
	w.syncDue = time.Time{}
	w.retryDue = time.Now().Add(j.opts.RetryInterval)
	j.finishInflight(nil, err)
	j.failQueue(err)
}

func (j *Journal) observe(c Commit) {
	if j.opts.Observer != nil {
		j.opts.Observer(c)
	}
}

// housekeep does what is due and returns how long nothing else is.
func (j *Journal) housekeep() time.Duration {
	w := &j.w
	now := time.Now()
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	select {
	case p := <-w.prepared:
		j.adopt(p)
	default:
	}
	if due(w.retryDue) {
		j.tryRecover()
	}
	if due(w.syncDue) {
		j.sync()
	}
	if w.next == nil && !w.preparing {
		used := w.durableOff + int64(len(w.buf))
		if due(w.nextRetry) || (w.nextRetry.IsZero() && used > w.seg.written/2) {
			j.prepare()
		}
	}
	j.publish()
	now = time.Now()
	wait := time.Duration(math.MaxInt64)
	for _, t := range []time.Time{w.retryDue, w.syncDue, w.nextRetry} {
		if !t.IsZero() {
			wait = min(wait, max(0, t.Sub(now)))
		}
	}
	return wait
}

// shutdown ends the journal. The queue is empty and stays so.
func (j *Journal) shutdown() {
	defer close(j.done)
	w := &j.w
	close(j.quit)
	j.watchers.Wait()
	if w.preparing {
		j.adopt(<-w.prepared)
	}
	if !w.retryDue.IsZero() {
		j.tryRecover() // for the sake of Written records that are still in memory
	}
	if w.retryDue.IsZero() {
		j.sync()
	}
	var errs []error
	if failed := j.failed.Load(); failed != nil {
		errs = append(errs, *failed)
	}
	// The head's last word reaches the disk, so that damage to the last records is
	// noticed even if the power goes next.
	errs = append(errs, j.head.Sync())
	if w.next != nil {
		errs = append(errs, w.next.file.Close())
	}
	errs = append(errs, w.seg.file.Close(), j.head.Close(), j.lock.Close())
	j.closeErr = errors.Join(errs...)
	if j.closeErr != nil {
		j.closeErr = fmt.Errorf("close audit journal: %w", j.closeErr)
	}
}
