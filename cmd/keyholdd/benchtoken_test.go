package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"

	"github.com/keyhold/keyhold/internal/bench"
)

// benchToken runs bench-token for a moment.
func benchToken(t *testing.T, args ...string) (results []bench.Result, stderr string, err error) {
	t.Helper()
	args = append([]string{"bench-token", "--duration", "60ms", "--output", "json"}, args...)
	cmd := exec.CommandContext(t.Context(), binaries.keyholdd, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	err = cmd.Run()
	for line := range strings.Lines(out.String()) {
		var r bench.Result
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		results = append(results, r)
	}
	return results, errOut.String(), err
}

// checkTokenResults wants each operation once for each concurrency, and numbers
// that can be.
func checkTokenResults(t *testing.T, results []bench.Result, concurrency ...int) {
	t.Helper()
	seen := map[string]int{}
	for _, r := range results {
		seen[r.Op]++
		if r.Errors != 0 || r.Ops < 1 || r.Batch != 1 || r.Seconds < 0.05 || r.OpsPerSecond <= 0 || r.P50 <= 0 || r.P50 > r.P99 || r.P99 > r.P999 || r.ServerCPU == nil {
			t.Errorf("%+v", r)
		}
		if disk := strings.HasPrefix(r.Op, "fdatasync"); disk != (r.Door == "disk") || !disk && r.Door != "token" {
			t.Errorf("%s is of the door %s", r.Op, r.Door)
		}
	}
	for _, op := range []string{
		"encrypt", "encrypt:uncopied", "decrypt", "decrypt:uncopied", "mac", "mac:uncopied",
		"sign-p256", "sign-p256:uncopied", "sign-rsa2048", "random",
	} {
		if seen[op] != len(concurrency) {
			t.Errorf("%s was measured %d times, want %d", op, seen[op], len(concurrency))
		}
	}
	if seen["fdatasync"] != 1 {
		t.Errorf("fdatasync was measured %d times", seen["fdatasync"])
	}
}

func TestBenchTokenOfItsOwn(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	results, stderr, err := benchToken(t, "--concurrency", "1,3", "--disk", disk, "--payload", "512")
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	checkTokenResults(t, results, 1, 3)
	if !strings.Contains(stderr, "destroyed 4 of the 4 keys") {
		t.Errorf("it does not say what it did: %s", stderr)
	}
	results, stderr, err = benchToken(t, "--concurrency", "1", "--op", "sign-p256:uncopied,random")
	if err != nil || len(results) != 2 || results[0].Op != "sign-p256:uncopied" || results[1].Op != "random" || !strings.Contains(stderr, "destroyed 1 of the 1 keys") {
		t.Errorf("two operations alone: %+v, %v, %s", results, err, stderr)
	}
	if left, err := os.ReadDir(disk); err != nil || len(left) > 0 {
		t.Errorf("left on the disk: %v, %v", left, err)
	}
}

// An installation's token is measured while no daemon runs, and is afterwards
// what it was before.
func TestBenchTokenOfAnInstallation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := start(t, dir)
	created, err := d.dial(t).Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := benchToken(t, "--dir", dir); err == nil || !strings.Contains(stderr, "in use by process") {
		t.Errorf("beside the daemon: %v, %s", err, stderr)
	}
	d.stop(t)
	config := filepath.Join(dir, "keyholdd.yaml")
	results, stderr, err := benchToken(t, "--config", config, "--concurrency", "2")
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	checkTokenResults(t, results, 2)
	out, err := exec.CommandContext(t.Context(), binaries.keyholdd, "orphans", "--config", config).Output()
	if err != nil || string(out) != "no orphans\n" {
		t.Errorf("orphans: %q, %v", out, err)
	}
	d = start(t, dir)
	if _, err := d.dial(t).Crypto.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: created.GetKeyMetadata().GetKeyId(), Plaintext: []byte("x")}); err != nil {
		t.Errorf("the installation's key: %v", err)
	}
	d.stop(t)
	verifyAudit(t, dir)
}

func TestBenchTokenMisuse(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--config", "a", "--dir", "b"},
		{"--token", "prod"},
		{"--output", "yaml"},
		{"--op", "encrypt,ping"},
		{"--concurrency", "0"},
		{"--concurrency", "1025"},
		{"--duration", "0s"},
		{"--payload", "31"},
		{"--payload", "4097"},
		{"more"},
	} {
		_, stderr, err := benchToken(t, args...)
		if code := exitCode(err); code != 2 {
			t.Errorf("%q: exit code %d: %s", args, code, stderr)
		}
	}
}

// exitCode is the exit code of a program that was run.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}
