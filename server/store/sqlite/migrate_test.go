package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/keyhold/keyhold/server/identity"
)

// later returns our migrations and further ones, as a newer program has them.
func later(t *testing.T, scripts ...string) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	entries, err := fs.ReadDir(embedded, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		script, err := fs.ReadFile(embedded, "migrations/"+e.Name())
		if err != nil {
			t.Fatal(err)
		}
		files["migrations/"+e.Name()] = &fstest.MapFile{Data: script}
	}
	for i, script := range scripts {
		name := "000" + string(rune('1'+len(entries)+i)) + "_later.sql"
		files["migrations/"+name] = &fstest.MapFile{Data: []byte(script)}
	}
	return files
}

// ours returns how many migrations there are.
func ours(t *testing.T) int {
	t.Helper()
	steps, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	return len(steps)
}

// openWith opens as a program of that name with those migrations.
func openWith(t *testing.T, dir, program string, files fs.FS) (*Store, error) {
	t.Helper()
	return open(t.Context(), dir, Options{Program: program, Now: func() time.Time { return time.Unix(77, 0) }}.withDefaults(), files)
}

const addColumn = "ALTER TABLE keys ADD COLUMN origin TEXT NOT NULL DEFAULT 'AWS_KMS'; CREATE INDEX keys_by_origin ON keys (origin);"

func TestMigrate(t *testing.T) {
	dir := made(t, 3)
	s, err := openWith(t, dir, "keyholdd 9.9.9", later(t, addColumn, "CREATE TABLE grants (id TEXT PRIMARY KEY) STRICT;"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Schema() != ours(t)+2 {
		t.Errorf("Schema = %d", s.Schema())
	}
	wantN(t, s, 3)
	must(t, s.InsertKey(t.Context(), testKey(3))) // references are enforced again
	if _, err := s.writer.ExecContext(t.Context(), "INSERT INTO aliases VALUES ('1', 'r', 'n', 'none', 0, 0, 1)"); err == nil {
		t.Error("an alias of no key went in")
	}
	var program, name string
	var applied int64
	must(t, s.db.QueryRowContext(t.Context(), "SELECT program, name, applied_us FROM schema_history WHERE version = ?", s.Schema()).Scan(&program, &name, &applied))
	if program != "keyholdd 9.9.9" || name != "later" || applied != 77_000_000 {
		t.Errorf("history: %q, %q, %d", program, name, applied)
	}
	must(t, s.Close())

	// Once is enough.
	s, err = openWith(t, dir, "keyholdd 10", later(t, addColumn, "CREATE TABLE grants (id TEXT PRIMARY KEY) STRICT;"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantN(t, s, 4)
	must(t, s.db.QueryRowContext(t.Context(), "SELECT group_concat(DISTINCT program) FROM schema_history WHERE version > ?", ours(t)).Scan(&program))
	if program != "keyholdd 9.9.9" {
		t.Errorf("history: %q", program)
	}
}

// TestNewerSchema: a downgrade is refused, says who was here, and changes
// nothing.
func TestNewerSchema(t *testing.T) {
	for name, tail := range map[string]string{
		"history kept":    addColumn,
		"history gone":    "DROP TABLE schema_history; CREATE TABLE schema_history (version, name, program, applied_us);",
		"history strange": "ALTER TABLE schema_history ADD COLUMN more TEXT;",
	} {
		t.Run(name, func(t *testing.T) {
			dir := made(t, 2)
			s, err := openWith(t, dir, "keyholdd 9.9.9", later(t, tail))
			if err != nil {
				t.Fatal(err)
			}
			must(t, s.Close())
			before := read(t, filepath.Join(dir, fileName))
			_, openErr := Open(t.Context(), dir, Options{})
			_, readErr := OpenReadOnly(t.Context(), dir, Options{})
			for _, err := range []error{openErr, readErr} {
				wantRemedy(t, err, ErrNewerSchema)
				if !strings.Contains(err.Error(), fmt.Sprintf("schema %d by keyholdd 9.9.9, this program knows %d", ours(t)+1, ours(t))) {
					t.Errorf("error %v", err)
				}
			}
			if !bytes.Equal(before, read(t, filepath.Join(dir, fileName))) {
				t.Error("the database was changed")
			}
		})
	}
	t.Run("history unreadable", func(t *testing.T) {
		dir := made(t, 1)
		s := mustOpen(t, dir)
		if _, err := s.writer.ExecContext(t.Context(), "DROP TABLE schema_history; PRAGMA user_version = 7"); err != nil {
			t.Fatal(err)
		}
		must(t, s.Close())
		_, err := Open(t.Context(), dir, Options{})
		wantRemedy(t, err, ErrNewerSchema)
		if !strings.Contains(err.Error(), "schema 7 by a program that it does not name") {
			t.Errorf("error %v", err)
		}
	})
}

func TestOlderSchemaReadOnly(t *testing.T) {
	dir := made(t, 1)
	_, err := openReadOnly(t.Context(), dir, later(t, addColumn))
	wantRemedy(t, err, ErrOlderSchema)
	wantN(t, mustOpen(t, dir), 1) // it is as it was
}

// TestFailingMigration: the step that fails is undone as a whole, those before
// it stay, and the corrected program goes on from there.
func TestFailingMigration(t *testing.T) {
	for name, bad := range map[string]string{
		"wrong statement":    "CREATE TABLE half (a); DELETE FROM keys; INSERT INTO nowhere VALUES (1);",
		"broken reference":   "CREATE TABLE half (a); INSERT INTO aliases VALUES ('1', 'r', 'n', 'none', 0, 0, 1);",
		"orphans":            "CREATE TABLE half (a); DELETE FROM keys;",
		"version taken":      "CREATE TABLE half (a); INSERT INTO schema_history VALUES (" + strconv.Itoa(ours(t)+2) + ", '', '', 0);",
		"own user_version":   "CREATE TABLE half (a); PRAGMA user_version = 55; SELECT nothing;",
		"check constraint":   "CREATE TABLE half (a); UPDATE keys SET revision = 0;",
		"unfinished comment": "CREATE TABLE half (a); DELETE FROM tags; CREATE TABLE",
	} {
		t.Run(name, func(t *testing.T) {
			dir := made(t, 3)
			_, err := openWith(t, dir, "p", later(t, addColumn, bad))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("migrate to schema %d (later)", ours(t)+2)) {
				t.Fatalf("error %v", err)
			}
			// The lock is free, the second step is there, of the third nothing.
			s, err := openWith(t, dir, "p", later(t, addColumn))
			if err != nil {
				t.Fatal(err)
			}
			var half int
			must(t, s.db.QueryRowContext(t.Context(), "SELECT count(*) FROM sqlite_schema WHERE name = 'half'").Scan(&half))
			if half != 0 || s.Schema() != ours(t)+1 {
				t.Errorf("schema %d, half-made tables: %d", s.Schema(), half)
			}
			wantN(t, s, 3)
			must(t, s.Check(t.Context()))
			must(t, s.Close())
			s, err = openWith(t, dir, "p", later(t, addColumn, "CREATE TABLE half (a);"))
			if err != nil {
				t.Fatal(err)
			}
			must(t, s.Close())
		})
	}
}

// TestMigrationMustNotCommit: a script that ends its transaction would stay by
// half when it fails; it is found when it is written.
func TestMigrationMustNotCommit(t *testing.T) {
	_, err := openWith(t, made(t, 1), "p", later(t, "CREATE TABLE a (a); COMMIT; CREATE TABLE b (b);"))
	if err == nil || !strings.Contains(err.Error(), "ends its transaction") {
		t.Errorf("error %v", err)
	}
}

// TestTableRebuild: the way to change a table that ALTER TABLE cannot change.
func TestTableRebuild(t *testing.T) {
	const rebuild = `CREATE TABLE keys_new (id TEXT NOT NULL PRIMARY KEY, account TEXT NOT NULL, region TEXT NOT NULL,
		key_store TEXT NOT NULL, spec TEXT NOT NULL, usage TEXT NOT NULL, state TEXT NOT NULL, description TEXT NOT NULL,
		created_us INTEGER NOT NULL, deletion_us INTEGER, pending_window_days INTEGER NOT NULL,
		destroying INTEGER NOT NULL, revision INTEGER NOT NULL) STRICT;
		INSERT INTO keys_new SELECT * FROM keys;
		DROP TABLE keys;
		ALTER TABLE keys_new RENAME TO keys;`
	s, err := openWith(t, made(t, 3), "p", later(t, rebuild))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wantN(t, s, 3) // with their tags and versions
	must(t, s.Check(t.Context()))
	must(t, s.DeleteKey(t.Context(), testKey(2).ID, 1))
	var tags int
	must(t, s.db.QueryRowContext(t.Context(), "SELECT count(*) FROM tags").Scan(&tags))
	if tags != 4 {
		t.Errorf("%d tags after a delete, want 4", tags)
	}
}

func TestMigrationFiles(t *testing.T) {
	file := &fstest.MapFile{Data: []byte("SELECT 1;")}
	for name, files := range map[string]fstest.MapFS{
		"none":           {"migrations/.keep": file},
		"no folder":      {},
		"gap":            {"migrations/0001_a.sql": file, "migrations/0003_b.sql": file},
		"twice":          {"migrations/0001_a.sql": file, "migrations/0001_b.sql": file},
		"from zero":      {"migrations/0000_a.sql": file},
		"stray":          {"migrations/0001_a.sql": file, "migrations/notes.txt": file},
		"three digits":   {"migrations/001_a.sql": file},
		"capital letter": {"migrations/0001_A.sql": file},
	} {
		if steps, err := migrations(files); err == nil {
			t.Errorf("%s: %v", name, steps)
		}
	}
	steps, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		if step.version != i+1 || step.name == "" || step.script == "" {
			t.Errorf("step %d: %+v", i, step)
		}
	}
}

// TestCreateWithFailingMigration leaves no database.
func TestCreateWithFailingMigration(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	_, err := create(t.Context(), dir, Options{}.withDefaults(), later(t, "SELECT nothing;"))
	if err == nil || errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v", err)
	}
	wantNoDatabase(t, dir)
}

// TestFirstSchema: a database of the first schema is brought up to date and keeps
// what is in it.
func TestFirstSchema(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := fs.ReadFile(embedded, "migrations/0001_initial.sql")
	must(t, err)
	s, err := create(t.Context(), dir, Options{Program: "keyholdd 0.1"}.withDefaults(), fstest.MapFS{"migrations/0001_initial.sql": {Data: first}})
	if err != nil {
		t.Fatal(err)
	}
	insertN(t, s, 3)
	must(t, s.Close())
	s = mustOpen(t, dir)
	wantN(t, s, 3)
	must(t, s.Check(t.Context()))
	if keys, err := s.AccessKeys(t.Context()); err != nil || len(keys) != 0 || s.Schema() != ours(t) {
		t.Errorf("access keys %v, %v; schema %d", keys, err, s.Schema())
	}
}

// TestDamagedAccessKey: a record that breaks its documentation is refused when it
// is read.
func TestDamagedAccessKey(t *testing.T) {
	s := newStore(t)
	k := &identity.AccessKeyRecord{ID: "AKIA1", Principal: "arn:aws:iam::111122223333:root", Created: time.Unix(5, 0), SealedSecret: []byte("sealed")}
	must(t, s.InsertAccessKey(t.Context(), k))
	must(t, s.Check(t.Context()))
	if _, err := s.writer.ExecContext(t.Context(), "UPDATE access_keys SET principal = 'nobody'"); err != nil {
		t.Fatal(err)
	}
	_, listErr := s.AccessKeys(t.Context())
	_, oneErr := s.AccessKey(t.Context(), "AKIA1")
	for _, err := range []error{listErr, oneErr, s.Check(t.Context())} {
		wantRemedy(t, err, ErrDamaged)
	}
}
