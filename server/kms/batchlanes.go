package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// defaultConcurrency is taken of key stores that do not say how much they do at
// once.
const defaultConcurrency = 16

// batchPlaces are where items of batches are in a key store: half of what it does
// at once. The other half is for those who come with one request.
//
// Short calls have as many places as there are CPUs. More only get into each
// other's way, since a key store whose calls are short computes on these CPUs.
// Where calls are long, in hardware or over a network, all places are used.
type batchPlaces struct {
	all, short chan struct{}
}

func newBatchPlaces(ks KeyStore) *batchPlaces {
	n := defaultConcurrency
	if c, ok := ks.(Concurrent); ok {
		n = c.Concurrency()
	}
	n = max(1, n/2)
	return &batchPlaces{all: make(chan struct{}, n), short: make(chan struct{}, min(n, runtime.GOMAXPROCS(0)))}
}

// enter waits for a place until ctx ends. The place is given back by leave.
func (p *batchPlaces) enter(ctx context.Context, long bool) bool {
	if !long {
		select {
		case p.short <- struct{}{}:
		case <-ctx.Done():
			return false
		}
	}
	select {
	case p.all <- struct{}{}:
		return true
	case <-ctx.Done():
		if !long {
			<-p.short
		}
		return false
	}
}

func (p *batchPlaces) leave(long bool) {
	<-p.all
	if !long {
		<-p.short
	}
}

// A turn is what a lane of a batch does in the key store before it gives its place
// to others: so many items, and no further one after so long.
const (
	turnItems = 32
	turnTime  = time.Millisecond
	// longCall is what an item takes, on the average of a turn, where calls are long.
	longCall = 50 * time.Microsecond
	// hangTime is when a turn that is still under way counts as long.
	hangTime = 10 * time.Millisecond
)

// laneItems is how many items are prepared before a further lane begins with them:
// fewer are prepared sooner than another lane is awake.
const laneItems = 32

// The time that is kept of a batch's own to answer in: a tenth of what is left, and
// no more than answerTime.
const answerTime = 200 * time.Millisecond

// leaveTime ends the items' time a little before the batch's: an item that hangs to
// the end must not take the answers of the others with it.
func leaveTime(ctx context.Context) (context.Context, context.CancelFunc) {
	at, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, at.Add(-min(time.Until(at)/10, answerTime)))
}

// batchRun is a batch that is being carried out.
type batchRun struct {
	s      *Service
	c      *call
	items  []*keyholdv1.BatchItem
	places *batchPlaces
	lanes  atomic.Int32
	long   atomic.Bool    // calls are long
	group  sync.WaitGroup // all lanes but the batch's own goroutine
	// ready are the items that steps 2 to 10 let pass; nReady says how many there
	// are so far. The first next of them have been begun.
	ready        []readyItem
	nReady, next atomic.Int64
	// done are the items that have been carried out. An item that hangs belongs to
	// whoever runs it until it is here, and is none of ours once another is.
	done []atomic.Pointer[batchItem]
}

// readyItem is the i-th item of a batch.
type readyItem struct {
	i  int
	it *batchItem
}

func newBatchRun(s *Service, c *call, items []*keyholdv1.BatchItem) *batchRun {
	return &batchRun{
		s: s, c: c, items: items, places: s.batchPlaces[c.region],
		ready: make([]readyItem, len(items)), done: make([]atomic.Pointer[batchItem], len(items)),
	}
}

// prepare prepares all items. Where there are many, a lane begins with those that
// are ready.
func (b *batchRun) prepare(ctx context.Context) {
	n := 0
	for i := range b.items {
		it := b.c.newItem(i, b.items[i])
		if !b.s.prepareItem(ctx, it) {
			b.done[i].Store(it)
			continue
		}
		b.ready[n] = readyItem{i, it}
		if n++; n%laneItems == 0 && n < len(b.items) {
			b.nReady.Store(int64(n))
			if b.lanes.Load() == 0 {
				b.addLanes(ctx, 1)
			}
		}
	}
	b.nReady.Store(int64(n))
}

// claim returns an item that is ready and that nobody has begun, or nil.
func (b *batchRun) claim() *readyItem {
	for {
		n := b.next.Load()
		if n >= b.nReady.Load() {
			return nil
		}
		if b.next.CompareAndSwap(n, n+1) {
			return &b.ready[n]
		}
	}
}

// addLanes starts up to n lanes, as far as there are places.
func (b *batchRun) addLanes(ctx context.Context, n int) {
	for range n {
		if int(b.lanes.Add(1)) > cap(b.places.all) {
			b.lanes.Add(-1)
			return
		}
		b.group.Go(func() { b.lane(ctx) })
	}
}

// left returns how many items are ready that nobody has begun.
func (b *batchRun) left() int { return int(b.nReady.Load() - b.next.Load()) }

// lane carries out items that are ready, one after the other, until all of them
// have been begun. It is one of b.lanes.
func (b *batchRun) lane(ctx context.Context) {
	defer b.lanes.Add(-1)
	lender, _ := b.s.regions[b.c.region].(Lender)
	for b.left() > 0 {
		long := b.long.Load()
		if !b.places.enter(ctx, long) {
			b.turn(ctx) // all that is left ends before the key store is asked
			continue
		}
		over := b.watch(ctx)
		var again atomic.Pointer[readyItem]
		if lender == nil || !lender.Lend(ctx, func(ctx context.Context) { again.Store(b.turn(ctx)) }) {
			b.turn(ctx)
		} else if r := again.Load(); r != nil {
			b.do(ctx, r) // it could not be done under a loan
		}
		over()
		b.places.leave(long)
		if b.long.Load() {
			b.widen(ctx)
		}
	}
}

// widen makes the batch use all places, because calls are long.
func (b *batchRun) widen(ctx context.Context) {
	b.long.Store(true)
	b.addLanes(ctx, b.left())
}

// watch widens the batch if the turn that begins now is still under way after
// hangTime: the lane's other items must not wait for one that hangs. over must be
// called at the turn's end.
func (b *batchRun) watch(ctx context.Context) (over func()) {
	var mu sync.Mutex // keeps lanes from being added when the last one may have ended
	ended := false
	t := time.AfterFunc(hangTime, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			b.widen(ctx)
		}
	})
	return func() {
		t.Stop()
		mu.Lock()
		defer mu.Unlock()
		ended = true
	}
}

// turn carries out a few items. It returns nil or, where an item cannot be done
// under the loan that ctx is of, that item, and ends.
func (b *batchRun) turn(ctx context.Context) *readyItem {
	began := time.Now()
	for n := range turnItems {
		r := b.claim()
		if r == nil {
			return nil
		}
		if !b.do(ctx, r) {
			return r
		}
		took := time.Since(began)
		if took > turnTime/2 && int(took/longCall) > n {
			b.long.Store(true)
		}
		if ctx.Err() != nil || took > turnTime {
			return nil
		}
	}
	return nil
}

// do carries out an item, and tells whether that could be done here.
func (b *batchRun) do(ctx context.Context, r *readyItem) bool {
	if err := b.s.actItem(ctx, r.it); errors.Is(err, ErrLoanOver) {
		return false
	}
	if !b.done[r.i].CompareAndSwap(nil, r.it) {
		Wipe(r.it.resp) // it hung, and has been answered without this
	}
	return true
}

// result returns the i-th item: as it was carried out or, where it hangs, as one
// that ran out of time.
func (b *batchRun) result(ctx context.Context, i int) *batchItem {
	if it := b.done[i].Load(); it != nil {
		return it
	}
	late := b.c.newItem(i, b.items[i])
	// What it may have done is recorded with its key.
	if late.malformed == "" && b.s.validate(&late.call) == nil {
		_ = b.s.resolve(&late.call)
	}
	late.failure = asError(late.op, fmt.Errorf("%s hangs: %w", late.op.name, cmp.Or(ctx.Err(), context.DeadlineExceeded)))
	if !b.done[i].CompareAndSwap(nil, late) {
		return b.done[i].Load()
	}
	return late
}
