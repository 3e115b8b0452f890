package audit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of size bytes. Where mounting is not allowed it
// returns false, and the caller uses injected faults instead.
func smallDisk(t *testing.T, size string) (dir string, ok bool) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Logf("mount: %v; using injected faults instead", err)
		return dir, false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir, true
}

// A disk that someone else fills up: Normal records are refused at the reserve,
// Protected ones when it is used up, and all goes on by itself when there is room.
func TestDiskFull(t *testing.T) {
	mount, real := smallDisk(t, "320k")
	dir := filepath.Join(mount, "audit")
	opts := small()
	opts.ReserveBytes = 16 << 10
	fsys := newFaultFS()
	opts.fs = fsys
	j := open(t, dir, opts)
	add(t, j, 0, 3, 1000)

	ballast := filepath.Join(mount, "ballast")
	fillDisk := func() {
		t.Helper()
		if !real {
			fsys.set(func(op, path string) error {
				if op == "allocate" {
					return unix.ENOSPC
				}
				return nil
			})
			return
		}
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	fillDisk()
	normal := fill(t, j, Normal, 1000)
	if err := j.Healthy(); !errors.Is(err, ErrFull) {
		t.Errorf("Healthy: %v", err)
	}
	protected := fill(t, j, Protected, 1000)
	if want := int(opts.ReserveBytes); protected < want-recordSize(1000) || protected > want+recordSize(1000) {
		t.Errorf("%d bytes of protected records in a reserve of %d", protected, want)
	}
	if want := minSegmentBytes - segmentHeaderBytes - int(opts.ReserveBytes) - 4*recordSize(1000); normal < want {
		t.Errorf("%d bytes of normal records, expected at least %d", normal, want)
	}
	// A restart on the full disk finds everything and is still full.
	closeJournal(t, j, false)
	j = open(t, dir, opts)
	eventually(t, "full seen without an append", func() bool {
		s := j.Status()
		return errors.Is(j.Healthy(), ErrFull) && s.Full && s.SpareFailed && !s.SpareReady && s.SegmentLeft < int64(2*recordSize(1000))
	})
	if _, err := j.Append(t.Context(), Normal, Synced, payload(0, 1000)); !errors.Is(err, ErrFull) {
		t.Errorf("after restart: %v", err)
	}
	if real {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
	fsys.set(nil)
	eventually(t, "room again", func() bool {
		_, err := j.Append(t.Context(), Normal, Synced, payload(0, 1000))
		return err == nil && j.Healthy() == nil
	})
	closeJournal(t, j, false)
	mustVerify(t, dir)
}

// There is no room for a journal at all.
func TestNoRoomToCreate(t *testing.T) {
	mount, real := smallDisk(t, "32k")
	opts := small()
	if !real {
		fsys := newFaultFS()
		fsys.set(func(op, path string) error {
			if op == "allocate" {
				return unix.ENOSPC
			}
			return nil
		})
		opts.fs = fsys
	}
	dir := filepath.Join(mount, "audit")
	if _, err := Open(dir, opts); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	names, err := osFS{}.ReadDir(dir)
	if err != nil || strings.Join(names, "") != "" {
		t.Errorf("left %q, %v", names, err)
	}
}

// A file system that is remounted read-only, as the kernel does on errors.
func TestRemountedReadOnly(t *testing.T) {
	mount, real := smallDisk(t, "1m")
	dir := filepath.Join(mount, "audit")
	opts := small()
	fsys := newFaultFS()
	opts.fs = fsys
	j := open(t, dir, opts)
	add(t, j, 0, 2, 100)
	// Open files keep a tmpfs from being remounted: the fault is injected for them
	// and real for new ones.
	fsys.set(func(op, path string) error {
		if op == "sync" || op == "write" {
			return unix.EROFS
		}
		return nil
	})
	if _, err := j.Append(t.Context(), Normal, Synced, []byte("x")); !errors.Is(err, unix.EROFS) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	closeJournal(t, j, true)
	fsys.set(nil)
	if real {
		if err := unix.Mount("none", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, opts); !errors.Is(err, unix.EROFS) {
			t.Errorf("Open on a read-only file system: %v", err)
		}
		if rep := mustVerify(t, dir); rep.Records != 2 {
			t.Errorf("%+v", rep)
		}
		if err := unix.Mount("none", mount, "", unix.MS_REMOUNT, ""); err != nil {
			t.Fatal(err)
		}
	}
	j = open(t, dir, opts)
	add(t, j, 2, 1, 100)
}
