// Package recipes_test runs what docs/clients.md tells people to type, as it
// stands there, and scripts of clients that are no Go, against a real daemon.
package recipes_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/interop/daemon"
)

var running *daemon.Daemon

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if running, err = daemon.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if err := running.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		return code
	}())
}

// need skips on a laptop and fails in CI where a program is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", "command -v "+p)
		cmd.Env = environ()
		switch {
		case cmd.Run() == nil:
		case os.Getenv("CI") != "":
			t.Fatalf("%s is missing: run interop/install.sh", p)
		default:
			t.Skipf("%s is missing: run interop/install.sh", p)
		}
	}
}

// environ is the environment of clients: the system's own programs come first,
// since what interop/install.sh installs is among them, and Debian's python3
// packages are for Debian's python3. sops and Node's packages are where
// interop/install.sh puts them.
func environ() []string {
	installed, err := filepath.Abs("../../.gen/interop")
	if err != nil {
		panic(err)
	}
	return append(running.Environ(), "PATH="+installed+"/bin:/usr/bin:/bin:"+os.Getenv("PATH"), "NODE_PATH="+installed+"/node_modules")
}

// script runs a text in a folder of its own with an interpreter that reads
// standard input, and returns its output.
func script(t *testing.T, text string, interpreter ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "env", interpreter...)
	cmd.Dir, cmd.Env, cmd.Stdin = t.TempDir(), environ(), strings.NewReader(text)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s\n%s\n%s", err, text, stdout.String(), stderr.String())
	}
	if stderr.Len() > 0 {
		t.Logf("standard error: %s", stderr.String())
	}
	return stdout.String()
}
