package main

import (
	"path/filepath"
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
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
