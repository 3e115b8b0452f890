package client_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
)

// cached makes an Envelope with a cache.
func cached(t *testing.T, f *fakeKeys, cfg client.CacheConfig) *client.Envelope {
	t.Helper()
	if cfg.MaxAge == 0 {
		cfg.MaxAge = time.Hour
	}
	return newEnvelope(t, f, client.EnvelopeConfig{Cache: cfg})
}

func TestCacheMessages(t *testing.T) {
	f := &fakeKeys{}
	e := cached(t, f, client.CacheConfig{MaxMessages: 3})
	for i, want := range []int{1, 1, 1, 2, 2, 2, 3} {
		seal(t, e, "x", nil)
		if f.generates != want {
			t.Errorf("after %d messages %d data keys, want %d", i+1, f.generates, want)
		}
	}
	if n := f.live(); n != 1 {
		t.Errorf("%d data keys are not wiped, want the one that still has messages", n)
	}
}

func TestCacheBytes(t *testing.T) {
	f := &fakeKeys{}
	e := cached(t, f, client.CacheConfig{MaxBytes: 10})
	for i, step := range []struct {
		bytes, generates, live int
	}{
		{6, 1, 1},
		{4, 1, 0},  // exactly full
		{10, 2, 0}, // exactly full at once
		{6, 3, 1},
		{5, 4, 1},  // 11 would be one too many
		{11, 5, 1}, // longer than the limit: a data key of its own, and the cache stays
		{5, 5, 0},
		{0, 6, 1},
	} {
		seal(t, e, string(make([]byte, step.bytes)), nil)
		if live := f.live(); f.generates != step.generates || live != step.live {
			t.Errorf("step %d: %d data keys, %d live, want %d and %d", i, f.generates, live, step.generates, step.live)
		}
	}
}

// TestCacheKeys: which messages share a data key.
func TestCacheKeys(t *testing.T) {
	f := &fakeKeys{}
	e := cached(t, f, client.CacheConfig{})
	a := map[string]string{"a": "1", "b": "2"}
	for i, ec := range []map[string]string{a, {"b": "2", "a": "1"}, {"a": "1"}, {"a": "1b2"}, {}, nil, a} {
		seal(t, e, "x", ec)
		if want := []int{1, 1, 2, 3, 4, 4, 4}[i]; f.generates != want {
			t.Errorf("after context %d: %d data keys, want %d", i, f.generates, want)
		}
	}
	elsewhere := metadata.AppendToOutgoingContext(t.Context(), client.RegionHeader, "eu-central-1")
	message, err := e.Encrypt(elsewhere, nil, a)
	if err != nil || f.generates != 5 {
		t.Errorf("in another region: %v, %d data keys, want a fifth", err, f.generates)
	}
	for _, ctx := range []context.Context{elsewhere, t.Context()} {
		if _, err := e.Decrypt(ctx, message, a); err != nil {
			t.Fatal(err)
		}
	}
	if f.decrypts != 2 {
		t.Errorf("opened in two regions by %d calls, want 2", f.decrypts)
	}
	// What was opened with one context is not there for another.
	if _, err := e.Decrypt(t.Context(), message, nil); err != client.ErrDecrypt || f.decrypts != 3 {
		t.Errorf("with another context: %v after %d calls, want ErrDecrypt after asking", err, f.decrypts)
	}
}

// TestCacheMetadata: who stands between may tell callers apart by their
// metadata; the one gets no data key of the other.
func TestCacheMetadata(t *testing.T) {
	f := &fakeKeys{}
	e := cached(t, f, client.CacheConfig{})
	message := seal(t, e, "x", nil)
	for i, pairs := range [][]string{
		{},
		{"authorization", "a"},
		{"authorization", "b"},
		{"authorization", "a", "authorization", "b"},
		{"authorization", "a", "b", ""},
		{"b", "", "Authorization", "a"},
		{"authorization", "a"},
		{},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), pairs...)
		if _, err := e.Encrypt(ctx, nil, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Decrypt(ctx, message, nil); err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 2, 3, 4, 5, 5, 5, 5}[i]; f.generates != want || f.decrypts != want {
			t.Errorf("after metadata %d: %d and %d calls, want %d", i, f.generates, f.decrypts, want)
		}
	}
}

func TestCacheCapacity(t *testing.T) {
	f := &fakeKeys{}
	e := cached(t, f, client.CacheConfig{Capacity: 2})
	ec := func(s string) map[string]string { return map[string]string{"n": s} }
	for i, step := range []struct {
		n         string
		generates int
	}{{"a", 1}, {"b", 2}, {"a", 2}, {"c", 3}, {"a", 3}, {"b", 4}, {"c", 5}} {
		seal(t, e, "x", ec(step.n))
		if f.generates != step.generates {
			t.Errorf("step %d: %d data keys, want %d", i, f.generates, step.generates)
		}
	}
	if n := f.live(); n != 2 {
		t.Errorf("%d data keys are not wiped, want 2", n)
	}
	message := seal(t, e, "x", ec("c"))
	for range 2 {
		if _, err := e.Decrypt(t.Context(), message, ec("c")); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.live(); n != 2 || f.decrypts != 1 {
		t.Errorf("with one for decryption: %d are not wiped after %d calls, want 2 and 1", n, f.decrypts)
	}
}

// TestCacheFailure: a call that fails leaves nothing.
func TestCacheFailure(t *testing.T) {
	f := &fakeKeys{}
	e := cached(t, f, client.CacheConfig{})
	message := seal(t, newEnvelope(t, f, client.EnvelopeConfig{}), "x", nil)
	down := failure(codes.Unavailable, "KeyUnavailableException")
	f.before = func(context.Context) error { return down }
	if _, err := e.Encrypt(t.Context(), nil, nil); !errors.Is(err, down) {
		t.Errorf("Encrypt: %v", err)
	}
	if _, err := e.Decrypt(t.Context(), message, nil); !errors.Is(err, down) {
		t.Errorf("Decrypt: %v", err)
	}
	f.before = nil
	seal(t, e, "x", nil)
	if _, err := e.Decrypt(t.Context(), message, nil); err != nil {
		t.Error(err)
	}
	if f.generates != 3 || f.decrypts != 2 {
		t.Errorf("%d and %d calls, want 3 and 2", f.generates, f.decrypts)
	}
}

// TestCacheFailureEvictsNothing: calls that fail, or are under way, take no
// place in the cache.
func TestCacheFailureEvictsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeKeys{}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Hour, Capacity: 2}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		good := []map[string]string{{"n": "a"}, {"n": "b"}}
		for _, ec := range good {
			seal(t, e, "x", ec)
		}
		g := newGate()
		f.before = func(ctx context.Context) error {
			_ = g.wait(ctx)
			return failure(codes.Unavailable, "")
		}
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				if _, err := e.Encrypt(t.Context(), nil, map[string]string{"n": strconv.Itoa(i)}); status.Code(errors.Unwrap(err)) != codes.Unavailable {
					t.Errorf("%v, want UNAVAILABLE", err)
				}
			})
		}
		synctest.Wait()
		for _, ec := range good {
			seal(t, e, "x", ec)
		}
		close(g.open)
		wg.Wait()
		for _, ec := range good {
			seal(t, e, "x", ec)
		}
		if f.generates != 7 || f.live() != 2 {
			t.Errorf("%d calls, %d data keys, want the two that were there and five that failed", f.generates, f.live())
		}
	})
}

// gate lets calls wait until it is opened, or until their context ends.
type gate struct {
	open    chan struct{}
	entered chan struct{}
	ended   atomic.Int32 // calls whose context ended
}

func newGate() *gate { return &gate{open: make(chan struct{}), entered: make(chan struct{}, 100)} }

func (g *gate) wait(ctx context.Context) error {
	g.entered <- struct{}{}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		g.ended.Add(1)
		return status.FromContextError(ctx.Err()).Err()
	}
}

// TestCacheOneCall: those who miss at once make one call, and each leaves when
// its own context ends.
func TestCacheOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		f := &fakeKeys{before: g.wait}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Hour}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		errs := make([]error, 10)
		var wg sync.WaitGroup
		leader, leave := context.WithCancel(t.Context())
		for i := range errs {
			ctx := t.Context()
			if i == 0 {
				ctx = leader
			}
			wg.Go(func() { _, errs[i] = e.Encrypt(ctx, []byte("x"), nil) })
			synctest.Wait()
		}
		leave()
		synctest.Wait()
		if status.Code(errs[0]) != codes.Canceled {
			t.Errorf("who came first and left got %v, want CANCELED", errs[0])
		}
		close(g.open)
		wg.Wait()
		for i, err := range errs[1:] {
			if err != nil {
				t.Errorf("waiter %d: %v", i+1, err)
			}
		}
		if f.generates != 1 || g.ended.Load() != 0 {
			t.Errorf("%d calls, %d cancelled, want one that was not", f.generates, g.ended.Load())
		}
	})
}

// TestCacheNobodyWaits: the call ends when all who waited have left.
func TestCacheNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		f := &fakeKeys{before: g.wait}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Hour}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := e.Encrypt(ctx, nil, nil); status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("%v, want DEADLINE_EXCEEDED", err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if g.ended.Load() != 1 {
			t.Errorf("%d calls were cancelled, want the one", g.ended.Load())
		}
		close(g.open)
		seal(t, e, "x", nil)
		if f.generates != 2 {
			t.Errorf("%d calls, want a second one", f.generates)
		}
	})
}

// TestCacheFlightLimits: those who wait for one call are counted like all
// others, so that a data key never gets more than its share.
func TestCacheFlightLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		f := &fakeKeys{before: g.wait}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Hour, MaxMessages: 4}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		var wg sync.WaitGroup
		for range 9 {
			wg.Go(func() {
				if _, err := e.Encrypt(t.Context(), nil, nil); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if f.generates != 3 {
			t.Errorf("%d calls for 9 messages of at most 4 each, want 3 at once", f.generates)
		}
		close(g.open)
		wg.Wait()
		if n := f.live(); n != 1 {
			t.Errorf("%d data keys are not wiped, want the one with room", n)
		}
	})
}

// TestCacheClose: everything is wiped, who waits gets an error, and calls are
// cancelled, those of data keys that are promised to their last message too.
func TestCacheClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeKeys{}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Hour, MaxMessages: 2}})
		if err != nil {
			t.Fatal(err)
		}
		message := seal(t, e, "x", nil)
		if _, err := e.Decrypt(t.Context(), message, nil); err != nil {
			t.Fatal(err)
		}
		g := newGate()
		f.before = g.wait
		var wg sync.WaitGroup
		for n := range 3 {
			for range 2 {
				wg.Go(func() {
					if _, err := e.Encrypt(t.Context(), nil, map[string]string{"n": strconv.Itoa(n)}); status.Code(err) != codes.Canceled {
						t.Errorf("%v, want CANCELED", err)
					}
				})
			}
		}
		synctest.Wait()
		e.Close()
		wg.Wait()
		if n := f.live(); n != 0 || g.ended.Load() != 3 {
			t.Errorf("%d data keys are not wiped, %d calls were cancelled, want none and 3", n, g.ended.Load())
		}
		calls := f.generates
		if _, err := e.Encrypt(t.Context(), nil, nil); err == nil || f.generates != calls {
			t.Errorf("a closed Envelope encrypts: %v, %d more calls", err, f.generates-calls)
		}
		if _, err := e.Decrypt(t.Context(), message, nil); err == nil || errors.Is(err, client.ErrDecrypt) {
			t.Errorf("a closed Envelope decrypts: %v", err)
		}
		e.Close()
	})
}

// TestCloseWithoutCache: calls end there too, and Close waits for them.
func TestCloseWithoutCache(t *testing.T) {
	for name, cache := range map[string]client.CacheConfig{"no cache": {}, "longer than the cache takes": {MaxAge: time.Hour, MaxBytes: 1}} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeKeys{}
			e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: cache})
			if err != nil {
				t.Fatal(err)
			}
			g := newGate()
			f.before = g.wait
			done := make(chan error, 1)
			go func() {
				_, err := e.Encrypt(t.Context(), []byte("xx"), nil)
				done <- err
			}()
			synctest.Wait()
			e.Close()
			if n := g.ended.Load(); n != 1 {
				t.Errorf("%s: %d calls had ended when Close returned, want 1", name, n)
			}
			close(g.open)
			if err := <-done; status.Code(errors.Unwrap(err)) != codes.Canceled {
				t.Errorf("%s: %v, want CANCELED", name, err)
			}
			if _, err := e.Encrypt(t.Context(), []byte("xx"), nil); err == nil || f.generates != 1 {
				t.Errorf("%s: a closed Envelope encrypts: %v", name, err)
			}
		})
	}
}

// TestCacheWipesNothingInUse: data keys are replaced and wiped all the time,
// and every message opens.
func TestCacheWipesNothingInUse(t *testing.T) {
	f := &fakeKeys{}
	e := cached(t, f, client.CacheConfig{MaxMessages: 2, Capacity: 1})
	plain := newEnvelope(t, f, client.EnvelopeConfig{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				ec := map[string]string{"n": strconv.Itoa((g + i) % 3)}
				message, err := e.Encrypt(t.Context(), []byte("attack at dawn"), ec)
				if err != nil {
					t.Error(err)
					return
				}
				for _, by := range []*client.Envelope{e, plain} {
					if got, err := by.Decrypt(t.Context(), message, ec); err != nil || string(got) != "attack at dawn" {
						t.Errorf("%q, %v", got, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	e.Close()
	if n := f.live(); n != 0 {
		t.Errorf("%d data keys were not wiped", n)
	}
}

// BenchmarkEnvelope measures what is left when no call is made.
func BenchmarkEnvelope(b *testing.B) {
	for _, size := range []int{100, 4096, 1 << 20} {
		b.Run("bytes="+strconv.Itoa(size), func(b *testing.B) {
			e, err := client.NewEnvelope(&fakeKeys{}, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Hour}})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			plaintext := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Encrypt(b.Context(), plaintext, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
