// Package tokenbench measures what lies below the core: a token through
// Keyhold's pool of sessions, with and without session copies of its keys, and
// how long the disk of the audit log takes to make a record durable.
//
// It makes keys of its own in the token, and destroys them. It touches no
// others. Nobody else should use the token meanwhile, or both measure less.
package tokenbench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/internal/bench"
)

// Doors of results.
const (
	DoorToken = "token"
	DoorDisk  = "disk"
)

const (
	// round is how long one operation is measured before it is the next one's
	// turn, so that what else happens on the machine meets all of them alike.
	round = time.Second
	// warmup is how long each operation runs before, at most, which also makes the
	// copies.
	warmup = 200 * time.Millisecond
	// closeTimeout bounds what is done after the end: destroying keys, closing.
	closeTimeout = time.Minute
)

// Options say what is measured. All fields are required.
type Options struct {
	// Token is opened twice: with the copies that it allows, and without.
	Token hsm.Config
	// Ops are what is measured, of Names.
	Ops []string
	// Concurrency are numbers of callers at a time, each measured by itself.
	Concurrency []int
	// Duration is how long each operation is measured at each concurrency.
	Duration time.Duration
	// Payload is the size of plaintexts, messages and random numbers, in bytes:
	// 32, which a digest has, to 4,096.
	Payload int
	// Notify is told what an operator should know: which keys were made.
	Notify func(format string, args ...any)
}

// Limits of options.
const (
	MinPayload     = 32 // bytes
	MaxPayload     = hsm.MaxRandomBytes
	MaxConcurrency = 1024
)

// Check says what is wrong with the options but for the token's.
func (o *Options) Check() error {
	for _, name := range o.Ops {
		if !slices.Contains(Names(), name) {
			return fmt.Errorf("there is no operation %q: use %s", name, strings.Join(Names(), ", "))
		}
	}
	if len(o.Concurrency) == 0 {
		return errors.New("no concurrency to measure")
	}
	for _, n := range o.Concurrency {
		if n < 1 || n > MaxConcurrency {
			return fmt.Errorf("a concurrency of %d: use 1 to %d", n, MaxConcurrency)
		}
	}
	if o.Duration <= 0 {
		return fmt.Errorf("a duration of %s: use a positive one", o.Duration)
	}
	if o.Payload < MinPayload || o.Payload > MaxPayload {
		return fmt.Errorf("a payload of %d bytes: use %d to %d", o.Payload, MinPayload, MaxPayload)
	}
	return nil
}

// Run measures the token. When ctx ends first it returns an error, and no key
// stays behind.
func Run(ctx context.Context, opts Options) (results []bench.Result, err error) {
	if err := opts.Check(); err != nil {
		return nil, err
	}
	if opts.Token.ProbeCache == nil {
		opts.Token.ProbeCache = &probes{}
	}
	copied, err := open(ctx, opts.Token)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeToken(ctx, copied)) }()
	plain := opts.Token
	plain.MaxCopies = -1
	uncopied, err := open(ctx, plain)
	if err != nil {
		return nil, fmt.Errorf("a second pool of sessions: %w", err)
	}
	defer func() { err = errors.Join(err, closeToken(ctx, uncopied)) }()

	k := &keys{token: copied, notify: opts.Notify}
	defer func() { err = errors.Join(err, k.destroy(ctx)) }()
	ops, err := operations(ctx, k, uncopied, opts.Payload, opts.Ops)
	if err != nil {
		return nil, err
	}
	for _, n := range opts.Concurrency {
		part, err := measure(ctx, ops, n, opts.Duration)
		if err != nil {
			return nil, err
		}
		results = append(results, part...)
	}
	return results, nil
}

func open(ctx context.Context, cfg hsm.Config) (*hsm.Token, error) {
	t, err := hsm.Open(cfg, hsm.Options{})
	if err != nil {
		return nil, err
	}
	if err := t.WaitReady(ctx); err != nil {
		return nil, errors.Join(t.Ready(), err, closeToken(ctx, t))
	}
	return t, nil
}

func closeToken(ctx context.Context, t *hsm.Token) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := t.Close(ctx); err != nil {
		return fmt.Errorf("close the token: %w", err)
	}
	return nil
}

// keyLabel is the label of all keys that are made here.
const keyLabel = "keyhold-bench-token"

// keys are the keys that were made.
type keys struct {
	token  *hsm.Token
	notify func(format string, args ...any)
	ids    [][]byte
}

// create makes a key, or returns the error hsm.ErrUnsupported.
func (k *keys) create(ctx context.Context, spec hsm.KeySpec, p hsm.Purpose) ([]byte, error) {
	id := make([]byte, 16)
	rand.Read(id) // never fails (crypto/rand)
	if _, err := k.token.Generate(ctx, hsm.GenerateRequest{Spec: spec, Purpose: p, ID: id, Label: keyLabel}); err != nil {
		return nil, fmt.Errorf("make a key of spec %s: %w", spec, err)
	}
	k.ids = append(k.ids, id)
	k.notify("made a key of spec %s in the token, with label %s and id %x, which is destroyed in the end", spec, keyLabel, id)
	return id, nil
}

// destroy destroys what was made, also when ctx has ended.
func (k *keys) destroy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	var errs []error
	for _, id := range k.ids {
		if err := k.token.Destroy(ctx, id, keyLabel); err != nil {
			errs = append(errs, fmt.Errorf("the key with label %s and id %x stays in the token: %w", keyLabel, id, err))
		}
	}
	if n := len(k.ids) - len(errs); n > 0 {
		k.notify("destroyed %d of the %d keys that it made in the token", n, len(k.ids))
	}
	return errors.Join(errs...)
}

// measure measures all operations in turns.
func measure(ctx context.Context, ops []*operation, concurrency int, d time.Duration) ([]bench.Result, error) {
	for _, op := range ops {
		op.run(ctx, concurrency, min(warmup, d))
		if op.tally.ops == 0 && ctx.Err() == nil {
			return nil, fmt.Errorf("%s: %w", op.name, op.tally.err)
		}
		op.tally = tally{}
	}
	rounds := max(1, int(d/round))
	for range rounds {
		for _, op := range ops {
			op.run(ctx, concurrency, d/time.Duration(rounds))
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	results := make([]bench.Result, len(ops))
	for i, op := range ops {
		results[i] = op.tally.result(op.name, DoorToken, concurrency, op.payload)
		op.tally = tally{}
	}
	return results, nil
}

// operation is one thing that a token does.
type operation struct {
	name    string
	payload int
	// call does it once; n is another number for each call of the process.
	call  func(ctx context.Context, n uint64) error
	count uint64 // of the calls that were begun, over all runs
	tally tally
}

// run lets so many callers do the operation for a time. Their calls end with it.
func (op *operation) run(ctx context.Context, callers int, d time.Duration) {
	tallies := make([]tally, callers)
	var wg sync.WaitGroup
	cpu, began := cpuTime(), time.Now()
	end := began.Add(d)
	for i := range tallies {
		t := &tallies[i]
		// Callers share no counter: it would cost them time.
		first := op.count + uint64(i)
		wg.Go(func() {
			n := first
			for sent := time.Now(); sent.Before(end) && ctx.Err() == nil; n += uint64(callers) {
				err := op.call(ctx, n)
				done := time.Now()
				t.add(done.Sub(sent), err)
				sent = done
			}
			t.last = n
		})
	}
	wg.Wait()
	for i := range tallies {
		op.tally.merge(&tallies[i])
		op.count = max(op.count, tallies[i].last)
	}
	op.tally.elapsed += time.Since(began)
	op.tally.cpu += cpuTime() - cpu
}

// tally is what came of calls.
type tally struct {
	ops, errors  int
	err          error // the first
	last         uint64
	elapsed, cpu time.Duration
	histogram    bench.Histogram
}

func (t *tally) add(d time.Duration, err error) {
	if err != nil {
		t.errors++
		if t.err == nil {
			t.err = err
		}
		return
	}
	t.ops++
	t.histogram.Add(d, 1)
}

func (t *tally) merge(other *tally) {
	t.ops += other.ops
	t.errors += other.errors
	if t.err == nil {
		t.err = other.err
	}
	t.histogram.Merge(&other.histogram)
}

func (t *tally) result(op, door string, concurrency, payload int) bench.Result {
	r := bench.Result{Op: op, Door: door, Concurrency: concurrency, PayloadBytes: payload, Batch: 1}
	r.Set(t.ops, t.errors, t.elapsed, &t.histogram, t.cpu.Seconds())
	return r
}

// cpuTime is the CPU time that the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // never for RUSAGE_SELF (getrusage(2))
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
