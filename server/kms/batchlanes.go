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
	// hangTime is when a turn that is still under way counts as long.
	hangTime = 10 * time.Millisecond
)

// laneItems is how many items of a batch a further lane is begun with for: where
// calls are short, fewer are done sooner than another lane is awake.
const laneItems = 25

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
	long   atomic.Bool    // a turn took long
	group  sync.WaitGroup // all lanes but the batch's own goroutine
	next   atomic.Int64   // the next item that nobody has begun
	// done are the items that have been carried out. An item that hangs belongs to
	// whoever runs it until it is here, and is none of ours once another is.
	done []atomic.Pointer[batchItem]
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

// left returns how many items nobody has begun.
func (b *batchRun) left() int { return max(0, len(b.items)-int(b.next.Load())) }

// lane carries out items, one after the other, until all have been begun.
func (b *batchRun) lane(ctx context.Context) {
	lender, _ := b.s.regions[b.c.region].(Lender)
	for b.left() > 0 {
		long := b.long.Load()
		if !b.places.enter(ctx, long) {
			b.turn(ctx) // all that is left ends before the key store is asked
			continue
		}
		began := time.Now()
		over := b.watch(ctx)
		var again atomic.Int64
		if lender == nil || !lender.Lend(ctx, func(ctx context.Context) { again.Store(int64(b.turn(ctx))) }) {
			b.turn(ctx)
		} else if i := int(again.Load()) - 1; i >= 0 {
			b.do(ctx, i) // it could not be done under a loan
		}
		over()
		b.places.leave(long)
		if time.Since(began) > turnTime {
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

// turn carries out a few items. It returns 0 or, where an item cannot be done under
// the loan that ctx is of, that item's index plus one, and ends.
func (b *batchRun) turn(ctx context.Context) int {
	began := time.Now()
	for range turnItems {
		i := int(b.next.Add(1)) - 1
		if i >= len(b.items) {
			return 0
		}
		if !b.do(ctx, i) {
			return i + 1
		}
		if ctx.Err() != nil || time.Since(began) > turnTime {
			return 0
		}
	}
	return 0
}

// do carries out an item, and tells whether that could be done here.
func (b *batchRun) do(ctx context.Context, i int) bool {
	it := b.c.newItem(i, b.items[i])
	if err := b.s.carryOut(ctx, it); errors.Is(err, ErrLoanOver) {
		return false
	}
	if !b.done[i].CompareAndSwap(nil, it) {
		Wipe(it.resp) // it hung, and has been answered without this
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
