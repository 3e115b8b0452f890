//go:build unix

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// start starts the tool as a process of its own, in dir, behind a shell that
// does what before says.
func start(t *testing.T, env map[string]string, dir, before string, stdin io.Reader, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", before + `exec keyhold "$@"`, "sh"}, args...)...)
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, stdin, &stderr
	cmd.Env = append(os.Environ(), "GORACE="+goRace)
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &stderr
}

// Every signal that asks a process to end makes it clean up, also those of a
// terminal that is closed.
func TestSignals(t *testing.T) {
	s, env := newFake(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			cmd, stderr := start(t, env, dir, "", nil, "file", "encrypt", "--key", "slow", "--out", "x")
			<-s.blocked
			if names := ls(t, dir); len(names) != 1 {
				t.Errorf("in the folder: %q", names)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailure || stderr.String() != "keyhold: interrupted\n" {
				t.Errorf("%v: %s", err, stderr.String())
			}
			if left := ls(t, dir); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// What nohup starts goes on when the terminal is closed.
func TestHangupIgnored(t *testing.T) {
	s, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")
	asked := make(chan struct{})
	s.onRequest.Store(new(func(int64) error {
		close(asked)
		return nil
	}))
	dir := t.TempDir()
	stdin, feed := io.Pipe()
	cmd, stderr := start(t, env, dir, `trap "" HUP; `, stdin, "file", "encrypt", "--key", "alias/app", "--out", "x")
	<-asked
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := feed.Write([]byte("attack at dawn")); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err != nil {
		t.Error(err)
	}
}
