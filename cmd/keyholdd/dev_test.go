package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// A first start of dev that ended when the token was made, and nothing else,
// is finished by the second.
func TestDevFinishesFirstStart(t *testing.T) {
	t.Setenv(softhsmconfig.EnvConf, "") // put back after the test
	dir := t.TempDir()
	token, err := softhsmconfig.Init(t.Context(), softhsmconfig.Options{Dir: filepath.Join(dir, "softhsm"), Label: "keyhold-us-east-1"})
	if err != nil || !token.Created {
		t.Fatalf("make the token: %+v, %v", token, err)
	}
	d := start(t, dir)
	c := d.dial(t)
	if _, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{}); err != nil {
		t.Error(err)
	}
	d.stop(t)
	verifyAudit(t, dir)
}

// --audit-durability is what the configuration says, until the next start.
func TestDevAuditDurability(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, tc := range []struct {
		args []string
		want string
	}{{[]string{"--audit-durability", "written"}, "written"}, {nil, "synced"}} {
		d := start(t, dir, tc.args...)
		cfg, err := server.LoadConfig(filepath.Join(dir, "keyholdd.yaml"))
		if err != nil || cfg.Audit.Durability != tc.want {
			t.Errorf("%q: %+v, %v", tc.args, cfg, err)
		}
		d.stop(t)
	}
	d := launch(t, dir, "--audit-durability", "maybe")
	<-d.exited
	if !strings.Contains(d.log.String(), `"maybe" is neither synced nor written`) {
		t.Errorf("it says %s", d.log)
	}
}

// A start on a folder that is in use changes nothing in it.
func TestDevInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := start(t, dir)
	contents := func() map[string]string {
		found := make(map[string]string)
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || strings.HasPrefix(path, filepath.Join(dir, "data")) || e.Name() == "dev.env" { // which launch removes
				return err
			}
			b, err := os.ReadFile(path)
			found[path] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	before := contents()
	second := launch(t, dir, "--region", "eu-west-1", "--account", "111122223333")
	<-second.exited
	if !strings.Contains(second.log.String(), "in use by process") {
		t.Errorf("the second says %s", second.log)
	}
	if diff := cmp.Diff(before, contents()); diff != "" {
		t.Errorf("the second start changed files:\n%s", diff)
	}
	d.stop(t)
}
