package servertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
)

// patience bounds every wait for something that must happen. It is generous:
// the machines of CI are shared. What was measured is logged, not asserted.
const patience = time.Minute

// Build compiles keyholdd into dir and returns its path.
func Build(dir string) (string, error) {
	path := filepath.Join(dir, "keyholdd")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-o", path, "github.com/keyhold/keyhold/cmd/keyholdd").CombinedOutput() //nolint:gosec // a path of our own
	if err != nil {
		return "", fmt.Errorf("build keyholdd: %w\n%s", err, out)
	}
	return path, nil
}

// Options say which daemon to make.
type Options struct {
	// Program is a keyholdd, of Build.
	Program string
	// Serve is a program with its first arguments that serves in its stead; the
	// path of the configuration follows them. Optional: Program serve --config.
	Serve []string
	// Change changes the configuration. Optional.
	Change func(*server.Config)
}

// Daemon is a keyholdd with a token, certificates and a configuration of its
// own, made by `keyholdd dev`. Its module is Module, over SoftHSM. Its methods
// must not be called concurrently, those of Module may.
type Daemon struct {
	Dir    string // everything but Module is in here
	Module *fault.Module
	// Config is the configuration file that is served; Plain is the same with
	// SoftHSM itself as the module, for whoever looks at the token meanwhile.
	Config, Plain string
	// Settings are what Config says.
	Settings *server.Config
	// Log collects what the process writes, over all its starts.
	Log *Log
	// Env is set for the next start, beside this process's.
	Env []string

	opts   Options
	env    map[string]string
	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

// Log is a process's output. It may be used concurrently.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write is io.Writer's.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns all of it.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// New makes a daemon that does not run yet.
func New(tb testing.TB, opts Options) *Daemon {
	tb.Helper()
	d := &Daemon{Dir: filepath.Join(tb.TempDir(), "world"), Log: &Log{}, opts: opts, env: make(map[string]string)}
	tb.Cleanup(func() {
		if d.cmd != nil && d.cmd.Process != nil {
			_ = d.cmd.Process.Kill() // it has ended already, if all went well
			<-d.exited
		}
	})
	d.makeWorld(tb)
	d.Module = fault.New(tb, d.env["KEYHOLD_TOKEN_MODULE"])
	cfg, err := server.LoadConfig(filepath.Join(d.Dir, "keyholdd.yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	cfg.GRPC.Listen, cfg.Admin.Listen = freePorts(tb)
	// Small segments, so that the checker need not read much.
	cfg.Audit.SegmentBytes = 256 << 10
	if opts.Change != nil {
		opts.Change(cfg)
	}
	d.Plain = d.writeConfig(tb, "plain.yaml", cfg)
	cfg.Tokens[0].Module = d.Module.Path
	d.Config = d.writeConfig(tb, "faulty.yaml", cfg)
	d.Settings = cfg
	if out, err := d.Do(tb, "init"); err != nil { // Change may have moved database and journal
		tb.Fatalf("keyholdd init: %v\n%s", err, out)
	}
	return d
}

func (d *Daemon) writeConfig(tb testing.TB, name string, cfg *server.Config) string {
	tb.Helper()
	b, err := yaml.Marshal(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(d.Dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// makeWorld lets `keyholdd dev` make token, certificates, database and journal.
func (d *Daemon) makeWorld(tb testing.TB) {
	tb.Helper()
	d.run(tb, d.opts.Program, "dev", "--dir", d.Dir, "--grpc", "127.0.0.1:0", "--aws", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	d.until(tb, "keyholdd dev serves", func() error {
		b, err := os.ReadFile(filepath.Join(d.Dir, "dev.env"))
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			d.env[name] = value
		}
		return err
	})
	d.Stop(tb)
}

// run starts a process and watches it.
func (d *Daemon) run(tb testing.TB, program string, args ...string) {
	tb.Helper()
	// Not the test's context: it ends before what cleans up, and a subtest's long before.
	d.cmd = exec.CommandContext(context.Background(), program, args...) //nolint:gosec // a program of the test's
	d.cmd.Stdout, d.cmd.Stderr = d.Log, d.Log
	d.cmd.Env = append(os.Environ(), d.Env...)
	if err := d.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	cmd, exited := d.cmd, make(chan struct{})
	d.exited = exited
	go func() {
		d.err = cmd.Wait()
		close(exited)
	}()
}

// until waits for f to return nil while the process runs.
func (d *Daemon) until(tb testing.TB, what string, f func() error) time.Duration {
	tb.Helper()
	began := time.Now()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			tb.Fatalf("%s: %v\n%s", what, err, tail(d.Log.String()))
		}
		select {
		case <-d.exited:
			tb.Fatalf("%s: the daemon ended: %v\n%s", what, d.err, tail(d.Log.String()))
		case <-poll.C:
		}
	}
}

// tail is the end of a log, which may be long.
func tail(log string) string {
	const most = 8 << 10
	return log[max(0, len(log)-most):]
}

// Launch starts the daemon and does not wait.
func (d *Daemon) Launch(tb testing.TB) {
	tb.Helper()
	serve := d.opts.Serve
	if serve == nil {
		serve = []string{d.opts.Program, "serve", "--config"}
	}
	d.run(tb, serve[0], append(serve[1:len(serve):len(serve)], d.Config)...)
}

// Start starts the daemon and waits until it is ready.
func (d *Daemon) Start(tb testing.TB) {
	tb.Helper()
	d.Launch(tb)
	d.WaitReady(tb)
}

// WaitReady waits until /readyz is green, and returns how long that took.
func (d *Daemon) WaitReady(tb testing.TB) time.Duration {
	tb.Helper()
	return d.until(tb, "the daemon is ready", func() error {
		code, text, err := d.get("/readyz")
		if err == nil && code != http.StatusOK {
			err = errors.New(text)
		}
		return err
	})
}

// WaitNotReady waits until /readyz is red and its reason holds the text.
func (d *Daemon) WaitNotReady(tb testing.TB, reason string) time.Duration {
	tb.Helper()
	return d.until(tb, "the daemon is not ready", func() error {
		code, text, err := d.get("/readyz")
		if err == nil && (code == http.StatusOK || !strings.Contains(text, reason)) {
			err = fmt.Errorf("/readyz says %q, want %q in it", text, reason)
		}
		return err
	})
}

// Signal sends a signal.
func (d *Daemon) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		tb.Fatal(err)
	}
}

// Stop ends the daemon as an operator does, and wants it to end well.
func (d *Daemon) Stop(tb testing.TB) {
	tb.Helper()
	d.Signal(tb, syscall.SIGTERM)
	d.WaitExit(tb)
	if d.err != nil {
		tb.Errorf("keyholdd ended with %v\n%s", d.err, tail(d.Log.String()))
	}
}

// Kill ends the daemon as a crash does.
func (d *Daemon) Kill(tb testing.TB) {
	tb.Helper()
	d.Signal(tb, syscall.SIGKILL)
	d.WaitExit(tb)
	d.Module.ProcessDied()
}

// WaitExit waits until the process has ended by itself.
func (d *Daemon) WaitExit(tb testing.TB) {
	tb.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		tb.Fatalf("the daemon does not end\n%s", tail(d.Log.String()))
	}
}

// Exited tells whether the process has ended.
func (d *Daemon) Exited() bool {
	select {
	case <-d.exited:
		return true
	default:
		return false
	}
}

// Dial connects a client that tries nothing twice: a test wants to see what the
// daemon answers.
func (d *Daemon) Dial(tb testing.TB) *client.Client {
	tb.Helper()
	c, err := client.Dial(d.ClientConfig())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// Connected waits until a client has found the daemon again.
func (d *Daemon) Connected(tb testing.TB, c *client.Client) {
	tb.Helper()
	d.until(tb, "the client is connected", func() error {
		_, err := c.Keys.ListKeys(context.Background(), &keyholdv1.ListKeysRequest{})
		return err
	})
}

// ClientConfig is that of Dial.
func (d *Daemon) ClientConfig() client.Config {
	return client.Config{
		Addr: d.Settings.GRPC.Listen, CAFile: d.env["KEYHOLD_CA"], CertFile: d.env["KEYHOLD_CERT"], KeyFile: d.env["KEYHOLD_KEY"],
		Retry: client.Retry{MaxAttempts: 1},
	}
}

// SoftHSM says where the token is: the real library, its configuration, and the
// file with the user's PIN.
func (d *Daemon) SoftHSM() (library, conf, pinFile string) {
	return d.env["KEYHOLD_TOKEN_MODULE"], d.env["SOFTHSM2_CONF"], d.env["KEYHOLD_TOKEN_PIN_FILE"]
}

// Do runs `keyholdd` with the arguments, and the plain configuration after them.
func (d *Daemon) Do(tb testing.TB, args ...string) (string, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, d.opts.Program, append(args, "--config", d.Plain)...).CombinedOutput() //nolint:gosec // a program of the test's
	return string(out), err
}

// freePorts returns two addresses that were free a moment ago.
func freePorts(tb testing.TB) (grpc, admin string) {
	tb.Helper()
	listen := func() net.Listener {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		return l
	}
	a, b := listen(), listen() // both are held until both were chosen
	defer a.Close()
	defer b.Close()
	return a.Addr().String(), b.Addr().String()
}
