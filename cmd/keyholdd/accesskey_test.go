package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// list returns the ids of root's access keys and whether they are active.
func listAccessKeys(t *testing.T, d *daemon) map[string]bool {
	t.Helper()
	resp, err := d.dial(t).AccessKeys.ListAccessKeys(t.Context(), &keyholdv1.ListAccessKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, k := range resp.GetAccessKeyMetadata() {
		found[k.GetAccessKeyId()] = k.GetStatus() == keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_ACTIVE
	}
	return found
}

// rootAccessKey reads what dev keeps: the id, and the secret if it is there.
func rootAccessKey(t *testing.T, dir string) (id, secret string) {
	t.Helper()
	path := filepath.Join(dir, "root-access-key")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
	}
	id, secret, _ = strings.Cut(string(b), "\n")
	return id, strings.TrimSpace(secret)
}

// wantNoSecret looks into all that the daemon wrote, but the named files, which are
// its user's alone.
func wantNoSecret(t *testing.T, d *daemon, secret string, but ...string) {
	t.Helper()
	if strings.Contains(d.log.String(), secret) {
		t.Error("the log has the secret")
	}
	err := filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if slices.Contains(but, filepath.Base(path)) {
			info, err := e.Info()
			if err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s has the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAccessKeys makes an access key with the tool, finds it after a restart, and
// has dev give the root principal the key that the folder or the environment says.
func TestAccessKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	rootID, rootSecret := rootAccessKey(t, dir)
	if len(rootID) != 20 || len(rootSecret) != 40 {
		t.Fatalf("the root access key is %q with a secret of %d", rootID, len(rootSecret))
	}
	out, err := d.keyhold(t.Context(), nil, "access-key", "create", "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	var made struct {
		AccessKey struct{ AccessKeyId, SecretAccessKey, PrincipalArn string }
	}
	if err := json.Unmarshal(out, &made); err != nil || len(made.AccessKey.SecretAccessKey) != 40 {
		t.Fatalf("%v: %s", err, out)
	}
	id := made.AccessKey.AccessKeyId
	if _, err := d.keyhold(t.Context(), nil, "access-key", "create"); err == nil || !strings.Contains(err.Error(), "LimitExceededException") {
		t.Errorf("a third one: %v", err)
	}
	if _, err := d.keyhold(t.Context(), nil, "access-key", "deactivate", id); err != nil {
		t.Error(err)
	}
	d.stop(t)
	wantNoSecret(t, d, made.AccessKey.SecretAccessKey)
	wantNoSecret(t, d, rootSecret, "root-access-key", "dev.env")

	d = start(t, dir)
	if again, secret := rootAccessKey(t, dir); again != rootID || secret != rootSecret {
		t.Error("a restart has given the root principal another key")
	}
	if got := listAccessKeys(t, d); len(got) != 2 || got[id] || !got[rootID] {
		t.Errorf("after a restart: %v", got)
	}
	if !strings.Contains(d.log.String(), "seal key found") {
		t.Errorf("the log says nothing of the seal key:\n%s", d.log)
	}
	d.stop(t)

	// The environment's takes the place of the folder's, and not of others.
	t.Setenv("KEYHOLD_DEV_ACCESS_KEY_ID", "AKIADEV")
	t.Setenv("KEYHOLD_DEV_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	for range 2 {
		d = start(t, dir)
		if got := listAccessKeys(t, d); len(got) != 2 || got[id] || !got["AKIADEV"] {
			t.Errorf("with a key of the environment: %v", got)
		}
		if again, secret := rootAccessKey(t, dir); again != "AKIADEV" || secret != "" {
			t.Errorf("the folder has %q and a secret of %d", again, len(secret))
		}
		wantNoSecret(t, d, "wJalrXUtnFEMI", "dev.env")
		d.stop(t)
	}
	t.Setenv("KEYHOLD_DEV_ACCESS_KEY_ID", "")
	d = launch(t, dir)
	<-d.exited
	if d.err == nil || !strings.Contains(d.log.String(), "set both or neither") {
		t.Errorf("with one of the two: %v\n%s", d.err, d.log)
	}
	t.Setenv("KEYHOLD_DEV_SECRET_ACCESS_KEY", "")
	d = start(t, dir)
	newID, secret := rootAccessKey(t, dir)
	if got := listAccessKeys(t, d); len(got) != 2 || !got[newID] || newID == rootID || len(secret) != 40 {
		t.Errorf("without the environment: %v", got)
	}
	d.stop(t)
	verifyAudit(t, dir)
}

// TestKillDuringAccessKeys ends the daemon with SIGKILL at random moments while keys
// are created, deactivated and deleted. What was acknowledged holds afterwards, and
// every secret opens.
func TestKillDuringAccessKeys(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	var present, gone, inactive string // as acknowledged, of the last round
	acknowledged := 0
	for round := range rounds + 1 {
		d := start(t, dir)
		rootID, _ := rootAccessKey(t, dir)
		found := listAccessKeys(t, d)
		_, there := found[present]
		_, back := found[gone]
		if present != "" && !there || back || found[inactive] || !found[rootID] {
			t.Errorf("round %d: %v; %q must be there, %q not, %q inactive, root's %q active", round, found, present, gone, inactive, rootID)
		}
		c := d.dial(t)
		present, gone, inactive = "", "", ""
		for id := range found { // room for the one that is made
			if id != rootID {
				if _, err := c.AccessKeys.DeleteAccessKey(t.Context(), &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if round == rounds {
			d.stop(t)
			break
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for createAndDelete(t.Context(), c, &present, &gone, &inactive, &acknowledged) {
			}
		}()
		select {
		case <-time.After(time.Duration(20+rand.IntN(300)) * time.Millisecond): // a random moment
		case <-d.exited:
			t.Fatalf("round %d: the daemon ended: %v\n%s", round, d.err, d.log)
		}
		d.kill()
		<-done
		verifyAudit(t, dir)
	}
	t.Logf("%d changes of access keys acknowledged over %d kills", acknowledged, rounds)
	if acknowledged == 0 {
		t.Error("nothing was acknowledged: the test showed nothing")
	}
	out, err := exec.Command(binaries.keyholdd, "doctor", "--config", filepath.Join(dir, "keyholdd.yaml")).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("opens the secrets of 1 access key")) {
		t.Errorf("doctor: %v\n%s", err, out)
	}
}

// createAndDelete makes a key, deactivates and activates it, and deletes it, and notes
// what was acknowledged. What was sent and not acknowledged may be either way. An
// account may make ten keys at once, so that each has something to do.
func createAndDelete(ctx context.Context, c *client.Client, present, gone, inactive *string, acknowledged *int) bool {
	*present, *inactive = "", ""
	made, err := c.AccessKeys.CreateAccessKey(ctx, &keyholdv1.CreateAccessKeyRequest{})
	if err != nil {
		return false
	}
	id := made.GetAccessKey().GetAccessKeyId()
	*present = id
	*acknowledged++
	for i := range 61 {
		status := keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_INACTIVE
		if i%2 == 1 {
			*inactive, status = "", keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_ACTIVE
		}
		if _, err = c.AccessKeys.UpdateAccessKey(ctx, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: status}); err != nil {
			return false
		}
		if i%2 == 0 {
			*inactive = id
		}
		*acknowledged++
	}
	*present = ""
	if _, err := c.AccessKeys.DeleteAccessKey(ctx, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id}); err != nil {
		return false
	}
	*gone = id
	*acknowledged++
	return true
}
