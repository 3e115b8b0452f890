package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// testTimeout bounds every wait of these tests.
const testTimeout = 30 * time.Second

// eventually polls cond until it holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", testTimeout, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// small returns options for journals with small segments and short intervals.
func small() Options {
	return Options{
		Create:        true,
		SegmentBytes:  minSegmentBytes,
		RetryInterval: 5 * time.Millisecond,
		CheckInterval: 5 * time.Millisecond,
	}
}

func open(t *testing.T, dir string, opts Options) *Journal {
	t.Helper()
	j, err := Open(dir, opts)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { closeJournal(t, j, true) })
	return j
}

func closeJournal(t *testing.T, j *Journal, mayFail bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := j.Close(ctx); err != nil && !mayFail {
		t.Fatalf("Close: %v", err)
	}
	if ctx.Err() != nil {
		t.Fatal("Close did not end")
	}
}

// payload is distinct and, with n, of a given size.
func payload(i, n int) []byte {
	s := fmt.Sprintf(`{"n":%d}`, i)
	if len(s) < n {
		s += strings.Repeat(" ", n-len(s))
	}
	return []byte(s)
}

// add appends records one by one.
func add(t *testing.T, j *Journal, from, count, size int) {
	t.Helper()
	for i := from; i < from+count; i++ {
		seq, err := j.Append(t.Context(), Normal, Synced, payload(i, size))
		if err != nil {
			t.Fatalf("Append %d: %v", i, err)
		}
		if seq != uint64(i) {
			t.Fatalf("Append %d: seq %d", i, seq)
		}
	}
}

// events returns the payloads of the events in dir, notes left out.
func events(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for rec, err := range Read(dir, 0) {
		if err != nil {
			t.Fatalf("Read: %v", err)
		}
		if rec.Kind == KindEvent {
			out = append(out, strings.TrimRight(string(rec.Payload), " "))
		}
	}
	return out
}

func mustVerify(t *testing.T, dir string) Report {
	t.Helper()
	rep, err := Verify(dir, VerifyOptions{})
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	return rep
}

func wantFault(t *testing.T, err error, kinds ...FaultKind) {
	t.Helper()
	var f *Fault
	if !errors.As(err, &f) {
		t.Fatalf("got %v, want a fault %v", err, kinds)
	}
	for _, k := range kinds {
		if f.Kind == k {
			return
		}
	}
	t.Fatalf("got fault %v, want kind %v", f, kinds)
}

// memoryDir returns a directory in memory where the system has one: thousands of
// crashes are simulated there, and none of them needs a disk.
func memoryDir(t *testing.T) string {
	t.Helper()
	if dir, err := os.MkdirTemp("/dev/shm", "keyhold-audit-"); err == nil { //nolint:usetesting // t.TempDir may be on a disk
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

// copyDir returns a copy of a journal's directory.
func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		t.Fatal(err)
	}
	return to
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// segmentsOf returns the paths of the segments in dir, in order.
func segmentsOf(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, segmentPrefix+"*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// faultFS is the real file system with a hook before each operation. The hook may
// block, or return an error that the operation then fails with.
type faultFS struct {
	osFS
	mu    sync.Mutex
	hook  func(op, path string) error
	after func(op, path string) error // runs after a successful operation
	count map[string]int
	files []*faultFile
}

var _ fileSystem = (*faultFS)(nil)

func newFaultFS() *faultFS { return &faultFS{count: map[string]int{}} }

func (f *faultFS) set(hook func(op, path string) error) {
	f.mu.Lock()
	f.hook = hook
	f.mu.Unlock()
}

func (f *faultFS) setAfter(hook func(op, path string) error) {
	f.mu.Lock()
	f.after = hook
	f.mu.Unlock()
}

// counted returns how often op was called on a segment.
func (f *faultFS) counted(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[op]
}

func (f *faultFS) do(op, path string, real func() error) error {
	f.mu.Lock()
	before, after := f.hook, f.after
	if _, ok := parseSegmentName(filepath.Base(path)); ok {
		f.count[op]++
	}
	f.mu.Unlock()
	if before != nil {
		if err := before(op, path); err != nil {
			return &fs.PathError{Op: op, Path: path, Err: err}
		}
	}
	if err := real(); err != nil {
		return err
	}
	if after != nil {
		if err := after(op, path); err != nil {
			return &fs.PathError{Op: op, Path: path, Err: err}
		}
	}
	return nil
}

func (f *faultFS) OpenFile(path string, flag int, perm fs.FileMode) (file, error) {
	var inner file
	err := f.do("open", path, func() (err error) {
		inner, err = f.osFS.OpenFile(path, flag, perm)
		return err
	})
	if err != nil {
		return nil, err
	}
	ff := &faultFile{file: inner, fsys: f, path: path}
	f.mu.Lock()
	f.files = append(f.files, ff)
	f.mu.Unlock()
	return ff, nil
}

func (f *faultFS) Rename(from, to string) error {
	return f.do("rename", to, func() error {
		err := f.osFS.Rename(from, to)
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, ff := range f.files {
			if err == nil && ff.path == from {
				ff.path = to
			}
		}
		return err
	})
}

func (f *faultFS) SyncDir(dir string) error {
	return f.do("syncdir", dir, func() error { return f.osFS.SyncDir(dir) })
}

func (f *faultFS) Stat(path string) (fs.FileInfo, error) {
	if err := f.do("stat", path, func() error { return nil }); err != nil {
		return nil, err
	}
	return f.osFS.Stat(path)
}

type faultFile struct {
	file
	fsys *faultFS
	path string // follows renames; guarded by fsys.mu
}

func (f *faultFile) do(op string, real func() error) error {
	f.fsys.mu.Lock()
	path := f.path
	f.fsys.mu.Unlock()
	return f.fsys.do(op, path, real)
}

func (f *faultFile) ReadAt(p []byte, off int64) (n int, err error) {
	if err := f.do("read", func() error { return nil }); err != nil {
		return 0, err
	}
	return f.file.ReadAt(p, off)
}

func (f *faultFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.do("write", func() (err error) {
		n, err = f.file.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *faultFile) Sync() error { return f.do("sync", f.file.Sync) }

func (f *faultFile) Allocate(size int64) error {
	return f.do("allocate", func() error { return f.file.Allocate(size) })
}

func (f *faultFile) Truncate(size int64) error {
	return f.do("truncate", func() error { return f.file.Truncate(size) })
}
