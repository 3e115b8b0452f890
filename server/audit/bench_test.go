package audit

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkAppend appends records of 1 KiB from concurrent callers. TMPDIR chooses
// the disk. Besides time it reports syncs and processor time (this process, user
// and system) for each append.
func BenchmarkAppend(b *testing.B) {
	for _, durability := range []Durability{Synced, Written} {
		for _, concurrency := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("durability=%v/concurrency=%d", durability, concurrency), func(b *testing.B) {
				benchmarkAppend(b, durability, concurrency, 1)
			})
		}
	}
}

// BenchmarkAppendCall appends 100 records in one call, as a batch operation does.
func BenchmarkAppendCall(b *testing.B) {
	for _, concurrency := range []int{1, 16} {
		b.Run(fmt.Sprintf("durability=synced/records=100/concurrency=%d", concurrency), func(b *testing.B) {
			benchmarkAppend(b, Synced, concurrency, 100)
		})
	}
}

func benchmarkAppend(b *testing.B, durability Durability, concurrency, records int) {
	var syncs, commits int
	j, err := Open(filepath.Join(b.TempDir(), "audit"), Options{Create: true, Observer: func(c Commit) {
		commits++
		if c.Synced {
			syncs++
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	payloads := make([][]byte, records)
	for i := range payloads {
		payloads[i] = payload(i, 1024)
	}
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	var wg sync.WaitGroup
	for w := range concurrency {
		n := b.N / concurrency
		if w < b.N%concurrency {
			n++
		}
		wg.Go(func() {
			for range n {
				if _, err := j.Append(context.Background(), Normal, durability, payloads...); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	cpu = cpuTime(b) - cpu
	b.StopTimer()
	if err := j.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(syncs)/float64(b.N), "syncs/op")
	b.ReportMetric(float64(commits)/float64(b.N), "commits/op")
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func BenchmarkVerify(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "audit")
	j, err := Open(dir, Options{Create: true, Durability: Written})
	if err != nil {
		b.Fatal(err)
	}
	for i := range 50_000 {
		if _, err := j.Append(context.Background(), Normal, Written, payload(i, 1024)); err != nil {
			b.Fatal(err)
		}
	}
	if err := j.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		rep, err := Verify(dir, VerifyOptions{})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(rep.Bytes)
	}
}
