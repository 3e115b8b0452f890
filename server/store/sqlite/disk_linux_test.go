package sqlite

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keyhold/keyhold/server/kms"
)

// smallDiskEnv tells a child process that it has a mount namespace of its own.
const smallDiskEnv = "KEYHOLD_TEST_SMALL_DISK"

// noMount is what the child says where it may not mount.
const noMount = "this system lets tests mount nothing"

// onSmallDisk runs the body in a child process that has a file system of its
// own, of that size. Nobody else sees it, and it goes with the process.
func onSmallDisk(t *testing.T, size string, body func(t *testing.T, disk *smallDisk)) {
	t.Helper()
	if os.Getenv(smallDiskEnv) != "" {
		body(t, mountSmallDisk(t, size))
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), smallDiskEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if id := os.Geteuid(); id != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) || bytes.Contains(out, []byte(noMount)) {
		if os.Getenv("CI") != "" {
			t.Fatal(noMount)
		}
		t.Skip(noMount)
	}
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("the child ran nothing:\n%s", out)
	}
}

// smallDisk is a tmpfs.
type smallDisk struct{ dir string }

func mountSmallDisk(t *testing.T, size string) *smallDisk {
	t.Helper()
	d := &smallDisk{t.TempDir()}
	err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	if err == nil {
		err = syscall.Mount("none", d.dir, "tmpfs", 0, "mode=0700,size="+size)
	}
	if errors.Is(err, fs.ErrPermission) {
		t.Log(noMount)
		t.FailNow()
	}
	must(t, err)
	t.Cleanup(func() { must(t, syscall.Unmount(d.dir, 0)) })
	return d
}

func (d *smallDisk) data() string { return filepath.Join(d.dir, "data") }

func (d *smallDisk) resize(t *testing.T, size string) {
	t.Helper()
	must(t, syscall.Mount("none", d.dir, "tmpfs", syscall.MS_REMOUNT, "mode=0700,size="+size))
}

func (d *smallDisk) readOnly(t *testing.T) {
	t.Helper()
	must(t, syscall.Mount("none", d.dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
}

// fill leaves no free block, and returns how to free what it took.
func (d *smallDisk) fill(t *testing.T) (free func()) {
	t.Helper()
	path := filepath.Join(d.dir, "ballast")
	f, err := os.Create(path)
	must(t, err)
	block := make([]byte, pageBytes)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	must(t, f.Close())
	return func() { must(t, os.Remove(path)) }
}

// fat returns a record that needs many pages.
func fat(n int) *kms.KeyRecord {
	r := testKey(n)
	r.Description = strings.Repeat("x", 20_000)
	return r
}

// wantThere wants the records with those numbers, whole, and no others.
func wantThere(t *testing.T, s *Store, there map[int]bool) {
	t.Helper()
	snap, err := s.Snapshot(t.Context())
	must(t, err)
	if len(snap.Keys) != len(there) {
		t.Errorf("%d keys, acknowledged were %d", len(snap.Keys), len(there))
	}
	found := map[kms.KeyID]*kms.KeyRecord{}
	for _, r := range snap.Keys {
		found[r.ID] = r
	}
	for n := range there {
		if r := found[fat(n).ID]; r == nil || r.Description != fat(n).Description || len(r.Tags) != 2 || len(r.Versions) != 1 {
			t.Errorf("key %d is lost or not whole", n)
		}
	}
}

// writeUntilFull inserts until the disk is full, and some more.
func writeUntilFull(t *testing.T, s *Store, there map[int]bool) {
	t.Helper()
	refused := 0
	for n := 0; refused < 20; n++ {
		if n > 1000 {
			t.Fatal("the disk does not fill")
		}
		err := s.InsertKey(t.Context(), fat(n))
		if err == nil {
			there[n] = true
			continue
		}
		wantRemedy(t, err, ErrNoSpace)
		if !strings.Contains(err.Error(), "free space") {
			t.Errorf("error %v", err)
		}
		refused++
	}
	if len(there) < 5 {
		t.Fatalf("%d writes before the disk was full", len(there))
	}
}

// TestDiskFull: writes fail clearly and lose nothing, reads go on, and when
// there is space again so do writes, without a restart.
func TestDiskFull(t *testing.T) {
	onSmallDisk(t, "2m", func(t *testing.T, disk *smallDisk) {
		s, err := Create(t.Context(), disk.data(), Options{})
		must(t, err)
		there := map[int]bool{}
		for range 3 {
			writeUntilFull(t, s, there)
			wantThere(t, s, there)
			must(t, s.Check(t.Context()))
			// A delete needs space too; whether it got it, it says.
			for n := range there {
				if err := s.DeleteKey(t.Context(), fat(n).ID, 1); err == nil {
					delete(there, n)
				} else {
					wantRemedy(t, err, ErrNoSpace)
				}
				break
			}
			wantThere(t, s, there)

			disk.resize(t, "64m")
			for n := 5000; n < 5010; n++ {
				must(t, s.InsertKey(t.Context(), fat(n)))
				there[n] = true
			}
			wantThere(t, s, there)
			must(t, s.Check(t.Context()))
			for n := range there {
				must(t, s.DeleteKey(t.Context(), fat(n).ID, 1))
				delete(there, n)
			}
			must(t, s.Close())
			must(t, os.RemoveAll(disk.data()))
			disk.resize(t, "2m")
			s, err = Create(t.Context(), disk.data(), Options{})
			must(t, err)
		}
		must(t, s.Close())
	})
}

// TestLeasesOnFullDisk: leases that share a transaction fail together, and what was
// granted before stays counted.
func TestLeasesOnFullDisk(t *testing.T) {
	onSmallDisk(t, "2m", func(t *testing.T, disk *smallDisk) {
		s, err := Create(t.Context(), disk.data(), Options{})
		must(t, err)
		insertN(t, s, 16)
		disk.fill(t)
		granted := map[int]uint64{}
		for failed := 0; failed < 16; {
			s.turn <- struct{}{}
			out := leaseAll(t.Context(), s, 1<<32, upTo(16)...)
			<-s.turn
			for range 16 {
				l := <-out
				granted[l.key] += l.granted
				if l.err != nil {
					wantRemedy(t, l.err, ErrNoSpace)
					failed++
				}
			}
			if failed%16 != 0 {
				t.Fatalf("%d of 16 failed, want all or none", failed)
			}
		}
		for key := range 16 {
			wantCount(t, s, key, granted[key])
		}
		disk.resize(t, "64m")
		s.turn <- struct{}{}
		out := leaseAll(t.Context(), s, 1<<32, upTo(16)...)
		<-s.turn
		for range 16 {
			if l := <-out; l.err != nil || l.start != granted[l.key] {
				t.Errorf("with space again: %+v", l)
			}
		}
		must(t, s.Close())
	})
}

// TestCloseOnFullDisk: the log cannot be folded into the database; what it
// holds is there at the next start, if need be on the same full disk.
func TestCloseOnFullDisk(t *testing.T) {
	onSmallDisk(t, "2m", func(t *testing.T, disk *smallDisk) {
		s, err := Create(t.Context(), disk.data(), Options{})
		must(t, err)
		there := map[int]bool{}
		writeUntilFull(t, s, there)
		free := disk.fill(t)
		must(t, s.Close())
		s, err = Open(t.Context(), disk.data(), Options{})
		if err == nil {
			wantThere(t, s, there)
			must(t, s.Close())
		} else {
			wantRemedy(t, err, ErrNoSpace)
		}
		free()
		disk.resize(t, "64m")
		s = mustOpen(t, disk.data())
		wantThere(t, s, there)
		must(t, s.InsertKey(t.Context(), fat(9000)))
		must(t, s.Close())
	})
}

// TestStartOnFullDisk: neither start harms anything, and both work later.
func TestStartOnFullDisk(t *testing.T) {
	onSmallDisk(t, "1m", func(t *testing.T, disk *smallDisk) {
		must(t, os.Mkdir(disk.data(), 0o700))
		free := disk.fill(t)
		_, err := Create(t.Context(), disk.data(), Options{})
		wantRemedy(t, err, ErrNoSpace)
		free()
		wantNoDatabase(t, disk.data())

		s := mustOpen(t, disk.data())
		insertN(t, s, 3)
		must(t, s.Close())
		free = disk.fill(t)
		_, err = Open(t.Context(), disk.data(), Options{})
		wantRemedy(t, err, ErrNoSpace)
		free()
		wantN(t, mustOpen(t, disk.data()), 3)
	})
}

// TestReadOnlyFileSystem: no start for writing, but doctor can look.
func TestReadOnlyFileSystem(t *testing.T) {
	onSmallDisk(t, "8m", func(t *testing.T, disk *smallDisk) {
		s, err := Create(t.Context(), disk.data(), Options{})
		must(t, err)
		insertN(t, s, 3)
		// As after a crash: a log that was not folded in.
		crashed := filepath.Join(disk.dir, "crashed")
		must(t, os.Mkdir(crashed, 0o700))
		for _, suffix := range []string{"", "-wal"} {
			must(t, os.WriteFile(filepath.Join(crashed, fileName+suffix), read(t, s.Path()+suffix), fileMode))
		}
		must(t, s.Close())
		disk.readOnly(t)

		_, err = Open(t.Context(), disk.data(), Options{})
		wantRemedy(t, err, ErrReadOnly)
		_, err = Create(t.Context(), filepath.Join(disk.dir, "new"), Options{})
		wantRemedy(t, err, ErrReadOnly)
		r, err := OpenReadOnly(t.Context(), disk.data(), Options{})
		must(t, err)
		wantN(t, r, 3)
		must(t, r.Check(context.WithoutCancel(t.Context())))
		must(t, r.Close())

		_, err = OpenReadOnly(t.Context(), crashed, Options{})
		wantRemedy(t, err, ErrReadOnly)
	})
}
