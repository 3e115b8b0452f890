package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/keyhold/keyhold/internal/bench"
)

const (
	// startTimeout bounds a start, also on a busy machine.
	startTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
	scrapeMax    = 4 << 20 // bytes of /metrics
)

// daemon is a `keyholdd dev`.
type daemon struct {
	s       *settings
	dir     string
	args    []string
	env     map[string]string
	cmd     *exec.Cmd
	exited  chan struct{}
	exit    error // how it ended, once exited is closed
	started time.Duration
}

// newDaemon describes a daemon in a folder of its own.
func (s *settings) newDaemon(name string, args ...string) *daemon {
	return &daemon{s: s, dir: filepath.Join(s.work, name), args: args}
}

// start starts it and waits until its doors answer.
func (d *daemon) start(ctx context.Context) error {
	envFile := filepath.Join(d.dir, "dev.env")
	if err := os.Remove(envFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.Create(d.dir + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"dev", "--dir", d.dir, "--grpc", "127.0.0.1:0", "--aws", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, d.args...)
	d.cmd = exec.Command(filepath.Join(d.s.bin, "keyholdd"), args...) //nolint:gosec,noctx // our own program; it is told to stop, and not killed
	d.cmd.Stdout, d.cmd.Stderr = log, log
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan<- struct{}) { // stop forgets d.cmd
		d.exit = cmd.Wait()
		close(exited)
	}(d.cmd, d.exited)
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		if b, err := os.ReadFile(envFile); err == nil {
			d.started = time.Since(began)
			d.env = parseEnv(b)
			return nil
		}
		select {
		case <-poll.C:
			continue
		case <-d.exited:
			err = fmt.Errorf("keyholdd dev ended: %w", d.exit)
		case <-deadline.C:
			err = errors.New("keyholdd dev does not serve")
		case <-ctx.Done():
			err = ctx.Err()
		}
		text, _ := os.ReadFile(d.dir + ".log")
		return fmt.Errorf("%w: %s", errors.Join(err, d.stop()), text)
	}
}

// stop ends it. What is stopped already, or never was started, is left.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	d.cmd = nil
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-d.exited:
		return d.exit
	case <-timer.C:
		return fmt.Errorf("keyholdd does not stop; its log is %s.log", d.dir)
	}
}

func parseEnv(b []byte) map[string]string {
	env := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), "="); ok {
			env[name] = value
		}
	}
	return env
}

// bench runs `keyhold bench` against it.
func (d *daemon) bench(ctx context.Context, args ...string) ([]bench.Result, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.s.bin, "keyhold"), append([]string{"bench", "--output", "json"}, args...)...) //nolint:gosec // our own program
	cmd.Env = os.Environ()
	for name, value := range d.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return results(cmd)
}

// benchToken runs `keyholdd bench-token`.
func (s *settings) benchToken(ctx context.Context, args ...string) ([]bench.Result, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "keyholdd"), append([]string{"bench-token", "--output", "json", "--disk", s.work}, args...)...) //nolint:gosec // our own program
	cmd.Env = append(os.Environ(), "TMPDIR="+s.work)
	return results(cmd)
}

// results runs a benchmark and reads what it prints. Operations that failed are
// an error: figures of a server that errs are no figures.
func results(cmd *exec.Cmd) ([]bench.Result, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	var all []bench.Result
	for line := range strings.Lines(out.String()) {
		var r bench.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("%s printed %q: %w", strings.Join(cmd.Args, " "), line, err)
		}
		if r.Errors > 0 {
			return nil, fmt.Errorf("%s: %d errors of %s: %s", strings.Join(cmd.Args, " "), r.Errors, r.Op, stderr.String())
		}
		all = append(all, r)
	}
	return all, nil
}

// metric reads a number of its /metrics.
func (d *daemon) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.env["KEYHOLD_ADMIN_URL"]+"/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, scrapeMax))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s", name)
}
