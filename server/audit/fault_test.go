package audit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var errInjected = errors.New("injected I/O error")

// isSegmentFile tells segments and the spare, which becomes one, from the head.
func isSegmentFile(path string) bool { return filepath.Base(path) != headName }

// An append that fails is reported, the journal fails fast, and it recovers by
// itself as soon as the disk does. Each operation is tried as "failed" and as
// "failed but done".
func TestRecoversFromFailure(t *testing.T) {
	for _, op := range []string{"sync", "write"} {
		for _, done := range []bool{false, true} {
			for _, durability := range []Durability{Synced, Written} {
				name := op + "/done=" + map[bool]string{true: "yes", false: "no"}[done] + "/" + durability.String()
				t.Run(name, func(t *testing.T) { testRecovery(t, op, done, durability) })
			}
		}
	}
}

func testRecovery(t *testing.T, op string, done bool, durability Durability) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	opts.SyncInterval = 5 * time.Millisecond
	var failures atomic.Int64
	opts.Observer = func(c Commit) {
		if c.Err != nil {
			failures.Add(1)
		}
	}
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)
	var acked []string
	try := func(i int) error {
		_, err := j.Append(t.Context(), Normal, durability, payload(i, 0))
		if err == nil {
			acked = append(acked, string(payload(i, 0)))
		}
		return err
	}
	for i := range 5 {
		if err := try(i); err != nil {
			t.Fatal(err)
		}
	}
	var broken atomic.Bool
	hook := func(o, path string) error {
		if o == op && isSegmentFile(path) && broken.Load() {
			return errInjected
		}
		return nil
	}
	if done {
		fsys.setAfter(hook)
	} else {
		fsys.set(hook)
	}
	broken.Store(true)
	i := 5
	eventually(t, "failure noticed", func() bool {
		i++
		if err := try(i); err != nil && (!errors.Is(err, ErrUnavailable) || !errors.Is(err, errInjected)) {
			t.Fatalf("Append: %v", err)
		}
		return j.Healthy() != nil
	})
	if failures.Load() == 0 {
		t.Error("observer saw no failure")
	}
	if _, err := j.Append(t.Context(), Protected, durability, []byte("x")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Append while unhealthy: %v", err)
	}
	broken.Store(false)
	eventually(t, "recovery", func() bool { return j.Healthy() == nil })
	for i := range 3 {
		if err := try(100 + i); err != nil {
			t.Fatal(err)
		}
	}
	closeJournal(t, j, false)
	mustVerify(t, dir)
	got := events(t, dir)
	if durability == Synced && !slices.Equal(got, acked) {
		t.Errorf("journal holds %q, acknowledged %q", got, acked)
	}
	for _, p := range acked { // all that was acknowledged, in any case
		if !slices.Contains(got, p) {
			t.Errorf("%s is lost", p)
		}
	}
	open(t, dir, small())
}

// The recovery itself fails at each of its steps, and is tried again.
func TestRecoveryFails(t *testing.T) {
	for _, step := range []string{"open", "read", "allocate", "write", "sync", "truncate", "rename", "syncdir"} {
		for _, written := range []bool{false, true} {
			t.Run(step+map[bool]string{true: "/written"}[written], func(t *testing.T) {
				fsys := newFaultFS()
				opts := small()
				opts.fs = fsys
				opts.SyncInterval = time.Hour
				dir := filepath.Join(t.TempDir(), "audit")
				j := open(t, dir, opts)
				add(t, j, 0, 4, 100)
				want := []string{`{"n":0}`, `{"n":1}`, `{"n":2}`, `{"n":3}`}
				if written {
					if _, err := j.Append(t.Context(), Normal, Written, []byte("kept")); err != nil {
						t.Fatal(err)
					}
					want = append(want, "kept")
				}
				var failed atomic.Int64 // failures of the step during recovery
				var first atomic.Bool
				fsys.set(func(op, path string) error {
					if op == "sync" && first.CompareAndSwap(false, true) {
						return errInjected
					}
					if op == step && isSegmentFile(path) && first.Load() && failed.Load() < 3 {
						failed.Add(1)
						return errInjected
					}
					return nil
				})
				if _, err := j.Append(t.Context(), Normal, Synced, []byte("lost")); !errors.Is(err, errInjected) {
					t.Fatalf("got %v", err)
				}
				eventually(t, "recovery", func() bool { return j.Healthy() == nil })
				if failed.Load() != 3 {
					t.Errorf("the step failed %d times", failed.Load())
				}
				if _, err := j.Append(t.Context(), Normal, Synced, []byte("last")); err != nil {
					t.Fatal(err)
				}
				closeJournal(t, j, false)
				rep := mustVerify(t, dir)
				if got := events(t, dir); !slices.Equal(got, append(want, "last")) || rep.Notes != 1 {
					t.Errorf("journal holds %q, report %+v", got, rep)
				}
			})
		}
	}
}

// After a failed sync, what an earlier sync covered is read again; if it is not
// there any more, the journal does not go on as if nothing had happened.
func TestRecoveryFindsDamage(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)
	add(t, j, 0, 4, 100)
	path := segmentsOf(t, dir)[0]
	b := readFile(t, path)
	b[segmentHeaderBytes+50] ^= 1
	writeFile(t, path, b) // same file
	fsys.set(func(op, path string) error {
		if op == "sync" && isSegmentFile(path) {
			return errInjected
		}
		return nil
	})
	if _, err := j.Append(t.Context(), Normal, Synced, []byte("x")); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	fsys.set(nil)
	eventually(t, "damage reported", func() bool { return errors.Is(j.Healthy(), ErrDamaged) })
	wantFault(t, j.Healthy(), FaultRecord)
	b[segmentHeaderBytes+50] ^= 1
	writeFile(t, path, b)
	eventually(t, "recovery", func() bool { return j.Healthy() == nil })
}

// A failed rotation loses nothing.
func TestRotationFails(t *testing.T) {
	for _, step := range []string{"sync", "rename", "syncdir", "truncate"} {
		t.Run(step, func(t *testing.T) {
			fsys := newFaultFS()
			opts := small()
			opts.fs = fsys
			dir := filepath.Join(t.TempDir(), "audit")
			j := open(t, dir, opts)
			var on atomic.Bool
			var hits atomic.Int64
			fsys.set(func(op, path string) error {
				if op == step && on.Load() && isSegmentFile(path) && (step != "sync" || filepath.Base(path) == spareName) {
					hits.Add(1)
					return errInjected
				}
				return nil
			})
			var acked []string
			for i := 0; len(segmentsOf(t, dir)) < 3; i++ {
				if i == 9 { // past half: the spare is being made
					// Not only its file: making it ends with a sync, which is not to fail.
					eventually(t, "spare", func() bool { return j.Status().SpareReady })
					on.Store(true)
				}
				p := payload(i, 0)
				if _, err := j.Append(t.Context(), Normal, Synced, payload(i, 4000)); err == nil {
					acked = append(acked, string(p))
				} else if !errors.Is(err, errInjected) {
					t.Fatal(err)
				} else {
					on.Store(false)
					eventually(t, "recovery", func() bool { return j.Healthy() == nil })
				}
			}
			if hits.Load() == 0 {
				t.Error("the step was not reached")
			}
			closeJournal(t, j, false)
			mustVerify(t, dir)
			if got := events(t, dir); !slices.Equal(got, acked) {
				t.Errorf("journal holds %d, acknowledged %d", len(got), len(acked))
			}
		})
	}
}

// A disk that hangs does not hang the callers.
func TestStall(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	opts.StallTimeout = 20 * time.Millisecond
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)
	release := make(chan struct{})
	var once sync.Once
	entered := make(chan struct{})
	fsys.set(func(op, path string) error {
		if op == "sync" && isSegmentFile(path) {
			once.Do(func() { close(entered) })
			<-release
		}
		return nil
	})
	errs := make(chan error, 2)
	go func() {
		_, err := j.Append(context.Background(), Normal, Synced, []byte("taken"))
		errs <- err
	}()
	<-entered
	go func() {
		_, err := j.Append(context.Background(), Normal, Synced, []byte("queued"))
		errs <- err
	}()
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	if err := j.Healthy(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Healthy: %v", err)
	}
	if _, err := j.Append(t.Context(), Protected, Synced, []byte("x")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Append: %v", err)
	}
	close(release)
	fsys.set(nil)
	eventually(t, "disk answers", func() bool { return j.Healthy() == nil })
	if _, err := j.Append(t.Context(), Normal, Synced, []byte("after")); err != nil {
		t.Error(err)
	}
	closeJournal(t, j, false)
	// "taken" was not acknowledged but got through; "queued" must not.
	if got := events(t, dir); !slices.Equal(got, []string{"taken", "after"}) {
		t.Errorf("journal holds %q", got)
	}
	mustVerify(t, dir)
}

// Close returns when its context ends, and can be called again.
func TestCloseWhileStalled(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	opts.StallTimeout = 10 * time.Millisecond
	j := open(t, filepath.Join(t.TempDir(), "audit"), opts)
	release, entered := make(chan struct{}), make(chan struct{})
	var once sync.Once
	fsys.set(func(op, path string) error {
		if op == "sync" {
			once.Do(func() { close(entered) })
			<-release
		}
		return nil
	})
	failed := make(chan error, 1)
	go func() {
		_, err := j.Append(context.Background(), Normal, Synced, []byte("x"))
		failed <- err
	}()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: %v", err)
	}
	if err := <-failed; !errors.Is(err, ErrUnavailable) {
		t.Errorf("Append: %v", err)
	}
	close(release)
	closeJournal(t, j, true)
}

// Files that go missing while the journal is open are noticed.
func TestFilesRemoved(t *testing.T) {
	rename := func(t *testing.T, from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		path func(dir string) string
		fill bool // put something else in its place
	}{
		{"directory moved", func(dir string) string { return dir }, false},
		{"segment moved", func(dir string) string { return segmentsOf(t, dir)[0] }, false},
		{"segment replaced", func(dir string) string { return segmentsOf(t, dir)[0] }, true},
		{"head moved", func(dir string) string { return filepath.Join(dir, headName) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "audit")
			j := open(t, dir, small())
			add(t, j, 0, 1, 0)
			path := tc.path(dir)
			rename(t, path, path+".away")
			if tc.fill {
				writeFile(t, path, readFile(t, path+".away"))
			}
			eventually(t, "noticed", func() bool { return j.Healthy() != nil })
			_, err := j.Append(t.Context(), Protected, Synced, []byte("x"))
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "put ") {
				t.Errorf("Append: %v", err)
			}
			rename(t, path+".away", path)
			eventually(t, "back", func() bool { return j.Healthy() == nil })
			add(t, j, 1, 1, 0)
			closeJournal(t, j, false)
			mustVerify(t, dir)
		})
	}
	t.Run("segment deleted", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "audit")
		j := open(t, dir, small())
		add(t, j, 0, 3, 0)
		if err := os.Remove(segmentsOf(t, dir)[0]); err != nil {
			t.Fatal(err)
		}
		eventually(t, "noticed", func() bool { return errors.Is(j.Healthy(), ErrUnavailable) })
		closeJournal(t, j, true)
		if _, err := Open(dir, small()); !errors.Is(err, ErrDamaged) {
			t.Errorf("Open: %v", err)
		}
	})
}

// fill appends records of one class until they are refused, and returns how many
// bytes went in.
func fill(t *testing.T, j *Journal, class Class, size int) (total int) {
	t.Helper()
	for {
		_, err := j.Append(t.Context(), class, Synced, payload(0, size))
		if errors.Is(err, ErrFull) {
			return total
		}
		if err != nil {
			t.Fatalf("Append: %v", err)
		}
		total += recordSize(size)
	}
}

// The reserve at its edges: what is left before it takes Normal records to the
// byte, the reserve itself Protected ones to the byte.
func TestReserve(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	opts.ReserveBytes = 8192
	opts.MaxRecordBytes = 4096
	var full atomic.Bool
	fsys.set(func(op, path string) error {
		if op == "allocate" && full.Load() {
			return unix.ENOSPC
		}
		return nil
	})
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)
	full.Store(true)
	exact := func(class Class, left int64) {
		t.Helper()
		for left > 0 {
			n := min(left, 4096)
			if left-n > 0 && left-n < 256 {
				n -= 256
			}
			// The payload whose record takes n bytes; one more byte takes 8 more.
			p := payload(0, int(n)-recordHeaderBytes-recordTrailerBytes)
			if n == left {
				over := payload(0, len(p)+1)
				if _, err := j.Append(t.Context(), class, Synced, over); !errors.Is(err, ErrFull) {
					t.Fatalf("one byte too many: %v", err)
				}
			}
			if _, err := j.Append(t.Context(), class, Synced, p); err != nil {
				t.Fatalf("%d of %d bytes: %v", n, left, err)
			}
			left -= n
		}
		if _, err := j.Append(t.Context(), class, Synced, []byte{1}); !errors.Is(err, ErrFull) {
			t.Fatalf("no byte left: %v", err)
		}
	}
	exact(Normal, opts.SegmentBytes-segmentHeaderBytes-opts.ReserveBytes)
	if err := j.Healthy(); !errors.Is(err, ErrFull) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Healthy: %v", err)
	}
	exact(Protected, opts.ReserveBytes)
	full.Store(false)
	eventually(t, "space again", func() bool { return j.Healthy() == nil })
	if _, err := j.Append(t.Context(), Normal, Synced, []byte("after")); err != nil {
		t.Error(err)
	}
	closeJournal(t, j, false)
	if rep := mustVerify(t, dir); rep.Segments != 2 || rep.Notes != 0 {
		t.Errorf("%+v", rep)
	}
}

// A file system that cannot preallocate gets zeros written.
func TestNoPreallocation(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	fsys.set(func(op, path string) error {
		if op == "allocate" {
			return errors.ErrUnsupported
		}
		return nil
	})
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)
	add(t, j, 0, 30, 4000)
	closeJournal(t, j, false)
	if rep := mustVerify(t, dir); rep.Segments != 2 {
		t.Errorf("%+v", rep)
	}
	info, err := os.Stat(segmentsOf(t, dir)[1])
	if err != nil || info.Size() != opts.SegmentBytes {
		t.Errorf("%v %v", info, err)
	}
}

// A directory that cannot be written is refused at once, and nothing is left there.
func TestReadOnlyDirectory(t *testing.T) {
	fsys := newFaultFS()
	fsys.set(func(op, path string) error {
		if op == "open" && path != "" && isSegmentFile(path) {
			return unix.EROFS
		}
		return nil
	})
	opts := small()
	opts.fs = fsys
	if _, err := Open(t.TempDir(), opts); !errors.Is(err, unix.EROFS) {
		t.Errorf("got %v", err)
	}
}
