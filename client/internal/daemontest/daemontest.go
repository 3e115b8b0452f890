// Package daemontest runs `keyholdd dev` for the tests of the client and of
// what is built on it: the real daemon, on a SoftHSM token of its own.
package daemontest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// startTimeout bounds building and starting: the machines of CI are shared.
const startTimeout = 5 * time.Minute

// Keys are the keys that the daemon has, by alias.
func Keys() map[string]*keyholdv1.CreateKeyRequest {
	sign := keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY
	return map[string]*keyholdv1.CreateKeyRequest{
		"alias/app":     {},
		"alias/other":   {},
		"alias/p256":    {KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, KeyUsage: sign},
		"alias/p384":    {KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P384, KeyUsage: sign},
		"alias/p521":    {KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P521, KeyUsage: sign},
		"alias/k256":    {KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_SECG_P256K1, KeyUsage: sign},
		"alias/ed25519": {KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_EDWARDS25519, KeyUsage: sign},
		"alias/rsa":     {KeySpec: keyholdv1.KeySpec_KEY_SPEC_RSA_2048, KeyUsage: sign},
		"alias/unwrap":  {KeySpec: keyholdv1.KeySpec_KEY_SPEC_RSA_2048, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT},
		"alias/cookies": {KeySpec: keyholdv1.KeySpec_KEY_SPEC_HMAC_256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC},
	}
}

// Daemon is a running `keyholdd dev`.
type Daemon struct {
	dir    string
	cmd    *exec.Cmd
	log    lockedBuffer
	exited chan error
}

// Start builds the daemon, runs it until Stop, puts its settings into this
// process's environment, where examples find them, and makes the Keys. In a
// worker of `go test -fuzz` it does nothing: there may be many, and they start
// anew after each crash.
func Start() (*Daemon, error) {
	flag.Parse()
	if f := flag.Lookup("test.fuzzworker"); f != nil && f.Value.String() == "true" {
		return nil, nil //nolint:nilnil // Stop takes it
	}
	dir, err := os.MkdirTemp("", "keyhold-client")
	if err != nil {
		return nil, err
	}
	d := &Daemon{dir: dir, exited: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

func (d *Daemon) start(ctx context.Context) error {
	if err := forgetEnv(); err != nil {
		return err
	}
	program := filepath.Join(d.dir, "keyholdd")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/keyhold/keyhold/cmd/keyholdd") //nolint:gosec // a path of our own
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build keyholdd: %w\n%s", err, out)
	}
	world := filepath.Join(d.dir, "dev")
	args := []string{
		"dev", "--dir", world, "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--aws", "127.0.0.1:0", "--xks", "127.0.0.1:0",
	}
	d.cmd = exec.CommandContext(context.WithoutCancel(ctx), program, args...) //nolint:gosec // a program of our own
	d.cmd.Stderr, d.cmd.SysProcAttr = &d.log, dieWithParent()
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := d.cmd.Start(); err != nil {
		d.cmd = nil
		return err
	}
	serves := make(chan struct{})
	go func() {
		// It greets when all doors answer.
		s := bufio.NewScanner(stdout)
		for s.Scan() {
			if strings.HasPrefix(s.Text(), "Keyhold serves") {
				close(serves)
				break
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
		d.exited <- d.cmd.Wait()
	}()
	select {
	case <-serves:
	case err := <-d.exited:
		d.exited <- err
		return fmt.Errorf("keyholdd dev ended before it served (is SoftHSM2 there? softhsm-config/install.sh): %w\n%s", err, d.log.String())
	case <-ctx.Done():
		return fmt.Errorf("keyholdd dev does not serve: %w\n%s", ctx.Err(), d.log.String())
	}
	if err := setEnv(filepath.Join(world, "dev.env")); err != nil {
		return err
	}
	return makeKeys(ctx)
}

// forgetEnv keeps the developer's own settings out of the tests.
func forgetEnv() error {
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "KEYHOLD_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func setEnv(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			if err := os.Setenv(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func makeKeys(ctx context.Context) error {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		return err
	}
	defer c.Close()
	for alias, req := range Keys() {
		resp, err := c.Keys.CreateKey(ctx, req)
		if err != nil {
			return fmt.Errorf("make the key of %s: %w", alias, err)
		}
		id := resp.GetKeyMetadata().GetKeyId()
		if _, err := c.Keys.CreateAlias(ctx, &keyholdv1.CreateAliasRequest{AliasName: alias, TargetKeyId: id}); err != nil {
			return fmt.Errorf("make %s: %w", alias, err)
		}
	}
	return nil
}

// Stop ends the daemon as an operator does, waits for it, and removes its
// folder. It returns an error if the daemon did not end well.
func (d *Daemon) Stop() error {
	if d == nil {
		return nil
	}
	var ended error
	if d.cmd != nil {
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		if err := <-d.exited; err != nil {
			ended = fmt.Errorf("keyholdd dev: %w\n%s", err, d.log.String())
		}
	}
	return errors.Join(ended, os.RemoveAll(d.dir))
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
