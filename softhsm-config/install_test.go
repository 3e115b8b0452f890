package softhsmconfig_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine is a pretended system: a PATH of its own, whose package managers write
// down what they are told and "install" what the test says.
type machine struct {
	t    *testing.T
	dir  string // holds bin, the script, and the library when it is installed
	env  []string
	said string // what was written to the terminal
}

// newMachine makes a system with the basic tools and nothing else. It is run as
// root where root is set; elsewhere sudo may be there.
func newMachine(t *testing.T, root bool) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	bin := filepath.Join(m.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"sh", "dirname", "mktemp", "rm", "sed", "env", "cat", "touch", "mkdir"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	id := "1000"
	if root {
		id = "0"
	}
	m.tool("id", "echo "+id)
	script, err := os.ReadFile("install.sh")
	if err != nil {
		t.Fatal(err)
	}
	m.write("install.sh", string(script), 0o755)
	m.write("module-paths.txt", "# the pretended system\n"+m.library()+"\n", 0o644)
	m.env = []string{"PATH=" + bin, "LOG=" + filepath.Join(m.dir, "log"), "LIBRARY=" + m.library(), "BIN=" + bin}
	return m
}

func (m *machine) library() string { return filepath.Join(m.dir, "libsofthsm2.so") }

func (m *machine) write(name, content string, mode os.FileMode) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), mode); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) tool(name, script string) {
	m.write(filepath.Join("bin", name), "#!/bin/sh\n"+script+"\n", 0o755)
}

// What "installing" does: the library is there, and a compiler that works.
const installs = `echo "$0 $*" | sed 's,.*/bin/,,' >> "$LOG"
case "$*" in *softhsm*) : > "$LIBRARY" ;; esac
case "$*" in *gcc*) printf '#!/bin/sh\nexit 0\n' > "$BIN/cc"; chmod +x "$BIN/cc" 2>/dev/null || /bin/chmod +x "$BIN/cc" ;; esac
exit 0`

// run runs the script without a terminal.
func (m *machine) run(args []string, env ...string) (code int) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), filepath.Join(m.dir, "bin", "sh"), append([]string{filepath.Join(m.dir, "install.sh")}, args...)...)
	cmd.Env = slices.Concat(m.env, env)
	out, err := cmd.CombinedOutput()
	m.said = string(out)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

// ran returns what package managers and sudo were told.
func (m *machine) ran() string {
	log, err := os.ReadFile(filepath.Join(m.dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	return string(log)
}

func TestInstallScript(t *testing.T) {
	const aptInstall = "apt-get install -y -q --no-install-recommends softhsm2 gcc libc6-dev\n"
	t.Run("everything there: silent, and nothing done", func(t *testing.T) {
		m := newMachine(t, false)
		m.tool("cc", "exit 0")
		m.tool("apt-get", installs)
		m.write("libsofthsm2.so", "", 0o644)
		if code := m.run(nil); code != 0 || m.said != "" || m.ran() != "" {
			t.Errorf("exit %d, said %q, ran %q", code, m.said, m.ran())
		}
		if code := m.run([]string{"--check"}); code != 0 || !strings.Contains(m.said, m.library()) {
			t.Errorf("--check: exit %d, said %q", code, m.said)
		}
	})
	t.Run("check only reports", func(t *testing.T) {
		m := newMachine(t, true)
		m.tool("apt-get", installs)
		if code := m.run([]string{"--check"}); code != 1 || m.ran() != "" || !strings.Contains(m.said, "missing") {
			t.Errorf("exit %d, said %q, ran %q", code, m.said, m.ran())
		}
	})
	t.Run("unknown argument", func(t *testing.T) {
		if m := newMachine(t, true); m.run([]string{"--force"}) == 0 {
			t.Error("accepted")
		}
	})
	for name, tc := range map[string]struct{ tool, want string }{
		"dnf": {"dnf", "dnf install -y softhsm gcc glibc-devel\n"},
		"apk": {"apk", "apk add --no-cache softhsm gcc musl-dev\n"},
	} {
		t.Run(name+" as root", func(t *testing.T) {
			m := newMachine(t, true)
			m.tool(tc.tool, installs)
			if code := m.run(nil); code != 0 || m.ran() != tc.want {
				t.Errorf("exit %d, ran %q, want %q; said %s", code, m.ran(), tc.want, m.said)
			}
		})
	}
	t.Run("apt as root, package lists there", func(t *testing.T) {
		m := newMachine(t, true)
		m.tool("apt-get", `[ "$2" != --simulate ] || exit 0
`+installs)
		if code := m.run(nil); code != 0 || m.ran() != aptInstall {
			t.Errorf("exit %d, ran %q, want %q; said %s", code, m.ran(), aptInstall, m.said)
		}
		if !strings.Contains(m.said, "running: ") {
			t.Errorf("does not say what it does: %q", m.said)
		}
	})
	t.Run("apt on a slim image updates first", func(t *testing.T) {
		m := newMachine(t, true)
		m.tool("apt-get", `[ "$2" != --simulate ] || exit 100
`+installs)
		if code, want := m.run(nil), "apt-get update -q\n"+aptInstall; code != 0 || m.ran() != want {
			t.Errorf("exit %d, ran %q, want %q; said %s", code, m.ran(), want, m.said)
		}
	})
	t.Run("only the compiler is missing", func(t *testing.T) {
		m := newMachine(t, true)
		m.tool("apk", installs)
		m.write("libsofthsm2.so", "", 0o644)
		if code := m.run(nil); code != 0 || m.ran() != "apk add --no-cache gcc musl-dev\n" {
			t.Errorf("exit %d, ran %q; said %s", code, m.ran(), m.said)
		}
	})
	t.Run("a compiler without headers is none", func(t *testing.T) {
		m := newMachine(t, true)
		m.tool("gcc", "exit 1")
		m.tool("apk", installs)
		m.write("libsofthsm2.so", "", 0o644)
		if code := m.run(nil); code != 0 || m.ran() != "apk add --no-cache gcc musl-dev\n" {
			t.Errorf("exit %d, ran %q; said %s", code, m.ran(), m.said)
		}
	})
	t.Run("no package manager", func(t *testing.T) {
		m := newMachine(t, true)
		if code := m.run(nil); code == 0 || !strings.Contains(m.said, "yourself") {
			t.Errorf("exit %d, said %q", code, m.said)
		}
	})
	t.Run("a CC that does not work", func(t *testing.T) {
		m := newMachine(t, true)
		m.tool("cc", "exit 0")
		if code := m.run(nil, "CC=nope"); code == 0 || !strings.Contains(m.said, "CC=nope") {
			t.Errorf("exit %d, said %q", code, m.said)
		}
	})
}

// Not root: the command is always shown, and sudo used only when it was allowed.
func TestInstallScriptSudo(t *testing.T) {
	const sudo = `echo "sudo $*" >> "$LOG"
"$@"`
	t.Run("not allowed", func(t *testing.T) {
		m := newMachine(t, false)
		m.tool("dnf", installs)
		m.tool("sudo", sudo)
		if code := m.run(nil); code == 0 || m.ran() != "" {
			t.Errorf("exit %d, ran %q", code, m.ran())
		}
		if !strings.Contains(m.said, "sudo dnf install -y softhsm gcc glibc-devel") || !strings.Contains(m.said, "KEYHOLD_ALLOW_SUDO") {
			t.Errorf("does not name the command and the remedy: %q", m.said)
		}
	})
	t.Run("allowed", func(t *testing.T) {
		m := newMachine(t, false)
		m.tool("dnf", installs)
		m.tool("sudo", sudo)
		want := "sudo dnf install -y softhsm gcc glibc-devel\ndnf install -y softhsm gcc glibc-devel\n"
		if code := m.run(nil, "KEYHOLD_ALLOW_SUDO=1"); code != 0 || m.ran() != want {
			t.Errorf("exit %d, ran %q, want %q; said %s", code, m.ran(), want, m.said)
		}
	})
	t.Run("there is none", func(t *testing.T) {
		m := newMachine(t, false)
		m.tool("dnf", installs)
		if code := m.run(nil, "KEYHOLD_ALLOW_SUDO=1"); code == 0 || m.ran() != "" || !strings.Contains(m.said, "as root") {
			t.Errorf("exit %d, ran %q, said %q", code, m.ran(), m.said)
		}
	})
	t.Run("brew needs none", func(t *testing.T) {
		m := newMachine(t, false)
		m.tool("brew", installs)
		m.tool("cc", "exit 0")
		if code := m.run(nil); code != 0 || m.ran() != "brew install softhsm\n" {
			t.Errorf("exit %d, ran %q, said %q", code, m.ran(), m.said)
		}
	})
}
