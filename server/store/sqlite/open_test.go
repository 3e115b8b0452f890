package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server/kms"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// testKey returns a record that is not stored, the same for the same n.
func testKey(n int) *kms.KeyRecord {
	ref := kms.Ref{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), 0xee}
	return &kms.KeyRecord{
		ID:      kms.KeyID(fmt.Sprintf("00000000-0000-4000-8000-%012x", n)),
		Account: "111122223333", Region: "eu-central-1",
		Spec:        keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
		Usage:       keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT,
		State:       keyholdv1.KeyState_KEY_STATE_ENABLED,
		Description: "key " + strconv.Itoa(n),
		Tags:        []kms.Tag{{Key: "team", Value: "billing"}, {Key: "env", Value: "prod"}},
		Created:     fromMicros(1_900_000_000_123_456),
		Versions: []kms.KeyVersion{{
			MaterialID: kms.KeyMaterialID(strings.Repeat(ref.String(), 2)),
			Ref:        ref,
			Locator: kms.Locator{
				ID: ref[:], Label: "keyhold/0123abcd/" + ref.String(),
				Spec:  keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
				Usage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT,
			},
			Custody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED,
			Created: fromMicros(1_900_000_000_123_456),
		}},
	}
}

// insertN stores the first n test keys.
func insertN(t testing.TB, s *Store, n int) {
	t.Helper()
	for i := range n {
		if err := s.InsertKey(t.Context(), testKey(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// wantN wants the first n test keys, and nothing else.
func wantN(t *testing.T, s interface {
	Snapshot(ctx context.Context) (*kms.Snapshot, error)
}, n int,
) {
	t.Helper()
	snap, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(snap.Keys) != n {
		t.Fatalf("%d keys, want %d", len(snap.Keys), n)
	}
	for i, k := range snap.Keys {
		if k.ID != testKey(i).ID || k.Description != testKey(i).Description || len(k.Versions) != 1 || len(k.Tags) != 2 {
			t.Errorf("key %d: %+v", i, k)
		}
	}
}

// made returns a data folder with n test keys that is not in use.
func made(t testing.TB, n int) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	s, err := Create(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	insertN(t, s, n)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// wantRemedy wants an error of that kind that tells an operator what to do.
func wantRemedy(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), "; hint: ") {
		t.Errorf("error %v, want %v and a hint", err, kind)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, row := range []struct {
		name    string
		prepare func(t *testing.T, dir string) string // returns the folder to open
		kind    error
		text    string
	}{
		{"no folder", func(_ *testing.T, dir string) string { return dir + "x" }, fs.ErrNotExist, "no database at"},
		{"no database", func(t *testing.T, dir string) string {
			must(t, os.Remove(filepath.Join(dir, fileName)))
			return dir
		}, fs.ErrNotExist, "keyholdd init"},
		{"group may enter", func(t *testing.T, dir string) string {
			must(t, os.Chmod(dir, 0o710))
			return dir
		}, ErrExposed, "chmod 0700"},
		{"the world may look", func(t *testing.T, dir string) string {
			must(t, os.Chmod(dir, 0o704))
			return dir
		}, ErrExposed, "chmod 0700"},
		{"group may read the file", func(t *testing.T, dir string) string {
			must(t, os.Chmod(filepath.Join(dir, fileName), 0o640))
			return dir
		}, ErrExposed, "chmod 0600"},
		{"an empty file", func(t *testing.T, dir string) string {
			must(t, os.WriteFile(filepath.Join(dir, fileName), nil, fileMode))
			return dir
		}, ErrDamaged, "restore the database from a backup"},
		{"a text", func(t *testing.T, dir string) string {
			must(t, os.WriteFile(filepath.Join(dir, fileName), bytes.Repeat([]byte("not a database\n"), 1000), fileMode))
			return dir
		}, ErrDamaged, "not a database"},
		{"a symbolic link", func(t *testing.T, dir string) string {
			must(t, os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, "elsewhere")))
			must(t, os.Symlink("elsewhere", filepath.Join(dir, fileName)))
			return dir
		}, nil, "no regular file"},
		{"a folder in its place", func(t *testing.T, dir string) string {
			must(t, os.Remove(filepath.Join(dir, fileName)))
			must(t, os.Mkdir(filepath.Join(dir, fileName), 0o700))
			return dir
		}, nil, "no regular file"},
		{"a file as folder", func(_ *testing.T, dir string) string { return filepath.Join(dir, fileName) }, nil, "is no folder"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := row.prepare(t, made(t, 1))
			_, openErr := Open(t.Context(), dir, Options{})
			_, readErr := OpenReadOnly(t.Context(), dir, Options{})
			for _, err := range []error{openErr, readErr} {
				if err == nil || !strings.Contains(err.Error(), row.text) {
					t.Fatalf("error %v, want %q", err, row.text)
				}
				if row.kind != nil {
					wantRemedy(t, err, row.kind)
				}
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeignDatabase: another program's database is refused as it is.
func TestForeignDatabase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, fileName)
	must(t, os.WriteFile(path, nil, fileMode))
	db := openWriter(path)
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE theirs (a); PRAGMA user_version = 1"); err != nil {
		t.Fatal(err)
	}
	must(t, db.Close())
	before := read(t, path)
	_, err := Open(t.Context(), dir, Options{})
	wantRemedy(t, err, ErrDamaged)
	if !bytes.Equal(before, read(t, path)) {
		t.Error("the file was changed")
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCreateRefuses(t *testing.T) {
	t.Run("an existing database", func(t *testing.T) {
		dir := made(t, 2)
		before := read(t, filepath.Join(dir, fileName))
		_, err := Create(t.Context(), dir, Options{})
		wantRemedy(t, err, fs.ErrExist)
		if !bytes.Equal(before, read(t, filepath.Join(dir, fileName))) {
			t.Error("the file was changed")
		}
		wantN(t, mustOpen(t, dir), 2)
	})
	t.Run("a folder for others", func(t *testing.T) {
		dir := t.TempDir() // of mode 0755
		must(t, os.Chmod(dir, 0o755))
		_, err := Create(t.Context(), dir, Options{})
		wantRemedy(t, err, ErrExposed)
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
	})
	t.Run("a folder without parent", func(t *testing.T) {
		parent := filepath.Join(t.TempDir(), "a")
		if _, err := Create(t.Context(), filepath.Join(parent, "b"), Options{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error %v", err)
		}
		if _, err := os.Stat(parent); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("parent was made: %v", err)
		}
	})
	for _, suffix := range companions() {
		t.Run("remains of another database, "+suffix, func(t *testing.T) {
			dir := made(t, 1)
			must(t, os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, fileName+suffix)))
			_, err := Create(t.Context(), dir, Options{})
			wantRemedy(t, err, fs.ErrExist)
		})
	}
	t.Run("a used folder", func(t *testing.T) {
		s := newStore(t)
		_, err := Create(t.Context(), filepath.Dir(s.Path()), Options{})
		wantRemedy(t, err, ErrInUse)
	})
	t.Run("no randomness", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		if _, err := Create(t.Context(), dir, Options{Rand: strings.NewReader("abc")}); err == nil {
			t.Error("Create = nil")
		}
		wantNoDatabase(t, dir)
	})
	t.Run("an ended ctx", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Create(ctx, dir, Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		wantNoDatabase(t, dir)
	})
}

// wantNoDatabase wants that a failed Create left nothing but the lock file,
// and that it works when it is called again.
func wantNoDatabase(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != lockName {
			t.Errorf("left behind: %s", e.Name())
		}
	}
	s, err := Create(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	must(t, s.Close())
}

// TestCreateAfterCrash: what a killed Create left is no obstacle.
func TestCreateAfterCrash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	must(t, os.Mkdir(dir, 0o700))
	for _, suffix := range append(companions(), "") {
		must(t, os.WriteFile(filepath.Join(dir, newFileName+suffix), []byte("half"), fileMode))
	}
	if _, err := Open(t.Context(), dir, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	s, err := Create(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	must(t, s.Close())
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 { // database and lock
		t.Errorf("folder: %v, %v", entries, err)
	}
	wantN(t, mustOpen(t, dir), 0)
}

func TestInstance(t *testing.T) {
	s, err := Create(t.Context(), filepath.Join(t.TempDir(), "data"), Options{Rand: bytes.NewReader([]byte{0x01, 0xab, 0x00, 0xff})})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.Instance(); got != "01ab00ff" {
		t.Errorf("Instance = %q", got)
	}
	if other := newStore(t).Instance(); other == s.Instance() {
		t.Errorf("two instances %q", other)
	}
}

// TestModes: no file is for others, whatever the umask.
func TestModes(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 1)
	dir := filepath.Dir(s.Path())
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 4 { // database, log, shared memory, lock
		t.Errorf("files: %v", entries)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

// TestOddFolderNames: SQLite takes the path as a URI, which gives some
// characters a meaning.
func TestOddFolderNames(t *testing.T) {
	for _, name := range []string{"a b", "what?mode=memory", "50%25", "x#y", "é\xff", "a&b=c;d", "file:x", `back\slash`, "'"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			s, err := Create(t.Context(), dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			insertN(t, s, 1)
			must(t, s.Close())
			wantN(t, mustOpen(t, dir), 1)
			if _, err := os.Stat(filepath.Join(dir, fileName)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRelativeFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	s, err := Create(t.Context(), "data", Options{})
	if err != nil {
		t.Fatal(err)
	}
	must(t, s.Close())
	s = mustOpen(t, "./data")
	if !filepath.IsAbs(s.Path()) {
		t.Errorf("Path = %q", s.Path())
	}
}

// TestOneProcess: the second one is refused, in the same process or another.
func TestOneProcess(t *testing.T) {
	s := newStore(t)
	dir := filepath.Dir(s.Path())
	holder := "in use by process " + strconv.Itoa(os.Getpid())
	_, err := Open(t.Context(), dir, Options{})
	wantRemedy(t, err, ErrInUse)
	if !strings.Contains(err.Error(), holder) {
		t.Errorf("error %v, want %q", err, holder)
	}
	out, err := child(t, crashDirEnv, dir)
	if err == nil || !strings.Contains(out, holder) {
		t.Errorf("child: %v, %s", err, out)
	}
	insertN(t, s, 1) // unharmed
	must(t, s.Close())
	wantN(t, mustOpen(t, dir), 1)
}

// child runs this test binary as the child of that role and returns all that
// it wrote.
func child(t *testing.T, role, dir string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), role+"="+dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestStaleLock: the note of a process that was killed is no lock, and is not
// shown when there is another holder.
func TestStaleLock(t *testing.T) {
	dir := made(t, 1)
	must(t, os.WriteFile(filepath.Join(dir, lockName), []byte("999999999999\n"), fileMode))
	mustOpen(t, dir)
	_, err := Open(t.Context(), dir, Options{})
	if err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())+";") {
		t.Errorf("error %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, lockName), []byte("garbage"), fileMode))
	if _, err = Open(t.Context(), dir, Options{}); err == nil || !strings.Contains(err.Error(), "by another process;") {
		t.Errorf("error %v", err)
	}
}

// TestLookBeside: another process reads while this one writes, and afterwards.
func TestLookBeside(t *testing.T) {
	s := newStore(t)
	dir := filepath.Dir(s.Path())
	for n := range 3 {
		must(t, s.InsertKey(t.Context(), testKey(n)))
		out, err := child(t, lookDirEnv, dir)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := strings.Count(out, "\n"); got != n+1 {
			t.Errorf("the reader sees %d keys, want %d", got, n+1)
		}
	}
	must(t, s.Close())
	out, err := child(t, lookDirEnv, dir)
	if err != nil || strings.Count(out, "\n") != 3 {
		t.Errorf("after Close: %v: %s", err, out)
	}
	wantN(t, mustOpen(t, dir), 3)
}

func TestReadOnlyCannotWrite(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 1)
	r, err := OpenReadOnly(t.Context(), filepath.Dir(s.Path()), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Instance() != s.Instance() || r.Schema() != ours(t) || r.Path() != s.Path() {
		t.Errorf("reader: %q, %d, %q", r.Instance(), r.Schema(), r.Path())
	}
	for _, db := range []*Reader{r, s.Reader} {
		if _, err := db.db.ExecContext(t.Context(), "DELETE FROM keys"); err == nil {
			t.Error("a reader wrote")
		}
	}
	wantN(t, r, 1)
	must(t, r.Close())
	must(t, r.Close())
	if _, err := r.Snapshot(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Snapshot after Close: %v", err)
	}
	must(t, s.InsertKey(t.Context(), testKey(1)))
}
