package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mattn/go-sqlite3"

	"github.com/keyhold/keyhold/server/kms"
)

// leased is what one call of LeaseSeals returned.
type leased struct {
	key            int
	start, granted uint64
	err            error
}

// leaseAll leases ten seals of each of the test keys with those numbers, all at a
// time, and returns when all wait behind the write that is under way.
func leaseAll(ctx context.Context, s *Store, limit uint64, keys ...int) <-chan leased {
	out := make(chan leased, len(keys))
	for _, key := range keys {
		go func() {
			start, granted, err := s.LeaseSeals(ctx, testKey(key).Versions[0].Ref, 10, limit)
			out <- leased{key, start, granted, err}
		}()
	}
	for n := 0; n < len(keys); runtime.Gosched() {
		s.leases.mu.Lock()
		n = len(s.leases.waiting)
		s.leases.mu.Unlock()
	}
	return out
}

// onCommit has fn called in each transaction of the writer when it commits. What
// fn returns other than 0 makes the commit fail.
func onCommit(t *testing.T, s *Store, fn func() int) {
	t.Helper()
	conn, err := s.writer.Conn(t.Context())
	must(t, err)
	must(t, conn.Raw(func(c any) error {
		c.(*sqlite3.SQLiteConn).RegisterCommitHook(fn)
		return nil
	}))
	must(t, conn.Close())
}

func upTo(n int) []int {
	keys := make([]int, n)
	for i := range keys {
		keys[i] = i
	}
	return keys
}

func wantCount(t *testing.T, s *Store, key int, want uint64) {
	t.Helper()
	if got, err := s.SealCount(t.Context(), testKey(key).Versions[0].Ref); err != nil || got != want {
		t.Errorf("key %d: %d seals counted, %v, want %d", key, got, err, want)
	}
}

// TestLeasesShareATransaction: 64 keys, one of them thrice, one that is at its
// limit, one near it and one that nobody has. Each is told its own.
func TestLeasesShareATransaction(t *testing.T) {
	const n, limit, full, near, unknown = 64, 100, 1, 2, 99
	s := newStore(t)
	insertN(t, s, n)
	for key, count := range map[int]uint64{full: limit, near: limit - 4} {
		if _, _, err := s.LeaseSeals(t.Context(), testKey(key).Versions[0].Ref, count, limit); err != nil {
			t.Fatal(err)
		}
	}
	commits := 0
	onCommit(t, s, func() int { commits++; return 0 })
	s.turn <- struct{}{}
	out := leaseAll(t.Context(), s, limit, append(upTo(n), 0, 0, unknown)...)
	<-s.turn
	starts := map[uint64]bool{}
	for range n + 3 {
		l := <-out
		switch l.key {
		case unknown:
			if !errors.Is(l.err, kms.ErrNotFound) {
				t.Errorf("an unknown version: %v", l.err)
			}
			continue
		case full:
			if l.start != limit || l.granted != 0 {
				t.Errorf("at the limit: %+v", l)
			}
		case near:
			if l.start != limit-4 || l.granted != 4 {
				t.Errorf("near the limit: %+v", l)
			}
		case 0:
			starts[l.start] = true
			fallthrough
		default:
			if l.granted != 10 || l.key != 0 && l.start != 0 {
				t.Errorf("%+v", l)
			}
		}
		if l.err != nil {
			t.Errorf("%+v", l)
		}
	}
	if len(starts) != 3 || !starts[0] || !starts[10] || !starts[20] {
		t.Errorf("leases of one version start at %v", starts)
	}
	if commits != 1 {
		t.Errorf("%d transactions, want one for all", commits)
	}
	wantCount(t, s, 0, 30)
	wantCount(t, s, full, limit)
	wantCount(t, s, near, limit)
	wantCount(t, s, n-1, 10)
}

// TestLeasesOfManyGroups: more than one transaction takes at once.
func TestLeasesOfManyGroups(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 1)
	commits := 0
	onCommit(t, s, func() int { commits++; return 0 })
	s.turn <- struct{}{}
	const n = 2*maxLeaseGroup + 1
	out := leaseAll(t.Context(), s, 1<<32, make([]int, n)...)
	<-s.turn
	for range n {
		if l := <-out; l.err != nil || l.granted != 10 {
			t.Errorf("%+v", l)
		}
	}
	if commits != 3 {
		t.Errorf("%d transactions, want 3", commits)
	}
	wantCount(t, s, 0, n*10)
}

// TestLeaseFailsAlone: a row that cannot be written, also one that takes the
// transaction with it, fails nobody else.
func TestLeaseFailsAlone(t *testing.T) {
	for _, how := range []string{"ABORT", "FAIL", "ROLLBACK"} {
		t.Run(how, func(t *testing.T) {
			s := newStore(t)
			insertN(t, s, 4)
			_, err := s.writer.ExecContext(t.Context(), fmt.Sprintf(`CREATE TRIGGER broken BEFORE INSERT ON seal_counts
				WHEN NEW.ref = '%s' BEGIN SELECT RAISE(%s, 'this row is broken'); END`, testKey(2).Versions[0].Ref, how))
			must(t, err)
			s.turn <- struct{}{}
			out := leaseAll(t.Context(), s, 1<<32, 0, 1, 2, 3, 99)
			<-s.turn
			for range 5 {
				switch l := <-out; l.key {
				case 2:
					if l.err == nil || !strings.Contains(l.err.Error(), "this row is broken") {
						t.Errorf("the broken row: %+v", l)
					}
				case 99:
					if !errors.Is(l.err, kms.ErrNotFound) {
						t.Errorf("an unknown version: %+v", l)
					}
				default:
					if l.err != nil || l.start != 0 || l.granted != 10 {
						t.Errorf("%+v", l)
					}
				}
			}
			for key, want := range []uint64{10, 10, 0, 10} {
				wantCount(t, s, key, want)
			}
		})
	}
}

// TestLeaseTransactionFails: all that were in it are told why, nothing is counted,
// and work goes on.
func TestLeaseTransactionFails(t *testing.T) {
	for name, row := range map[string]struct {
		fault func(t *testing.T, s *Store) (heal func())
		want  error
	}{
		"locked": {func(t *testing.T, s *Store) func() {
			s.busyMax = 0
			db := openWriter(s.Path())
			tx, err := db.BeginTx(t.Context(), nil)
			must(t, err)
			return func() { must(t, tx.Rollback()); must(t, db.Close()) }
		}, ErrInUse},
		"moved": {func(t *testing.T, s *Store) func() {
			must(t, os.Rename(s.Path(), s.Path()+".old"))
			return func() { must(t, os.Rename(s.Path()+".old", s.Path())) }
		}, ErrMoved},
		"read-only": {func(t *testing.T, s *Store) func() {
			set := func(v string) {
				_, err := s.writer.ExecContext(t.Context(), "PRAGMA query_only = "+v)
				must(t, err)
			}
			set("ON")
			return func() { set("OFF") }
		}, ErrReadOnly},
		"at the commit": {func(t *testing.T, s *Store) func() {
			var fails atomic.Bool
			fails.Store(true)
			onCommit(t, s, func() int {
				if fails.Load() {
					return 1
				}
				return 0
			})
			return func() { fails.Store(false) }
		}, sqlite3.ErrConstraintCommitHook},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			insertN(t, s, 8)
			heal := row.fault(t, s)
			s.turn <- struct{}{}
			out := leaseAll(t.Context(), s, 1<<32, append(upTo(8), 0, 0)...)
			<-s.turn
			for range 10 {
				var e sqlite3.Error
				if l := <-out; l.granted != 0 || !errors.Is(l.err, row.want) && (!errors.As(l.err, &e) || !errors.Is(e.ExtendedCode, row.want)) {
					t.Errorf("%+v, want %v", l, row.want)
				}
			}
			heal()
			for key := range 8 {
				wantCount(t, s, key, 0)
			}
			if _, granted, err := s.LeaseSeals(t.Context(), testKey(0).Versions[0].Ref, 5, 1<<32); err != nil || granted != 5 {
				t.Errorf("afterwards: %d, %v", granted, err)
			}
		})
	}
}

// TestLeaseObeysContext: who leaves while waiting leaves nothing behind and holds
// nobody up; who leaves while it is being written may leave a lease that is unused.
func TestLeaseObeysContext(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 3)
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	leaving := leaseAll(ctx, s, 1<<32, 0, 0, 1)
	cancel()
	for range 3 {
		if l := <-leaving; !errors.Is(l.err, context.Canceled) || l.granted != 0 {
			t.Errorf("%+v", l)
		}
	}
	staying := make(chan error, 1)
	go func() { _, _, err := s.LeaseSeals(t.Context(), testKey(2).Versions[0].Ref, 10, 1<<32); staying <- err }()
	<-s.turn
	must(t, <-staying)
	wantCount(t, s, 0, 0)
	wantCount(t, s, 1, 0)
	wantCount(t, s, 2, 10)

	inside, proceed := make(chan struct{}), make(chan struct{})
	onCommit(t, s, func() int { inside <- struct{}{}; <-proceed; return 0 })
	ctx, cancel = context.WithCancel(t.Context())
	written := make(chan error, 1)
	go func() { _, _, err := s.LeaseSeals(ctx, testKey(0).Versions[0].Ref, 10, 1<<32); written <- err }()
	<-inside
	cancel()
	if err := <-written; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	close(proceed)
	onCommit(t, s, nil) // waits for the transaction
	wantCount(t, s, 0, 10)
}

// TestLeasesAndClose: Close sends away the leases that wait and waits for those that
// are being written.
func TestLeasesAndClose(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 8)
	s.turn <- struct{}{} // a write is under way
	queued := leaseAll(t.Context(), s, 1<<32, upTo(8)...)
	must(t, s.Close())
	for range 8 {
		if l := <-queued; !errors.Is(l.err, ErrClosed) || l.granted != 0 {
			t.Errorf("queued: %+v", l)
		}
	}
	if _, _, err := s.LeaseSeals(t.Context(), testKey(0).Versions[0].Ref, 1, 1<<32); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	s = mustOpen(t, dirOf(s))
	inside, proceed := make(chan struct{}), make(chan struct{})
	onCommit(t, s, func() int { close(inside); <-proceed; return 0 })
	first := make(chan error, 1)
	go func() { _, _, err := s.LeaseSeals(t.Context(), testKey(0).Versions[0].Ref, 10, 1<<32); first <- err }()
	<-inside
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	<-s.gate.closing
	if _, err := lockFolder(dirOf(s)); !errors.Is(err, ErrInUse) {
		t.Errorf("lock while a lease is written: %v", err)
	}
	close(proceed)
	must(t, <-first)
	must(t, <-closed)
	s = mustOpen(t, dirOf(s))
	wantCount(t, s, 0, 10)
	wantCount(t, s, 1, 0)
}

// TestPanicInLeases: nobody waits for ever, and others get their turn.
func TestPanicInLeases(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 4)
	writer := s.writer
	s.turn <- struct{}{}
	s.writer = nil // every use of it panics
	out := leaseAll(t.Context(), s, 1<<32, upTo(4)...)
	<-s.turn
	for range 4 {
		if l := <-out; l.err == nil || !strings.Contains(l.err.Error(), "panic") {
			t.Errorf("%+v", l)
		}
	}
	s.writer = writer
	for key := range 4 {
		if _, granted, err := s.LeaseSeals(t.Context(), testKey(key).Versions[0].Ref, 10, 1<<32); err != nil || granted != 10 {
			t.Errorf("afterwards: %d, %v", granted, err)
		}
	}
}
