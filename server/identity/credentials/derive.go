package credentials

import (
	"context"
	"sync"
	"time"

	"github.com/keyhold/keyhold/server/sigv4"
)

const (
	// deriveTimeout bounds one derivation, which goes on when a request that waits
	// for it is cancelled: others wait for the same.
	deriveTimeout = 30 * time.Second
	// failureAge is for how long a derivation that failed is not tried again: while a
	// token is down, requests would pile up at it, those of strangers among them.
	failureAge = time.Second
	// maxFailures bounds the failures that are known: one for each access key.
	maxFailures = 10_000
)

// flight is what is derived at most once at a time. Its strings may be parts of a
// request.
type flight struct {
	generation uint64 // of the access key
	scope      sigv4.Scope
}

// derivations has one derivation at a time for each key and scope: at midnight all
// clients come at once. It is golang.org/x/sync/singleflight, but that what was
// derived is wiped when the last one who waited has it, and that failures last a
// little.
type derivations struct {
	now func() time.Time

	mu       sync.Mutex
	underWay map[flight]*derivation
	// failed has, by generation, what happened when the secret was opened last. The
	// scope has no part in it.
	failed map[uint64]failure
}

// derivation is one that is under way, or waited for.
type derivation struct {
	done chan struct{} // closed when key and err are there
	key  sigv4.SigningKey
	err  error
	// waiting is how many will read key; the last of them wipes it, or who derives
	// it where nobody waits any more. The lock of derivations guards it.
	waiting int
}

type failure struct {
	err error
	at  time.Time
}

func newDerivations(now func() time.Time) *derivations {
	return &derivations{now: now, underWay: make(map[flight]*derivation), failed: make(map[uint64]failure)}
}

// do returns what derive, which is called once for all who ask meanwhile, writes to
// out.
func (d *derivations) do(ctx context.Context, f flight, derive func(ctx context.Context, out *sigv4.SigningKey) error) (sigv4.SigningKey, error) {
	d.mu.Lock()
	if past, ok := d.failed[f.generation]; ok {
		if !d.over(past) {
			d.mu.Unlock()
			return sigv4.SigningKey{}, past.err
		}
		delete(d.failed, f.generation)
	}
	one := d.underWay[f]
	if one == nil {
		one = &derivation{done: make(chan struct{})}
		d.underWay[f] = one
		go d.run(context.WithoutCancel(ctx), f, one, derive)
	}
	one.waiting++
	d.mu.Unlock()
	defer d.leave(one)
	select {
	case <-one.done:
		return one.key, one.err
	case <-ctx.Done():
		return sigv4.SigningKey{}, ctx.Err()
	}
}

// leave is what each does who waited.
func (d *derivations) leave(one *derivation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if one.waiting--; one.waiting > 0 {
		return
	}
	select {
	case <-one.done:
		clear(one.key[:])
	default: // run does it
	}
}

func (d *derivations) run(ctx context.Context, f flight, one *derivation, derive func(ctx context.Context, out *sigv4.SigningKey) error) {
	ctx, cancel := context.WithTimeout(ctx, deriveTimeout)
	defer cancel()
	one.err = derive(ctx, &one.key)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.underWay, f)
	if one.err != nil {
		d.fail(f.generation, one.err)
	}
	if one.waiting == 0 {
		clear(one.key[:])
	}
	close(one.done)
}

// fail notes a failure. The caller holds mu.
func (d *derivations) fail(generation uint64, err error) {
	if len(d.failed) >= maxFailures {
		for g, past := range d.failed {
			if d.over(past) {
				delete(d.failed, g)
			}
		}
		if len(d.failed) >= maxFailures {
			clear(d.failed) // some are tried again too early
		}
	}
	d.failed[generation] = failure{err: err, at: d.now()}
}

// over reports whether what failed may be tried again. A clock that was set back
// must not keep it for long.
func (d *derivations) over(past failure) bool {
	age := d.now().Sub(past.at)
	return age < 0 || age >= failureAge
}
