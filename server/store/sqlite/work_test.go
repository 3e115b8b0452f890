package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/kms"
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
			t.Cleanup(func() { conn.Close() }) // late, so that each round gets another one
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
	if got, err := s.Key(t.Context(), want.ID); err != nil || got.Created.Location() != time.UTC {
		t.Errorf("Key: %v, created %v", err, got.Created)
	}
	if spec != "KEY_SPEC_SYMMETRIC_DEFAULT" || state != "KEY_STATE_ENABLED" || created != 1_900_000_000_123_456 || ref != want.Versions[0].Ref.String() {
		t.Errorf("row: %s, %s, %d, %s", spec, state, created, ref)
	}
	must(t, s.db.QueryRowContext(t.Context(), "SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite_%' AND strict = 0").Scan(&strict))
	if strict != 0 {
		t.Errorf("%d tables are not STRICT", strict)
	}
}

// TestQueueObeysContext: a write that waits for its turn leaves when its ctx
// ends, has no effect and says so.
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
		if err := <-done; !errors.Is(err, context.Canceled) || !errors.Is(err, kms.ErrNotBegun) {
			t.Errorf("error %v", err)
		}
	}
	<-s.turn
	wantN(t, s, 0)
}

// TestBegunWriteIsFinished: a ctx that ends while a write is under way does not
// stop it, whether it ends before the first statement or before the commit.
func TestBegunWriteIsFinished(t *testing.T) {
	s := newStore(t)
	for i, late := range []bool{false, true} {
		r := testKey(i)
		names, err := checkNewKey(r)
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		must(t, s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
			if !late {
				cancel()
			}
			defer cancel()
			return insertKeyRows(ctx, tx, r, names)
		}))
		wantN(t, s, i+1)
	}
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

// TestMoved: files that go while the store is open take no acknowledged write
// along, and work goes on when they are back.
func TestMoved(t *testing.T) {
	for name, move := range map[string]func(dir string) (from, to string){
		"database": func(dir string) (string, string) { return dir + "/" + fileName, dir + "/elsewhere" },
		"log":      func(dir string) (string, string) { return dir + "/" + fileName + "-wal", dir + "/elsewhere" },
		"folder":   func(dir string) (string, string) { return dir, dir + "-elsewhere" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			insertN(t, s, 1)
			from, to := move(dirOf(s))
			must(t, os.Rename(from, to))
			wantRemedy(t, s.InsertKey(t.Context(), testKey(1)), ErrMoved)
			wantN(t, s, 1) // reads go on
			must(t, os.Rename(to, from))
			must(t, s.InsertKey(t.Context(), testKey(1)))
			wantN(t, s, 2)
			must(t, s.Close())
			wantN(t, mustOpen(t, dirOf(s)), 2)
		})
	}
	t.Run("another in its place", func(t *testing.T) {
		s := newStore(t)
		insertN(t, s, 1)
		b := read(t, s.Path())
		must(t, os.Rename(s.Path(), s.Path()+".old"))
		must(t, os.WriteFile(s.Path(), b, fileMode))
		wantRemedy(t, s.InsertKey(t.Context(), testKey(1)), ErrMoved)
		must(t, os.Rename(s.Path()+".old", s.Path()))
		must(t, s.InsertKey(t.Context(), testKey(1)))
	})
}

// TestRootWorksForOwner: what root makes in the daemon's folder is the
// daemon's.
func TestRootWorksForOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const owner = 54321
	dir := filepath.Join(t.TempDir(), "data")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Chown(dir, owner, owner))
	s, err := Create(t.Context(), dir, Options{})
	must(t, err)
	defer s.Close()
	insertN(t, s, 1)
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		var st syscall.Stat_t
		must(t, syscall.Stat(filepath.Join(dir, e.Name()), &st))
		if st.Uid != owner || st.Gid != owner {
			t.Errorf("%s is of %d:%d", e.Name(), st.Uid, st.Gid)
		}
	}
}

// TestLock: who holds the lock alone keeps the database from being opened.
func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Lock(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock a folder that is not there: %v", err)
	}
	s, err := Create(t.Context(), dir, Options{})
	must(t, err)
	if _, err := Lock(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("lock while it is open: %v", err)
	}
	must(t, s.Close())
	release, err := Lock(dir)
	must(t, err)
	if _, err := Open(t.Context(), dir, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("open while it is locked: %v", err)
	}
	must(t, release())
	s, err = Open(t.Context(), dir, Options{})
	must(t, err)
	must(t, s.Close())
}
