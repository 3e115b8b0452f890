package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/hsm/witness"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
)

// TestHealthy examines a whole installation, with the witness.
func TestHealthy(t *testing.T) {
	i := install(t, false)
	i.addKey(hsm.AES256, hsm.PurposeSeal, keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT)
	i.addKey(hsm.P256, hsm.PurposeSign, keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY)
	i.appendAudit(3)
	exe, err := os.Executable()
	must(t, err)
	before := tree(t, i.cfg.DataDir)

	r := i.examine(witness.Child{Exe: exe, Args: []string{"witness"}})

	if d := cmp.Diff(before, tree(t, i.cfg.DataDir)); d != "" {
		t.Errorf("doctor changed the data folder (-before +after):\n%s", d)
	}
	for _, c := range []struct {
		name  string
		words string
	}{
		{"configuration", "1 region, 1 token, 1 principal"},
		{"settings", ""},
		{"file-modes", ""},
		{"store", "2 keys"},
		{"module", "SoftHSM"},
		{"softhsm", "for this user alone"},
		{"token", `"keyhold-test"`},
		{"pin-flags", "not locked"},
		{"pin-source", "mode 0600"},
		{"login", ""},
		{"canary", ""},
		{"capabilities", "all "},
		{"custody", "4 private or secret objects, 4 of Keyhold: all sensitive"},
		{"witness", "agree in all"},
		{"records-and-objects", "every key has its objects"},
		{"seal-key", "opens the secrets of 0 access keys"},
		{"access-keys", "0 access keys"},
		{"audit-log", "3 records in 1 segment"},
		{"disk-space", ""},
		{"certificate", "the key fits"},
		{"client-ca", "test authority"},
		{"clock", ""},
	} {
		want(t, r, c.name, OK, c.words)
	}
	want(t, r, "software-token", Warn, "protects nothing against root")
	if f := failed(r); len(f) > 0 || r.Failed() {
		t.Errorf("failed: %v", f)
	}
	token := r.Tokens[0]
	if !token.Software || token.Label != "keyhold-test" || len(token.Objects) != 4 {
		t.Errorf("token report %+v", token)
	}
	for _, o := range token.Objects {
		if !o.Sensitive || !o.AlwaysSensitive || !o.NeverExtractable || !o.Local || !o.Private || !o.Keyhold || o.Problem != "" {
			t.Errorf("object %+v is not proven", o)
		}
	}
	checkRendering(t, r)
	checkWitnessLeftNothing(t, i)
}

// tree lists the files below a folder with their sizes and times, without
// SQLite's companions, which any reader may make.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && !strings.HasSuffix(path, "-wal") && !strings.HasSuffix(path, "-shm") {
			found[path] = info.ModTime().String()
		}
		return err
	}))
	return found
}

func checkRendering(t *testing.T, r *Report) {
	t.Helper()
	var table bytes.Buffer
	must(t, r.WriteTable(&table))
	for _, words := range []string{
		"protects nothing against root", "SYMMETRIC_DEFAULT", "known answer", "keys may be copied into sessions", "sessions survive a bad tag",
		`"keyhold-canary"`, "do: ", "0 failed, 0 skipped",
	} {
		if !strings.Contains(table.String(), words) {
			t.Errorf("the table does not say %q:\n%s", words, table.String())
		}
	}
	b, err := json.Marshal(r)
	must(t, err)
	var back Report
	must(t, json.Unmarshal(b, &back))
	if d := cmp.Diff(*r, back); d != "" {
		t.Errorf("JSON loses something (-want +got):\n%s", d)
	}
}

func checkWitnessLeftNothing(t *testing.T, i *installation) {
	t.Helper()
	token := i.open()
	defer hsmtest.Close(t, token)
	objects, err := token.Objects(t.Context())
	must(t, err)
	for _, o := range objects {
		if o.Label == witness.Label {
			t.Errorf("the witness left %s %x in the token", o.Class, o.ID)
		}
	}
}

// TestBesideDaemon examines an installation whose daemon runs.
func TestBesideDaemon(t *testing.T) {
	i := install(t, false)
	cfg, err := server.LoadConfig(i.file)
	must(t, err)
	s, err := server.New(t.Context(), cfg, server.Options{Logger: discard(), Version: "test"})
	must(t, err)
	defer s.Close(t.Context())
	wait, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, s.WaitReady(wait))
	r := i.run()
	if f := failed(r); len(f) > 0 {
		t.Errorf("failed beside a daemon: %v", f)
	}
	want(t, r, "audit-log", OK, "the daemon has it open")
	must(t, s.Core.Ready())
}

// TestTokenAlone needs no configuration, and no canary.
func TestTokenAlone(t *testing.T) {
	f := hsmtest.New(t)
	r := Run(t.Context(), Options{Token: f.Config()})
	want(t, r, "canary", Warn, "no canary key")
	want(t, r, "capabilities", OK, "")
	want(t, r, "witness", Skipped, "not wanted")
	want(t, r, "custody", OK, "0 private or secret objects")
	if f := failed(r); len(f) > 0 {
		t.Errorf("failed: %v", f)
	}
	for _, name := range []string{"configuration", "store", "audit-log", "certificate"} {
		if slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Name == name }) {
			t.Errorf("%s was looked at, without a configuration", name)
		}
	}
}

func TestBadConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keyholdd.yaml")
	for _, c := range []struct{ name, content, words string }{
		{"missing", "", "no such file"},
		{"unknown field", "data_dri: /tmp\n", "data_dri"},
		{"incomplete", "data_dir: /tmp\n", "tokens is empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.content != "" {
				must(t, os.WriteFile(file, []byte(c.content), 0o600))
			}
			r := Run(t.Context(), Options{ConfigFile: file})
			want(t, r, "configuration", Fail, c.words)
			if len(r.Checks) != 2 || r.Count(Skipped) != 1 {
				t.Errorf("%d checks, %d skipped; want the configuration's, and all else skipped", len(r.Checks), r.Count(Skipped))
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	i := install(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := Run(ctx, Options{ConfigFile: i.file})
	if slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Name == "login" && c.Status == OK }) {
		t.Error("it logged in after its end")
	}
}

// TestTableHidesControls keeps what others chose from moving the cursor.
func TestTableHidesControls(t *testing.T) {
	evil := "label\x1b[2J\r\nok       forged"
	r := &Report{
		Checks: []Check{{Name: "token", Subject: evil, Status: Fail, Fact: evil, Remedy: evil, Details: []string{evil}}},
		Tokens: []TokenReport{{Name: evil, Label: evil, Objects: []ObjectReport{{Class: evil, Label: evil}}}},
	}
	var b bytes.Buffer
	must(t, r.WriteTable(&b))
	if strings.ContainsAny(b.String(), "\x1b\r") || strings.Contains(b.String(), "\nok       forged") {
		t.Errorf("the table passes control characters on:\n%q", b.String())
	}
}

func TestJudgeFree(t *testing.T) {
	const segment = 64 << 20
	for _, c := range []struct {
		free uint64
		want Status
	}{
		{0, Fail},
		{segment - 1, Fail},
		{segment, Warn},
		{comfortableSegments*segment - 1, Warn},
		{comfortableSegments * segment, OK},
	} {
		e := &exam{report: &Report{}}
		e.judgeFree("audit log", "/d", c.free, segment)
		if got := e.report.Checks[0]; got.Status != c.want || (got.Remedy == "") != (c.want == OK) {
			t.Errorf("%d bytes free: %+v, want %s", c.free, got, c.want)
		}
	}
}
