package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// largeFile is a sparse file: it takes no room, and has something to compare
// at its ends, in the middle of segments, and across their limits.
func largeFile(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	// Holes of a file in memory cost nothing to read. Elsewhere they fill the
	// page cache with zeros, which takes longer than all else here.
	if shm, err := os.MkdirTemp("/dev/shm", "keyhold-test-"); err == nil { //nolint:usetesting // t.TempDir is elsewhere
		t.Cleanup(func() { os.RemoveAll(shm) })
		dir = shm
	}
	path := filepath.Join(dir, "large")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for i := range int64(64) {
		mark := fmt.Appendf(nil, "mark %d of a large file", i)
		if _, err := f.WriteAt(mark, (size-int64(len(mark)))*i/63); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// peakMemory is how much memory a process has had at most, in bytes, or 0 if
// it has ended. rusage will not do on Linux: its maximum begins with that of the
// process that started it, this one.
func peakMemory(t *testing.T, cmd *exec.Cmd) int64 {
	t.Helper()
	if runtime.GOOS != "linux" {
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			return usage.Maxrss
		}
		return 0
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(status), "VmHWM:")
	if !ok {
		return 0 // it has ended, and was not waited for yet
	}
	fields := strings.Fields(rest)
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil || fields[1] != "kB" {
		t.Fatalf("VmHWM: %q, %v", fields[:2], err)
	}
	return kib << 10
}

// TestFileLarge: 10 GiB go through encryption and decryption, each within 64
// MiB of memory.
func TestFileLarge(t *testing.T) {
	t.Parallel()
	const size, maxBytes = 10 << 30, 64 << 20
	d := newFileDaemon(t)
	path := largeFile(t, size)
	encrypt := exec.Command(binaries.keyhold, "file", "encrypt", "--key", "alias/file", "--out", "-", path)
	decrypt := exec.Command(binaries.keyhold, "file", "decrypt")
	encrypt.Env, decrypt.Env = d.environ(), d.environ()
	said := &logBuffer{}
	encrypt.Stderr = said
	decrypt.Stderr = said
	between, err := encrypt.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	decrypt.Stdin = between
	out, err := decrypt.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, cmd := range []*exec.Cmd{encrypt, decrypt} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	between.Close() // the children's own now
	cmds := []*exec.Cmd{encrypt, decrypt}
	peak := make([]int64, len(cmds))
	look := func() {
		for i, cmd := range cmds {
			peak[i] = max(peak[i], peakMemory(t, cmd))
		}
	}
	n, err := compare(path, out, func() {
		if runtime.GOOS == "linux" {
			look()
		}
	})
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", cmd.Args[2], err, said)
		}
	}
	took := time.Since(began)
	if err != nil || n != size {
		t.Errorf("after %d bytes: %v", n, err)
	}
	if runtime.GOOS != "linux" {
		look()
	}
	for i, cmd := range cmds {
		t.Logf("%s: %d MiB of memory, %s of CPU", cmd.Args[2], peak[i]>>20, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		if peak[i] == 0 || peak[i] > maxBytes {
			t.Errorf("%s took %d bytes of memory; the limit is %d", cmd.Args[2], peak[i], maxBytes)
		}
	}
	t.Logf("%d MiB in %s: %.0f MB/s", n>>20, took.Round(time.Millisecond), float64(n)/1e6/took.Seconds())
	d.stop(t)
}

// compare reads r to its end and returns how many bytes were those of the
// file. Now and then it calls look.
func compare(path string, r io.Reader, look func()) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	want, got := make([]byte, 1<<20), make([]byte, 1<<20)
	var n int64
	for {
		k, err := io.ReadFull(r, got)
		if _, wantErr := io.ReadFull(f, want[:k]); wantErr != nil && k > 0 {
			return n, fmt.Errorf("there is more than the file has: %w", wantErr)
		}
		if !bytes.Equal(got[:k], want[:k]) {
			return n, fmt.Errorf("the next %d bytes differ", k)
		}
		n += int64(k)
		if n%(64<<20) == 0 {
			look()
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
