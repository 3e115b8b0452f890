package keypair

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// DefaultLifetime is how long a ready pair waits for somebody to want it.
const DefaultLifetime = 10 * time.Minute

// readyPairs returns how many pairs of a spec are kept ready. Ten in all, each
// of a few kilobytes: some 30 KiB. Elliptic curve pairs take microseconds and
// are made when they are asked for.
func (s Spec) readyPairs() int {
	switch s {
	case RSA2048, RSA3072:
		return 4
	case RSA4096:
		return 2
	}
	return 0
}

// ErrClosed means that the pool was closed.
var ErrClosed = errors.New("pool of key pairs is closed")

// Options of a Pool. Zero means the default.
type Options struct {
	// Generate makes a pair. Default: the function Generate.
	Generate func(Spec) (Pair, error)
	// AtOnce bounds how many RSA pairs are made at the same time, the
	// background's included. Default: one less than the CPUs that Go uses, at
	// least one: making an RSA pair is the longest computation of the whole
	// service, and everybody else's requests need a CPU too.
	AtOnce int
	// Lifetime bounds how long a ready pair waits in memory. Default:
	// DefaultLifetime.
	Lifetime time.Duration
}

// Pool makes pairs, and keeps a few RSA pairs ready so that callers need not
// wait for primes to be found.
//
// Nothing is made of a spec that nobody has asked for. After a pair was taken,
// one goroutine in the background makes pairs until the shelf is full again,
// and ends. A pair that nobody takes for a Lifetime is wiped and not replaced.
// So an idle service neither computes nor holds private keys.
//
// Every pair is handed out once. All methods may be called concurrently.
type Pool struct {
	generate func(Spec) (Pair, error)
	lifetime time.Duration
	// places has one element for each generation that is under way. Pairs are
	// put on a shelf by who holds a place, before it is given back: so who
	// waits for a place misses none.
	places chan struct{}

	closing chan struct{}
	// work is what Close waits for. It grows under mu while closed is false.
	work sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	refilling bool    // the goroutine in the background runs
	shelves   []shelf // by spec; fixed when the pool is made
}

// shelf holds the ready pairs of one spec. Pool.mu guards it.
type shelf struct {
	spec  Spec
	size  int
	ready []*waiting // at most size, oldest first
	// owed is how many pairs the background is to make. It is what was lacking
	// when somebody last asked: what expires later is not replaced.
	owed int
}

// waiting is a pair on a shelf.
type waiting struct {
	pair   Pair
	expiry *time.Timer
}

// NewPool makes a pool with nothing in it.
func NewPool(o Options) *Pool {
	if o.Generate == nil {
		o.Generate = Generate
	}
	if o.AtOnce == 0 {
		o.AtOnce = max(1, runtime.GOMAXPROCS(0)-1)
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	p := &Pool{
		generate: o.Generate, lifetime: o.Lifetime,
		places: make(chan struct{}, o.AtOnce), closing: make(chan struct{}),
	}
	for _, spec := range Specs() {
		if n := spec.readyPairs(); n > 0 {
			p.shelves = append(p.shelves, shelf{spec: spec, size: n})
		}
	}
	return p
}

// Get returns a pair that nobody else has and gets: a ready one, else a new
// one. It returns ctx's error when that ends first; a pair that is being made
// then is kept for others where there is room, and wiped where there is none.
// After Close, ErrClosed.
func (p *Pool) Get(ctx context.Context, spec Spec) (Pair, error) {
	if err := ctx.Err(); err != nil {
		return Pair{}, err
	}
	s := p.shelf(spec)
	if s == nil {
		select {
		case <-p.closing:
			return Pair{}, ErrClosed
		default:
			return p.newPair(spec)
		}
	}
	if pair, err := p.take(s); err != nil || pair.PKCS8 != nil {
		return pair, err
	}
	select {
	case p.places <- struct{}{}:
	case <-ctx.Done():
		return Pair{}, ctx.Err()
	case <-p.closing:
		return Pair{}, ErrClosed
	}
	// Who held the place may have left a pair.
	if pair, err := p.take(s); err != nil || pair.PKCS8 != nil {
		<-p.places
		return pair, err
	}
	return p.makeFor(ctx, s)
}

// Ready returns how many pairs of the spec are ready.
func (p *Pool) Ready(spec Spec) int {
	s := p.shelf(spec)
	if s == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(s.ready)
}

// Close wipes what is ready and waits for what is being made, which is wiped
// too unless somebody waits for it.
func (p *Pool) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.closing)
	}
	for i := range p.shelves {
		for _, w := range p.shelves[i].ready {
			w.expiry.Stop()
			w.pair.Wipe()
		}
		p.shelves[i].ready = nil
	}
	p.mu.Unlock()
	p.work.Wait()
}

// shelf returns the shelf of a spec, or nil where none is kept.
func (p *Pool) shelf(spec Spec) *shelf {
	for i := range p.shelves {
		if p.shelves[i].spec == spec {
			return &p.shelves[i]
		}
	}
	return nil
}

// take takes the oldest pair off the shelf and sees to it that another one
// follows. The zero Pair: there was none.
func (p *Pool) take(s *shelf) (Pair, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return Pair{}, ErrClosed
	case len(s.ready) == 0:
		return Pair{}, nil
	}
	w := s.ready[0]
	s.ready = slices.Delete(s.ready, 0, 1)
	w.expiry.Stop() // too late is no matter: expire looks whether it is still there
	p.want(s)
	return w.pair, nil
}

// makeFor makes a pair for one caller, who holds a place; it is given back.
func (p *Pool) makeFor(ctx context.Context, s *shelf) (Pair, error) {
	type result struct {
		pair Pair
		err  error
	}
	// Not buffered: a pair has either been received, or is still ours.
	done := make(chan result)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.places
		return Pair{}, ErrClosed
	}
	p.work.Go(func() {
		defer func() { <-p.places }()
		pair, err := p.newPair(s.spec)
		select {
		case done <- result{pair, err}:
		case <-ctx.Done():
			p.keep(s, pair)
		}
		// Only now: the caller did not have to share the CPUs with it.
		p.mu.Lock()
		defer p.mu.Unlock()
		p.want(s)
	})
	p.mu.Unlock()
	select {
	case r := <-done:
		return r.pair, r.err
	case <-ctx.Done():
		return Pair{}, ctx.Err()
	}
}

// newPair is generate whose panic is an error: it runs outside of any request,
// and must not take the service down.
func (p *Pool) newPair(spec Spec) (pair Pair, err error) {
	defer func() {
		if v := recover(); v != nil {
			pair, err = Pair{}, fmt.Errorf("panic while making a pair of %s: %v\n%s", spec, v, debug.Stack())
		}
	}()
	return p.generate(spec)
}

// keep puts a pair on the shelf, or wipes it.
func (p *Pool) keep(s *shelf, pair Pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pair.PKCS8 == nil {
		return // it could not be made
	}
	if p.closed || len(s.ready) == s.size {
		pair.Wipe()
		return
	}
	w := &waiting{pair: pair}
	w.expiry = time.AfterFunc(p.lifetime, func() { p.expire(s, w) })
	s.ready = append(s.ready, w)
}

// expire wipes a pair that is still on the shelf.
func (p *Pool) expire(s *shelf, w *waiting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(s.ready, w); i >= 0 {
		s.ready = slices.Delete(s.ready, i, i+1)
		w.pair.Wipe()
	}
}

// want starts the goroutine in the background unless it runs. Called with mu
// held.
func (p *Pool) want(s *shelf) {
	s.owed = s.size - len(s.ready)
	if !p.refilling && !p.closed {
		p.refilling = true
		p.work.Go(p.refill)
	}
}

// refill makes the pairs that are owed, one at a time.
func (p *Pool) refill() {
	for {
		s := p.emptiest()
		if s == nil {
			return
		}
		select {
		case p.places <- struct{}{}:
		case <-p.closing:
			return // for good: refilling stays set
		}
		pair, err := p.newPair(s.spec)
		p.keep(s, pair)
		p.paid(s, err)
		<-p.places
	}
}

// emptiest returns the shelf that is owed pairs and emptiest for its size, so
// that no spec starves another one. nil ends the refilling.
func (p *Pool) emptiest() *shelf {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found *shelf
	for i := range p.shelves {
		s := &p.shelves[i]
		if s.owed > 0 && len(s.ready) < s.size && (found == nil || len(s.ready)*found.size < len(found.ready)*s.size) {
			found = s
		}
	}
	if p.closed {
		found = nil
	}
	p.refilling = found != nil
	return found
}

// paid counts a pair that was owed. After an error nothing more is owed until
// somebody asks again: who asks learns of it, and a loop would only burn.
func (p *Pool) paid(s *shelf, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.owed = max(0, s.owed-1)
	if err != nil {
		s.owed = 0
	}
}
