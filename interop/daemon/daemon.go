// Package daemon runs a real keyholdd, built from the module above, for tests
// of clients that speak the AWS KMS API.
package daemon

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
	"time"
)

// startTimeout bounds building and starting: the machines of CI are shared.
const startTimeout = 5 * time.Minute

// Account and Region are those of every daemon here.
const (
	Account = "111122223333"
	Region  = "eu-central-1"
)

// Daemon is a running keyholdd on a SoftHSM token of its own.
type Daemon struct {
	// Endpoint is the URL of the AWS door, AccessKeyID and SecretAccessKey the
	// root principal's access key.
	Endpoint, AccessKeyID, SecretAccessKey string
	// CA is the file of the authority that the doors' certificates are from.
	CA string

	dir      string   // removed by Stop
	settings []string // of dev.env, without endpoints
	program  string
	cmd      *exec.Cmd
	log      lockedBuffer
	exited   chan error
}

// Start runs `keyholdd dev` until Stop, in a folder of its own, on free ports of
// loopback. The program is the one that KEYHOLDD names, or is built.
func Start() (*Daemon, error) {
	dir, err := os.MkdirTemp("", "keyhold-interop")
	if err != nil {
		return nil, err
	}
	d := &Daemon{dir: dir, program: os.Getenv("KEYHOLDD"), CA: filepath.Join(dir, "dev", "tls", "ca.pem")}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

func (d *Daemon) start(ctx context.Context) error {
	if d.program == "" {
		root, err := moduleAbove()
		if err != nil {
			return err
		}
		d.program = filepath.Join(d.dir, "keyholdd")
		build := exec.CommandContext(ctx, "go", "build", "-C", root, "-o", d.program, "./cmd/keyholdd")
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build keyholdd: %w\n%s", err, out)
		}
	}
	world := filepath.Join(d.dir, "dev")
	err := d.run(ctx, "dev", "--dir", world, "--account", Account, "--region", Region, "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--aws", "127.0.0.1:0")
	if err != nil {
		return err
	}
	settings, err := os.ReadFile(filepath.Join(world, "dev.env"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(settings)) {
		line = strings.TrimSpace(line)
		name, value, _ := strings.Cut(line, "=")
		switch name {
		case "AWS_ENDPOINT_URL":
			d.Endpoint = value
		case "AWS_ACCESS_KEY_ID":
			d.AccessKeyID = value
		case "AWS_SECRET_ACCESS_KEY":
			d.SecretAccessKey = value
		}
		if strings.HasPrefix(name, "AWS_") && !strings.HasPrefix(name, "AWS_ENDPOINT_URL") {
			d.settings = append(d.settings, line)
		}
	}
	if d.Endpoint == "" || d.AccessKeyID == "" || d.SecretAccessKey == "" {
		return errors.New("dev.env has no endpoint or no access key")
	}
	return nil
}

// RestartTLS stops the daemon and runs `keyholdd serve` on the same data, with
// the dev folder's certificate on the AWS door.
func (d *Daemon) RestartTLS() error {
	if err := d.end(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	file := filepath.Join(d.dir, "dev", "keyholdd.yaml")
	config, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	tls := filepath.Dir(d.CA)
	with := fmt.Sprintf("\naws:\n    cert: %s\n    key: %s\n", filepath.Join(tls, "server.pem"), filepath.Join(tls, "server.key"))
	changed := bytes.Replace(config, []byte("\naws:\n"), []byte(with), 1)
	if bytes.Equal(changed, config) {
		return fmt.Errorf("%s has no aws door:\n%s", file, config)
	}
	file = filepath.Join(d.dir, "tls.yaml")
	if err := os.WriteFile(file, changed, 0o600); err != nil {
		return err
	}
	return d.run(ctx, "serve", "--config", file)
}

// run starts the program and waits until its doors are open.
func (d *Daemon) run(ctx context.Context, args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), d.program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = cleanEnv(), w, w, dieWithParent()
	err = errors.Join(cmd.Start(), w.Close())
	if err != nil {
		return errors.Join(err, r.Close())
	}
	exited, serves := make(chan error, 1), make(chan string, 1)
	d.cmd, d.exited = cmd, exited
	go func() {
		defer r.Close()
		for s := bufio.NewScanner(r); s.Scan(); {
			fmt.Fprintln(&d.log, s.Text())
			if address, ok := serving(args[0], s.Text()); ok {
				serves <- address
			}
		}
		exited <- cmd.Wait()
	}()
	select {
	case d.Endpoint = <-serves:
		return nil
	case err := <-exited:
		d.cmd = nil
		return fmt.Errorf("keyholdd %s ended before it served (is SoftHSM2 there? softhsm-config/install.sh): %w\n%s", args[0], err, d.log.String())
	case <-ctx.Done():
		return fmt.Errorf("keyholdd %s does not serve: %w\n%s", args[0], ctx.Err(), d.log.String())
	}
}

// serving tells whether a line of output says that all doors are open. dev greets
// then, with dev.env written; serve logs it, with the addresses.
func serving(command, line string) (endpoint string, ok bool) {
	if command == "dev" {
		return "", strings.HasPrefix(line, "Keyhold serves ")
	}
	_, rest, ok := strings.Cut(line, " msg=serving ")
	_, rest, _ = strings.Cut(rest, "aws=")
	address, _, _ := strings.Cut(rest, " ")
	return "https://" + address, ok
}

// Env is what dev.env says to clients of the AWS door, and what keeps the
// developer's own AWS settings and the cloud's metadata service out.
func (d *Daemon) Env() []string {
	return append([]string{
		"AWS_ENDPOINT_URL=" + d.Endpoint, "AWS_ENDPOINT_URL_KMS=" + d.Endpoint,
		"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent", "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=",
	}, d.settings...)
}

// cleanEnv is the environment without the developer's own settings.
func cleanEnv() []string {
	var env []string
	for _, setting := range os.Environ() {
		if !strings.HasPrefix(setting, "AWS_") && !strings.HasPrefix(setting, "KEYHOLD") {
			env = append(env, setting)
		}
	}
	return env
}

// end stops the program as an operator does and waits for it.
func (d *Daemon) end() error {
	if d.cmd == nil {
		return nil
	}
	cmd := d.cmd
	d.cmd = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := <-d.exited; err != nil {
		return fmt.Errorf("keyholdd: %w\n%s", err, d.log.String())
	}
	return nil
}

// Stop ends the daemon and removes its folder. It returns an error if the daemon
// did not end well. A nil Daemon is stopped.
func (d *Daemon) Stop() error {
	if d == nil {
		return nil
	}
	return errors.Join(d.end(), os.RemoveAll(d.dir))
}

// Log is what the daemon has written so far.
func (d *Daemon) Log() string { return d.log.String() }

// moduleAbove is the folder of Keyhold's own module: the first above this one
// that has the daemon.
func moduleAbove() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "keyholdd", "main.go")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("keyhold's module is not above the working folder")
		}
		dir = up
	}
}

// lockedBuffer collects a process's output.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
