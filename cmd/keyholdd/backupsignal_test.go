package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestBackupHangup: a terminal that closes, and a reader that hangs, leave no copies of
// tokens behind. Under nohup the backup goes on.
func TestBackupHangup(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	config := filepath.Join(dir, "keyholdd.yaml")
	start(t, dir).stop(t)
	backup := []string{binaries.keyholdd, "backup", "--config", config, "-"}
	for _, c := range []struct {
		name string
		args []string
		sig  os.Signal
		ends bool
	}{
		{"hangup", backup, syscall.SIGHUP, true},
		{"end", backup, syscall.SIGTERM, true},
		{"hangup under nohup", append([]string{"sh", "-c", `trap "" HUP; exec "$@"`, "sh"}, backup...), syscall.SIGHUP, false},
	} {
		temp := t.TempDir()
		cmd := exec.CommandContext(t.Context(), c.args[0], c.args[1:]...)
		cmd.Env = append(os.Environ(), "TMPDIR="+temp)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The archive comes, and waits for a reader: it is larger than a pipe.
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			t.Fatalf("%s: %v\n%s", c.name, err, &stderr)
		}
		if found, err := filepath.Glob(filepath.Join(temp, ".keyhold-backup-*", "tokens", "*")); err != nil || len(found) != 1 {
			t.Errorf("%s: copies of tokens in TMPDIR: %q, %v", c.name, found, err)
		}
		if err := cmd.Process.Signal(c.sig); err != nil {
			t.Fatal(err)
		}
		if !c.ends {
			if n, err := io.Copy(io.Discard, out); err != nil || n < 64<<10 {
				t.Errorf("%s: %d bytes, %v", c.name, n, err)
			}
		}
		err = cmd.Wait()
		var exit *exec.ExitError
		switch {
		case !c.ends && err != nil, c.ends && (!errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(stderr.String(), "canceled")):
			t.Errorf("%s: %v\n%s", c.name, err, &stderr)
		}
		wantEmpty(t, temp)
	}
}

// TestRestoreHangup: a restore whose archive does not come to its end is taken back
// when the terminal closes.
func TestRestoreHangup(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	config, archive := filepath.Join(dir, "keyholdd.yaml"), filepath.Join(t.TempDir(), "backup.tar")
	start(t, dir).stop(t)
	mustKeyholdd(t, "backup", "--config", config, archive)
	wipe(t, dir)
	whole, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	for name, size := range map[string]int{"half": len(whole) / 2, "nothing": 0} {
		cmd := exec.CommandContext(t.Context(), binaries.keyholdd, "restore", "--config", config, "-")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(whole[:size]); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the restore begins", func() error {
			_, err := os.Stat(filepath.Join(data, "restore.unfinished"))
			return err
		})
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out.String(), "canceled") || strings.Contains(out.String(), "damaged") {
			t.Errorf("%s: %v\n%s", name, err, &out)
		}
		for _, path := range []string{data, filepath.Join(dir, "softhsm", "tokens")} {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s is left: %v", name, path, err)
			}
		}
	}
	mustKeyholdd(t, "restore", "--config", config, archive)
}
