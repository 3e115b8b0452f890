package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/backup"
	"github.com/keyhold/keyhold/server/servertest"
)

// TestKillDuringBackup ends backups and restores with SIGKILL at random moments:
// a backup has its name and is whole or is not there, and no daemon starts on half
// a restore.
func TestKillDuringBackup(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	config, backups := filepath.Join(dir, "keyholdd.yaml"), t.TempDir()
	d := start(t, dir)
	c := d.dial(t)
	var keys []*acknowledgedKey
	for n := range 40 {
		k, err := makeKey(t.Context(), c, n)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	archive := filepath.Join(backups, "whole.tar")
	began := time.Now()
	mustKeyholdd(t, "backup", "--config", config, archive)
	took := time.Since(began)
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	killed := func(after time.Duration, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), binaries.keyholdd, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait() // killed, or done
	}
	finished := 0
	for i := range rounds {
		out := filepath.Join(backups, fmt.Sprintf("%d.tar", i))
		killed(rand.N(took*5/4), "backup", "--config", config, out)
		if _, err := os.Stat(out); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		finished++
		if listing, err := exec.CommandContext(t.Context(), "tar", "-tf", out).Output(); err != nil || !strings.Contains(string(listing), "keyhold.db") {
			t.Errorf("an unfinished backup has its name: %v\n%s", err, listing)
		}
	}
	d.stop(t)
	wipe(t, dir)
	refused, whole := 0, 0
	for range rounds {
		killed(rand.N(took*5/4), "restore", "--config", config, archive)
		_, dbErr := os.Stat(filepath.Join(dir, "data", "keyhold.db"))
		_, markErr := os.Stat(filepath.Join(dir, "data", "restore.unfinished"))
		if dbErr == nil && markErr != nil {
			whole++
			wipe(t, dir)
			continue
		}
		out, err := keyholdd(t, "serve", "--config", config)
		if err == nil {
			t.Fatalf("the daemon served half a restore:\n%s", out)
		}
		if markErr == nil {
			refused++
			if !strings.Contains(err.Error(), "a restore was not finished") {
				t.Errorf("serve: %v", err)
			}
		}
	}
	t.Logf("%d of %d backups finished; %d restores finished, %d were marked as unfinished", finished, rounds, whole, refused)
	if refused == 0 && !testing.Short() {
		t.Error("no restore was interrupted: the test showed nothing")
	}
	if out, err := keyholdd(t, "restore", "--config", config, archive); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d = start(t, dir)
	c = d.dial(t)
	for _, k := range keys {
		k.check(t, c)
	}
	d.stop(t)
	verifyAudit(t, dir)
}

// TestBackupDiskFull: no space leaves no archive, and no half of a restore.
func TestBackupDiskFull(t *testing.T) {
	t.Parallel()
	disk := servertest.SmallDisk(t, "64k")
	dir := filepath.Join(t.TempDir(), "dev")
	config, archive := filepath.Join(dir, "keyholdd.yaml"), filepath.Join(t.TempDir(), "backup.tar")
	d := start(t, dir)
	k, err := makeKey(t.Context(), d.dial(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyholdd(t, "backup", "--config", config, filepath.Join(disk, "backup.tar")); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("backup: %v", err)
	}
	wantEmpty(t, disk)
	mustKeyholdd(t, "backup", "--config", config, archive)
	d.stop(t)

	wipe(t, dir)
	full := writeConfig(t, config, func(c *server.Config) {
		c.DataDir, c.Audit.Dir = filepath.Join(disk, "data"), filepath.Join(disk, "audit")
	})
	if _, err := keyholdd(t, "restore", "--config", full, archive); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("restore: %v", err)
	}
	wantEmpty(t, disk)
	if _, err := os.Stat(filepath.Join(dir, "softhsm", "tokens")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of tokens: %v", err)
	}
	mustKeyholdd(t, "restore", "--config", config, archive)
	d = start(t, dir)
	k.check(t, d.dial(t))
	d.stop(t)
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestRestoreWithAnotherToken is the case of an HSM, whose objects are not in the
// backup: a token without them is refused, one that lacks a key that was destroyed
// since is taken when the operator says so.
func TestRestoreWithAnotherToken(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	config, archive := filepath.Join(dir, "keyholdd.yaml"), filepath.Join(t.TempDir(), "backup.tar")
	d := start(t, dir)
	c := d.dial(t)
	kept, err := makeKey(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	deleted, err := makeKey(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustKeyholdd(t, "backup", "--config", config, archive)

	// After the backup: one key is destroyed, another one is made.
	id := deleted.metadata.GetKeyId()
	if _, err := c.Keys.ScheduleKeyDeletion(t.Context(), &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id}); err != nil {
		t.Fatal(err)
	}
	later, err := makeKey(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	d.kill()
	makeDue(t, dir)
	d = start(t, dir)
	c = d.dial(t)
	eventually(t, "the key is destroyed", func() error {
		_, err := c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: id})
		if status.Code(err) != codes.NotFound {
			return fmt.Errorf("DescribeKey: %w", err)
		}
		return nil
	})
	d.stop(t)

	// The token has lived on: its folder is put back after the restore of the other
	// parts, from an archive that says that its vendor has it.
	old := wipe(t, dir)
	external := asExternal(t, archive)
	if err := os.Mkdir(filepath.Join(dir, "softhsm", "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := keyholdd(t, "restore", "--config", config, external)
	if err == nil || !strings.Contains(err.Error(), "label") {
		t.Errorf("without the token: %v\n%s", err, out)
	}
	if err := os.Remove(filepath.Join(dir, "softhsm", "tokens")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(old, "tokens"), filepath.Join(dir, "softhsm", "tokens")); err != nil {
		t.Fatal(err)
	}
	_, err = keyholdd(t, "restore", "--config", config, external)
	if err == nil || !strings.Contains(err.Error(), "--allow-missing-keys") || !strings.Contains(err.Error(), id) || strings.Contains(err.Error(), kept.metadata.GetKeyId()) {
		t.Errorf("with a key that is gone: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the data folder: %v", err)
	}
	// Where it was destroyed while the backup was made, the backup says so.
	report := mustKeyholdd(t, "restore", "--config", config, asExternal(t, archive, id))
	if !strings.Contains(report, "record without object") || !strings.Contains(report, id) {
		t.Errorf("the report does not tell of %s:\n%s", id, report)
	}
	if err := os.Rename(filepath.Join(dir, "data"), filepath.Join(old, "data-again")); err != nil {
		t.Fatal(err)
	}
	report = mustKeyholdd(t, "restore", "--config", config, "--allow-missing-keys", external)
	for _, want := range []string{"record without object", id, "object without record", later.metadata.GetKeyId()} {
		if !strings.Contains(report, want) {
			t.Errorf("the report lacks %q:\n%s", want, report)
		}
	}
	d = start(t, dir)
	c = d.dial(t)
	kept.check(t, c)
	eventually(t, "the destroyed key is unavailable", func() error {
		_, err := c.Crypto.Decrypt(t.Context(), &keyholdv1.DecryptRequest{CiphertextBlob: deleted.blob})
		if status.Code(err) != codes.Unavailable && status.Code(err) != codes.Internal && status.Code(err) != codes.FailedPrecondition {
			return fmt.Errorf("Decrypt: %w", err)
		}
		return nil
	})
	if _, err := c.Crypto.Decrypt(t.Context(), &keyholdv1.DecryptRequest{CiphertextBlob: later.blob}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a key that was made since: %v", err)
	}
	d.stop(t)
	verifyAudit(t, dir)
}

// TestRestoreOfStoreAlone is the loss of the database and nothing else: log and
// token live on, and the log tells what the restored store does not know.
func TestRestoreOfStoreAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	config, archive := filepath.Join(dir, "keyholdd.yaml"), filepath.Join(t.TempDir(), "backup.tar")
	d := start(t, dir)
	c := d.dial(t)
	kept, err := makeKey(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.AccessKeys.CreateAccessKey(t.Context(), &keyholdv1.CreateAccessKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	mustKeyholdd(t, "backup", "--config", config, archive)
	accessKey := made.GetAccessKey().GetAccessKeyId()
	if _, err := c.AccessKeys.DeleteAccessKey(t.Context(), &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: accessKey}); err != nil {
		t.Fatal(err)
	}
	later, err := makeKey(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	id := kept.metadata.GetKeyId()
	if _, err := c.Keys.DisableKey(t.Context(), &keyholdv1.DisableKeyRequest{KeyId: id}); err != nil {
		t.Fatal(err)
	}
	d.kill()
	lost, err := filepath.Glob(filepath.Join(dir, "data", "[kp]*"))
	if err != nil || len(lost) < 2 {
		t.Fatalf("%q, %v", lost, err)
	}
	for _, path := range lost {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	report := mustKeyholdd(t, "restore", "--config", config, "--keep-audit-log", "--keep-tokens", archive)
	t.Logf("%s", report)
	for _, want := range []string{
		"CreateKey " + later.metadata.GetArn() + ": recorded after the store was copied: the key is NOT in it",
		"access key " + accessKey + " of " + made.GetAccessKey().GetPrincipalArn() + ": set inactive", "DeleteAccessKey " + accessKey,
		"DisableKey " + kept.metadata.GetArn(), "object without record", "of it: see",
	} {
		if !strings.Contains(report, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	d = start(t, dir)
	kept.check(t, d.dial(t)) // enabled, as it was
	if active, ok := listAccessKeys(t, d)[accessKey]; !ok || active {
		t.Errorf("an access key that was deleted since is there: %v, active: %v; want it inactive", ok, active)
	}
	d.stop(t)
	verifyAudit(t, dir)
}

// asExternal rewrites an archive to one whose token is backed up elsewhere, and during
// which these keys were destroyed.
func asExternal(t *testing.T, archive string, destroyed ...string) string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	content := make(map[string][]byte)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if content[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	var m backup.Manifest
	if err := json.Unmarshal(content[names[0]], &m); err != nil {
		t.Fatal(err)
	}
	for i := range m.Tokens {
		m.Tokens[i].Folder = ""
	}
	m.Destroyed = destroyed
	inToken := func(name string) bool { return strings.HasPrefix(name, "tokens/") }
	m.Files = slices.DeleteFunc(m.Files, func(f backup.File) bool { return inToken(f.Name) })
	names = slices.DeleteFunc(names, inToken)
	if content[names[0]], err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content[names[0]])
	content[names[1]] = []byte(hex.EncodeToString(sum[:]) + "  manifest.json\n")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content[name])), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "external.tar")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
