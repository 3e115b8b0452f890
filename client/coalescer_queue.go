package client

import (
	"container/list"
	"context"
	"runtime"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// lane is one region: what is under way and what waits. Coalescer.mu guards it
// and everything below, but for what the comments say.
type lane struct {
	region  string // as in the calls' metadata, empty for none
	flights []*flight
	queue   list.List // of *item
	riding  int       // calls that are under way, alone and in batches
	// watch looks at the queue again when a flight may be stalled. It is set
	// whenever something waits; it may be set without.
	watch    *time.Timer // nil at first
	watching bool
}

// flight is one request that is under way.
type flight struct {
	lane  *lane
	begun time.Time
	calls int
}

// batch is items that are sent together.
type batch struct {
	items   []*item
	callers int // that have not left
	cancel  context.CancelFunc
}

// regionOf returns the region that the call's metadata names, or nothing. plain
// is false if there is anything else: it might say who calls, and a batch
// cannot carry it for one of its items.
func regionOf(ctx context.Context) (region string, plain bool) {
	md, _ := metadata.FromOutgoingContext(ctx)
	if len(md) == 0 {
		return "", true
	}
	values := md[RegionHeader]
	if len(md) > 1 || len(values) != 1 || values[0] == "" {
		return "", false
	}
	return values[0], true
}

// board returns when a call may be sent, with a flight, or when it was carried by
// a batch, with its item, which is complete. Or it returns an error.
func (c *Coalescer) board(ctx context.Context, region string, in proto.Message, kind protowire.Number, deadline time.Time) (*flight, *item, error) {
	var it *item
	if c.busy.Load() {
		var err error
		if it, err = newItem(ctx, in, kind, deadline); err != nil {
			return nil, nil, err
		}
	}
	f, l, err := c.admit(region, it)
	if f == nil && l == nil && err == nil {
		if it, err = newItem(ctx, in, kind, deadline); err != nil {
			return nil, nil, err
		}
		f, l, err = c.admit(region, it)
	}
	if f != nil || err != nil {
		if it != nil {
			it.wipe()
		}
		return f, nil, err
	}
	return c.wait(ctx, l, it)
}

// admit gives a call a flight if it may be sent at once. Else it queues the item
// in the lane that it returns; without an item it does nothing.
func (c *Coalescer) admit(region string, it *item) (*flight, *lane, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.lane(region)
	if l.queue.Len() == 0 && c.free(l) {
		c.busy.Store(false)
		return c.depart(l, 1), nil, nil
	}
	c.busy.Store(true)
	if it == nil {
		return nil, nil, nil
	}
	if c.waiting >= c.cfg.MaxWaiting {
		return nil, nil, status.Errorf(codes.ResourceExhausted, "%d calls wait to be sent", c.cfg.MaxWaiting)
	}
	it.place = l.queue.PushBack(it)
	c.waiting++
	c.watchOver(l)
	return nil, l, nil
}

func (c *Coalescer) lane(region string) *lane {
	l := c.lanes[region]
	if l == nil {
		l = &lane{region: region}
		c.lanes[region] = l
	}
	return l
}

// free tells whether another request may be sent.
func (c *Coalescer) free(l *lane) bool {
	if len(l.flights) < c.cfg.MaxInFlight {
		return true
	}
	busy, now := 0, c.retry.Now()
	for _, f := range l.flights {
		if now.Sub(f.begun) < stalledAfter {
			busy++
		}
	}
	return busy < c.cfg.MaxInFlight
}

func (c *Coalescer) depart(l *lane, calls int) *flight {
	f := &flight{lane: l, begun: c.retry.Now(), calls: calls}
	l.riding += calls
	l.flights = append(l.flights, f)
	return f
}

// land says that a request has ended, and sends what waits.
func (c *Coalescer) land(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.landed(f)
}

func (c *Coalescer) landed(f *flight) {
	l := f.lane
	l.riding -= f.calls
	i := slices.Index(l.flights, f)
	l.flights = slices.Delete(l.flights, i, i+1)
	c.dispatch(l)
}

// wait returns when the queued item's turn has come, or when its context or
// deadline has ended. A flight is returned where the caller is to send the call
// itself.
func (c *Coalescer) wait(ctx context.Context, l *lane, it *item) (*flight, *item, error) {
	var late <-chan time.Time
	if _, own := ctx.Deadline(); !own {
		timer := c.timer(it.deadline.Sub(c.retry.Now()))
		defer c.timers.Put(timer)
		defer timer.Stop()
		late = timer.C
	}
	ended := context.DeadlineExceeded
	select {
	case <-it.turn:
		return it.flight, it, nil
	case <-ctx.Done():
		ended = ctx.Err()
	case <-late:
	}
	c.leave(l, it)
	return nil, nil, status.FromContextError(ended).Err()
}

// timer returns one that fires after d.
func (c *Coalescer) timer(d time.Duration) *time.Timer {
	if t, ok := c.timers.Get().(*time.Timer); ok {
		t.Reset(d)
		return t
	}
	return time.NewTimer(d)
}

// watchOver makes sure that the queue is looked at when the next flight counts as
// stalled. One that begins later does so later: what is set already is not too
// late.
func (c *Coalescer) watchOver(l *lane) {
	if l.watching {
		return
	}
	now, next := c.retry.Now(), stalledAfter
	for _, f := range l.flights {
		if left := stalledAfter - now.Sub(f.begun); left > 0 {
			next = min(next, left)
		}
	}
	l.watching = true
	if l.watch == nil {
		l.watch = time.AfterFunc(next, func() { c.look(l) })
		return
	}
	l.watch.Reset(next)
}

// look sends what waits behind stalled requests, and looks again later where
// something is left.
func (c *Coalescer) look(l *lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes[l.region] != l {
		return
	}
	l.watching = false
	c.dispatch(l)
	if l.queue.Len() > 0 {
		c.watchOver(l)
	}
}

// leave takes the caller of an item away, wherever the item is.
func (c *Coalescer) leave(l *lane, it *item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it.gone = true
	switch {
	case it.place != nil:
		c.unqueue(l, it)
		it.wipe()
		c.tidy(l)
	case it.flight != nil:
		c.landed(it.flight) // it was let go at this moment, and does not
	case it.result != nil:
		wipeResult(it.result)
	case it.batch != nil:
		it.batch.callers--
		if it.batch.callers == 0 {
			it.batch.cancel()
		}
	}
}

func (c *Coalescer) unqueue(l *lane, it *item) {
	l.queue.Remove(it.place)
	it.place = nil
	c.waiting--
}

// dispatch sends what waits, as far as requests may be sent.
func (c *Coalescer) dispatch(l *lane) {
	for l.queue.Len() > 0 && c.free(l) {
		items := c.take(l, c.share(l))
		switch len(items) {
		case 0: // all of them had ended
		case 1: // its caller sends it, as an ordinary call
			it := items[0]
			it.flight = c.depart(l, 1)
			it.wipe()
			close(it.turn)
		default:
			c.send(l, items)
		}
	}
	c.tidy(l)
}

// share returns how many items a batch takes: so many that those which wait and
// those which are under way, which will come back if there is a steady load, make
// batches of one size. Otherwise one batch would carry nearly all, and the rest
// of MaxInFlight next to none.
func (c *Coalescer) share(l *lane) int {
	n := (l.queue.Len() + l.riding + c.cfg.MaxInFlight - 1) / c.cfg.MaxInFlight
	return min(max(n, 1), maxBatchItems)
}

// take takes the items of one batch from the queue, at most so many, in their
// order. Those whose context has ended are dropped: their callers are about to
// leave.
func (c *Coalescer) take(l *lane, most int) []*item {
	var items []*item
	bytes := 0
	for l.queue.Len() > 0 && len(items) < most {
		it := l.queue.Front().Value.(*item) //nolint:forcetypeassert // the only type in it
		if it.ended() != nil {
			c.unqueue(l, it)
			it.wipe()
			continue
		}
		if bytes += len(it.body); bytes > maxBatchBytes {
			break
		}
		c.unqueue(l, it)
		items = append(items, it)
	}
	return items
}

// tidy forgets a lane that nothing is in, if there are many: a context can name
// whatever region it likes.
func (c *Coalescer) tidy(l *lane) {
	if l.queue.Len() == 0 && len(l.flights) == 0 && len(c.lanes) > maxIdleLanes && c.lanes[l.region] == l {
		c.forget(l)
	}
}

func (c *Coalescer) forget(l *lane) {
	if l.watch != nil {
		l.watch.Stop()
	}
	delete(c.lanes, l.region)
}

// send sends items as one Batch, in a goroutine of its own: no caller's context
// is the batch's.
func (c *Coalescer) send(l *lane, items []*item) {
	var latest time.Time
	for _, it := range items {
		if it.deadline.After(latest) {
			latest = it.deadline
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), latest)
	if l.region != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, RegionHeader, l.region)
	}
	b := &batch{items: items, callers: len(items), cancel: cancel}
	for _, it := range items {
		it.batch = b
	}
	f := c.depart(l, len(items))
	c.calls.goes(func() {
		defer cancel()
		c.carry(ctx, b, f)
	})
}

// carry makes the batch's call and hands out what came of it.
func (c *Coalescer) carry(ctx context.Context, b *batch, f *flight) {
	var header metadata.MD
	once := new(oneAttempt)
	req, buf := encodeBatch(b.items)
	resp, err := c.Batch(ctx, req, grpc.Header(&header), once)
	req.ProtoReflect().SetUnknown(nil)
	buffers.Put(buf)
	results := resp.GetResults()
	if err == nil && len(results) != len(b.items) {
		err = status.Errorf(codes.Internal, "a batch of %d items has %d results", len(b.items), len(results))
	}
	var requestID string
	if id := header.Get(requestIDHeader); len(id) > 0 {
		requestID = id[0]
	}
	c.mu.Lock()
	for i, it := range b.items {
		it.err, it.requestID, it.late = err, requestID, once.late
		if err == nil {
			it.result = results[i]
		}
		if it.gone && it.result != nil {
			wipeResult(it.result)
		}
		close(it.turn)
	}
	c.mu.Unlock()
	// The callers go first. Those that have another call to make, as they do under
	// load, meet in the next batch; otherwise the first of them would be sent alone
	// and the rest wait for it.
	runtime.Gosched()
	c.land(f)
}
