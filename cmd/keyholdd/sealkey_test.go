package main

import (
	"database/sql"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server"
)

// makeOld makes a stopped installation what a version without access keys has left:
// schema 1, and no seal key in the token.
func makeOld(t *testing.T, d *daemon) {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(d.dir, "data", "keyhold.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range []string{"DROP TABLE access_keys", "DELETE FROM schema_history WHERE version > 1", "PRAGMA user_version = 1"} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", d.env["SOFTHSM2_CONF"])
	token, err := hsm.OpenOnce(t.Context(), hsm.Config{
		Module: d.env["KEYHOLD_TOKEN_MODULE"], TokenLabel: d.env["KEYHOLD_TOKEN_LABEL"], PIN: hsm.PINFile(d.env["KEYHOLD_TOKEN_PIN_FILE"]),
	}, hsm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := token.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	destroyed := 0
	for _, o := range objects {
		if strings.HasPrefix(o.Label, "keyhold-seal:") {
			if err := token.Destroy(t.Context(), o.ID, o.Label); err != nil {
				t.Fatal(err)
			}
			destroyed++
		}
	}
	if err := token.Close(t.Context()); err != nil || destroyed != 1 {
		t.Fatalf("%d seal keys destroyed, %v", destroyed, err)
	}
}

// TestInstallationWithoutSealKey: one of an older version is served as before, says
// what it lacks, and gets it by init.
func TestInstallationWithoutSealKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	if _, err := d.keyhold(t.Context(), nil, "key", "create", "--alias", "app"); err != nil {
		t.Fatal(err)
	}
	env := d.env
	d.stop(t)
	makeOld(t, d)

	config := writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), nil)
	d = startServe(t, config, env)
	eventually(t, "ready", func() error {
		if ok, why := d.ready(t); !ok {
			return fmt.Errorf("not ready: %s", why)
		}
		return nil
	})
	sealed, err := d.keyhold(t.Context(), []byte("as before"), "encrypt", "--key", "alias/app")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.keyhold(t.Context(), sealed, "decrypt"); err != nil || string(got) != "as before" {
		t.Errorf("decrypt: %q, %v", got, err)
	}
	if _, err := d.keyhold(t.Context(), nil, "access-key", "create"); err == nil || !strings.Contains(err.Error(), "UnsupportedOperationException") || !strings.Contains(err.Error(), "keyholdd init") {
		t.Errorf("without a seal key: %v", err)
	}
	eventually(t, "the log says that there is no seal key", func() error {
		if !strings.Contains(d.log.String(), "no seal key") {
			return fmt.Errorf("the log:\n%s", d.log)
		}
		return nil
	})
	d.stop(t)
	for _, want := range []string{"made the seal key in the token", "seal key exists in the token"} {
		out, err := exec.Command(binaries.keyholdd, "init", "--config", config).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("init: %v, want %q\n%s", err, want, out)
		}
	}
	d = startServe(t, config, env)
	eventually(t, "an access key is made", func() error {
		_, err := d.keyhold(t.Context(), nil, "access-key", "create")
		return err
	})
	d.stop(t)
	verifyAudit(t, dir)
}

// TestReorderedRegions: which token has the seal key depends on the first region. If
// that changes, what is said names it, and no second seal key is made.
func TestReorderedRegions(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir, "--region", "us-east-1", "--region", "eu-central-1")
	env := d.env
	d.stop(t)
	config := writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), func(c *server.Config) { slices.Reverse(c.Regions) })
	const cause = "if their order or their tokens were changed, change that back"
	if out, err := keyholdd(t, "init", "--config", config); err == nil || !strings.Contains(err.Error(), cause) {
		t.Errorf("init: %v\n%s", err, out)
	}
	if out, err := keyholdd(t, "doctor", "--config", config); err == nil || !strings.Contains(err.Error(), cause) {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	d = startServe(t, config, env)
	eventually(t, "the log says what is wrong", func() error {
		if !strings.Contains(d.log.String(), cause) {
			return fmt.Errorf("the log:\n%s", d.log)
		}
		return nil
	})
	d.stop(t)
	config = writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), nil)
	if out := mustKeyholdd(t, "init", "--config", config); !strings.Contains(out, "seal key exists in the token") {
		t.Errorf("in the old order: %s", out)
	}
}
