package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestSettings looks at every connection that can be open at a time.
func TestSettings(t *testing.T) {
	s := newStore(t)
	common := map[string]string{
		"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "trusted_schema": "0",
		"cell_size_check": "1", "temp_store": "2", "fullfsync": "1", "checkpoint_fullfsync": "1",
		"locking_mode": "normal", "journal_size_limit": "16777216",
	}
	for _, row := range []struct {
		name  string
		db    *sql.DB
		conns int
		own   map[string]string
	}{
		{"writer", s.writer, 1, map[string]string{"query_only": "0", "busy_timeout": "50"}},
		{"readers", s.db, maxReaders, map[string]string{"query_only": "1", "busy_timeout": "1000"}},
	} {
		for i := range row.conns {
			conn, err := row.db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close() // at the end, so that each round gets another one
			for _, want := range []map[string]string{common, row.own} {
				for pragma, value := range want {
					var got string
					must(t, conn.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got))
					if got != value {
						t.Errorf("%s %d: %s = %s, want %s", row.name, i, pragma, got, value)
					}
				}
			}
		}
		if got := row.db.Stats().MaxOpenConnections; got != row.conns {
			t.Errorf("%s: %d connections at most, want %d", row.name, got, row.conns)
		}
	}
}

// TestReadable: the database can be read without this program.
func TestReadable(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 1)
	var spec, state, ref string
	var created, strict int64
	must(t, s.db.QueryRowContext(t.Context(), `SELECT k.spec, k.state, k.created_us, v.ref
		FROM keys k JOIN key_versions v ON v.key_id = k.id`).Scan(&spec, &state, &created, &ref))
	want := testKey(0)
	if spec != "KEY_SPEC_SYMMETRIC_DEFAULT" || state != "KEY_STATE_ENABLED" || created != 1_900_000_000_123_456 || ref != want.Versions[0].Ref.String() {
		t.Errorf("row: %s, %s, %d, %s", spec, state, created, ref)
	}
	must(t, s.db.QueryRowContext(t.Context(), "SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite_%' AND strict = 0").Scan(&strict))
	if strict != 0 {
		t.Errorf("%d tables are not STRICT", strict)
	}
}

// TestQueueObeysContext: a write that waits for its turn leaves when its ctx
// ends, and has no effect.
func TestQueueObeysContext(t *testing.T) {
	s := newStore(t)
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for i := range 10 {
		go func() { done <- s.InsertKey(ctx, testKey(i)) }()
	}
	cancel()
	for range 10 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	}
	<-s.turn
	wantN(t, s, 0)
}

// TestForeignWriter: another program holds SQLite's write lock.
func TestForeignWriter(t *testing.T) {
	s := newStore(t)
	hold := func() (release func()) {
		db := openWriter(s.Path())
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			must(t, tx.Rollback())
			must(t, db.Close())
		}
	}

	release := hold()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.InsertKey(ctx, testKey(0)) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of ctx", err)
	}
	wantN(t, s, 0) // readers are not held up
	s.busyMax = 0
	wantRemedy(t, s.InsertKey(t.Context(), testKey(0)), ErrInUse)
	s.busyMax = time.Minute
	go func() { done <- s.InsertKey(t.Context(), testKey(0)) }()
	release()
	must(t, <-done)
	wantN(t, s, 1)
}

func TestClose(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 1)
	s.turn <- struct{}{} // a write is under way, others wait
	queued := make(chan error)
	for range 3 {
		go func() { queued <- s.InsertKey(t.Context(), testKey(1)) }()
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for range 3 {
		if err := <-queued; !errors.Is(err, ErrClosed) {
			t.Errorf("queued write: %v", err)
		}
	}
	must(t, <-closed)
	must(t, s.Close())
	for name, err := range map[string]error{
		"InsertKey": s.InsertKey(t.Context(), testKey(2)),
		"Tick":      s.Tick(t.Context(), time.Unix(1, 0)),
		"Check":     s.Check(t.Context()),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
}

// TestCloseWaits: Close gives the folder free only after the last operation.
func TestCloseWaits(t *testing.T) {
	s := newStore(t)
	inside, proceed := make(chan struct{}), make(chan struct{})
	read := make(chan error)
	go func() {
		read <- s.view(t.Context(), func(q queryer) error {
			close(inside)
			<-proceed
			return q.QueryRowContext(t.Context(), "SELECT instance FROM installation").Scan(new(string))
		})
	}()
	<-inside
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	<-s.gate.closing
	if _, err := lockFolder(dirOf(s)); !errors.Is(err, ErrInUse) {
		t.Errorf("lock while an operation is under way: %v", err)
	}
	close(proceed)
	must(t, <-read)
	must(t, <-closed)
}

func dirOf(s *Store) string { return s.Path()[:len(s.Path())-len("/"+fileName)] }

// TestReadObeysContext: a read that is under way ends with its ctx, and its
// connection serves on.
func TestReadObeysContext(t *testing.T) {
	s := newStore(t)
	for range 2 * maxReaders {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.view(ctx, func(q queryer) error {
			cancel()
			// For ever, if nobody stops it.
			return q.QueryRowContext(ctx, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n").Scan(new(int64))
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	}
	insertN(t, s, 1)
	wantN(t, s, 1)
}

// TestFailedChangeIsUndone: a write that fails at its last step leaves
// nothing, and the next one works.
func TestFailedChangeIsUndone(t *testing.T) {
	s := newStore(t)
	boom := errors.New("boom")
	err := s.change(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		r := testKey(0)
		if _, err := tx.ExecContext(ctx, `INSERT INTO keys VALUES (?, ?, ?, '', 'KEY_SPEC_RSA_2048', 'KEY_USAGE_TYPE_SIGN_VERIFY',
			'KEY_STATE_ENABLED', '', 0, NULL, 0, 0, 1)`, string(r.ID), string(r.Account), string(r.Region)); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("error %v", err)
	}
	wantN(t, s, 0)
	insertN(t, s, 1)
	wantN(t, s, 1)
}

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

func BenchmarkLeaseSeals(b *testing.B) {
	s := newStore(b)
	insertN(b, s, 1)
	ref := testKey(0).Versions[0].Ref
	for b.Loop() {
		if _, _, err := s.LeaseSeals(b.Context(), ref, 1, 1<<62); err != nil {
			b.Fatal(err)
		}
	}
}
