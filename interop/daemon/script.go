package daemon

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Environ is this process's environment without its AWS and Keyhold settings, and
// with Env. The system's own programs come before others: what
// interop/install.sh installs is among them, and Debian's python3 packages are for
// Debian's python3. sops and Node's packages are where interop/install.sh puts
// them.
func (d *Daemon) Environ() []string {
	env := append(cleanEnv(), d.Env()...)
	root, err := moduleAbove()
	if err != nil {
		return env // run finds out
	}
	installed := filepath.Join(root, ".gen", "interop")
	return append(env,
		"PATH="+filepath.Join(installed, "bin")+":/usr/bin:/bin:"+os.Getenv("PATH"),
		"NODE_PATH="+filepath.Join(installed, "node_modules"), "NODE_NO_WARNINGS=1")
}

// Need skips on a laptop and fails in CI where a program is missing.
func (d *Daemon) Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", "command -v "+p)
		cmd.Env = d.Environ()
		switch {
		case cmd.Run() == nil:
		case os.Getenv("CI") != "":
			t.Fatalf("%s is missing: run interop/install.sh", p)
		default:
			t.Skipf("%s is missing: run interop/install.sh", p)
		}
	}
}

// Script runs a text in a folder of its own with a program that reads it from
// standard input, and returns what it prints. The program finds what Environ says.
// The test fails where the program does.
func (d *Daemon) Script(t testing.TB, text string, program ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "env", program...)
	cmd.Dir, cmd.Env, cmd.Stdin = t.TempDir(), d.Environ(), strings.NewReader(text)
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
