package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyhold/keyhold/client"
)

// binaries holds the real programs, built once for all tests of the package.
var binaries = struct{ dir, keyholdd, keyhold string }{}

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "keyhold-bin")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binaries.dir = dir
	binaries.keyholdd, binaries.keyhold = filepath.Join(dir, "keyholdd"), filepath.Join(dir, "keyhold")
	for path, pkg := range map[string]string{binaries.keyholdd: ".", binaries.keyhold: "../keyhold"} {
		cmd := exec.Command("go", "build", "-o", path, pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	return m.Run(), nil
}

// daemon is a running `keyholdd dev`.
type daemon struct {
	dir string
	cmd *exec.Cmd
	// env is what dev.env says.
	env map[string]string
	log *logBuffer
	// exited is closed when the process has ended; err is how.
	exited chan struct{}
	err    error
}

// logBuffer collects a process's output.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startTimeout is generous: the machines of CI are shared.
const startTimeout = time.Minute

// start runs `keyholdd dev` on dir until its doors answer.
func start(t *testing.T, dir string, args ...string) *daemon {
	t.Helper()
	d := launch(t, dir, args...)
	if err := d.waitServing(); err != nil {
		t.Fatalf("%v\n%s", err, d.log)
	}
	return d
}

// launch runs `keyholdd dev` on dir and does not wait.
func launch(t *testing.T, dir string, args ...string) *daemon {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "dev.env")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	d := &daemon{dir: dir, log: &logBuffer{}, exited: make(chan struct{})}
	d.run(t, append([]string{"dev", "--dir", dir, "--grpc", "127.0.0.1:0", "--aws", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, args...)...)
	return d
}

// run starts the process and watches it.
func (d *daemon) run(t *testing.T, args ...string) {
	t.Helper()
	d.cmd = exec.Command(binaries.keyholdd, args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	t.Cleanup(d.kill)
}

func (d *daemon) waitServing() error {
	deadline := time.After(startTimeout)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		b, err := os.ReadFile(filepath.Join(d.dir, "dev.env"))
		if err == nil {
			d.env = make(map[string]string)
			for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
				name, value, _ := strings.Cut(s.Text(), "=")
				d.env[name] = value
			}
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("keyholdd dev ended: %w", d.err)
		case <-deadline:
			return errors.New("keyholdd dev does not serve")
		case <-poll.C:
		}
	}
}

// kill ends the process at once, as a crash does.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.exited
}

// stop ends the process as an operator does, and wants it to end well.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.exited
	if d.err != nil {
		t.Errorf("keyholdd ended with %v\n%s", d.err, d.log)
	}
}

// dial connects to the daemon.
func (d *daemon) dial(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Dial(client.Config{
		Addr: d.env["KEYHOLD_ADDR"], CAFile: d.env["KEYHOLD_CA"], CertFile: d.env["KEYHOLD_CERT"], KeyFile: d.env["KEYHOLD_KEY"],
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// environ is the environment of a client program.
func (d *daemon) environ() []string {
	env := os.Environ()
	for name, value := range d.env {
		env = append(env, name+"="+value)
	}
	return env
}

// keyhold runs the tool and returns what it prints.
func (d *daemon) keyhold(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, binaries.keyhold, args...)
	cmd.Env, cmd.Stdin = d.environ(), bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("keyhold %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, err
}

// verifyAudit wants the audit log's chain to hold.
func verifyAudit(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command(binaries.keyhold, "audit", "verify", filepath.Join(dir, "data", "audit")).CombinedOutput()
	if err != nil {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
}
