package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ls returns the names in a folder.
func ls(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func mustWrite(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A terminal is shown neither what would garble it nor what it would obey, and
// someone who types is told that input is awaited.
func TestFileOnTerminal(t *testing.T) {
	_, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")
	for _, verb := range [][]string{{"encrypt", "--key", "alias/app"}, {"decrypt"}} {
		var stdout, stderr bytes.Buffer
		stdin := strings.NewReader("typed")
		v := &invocation{env: env, stdin: stdin, stdout: &stdout, stderr: &stderr, terminals: []any{&stdout}}
		if code := v.run(t.Context(), append([]string{"file"}, verb...)...); code != exitFailure {
			t.Errorf("%s: exit code %d", verb[0], code)
		}
		if stdout.Len() > 0 || !strings.Contains(stderr.String(), "standard output is a terminal\nhint: say with --out") {
			t.Errorf("%s: stdout = %q, stderr = %q", verb[0], stdout.String(), stderr.String())
		}
	}
	var stdout, stderr bytes.Buffer
	stdin := strings.NewReader("typed")
	v := &invocation{env: env, stdin: stdin, stdout: &stdout, stderr: &stderr, terminals: []any{stdin}}
	if code := v.run(t.Context(), "file", "encrypt", "--key", "alias/app"); code != exitOK || !strings.Contains(stderr.String(), "reading from the terminal") {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
}

// The bar is for large files on a terminal, unless someone wants quiet.
func TestFileProgress(t *testing.T) {
	_, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")
	dir := t.TempDir()
	large, small := filepath.Join(dir, "large"), filepath.Join(dir, "small")
	mustWrite(t, large, make([]byte, progressMinBytes))
	mustWrite(t, small, make([]byte, progressMinBytes-1))
	for _, tt := range []struct {
		name     string
		file     string
		stdin    io.Reader
		terminal bool
		quiet    bool
		want     bool
	}{
		{"large", large, nil, true, false, true},
		{"quiet", large, nil, true, true, false},
		{"no terminal", large, nil, false, false, false},
		{"small", small, nil, true, false, false},
		{"a pipe", "-", bytes.NewReader(make([]byte, progressMinBytes)), true, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			v := &invocation{env: env, stdin: tt.stdin, stdout: io.Discard, stderr: &stderr}
			if tt.terminal {
				v.terminals = []any{&stderr}
			}
			args := []string{"file", "encrypt", "--key", "alias/app", "--out", "-", tt.file}
			if tt.quiet {
				args = append(args, "--quiet")
			}
			if code := v.run(t.Context(), args...); code != exitOK {
				t.Fatalf("exit code %d: %s", code, stderr.String())
			}
			got := stderr.String()
			if !tt.want {
				if got != "" {
					t.Errorf("stderr = %q", got)
				}
				return
			}
			wipe := "\r" + strings.Repeat(" ", 79) + "\r"
			if !strings.Contains(got, "large") || !strings.Contains(got, "  0%") || !strings.HasSuffix(got, wipe) || strings.Contains(got, "\n") {
				t.Errorf("stderr = %q", got)
			}
		})
	}
}

func TestProgressLine(t *testing.T) {
	began := time.Unix(1_000_000, 0)
	for _, tt := range []struct {
		name    string
		read    int64
		elapsed time.Duration
		want    string
	}{
		{"a.iso", 0, time.Hour, "a.iso                        [........................]   0%"},
		{"a.iso", 50_000_000, 500 * time.Millisecond, "a.iso                        [############............]  50%"},
		{"a.iso", 75_000_000, 3 * time.Second, "a.iso                        [##################......]  75%   25 MB/s      1s"},
		{"a.iso", 200_000_000, time.Second, "a.iso                        [########################] 100%  100 MB/s      0s"},
		{"/a/long/path/that/does/not/fit.iso", 1_000_000, 2 * time.Second, "…/path/that/does/not/fit.iso [........................]   1%    0 MB/s   3m18s"},
		{"\x1b[2J", 0, 0, `\u001b[2J                    [........................]   0%`},
	} {
		src := &source{name: tt.name}
		src.read.Store(tt.read)
		p := &progress{src: src, total: 100_000_000, began: began}
		got := p.line(began.Add(tt.elapsed))
		if n := len([]rune(got)); n != 79 {
			t.Errorf("%q has %d characters", got, n)
		}
		if strings.TrimRight(got, " ") != tt.want {
			t.Errorf("got  %q\nwant %q", strings.TrimRight(got, " "), tt.want)
		}
	}
}

// A signal ends the wait for input and for a reader, and leaves nothing behind.
func TestFileInterrupt(t *testing.T) {
	s, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"input to standard output", []string{"file", "encrypt", "--key", "alias/app"}},
		{"input to a file", []string{"file", "encrypt", "--key", "alias/app", "--out", "x"}},
		{"the header", []string{"file", "decrypt", "--out", "x"}},
		{"the service", []string{"file", "encrypt", "--key", "slow", "--out", "x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stdin := &notifyingReader{reading: make(chan struct{}), never: make(chan struct{})}
			defer close(stdin.never)
			go func() {
				select {
				case <-stdin.reading:
				case <-s.blocked:
				}
				cancel()
			}()
			var stdout, stderr bytes.Buffer
			v := &invocation{env: env, stdin: stdin, stdout: &stdout, stderr: &stderr}
			if code := v.run(ctx, tt.args...); code != exitFailure {
				t.Errorf("exit code %d, want %d", code, exitFailure)
			}
			if stderr.String() != "keyhold: interrupted\n" {
				t.Errorf("stderr = %q", stderr.String())
			}
			if left := ls(t, dir); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// A file that has come while another was written is not replaced.
func TestTargetTakenMeanwhile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	for _, force := range []bool{false, true} {
		tg := &target{path: path, mode: 0o640, force: force}
		err := tg.write(func(w io.Writer) error {
			mustWrite(t, path, []byte("came first"))
			_, err := w.Write([]byte("came last"))
			return err
		})
		want := "came first"
		if force {
			want = "came last"
		}
		if got, readErr := os.ReadFile(path); readErr != nil || string(got) != want || (err == nil) != force {
			t.Errorf("force=%t: %q, %v, %v", force, got, readErr, err)
		}
		if names := ls(t, dir); !slices.Equal(names, []string{"out"}) {
			t.Errorf("force=%t: %q", force, names)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// While it is being written a file is for its owner only, under a name that
// says so; what fails is removed.
func TestTargetPartial(t *testing.T) {
	dir := t.TempDir()
	tg := &target{path: filepath.Join(dir, "out"), mode: 0o644}
	cause := errors.New("disk is full")
	err := tg.write(func(w io.Writer) error {
		names := ls(t, dir)
		if ok, err := filepath.Match(partialPattern, names[0]); len(names) != 1 || !ok || err != nil {
			t.Errorf("in the folder: %q", names)
		}
		if info, err := os.Stat(filepath.Join(dir, names[0])); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		return cause
	})
	if names := ls(t, dir); !errors.Is(err, cause) || len(names) > 0 {
		t.Errorf("%v, left behind: %q", err, names)
	}
	// What was given up does not come to life.
	tg = &target{path: filepath.Join(dir, "out"), mode: 0o644}
	err = tg.write(func(io.Writer) error {
		tg.discard()
		return nil
	})
	if names := ls(t, dir); err == nil || len(names) > 0 {
		t.Errorf("%v, left behind: %q", err, names)
	}
	if err := tg.write(func(io.Writer) error { return nil }); err == nil {
		t.Error("a discarded target is written")
	}
}

// A file system without hard links does it another way.
func TestRenameReserved(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	mustWrite(t, from, []byte("new"))
	if err := renameReserved(from, to); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, from, []byte("newer"))
	if err := renameReserved(from, to); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("onto a file: %v", err)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	// A name that was reserved for nothing is free again.
	gone := filepath.Join(dir, "gone")
	if err := renameReserved(filepath.Join(dir, "missing"), gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a file that is gone: %v", err)
	}
	if _, err := os.Lstat(gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the reservation stays: %v", err)
	}
}

// Only a file system without hard links is served another way: a partial file
// that someone deleted leaves no empty result.
func TestTargetPartialDeleted(t *testing.T) {
	dir := t.TempDir()
	tg := &target{path: filepath.Join(dir, "out"), mode: 0o600}
	err := tg.write(func(io.Writer) error { return os.Remove(tg.file.Name()) })
	var le *os.LinkError
	if !errors.As(err, &le) || le.Op != "link" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want the error of the link", err)
	}
	if names := ls(t, dir); len(names) > 0 {
		t.Errorf("left behind: %q", names)
	}
}

// A device that has become a file is not overwritten in place.
func TestTargetDeviceReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	tg, err := (&app{}).findTarget(path, &source{}, &fileVerb{out: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, path, []byte("precious"))
	err = tg.write(func(w io.Writer) error {
		_, err := w.Write([]byte("x"))
		return err
	})
	if got, readErr := os.ReadFile(path); err == nil || readErr != nil || string(got) != "precious" {
		t.Errorf("%v; %q, %v", err, got, readErr)
	}
}

func TestNoHardLinks(t *testing.T) {
	check := func(want bool, errs ...error) {
		for _, err := range errs {
			if got := noHardLinks(&os.LinkError{Op: "link", Old: "a", New: "b", Err: err}); got != want {
				t.Errorf("%v: %t, want %t", err, got, want)
			}
		}
	}
	check(true, syscall.EPERM, syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK, syscall.EXDEV)
	check(false, syscall.ENOENT, syscall.EIO, syscall.ENOSPC, syscall.EACCES, syscall.EROFS)
}
