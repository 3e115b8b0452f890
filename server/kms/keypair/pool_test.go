package keypair_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyhold/keyhold/server/kms/keypair"
)

// capacity is how many pairs the pool keeps ready: its documented sizes.
var capacity = map[keypair.Spec]int{keypair.RSA2048: 4, keypair.RSA3072: 4, keypair.RSA4096: 2}

// maker makes numbered pairs, and remembers them.
type maker struct {
	// takes is how long one takes; in a bubble of synctest it costs nothing.
	takes time.Duration
	err   error

	mu     sync.Mutex
	made   []keypair.Pair
	counts map[keypair.Spec]int
	now    int
	atOnce int
}

var errMaker = errors.New("fault of the test")

func (m *maker) generate(spec keypair.Spec) (keypair.Pair, error) {
	m.mu.Lock()
	if m.counts == nil {
		m.counts = make(map[keypair.Spec]int)
	}
	m.counts[spec]++
	m.now++
	m.atOnce = max(m.atOnce, m.now)
	err := m.err
	m.mu.Unlock()
	time.Sleep(m.takes)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now--
	if err != nil {
		return keypair.Pair{}, err
	}
	number := binary.BigEndian.AppendUint32([]byte{byte(spec), 1}, uint32(len(m.made)))
	pair := keypair.Pair{PKCS8: number, SPKI: bytes.Clone(number)}
	m.made = append(m.made, pair)
	return pair, nil
}

// count returns how many generations of a spec were begun.
func (m *maker) count(spec keypair.Spec) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[spec]
}

// total returns how many generations were begun.
func (m *maker) total() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for c := range maps.Values(m.counts) {
		n += c
	}
	return n
}

// alive returns how many private keys have not been wiped.
func (m *maker) alive() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, p := range m.made {
		if !bytes.Equal(p.PKCS8, make([]byte, len(p.PKCS8))) {
			n++
		}
	}
	return n
}

// inBubble runs a test with a pool and a clock of its own.
func inBubble(t *testing.T, o keypair.Options, m *maker, test func(t *testing.T, p *keypair.Pool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Generate = m.generate
		p := keypair.NewPool(o)
		test(t, p)
		p.Close()
		for spec := range capacity {
			if n := p.Ready(spec); n != 0 {
				t.Errorf("after Close %d pairs of %s are ready", n, spec)
			}
		}
	})
}

func get(t *testing.T, p *keypair.Pool, spec keypair.Spec) keypair.Pair {
	t.Helper()
	pair, err := p.Get(t.Context(), spec)
	if err != nil {
		t.Fatalf("Get(%s): %v", spec, err)
	}
	if pair.PKCS8[0] != byte(spec) || pair.PKCS8[1] != 1 {
		t.Fatalf("Get(%s) = %x", spec, pair.PKCS8)
	}
	return pair
}

// Nothing is made before somebody asks; then the shelf of that spec is filled,
// and that of no other; then the pool rests.
func TestPoolIsLazy(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Second}
	inBubble(t, keypair.Options{AtOnce: 2}, m, func(t *testing.T, p *keypair.Pool) {
		time.Sleep(24 * time.Hour)
		if n := m.total(); n != 0 {
			t.Fatalf("an idle pool made %d pairs", n)
		}
		made := 0
		for spec, size := range capacity {
			start := time.Now()
			get(t, p, spec)
			if took := time.Since(start); took != time.Second {
				t.Errorf("the first pair of %s took %s", spec, took)
			}
			// One after another, so that one CPU at most is taken.
			time.Sleep(time.Duration(size)*time.Second - time.Millisecond)
			if n := p.Ready(spec); n != size-1 {
				t.Errorf("%s: %d pairs are ready in %d s, want %d", spec, n, size, size-1)
			}
			time.Sleep(time.Second)
			made += 1 + size
			if n := p.Ready(spec); n != size || m.total() != made {
				t.Errorf("%s: %d pairs are ready and %d were made, want %d and %d", spec, n, m.total(), size, made)
			}
			time.Sleep(keypair.DefaultLifetime / 2)
			if m.total() != made {
				t.Errorf("%s: a full pool went on to %d pairs", spec, m.total())
			}
			// A ready pair costs no time, and is replaced.
			start = time.Now()
			get(t, p, spec)
			if took := time.Since(start); took != 0 {
				t.Errorf("a ready pair of %s took %s", spec, took)
			}
			made++
			time.Sleep(2 * time.Second)
			if n := p.Ready(spec); n != size || m.total() != made {
				t.Errorf("%s: %d pairs are ready and %d were made, want %d and %d", spec, n, m.total(), size, made)
			}
		}
	})
}

// What is quick to make is not kept.
func TestPoolKeepsNoCurves(t *testing.T) {
	t.Parallel()
	m := &maker{}
	inBubble(t, keypair.Options{}, m, func(t *testing.T, p *keypair.Pool) {
		for i, spec := range keypair.Specs()[3:] {
			get(t, p, spec)
			synctest.Wait()
			if m.total() != i+1 || p.Ready(spec) != 0 {
				t.Errorf("%s: %d pairs were made and %d are ready", spec, m.total(), p.Ready(spec))
			}
		}
	})
}

// A ready pair waits for its lifetime and not longer; then it is wiped and
// nothing replaces it.
func TestPoolForgets(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Second}
	inBubble(t, keypair.Options{AtOnce: 1, Lifetime: time.Minute}, m, func(t *testing.T, p *keypair.Pool) {
		first := get(t, p, keypair.RSA4096)
		// The next two are ready after 1 and 2 seconds.
		for _, step := range []struct {
			wait  time.Duration
			ready int
		}{
			{2500 * time.Millisecond, 2}, {58 * time.Second, 2}, {time.Second, 1}, {time.Second, 0}, {24 * time.Hour, 0},
		} {
			time.Sleep(step.wait)
			synctest.Wait()
			if n, alive := p.Ready(keypair.RSA4096), m.alive(); n != step.ready || alive != n+1 {
				t.Errorf("%s later %d pairs are ready and %d private keys in memory, want %d and one more", step.wait, n, alive, step.ready)
			}
		}
		if m.total() != 3 {
			t.Errorf("%d pairs were made for one request, want 3", m.total())
		}
		// Whoever took one keeps it.
		if first.PKCS8[0] != byte(keypair.RSA4096) {
			t.Error("a pair was wiped that somebody has")
		}
		get(t, p, keypair.RSA4096)
	})
}

// Where pairs expire faster than they are made the background comes to an end
// all the same.
func TestPoolEndsRefilling(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Minute}
	inBubble(t, keypair.Options{Lifetime: time.Second}, m, func(t *testing.T, p *keypair.Pool) {
		get(t, p, keypair.RSA2048)
		time.Sleep(24 * time.Hour)
		if n := m.total(); n != 1+capacity[keypair.RSA2048] {
			t.Errorf("%d pairs were made for one request", n)
		}
	})
}

// The pool never makes more pairs at once than it may, with or without the
// background, and who waits gets what others made meanwhile.
func TestPoolBoundsGenerations(t *testing.T) {
	t.Parallel()
	for _, atOnce := range []int{1, 2, 3} {
		t.Run(fmt.Sprintf("at once=%d", atOnce), func(t *testing.T) {
			t.Parallel()
			m := &maker{takes: time.Second}
			inBubble(t, keypair.Options{AtOnce: atOnce}, m, func(t *testing.T, p *keypair.Pool) {
				const callers = 30
				var wg sync.WaitGroup
				start := time.Now()
				for i := range callers {
					wg.Go(func() { get(t, p, []keypair.Spec{keypair.RSA2048, keypair.RSA3072, keypair.RSA4096}[i%3]) })
				}
				wg.Wait()
				m.mu.Lock()
				if m.atOnce != atOnce {
					t.Errorf("%d pairs were made at once", m.atOnce)
				}
				m.mu.Unlock()
				// The background may have made pairs of one spec while callers
				// waited for another one: at most all that are ready.
				if took, most := time.Since(start), time.Duration((callers+10)/atOnce+1)*time.Second; took > most {
					t.Errorf("%d callers waited for %s, want at most %s", callers, took, most)
				}
			})
		})
	}
}

// A caller who goes away costs a place until its pair is made; the pair is
// kept while there is room, and wiped where there is none.
func TestPoolKeepsWhatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Minute / 2}
	inBubble(t, keypair.Options{AtOnce: 8}, m, func(t *testing.T, p *keypair.Pool) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start := time.Now()
				if pair, err := p.Get(ctx, keypair.RSA2048); !errors.Is(err, context.DeadlineExceeded) || pair.PKCS8 != nil || time.Since(start) != time.Second {
					t.Errorf("Get = %x, %v after %s", pair.PKCS8, err, time.Since(start))
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Minute / 2)
		synctest.Wait()
		size := capacity[keypair.RSA2048]
		// The background may have begun one when the first of them was ready.
		if n := p.Ready(keypair.RSA2048); n != size || m.alive() != size || m.total() > 9 {
			t.Errorf("%d pairs are ready and %d private keys in memory after %d generations, want %d", n, m.alive(), m.total(), size)
		}
		seen := make(map[string]bool)
		for range size {
			seen[string(get(t, p, keypair.RSA2048).PKCS8)] = true
		}
		if len(seen) != size {
			t.Errorf("%d callers got %d pairs", size, len(seen))
		}
	})
}

// Who waits for a place obeys its context, and takes nothing when it is over.
func TestPoolWaitersObeyContext(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Minute}
	inBubble(t, keypair.Options{AtOnce: 1}, m, func(t *testing.T, p *keypair.Pool) {
		var wg sync.WaitGroup
		wg.Go(func() { get(t, p, keypair.RSA4096) })
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := p.Get(ctx, keypair.RSA2048); !errors.Is(err, context.Canceled) {
				t.Errorf("Get = %v", err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		if m.count(keypair.RSA2048) != 0 {
			t.Error("a pair was made for nobody")
		}
		time.Sleep(time.Hour / 10)
		ready := p.Ready(keypair.RSA4096)
		if _, err := p.Get(ctx, keypair.RSA4096); !errors.Is(err, context.Canceled) || p.Ready(keypair.RSA4096) != ready {
			t.Errorf("Get = %v, and %d of %d pairs are left", err, p.Ready(keypair.RSA4096), ready)
		}
	})
}

// A fault is told to who asked, and the background does not repeat it for
// ever; a panic is a fault. When it is over all is well.
func TestPoolFaults(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Second, err: errMaker}
	inBubble(t, keypair.Options{AtOnce: 1}, m, func(t *testing.T, p *keypair.Pool) {
		for _, spec := range keypair.Specs() {
			if pair, err := p.Get(t.Context(), spec); !errors.Is(err, errMaker) || pair.PKCS8 != nil {
				t.Errorf("Get(%s) = %x, %v", spec, pair.PKCS8, err)
			}
		}
		time.Sleep(time.Hour)
		if most := 2 * len(keypair.Specs()); m.total() > most {
			t.Errorf("%d attempts, want at most %d", m.total(), most)
		}
		m.mu.Lock()
		m.err = nil
		m.mu.Unlock()
		get(t, p, keypair.RSA3072)
		time.Sleep(time.Minute)
		if n := p.Ready(keypair.RSA3072); n != capacity[keypair.RSA3072] {
			t.Errorf("%d pairs are ready", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := keypair.NewPool(keypair.Options{Generate: func(keypair.Spec) (keypair.Pair, error) { panic("of the test") }})
		for _, spec := range keypair.Specs() {
			if _, err := p.Get(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "panic while making a pair of "+spec.String()) {
				t.Errorf("Get(%s) = %v", spec, err)
			}
		}
		p.Close()
	})
}

// Close wipes what is ready, ends waiting, waits for what is being made and
// leaves nothing in memory but what somebody has.
func TestPoolClose(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Second}
	inBubble(t, keypair.Options{AtOnce: 2}, m, func(t *testing.T, p *keypair.Pool) {
		get(t, p, keypair.RSA2048)
		time.Sleep(2500 * time.Millisecond) // two are ready, the third is half made
		var wg sync.WaitGroup
		wg.Go(func() { get(t, p, keypair.RSA4096) }) // the other place; it waits for its pair
		synctest.Wait()
		wg.Go(func() {
			if _, err := p.Get(t.Context(), keypair.RSA4096); !errors.Is(err, keypair.ErrClosed) {
				t.Errorf("a waiting Get = %v", err)
			}
		})
		synctest.Wait()
		if m.alive() != 3 {
			t.Fatalf("%d private keys in memory, want 3", m.alive())
		}
		start := time.Now()
		p.Close()
		if took := time.Since(start); took != time.Second {
			t.Errorf("Close took %s, want a second: the longest generation", took)
		}
		wg.Wait()
		if m.alive() != 2 || m.total() != 5 {
			t.Errorf("after Close %d private keys are in memory, want 2; %d were made, want 5", m.alive(), m.total())
		}
		for _, spec := range keypair.Specs() {
			if _, err := p.Get(t.Context(), spec); !errors.Is(err, keypair.ErrClosed) {
				t.Errorf("Get(%s) after Close = %v", spec, err)
			}
		}
		p.Close()
		time.Sleep(time.Hour)
		if m.total() != 5 {
			t.Error("a closed pool goes on")
		}
	})
}

// No spec keeps the background from another one: the emptiest shelf is filled
// first.
func TestPoolRefillsTheEmptiest(t *testing.T) {
	t.Parallel()
	m := &maker{takes: time.Second}
	inBubble(t, keypair.Options{AtOnce: 2, Lifetime: time.Hour}, m, func(t *testing.T, p *keypair.Pool) {
		get(t, p, keypair.RSA2048)
		time.Sleep(time.Minute)
		var wg sync.WaitGroup
		wg.Go(func() { // somebody takes one every second
			for range 20 {
				get(t, p, keypair.RSA2048)
				time.Sleep(time.Second)
			}
		})
		get(t, p, keypair.RSA4096)
		time.Sleep(6 * time.Second)
		if p.Ready(keypair.RSA4096) == 0 {
			t.Error("RSA_2048 keeps RSA_4096 from being made")
		}
		wg.Wait()
	})
}

// A pair is handed out exactly once, whatever callers do at the same time,
// and none that was handed out is ever wiped by the pool.
func TestPoolHandsOutOnce(t *testing.T) {
	t.Parallel()
	m := &maker{takes: 50 * time.Microsecond}
	inBubble(t, keypair.Options{AtOnce: 4, Lifetime: time.Millisecond}, m, func(t *testing.T, p *keypair.Pool) {
		var seen sync.Map
		var got, gone atomic.Int64
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for j := range 300 {
					spec := keypair.Specs()[(i+j)%3]
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(j)*time.Microsecond)
					pair, err := p.Get(ctx, spec)
					cancel()
					if err != nil {
						gone.Add(1)
						continue
					}
					got.Add(1)
					if _, twice := seen.LoadOrStore(string(pair.SPKI), pair); twice || pair.PKCS8[0] != byte(spec) {
						t.Errorf("pair %x of %s was handed out twice, or wiped", pair.SPKI, spec)
					}
					time.Sleep(time.Duration(i*j) * time.Microsecond)
				}
			})
		}
		wg.Wait()
		p.Close()
		for _, v := range seen.Range {
			if pair := v.(keypair.Pair); !bytes.Equal(pair.PKCS8, pair.SPKI) {
				t.Errorf("pair %x was wiped under its owner", pair.SPKI)
			}
		}
		if got.Load() == 0 || gone.Load() == 0 || m.alive() != int(got.Load()) {
			t.Errorf("%d pairs were handed out, %d callers went away, %d private keys are in memory", got.Load(), gone.Load(), m.alive())
		}
		t.Logf("%d handed out, %d went away, %d made", got.Load(), gone.Load(), m.total())
	})
}
