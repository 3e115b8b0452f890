package client_test

import (
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/keyhold/keyhold/client"
)

func TestCacheAge(t *testing.T) {
	f := &fakeKeys{}
	now := time.Now()
	e := cached(t, f, client.CacheConfig{MaxAge: time.Minute, Now: func() time.Time { return now }})
	message := seal(t, e, "x", nil)
	opens := func() {
		t.Helper()
		if _, err := e.Decrypt(t.Context(), message, nil); err != nil {
			t.Fatal(err)
		}
	}
	opens()
	now = now.Add(time.Minute - 1)
	seal(t, e, "x", nil)
	opens()
	if f.generates != 1 || f.decrypts != 1 {
		t.Errorf("just before MaxAge: %d and %d calls, want 1 and 1", f.generates, f.decrypts)
	}
	now = now.Add(1)
	seal(t, e, "x", nil)
	opens()
	if f.generates != 2 || f.decrypts != 2 {
		t.Errorf("at MaxAge: %d and %d calls, want 2 and 2", f.generates, f.decrypts)
	}
	if n := f.live(); n != 2 {
		t.Errorf("%d data keys are not wiped, want the two new ones", n)
	}
}

// TestCacheSweep: a data key that nobody asks for is wiped in time.
func TestCacheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeKeys{}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Minute}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		live := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			if n := f.live(); n != want {
				t.Errorf("%s: %d data keys are not wiped, want %d", when, n, want)
			}
		}
		seal(t, e, "x", map[string]string{"n": "1"})
		time.Sleep(20 * time.Second)
		seal(t, e, "x", map[string]string{"n": "2"})
		time.Sleep(40*time.Second - 1)
		live("just before the first is a minute old", 2)
		time.Sleep(time.Nanosecond)
		live("when it is", 1)
		time.Sleep(20*time.Second - 1)
		live("just before the second is", 1)
		time.Sleep(time.Nanosecond)
		live("when it is", 0)
		seal(t, e, "x", nil)
		live("a new one", 1)
		time.Sleep(time.Minute)
		live("a minute later", 0)
	})
}

// TestCacheSweepMany: those that become too old at once go at once, whatever
// is asked for meanwhile, and one that was used last is not forgotten.
func TestCacheSweepMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeKeys{}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{MaxAge: time.Hour}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		for i := range 250 {
			seal(t, e, "x", map[string]string{"n": strconv.Itoa(i)})
		}
		time.Sleep(time.Minute)
		seal(t, e, "x", nil)
		seal(t, e, "x", map[string]string{"n": "0"}) // used again, and no younger for that
		for _, step := range []struct {
			wait time.Duration
			live int
		}{{59*time.Minute - 1, 251}, {1, 1}, {time.Minute - 1, 1}, {1, 0}} {
			time.Sleep(step.wait)
			synctest.Wait()
			if n := f.live(); n != step.live {
				t.Errorf("%d data keys are not wiped, want %d", n, step.live)
			}
		}
	})
}

// asleep is what the clock says after the machine was awake for one time and
// asleep for another: the monotonic clock does not run then.
func asleep(t time.Time, awake, asleep time.Duration) time.Time {
	t = t.Add(awake + asleep)
	(*struct { // as package time has it
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t)).ext -= int64(asleep) // no exported way leads there
	return t
}

// TestCacheSuspend: a data key ages while the machine sleeps, and does not
// become younger when the clock is set back.
func TestCacheSuspend(t *testing.T) {
	for _, tt := range []struct {
		name          string
		awake, asleep time.Duration
		want          int
	}{
		{"asleep, not long enough", time.Minute, 59*time.Minute - 1, 1},
		{"asleep", time.Minute, 59 * time.Minute, 2},
		{"set back, not long enough", time.Hour - 1, -time.Hour, 1},
		{"set back", time.Hour, -time.Hour, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, begun := &fakeKeys{}, time.Now()
			now := begun
			e := cached(t, f, client.CacheConfig{MaxAge: time.Hour, Now: func() time.Time { return now }})
			seal(t, e, "x", nil)
			now = asleep(begun, tt.awake, tt.asleep)
			if got := now.Sub(begun); got != tt.awake {
				t.Fatalf("the monotonic clock went on by %v, want %v: package time has changed", got, tt.awake)
			}
			seal(t, e, "x", nil)
			if f.generates != tt.want {
				t.Errorf("%d data keys, want %d", f.generates, tt.want)
			}
		})
	}
}

// TestCacheSweepSuspend: what became too old while the machine slept does not
// stay for as long again.
func TestCacheSweepSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slept atomic.Int64
		f := &fakeKeys{}
		e, err := client.NewEnvelope(f, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{
			MaxAge: 24 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(slept.Load())) },
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		seal(t, e, "x", nil)
		slept.Store(int64(24 * time.Hour))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := f.live(); n != 0 {
			t.Errorf("%d data keys are not wiped a minute after the machine woke up", n)
		}
	})
}

// BenchmarkCacheSweep measures what one data key costs from its call until it is
// wiped for its age, with so many others.
func BenchmarkCacheSweep(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run("keys="+strconv.Itoa(n), func(b *testing.B) {
			var now atomic.Int64
			e, err := client.NewEnvelope(&fakeKeys{}, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{
				MaxAge: time.Duration(n) * 10 * time.Microsecond, Capacity: 1 << 20, Now: func() time.Time { return time.Unix(0, now.Add(1)*10_000) },
			}})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			for i := 0; b.Loop(); i++ {
				if _, err := e.Encrypt(b.Context(), nil, map[string]string{"n": strconv.Itoa(i)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
