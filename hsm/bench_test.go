package hsm

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// BenchmarkSeal seals 1 KiB through the pool, with several callers per session. Besides ns/op it reports the CPU time of the whole process per
// operation, which is the steadier number on a busy machine.
func BenchmarkSeal(b *testing.B) {
	for _, copies := range []int{-1, 16} {
		for _, sessions := range []int{1, 2, 4, 8, 16} {
			b.Run(fmt.Sprintf("copies=%t/sessions=%d", copies > 0, sessions), func(b *testing.B) { benchmarkSeal(b, copies, sessions) })
		}
	}
}

func benchmarkSeal(b *testing.B, copies, sessions int) {
	w := newWorld(b, false)
	// The benchmark's name has an '=' in it, which SoftHSM's configuration cannot hold in a path.
	w.moveTo(b)
	cfg := w.token("alpha")
	cfg.MaxSessions, cfg.MaxCopies, cfg.HealthInterval = sessions, copies, time.Hour
	tok := w.open(cfg)
	if err := tok.WaitReady(ctx(b)); err != nil {
		b.Fatal(err)
	}
	k := aesKey(b, tok, "one")
	iv, plaintext := make([]byte, 12), make([]byte, 1024)
	c := ctx(b)
	for range 100 {
		if _, err := k.Seal(c, iv, testAAD, plaintext); err != nil {
			b.Fatal(err)
		}
	}
	if copies > 0 {
		until(b, "the key is copied", func() bool { return tok.Status().Copies == 1 })
	}
	var failed atomic.Int64
	b.SetParallelism(max(1, 2*sessions/runtime.GOMAXPROCS(0)))
	b.ReportAllocs()
	before := cpuTime()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := k.Seal(b.Context(), iv, testAAD, plaintext); err != nil {
				failed.Add(1)
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N)/1e3, "cpu-us/op")
	if n := failed.Load(); n > 0 {
		b.Fatalf("%d calls failed", n)
	}
}

// BenchmarkOpen opens 1 KiB, good and bad: a bad ciphertext must cost at most twice what an encryption does.
func BenchmarkOpen(b *testing.B) {
	for _, bad := range []bool{false, true} {
		b.Run(fmt.Sprintf("bad=%t", bad), func(b *testing.B) {
			w := newWorld(b, false)
			w.moveTo(b)
			cfg := w.token("alpha")
			cfg.HealthInterval = DefaultHealthInterval
			tok := w.open(cfg)
			if err := tok.WaitReady(ctx(b)); err != nil {
				b.Fatal(err)
			}
			k := aesKey(b, tok, "one")
			iv := make([]byte, 12)
			sealed, err := k.Seal(ctx(b), iv, testAAD, make([]byte, 1024))
			check(b, err)
			if bad {
				sealed[0] ^= 1
			}
			var wrong atomic.Int64
			b.SetParallelism(4)
			before := cpuTime()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := k.Open(b.Context(), iv, testAAD, sealed); (err != nil) != bad {
						wrong.Add(1)
					}
				}
			})
			b.StopTimer()
			if n := wrong.Load(); n > 0 {
				b.Fatalf("%d calls ended otherwise", n)
			}
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N)/1e3, "cpu-us/op")
		})
	}
}

// moveTo gives a world without tokens another folder.
func (w *world) moveTo(t testing.TB) {
	t.Helper()
	dir, err := os.MkdirTemp("", "keyhold-bench") //nolint:usetesting // a benchmark's own folder has "=" in its path, which SoftHSM's configuration cannot hold
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w.tokens = dir
	check(t, os.WriteFile(os.Getenv("SOFTHSM2_CONF"), fmt.Appendf(nil, "directories.tokendir = %s\n", dir), 0o600))
}

// cpuTime is the CPU time that the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWrap wraps and unwraps 32 bytes and 4 KiB, good and bad, on the token's object and on a session copy.
func BenchmarkWrap(b *testing.B) {
	for _, copies := range []int{-1, 16} {
		for _, n := range []int{32, MaxWrapBytes} {
			for _, what := range []string{"wrap", "unwrap", "bad"} {
				b.Run(fmt.Sprintf("copies=%t/bytes=%d/%s", copies > 0, n, what), func(b *testing.B) { benchmarkWrap(b, copies, n, what) })
			}
		}
	}
}

func benchmarkWrap(b *testing.B, copies, n int, what string) {
	w := newWorld(b, false)
	w.moveTo(b)
	cfg := w.token("alpha")
	cfg.MaxCopies, cfg.HealthInterval = copies, time.Hour
	tok := w.ready(cfg)
	k := wrapKey(b, tok, "kek")
	plaintext := make([]byte, n)
	wrapped, err := k.WrapBytes(ctx(b), AESKWP, plaintext)
	check(b, err)
	if copies > 0 {
		until(b, "the key is copied", func() bool { wraps(b, k); return tok.Status().Copies == 1 })
	}
	if what == "bad" {
		wrapped[0] ^= 1
	}
	before := cpuTime()
	b.ResetTimer()
	for range b.N {
		if what == "wrap" {
			_, err = k.WrapBytes(b.Context(), AESKWP, plaintext)
		} else {
			_, err = k.UnwrapBytes(b.Context(), AESKWP, wrapped)
		}
		if (err != nil) != (what == "bad") {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N)/1e3, "cpu-us/op")
}
