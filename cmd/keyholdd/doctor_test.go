package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/doctor"
)

// TestDoctorMisuse: what cannot be understood ends with 2, before anything is
// looked at.
func TestDoctorMisuse(t *testing.T) {
	t.Parallel()
	const uri = "pkcs11:token=a?module-path=/lib.so&pin-source=file:/pin"
	for _, tt := range []struct {
		args string
		want string
	}{
		{"", "--config"},
		{"--output xml --config x", "table or json"},
		{"--config x --timeout 0s", "--timeout"},
		{"--config x --module /lib.so", "--config names the tokens"},
		{"--config x --token a", "--config names the tokens"},
		{"--config x --pin-source env:A", "--config names the tokens"},
		{"--module /lib.so --token a", "--pin-source"},
		{"--module /lib.so --pin-source env:A", "label or its serial"},
		{"--token a --pin-source env:A", "no PKCS#11 module"},
		{"--module lib.so --token a --pin-source env:A", "absolute path"},
		{"--module /lib.so --token a --pin-source 1234", "--pin-source"},
		{"--token " + uri + " --module /lib.so", "--token is a URI"},
		{"--token " + uri + "&pin-value=1234", "pin-value"},
		{"--token pkcs11:token=a", "no PKCS#11 module"},
		{"--config x extra", "unknown command"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{"doctor"}, strings.Fields(tt.args)...), strings.NewReader(""), &stdout, &stderr)
		if code != 2 || !strings.Contains(stderr.String(), tt.want) || stdout.Len() > 0 {
			t.Errorf("doctor %s: exit %d, %q; want 2 and %q", tt.args, code, stderr.String(), tt.want)
		}
	}
}

// TestDoctorBesideDaemon runs the real program, with the witness, beside the
// daemon of the same installation, and then on a broken one.
func TestDoctorBesideDaemon(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	created, err := d.dial(t).Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "keyholdd.yaml")

	r, code, stderr := doctorReport(t, d, "--config", config, "--output", "json")
	if code != 0 || r.Failed() || r.Count(doctor.Skipped) > 1 { // time-sync may not be told
		t.Errorf("exit %d, %s: %+v", code, stderr, r.Checks)
	}
	for _, name := range []string{"login", "canary", "custody", "witness", "store", "records-and-objects", "audit-log"} {
		if !slices.ContainsFunc(r.Checks, func(c doctor.Check) bool { return c.Name == name && c.Status == doctor.OK }) {
			t.Errorf("%s is not ok: %+v", name, r.Checks)
		}
	}
	id := created.GetKeyMetadata().GetKeyId()
	if !slices.ContainsFunc(r.Tokens[0].Objects, func(o doctor.ObjectReport) bool {
		return strings.HasSuffix(o.Label, id) && o.Problem == "" && o.NeverExtractable
	}) {
		t.Errorf("the new key %s is not among the proven objects: %+v", id, r.Tokens[0].Objects)
	}
	// The token alone, in both spellings.
	module, label, pin := d.env["KEYHOLD_TOKEN_MODULE"], d.env["KEYHOLD_TOKEN_LABEL"], d.env["KEYHOLD_TOKEN_PIN_FILE"]
	for _, args := range [][]string{
		{"--module", module, "--token", label, "--pin-source", "file:" + pin, "--output", "json", "--no-witness"},
		{"--token", "pkcs11:token=" + label + "?module-path=" + module + "&pin-source=file:" + pin, "--output", "json", "--no-witness"},
	} {
		if r, code, stderr := doctorReport(t, d, args...); code != 0 || len(r.Tokens) != 1 {
			t.Errorf("doctor %v: exit %d, %s", args, code, stderr)
		}
	}
	// The daemon noticed nothing.
	if ok, why := d.ready(t); !ok {
		t.Errorf("the daemon is not ready: %s", why)
	}
	d.stop(t)

	if err := os.Chmod(pin, 0o644); err != nil {
		t.Fatal(err)
	}
	r, code, stderr = doctorReport(t, d, "--config", config, "--output", "json")
	if code != 1 || r.Count(doctor.Fail) != 1 || !strings.Contains(stderr, "1 of ") {
		t.Errorf("a PIN that others may read: exit %d, %s", code, stderr)
	}
}

// doctorReport runs the program and reads its report.
func doctorReport(t *testing.T, d *daemon, args ...string) (*doctor.Report, int, string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binaries.keyholdd, append([]string{"doctor"}, args...)...)
	cmd.Env = d.environ()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := &doctor.Report{}
	if err := json.Unmarshal(stdout.Bytes(), r); err != nil {
		t.Fatalf("report: %v\n%s%s", err, stdout.String(), stderr.String())
	}
	return r, cmd.ProcessState.ExitCode(), stderr.String()
}
