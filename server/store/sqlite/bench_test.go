package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhold/keyhold/server/kms"
)

func BenchmarkInsertKey(b *testing.B) {
	s := newStore(b)
	n := 0
	for b.Loop() {
		if err := s.InsertKey(b.Context(), testKey(n)); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

// filled returns a store of n keys, each with two tags, a version, an alias
// and a seal count, made in one transaction.
func filled(b *testing.B, n int) *Store {
	b.Helper()
	s := newStore(b)
	err := s.change(b.Context(), func(ctx context.Context, tx *sql.Tx) error {
		for i := range n {
			r := testKey(i)
			names, err := checkedNames(r)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO keys (account, region, key_store, spec, usage, state, description,
				created_us, deletion_us, pending_window_days, destroying, revision, id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)`,
				append(keyValues(r, names), string(r.ID))...); err != nil {
				return err
			}
			if err := insertParts(ctx, tx, r); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO aliases VALUES (?, ?, ?, ?, 1, 1, 1)",
				string(r.Account), string(r.Region), fmt.Sprintf("alias/%d", i), string(r.ID)); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO seal_counts VALUES (?, ?, 262144)", r.Versions[0].Ref.String(), string(r.ID)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			s := filled(b, n)
			for b.Loop() {
				snap, err := s.Snapshot(b.Context())
				if err != nil || len(snap.Keys) != n || len(snap.Aliases) != n {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen is what a start pays, the check of the file included.
func BenchmarkOpen(b *testing.B) {
	const n = 10_000
	b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
		s := filled(b, n)
		must(b, s.Close())
		for b.Loop() {
			s, err := Open(b.Context(), dirOf(s), Options{})
			if err != nil {
				b.Fatal(err)
			}
			must(b, s.Close())
		}
	})
}

// BenchmarkLeaseSeals is what the first use of a key after a start pays: each
// caller leases for another key. CPU time is the whole process's.
func BenchmarkLeaseSeals(b *testing.B) {
	const keys = 4096
	for _, callers := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := filled(b, keys)
			refs := make([]kms.Ref, keys)
			for i := range refs {
				refs[i] = testKey(i).Versions[0].Ref
			}
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			before := cpuTime(b)
			for range callers {
				wg.Go(func() {
					for {
						i := next.Add(1) - 1
						if i >= int64(b.N) {
							return
						}
						if _, _, err := s.LeaseSeals(b.Context(), refs[i%keys], 1, 1<<62); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leases/s")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
