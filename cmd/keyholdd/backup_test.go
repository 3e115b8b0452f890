package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
)

// acknowledgedKey is a key that a client was told of, with what it made.
type acknowledgedKey struct {
	metadata  *keyholdv1.KeyMetadata
	blob      []byte // of an AES key
	mac       []byte // of an HMAC key
	publicKey []byte // of a signing key
}

var drillMessage = []byte("what was acknowledged before the backup")

// makeKey makes a key of the n-th kind, uses it, and describes it.
func makeKey(ctx context.Context, c *client.Client, n int) (*acknowledgedKey, error) {
	req := []*keyholdv1.CreateKeyRequest{
		{},
		{KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY},
		{KeySpec: keyholdv1.KeySpec_KEY_SPEC_HMAC_256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC},
	}[n%3]
	resp, err := c.Keys.CreateKey(ctx, req)
	if err != nil {
		return nil, err
	}
	k := &acknowledgedKey{metadata: resp.GetKeyMetadata()}
	id := k.metadata.GetKeyId()
	switch n % 3 {
	case 0:
		enc, err := c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: drillMessage})
		if err != nil {
			return nil, err
		}
		k.blob = enc.GetCiphertextBlob()
	case 1:
		pub, err := c.Crypto.GetPublicKey(ctx, &keyholdv1.GetPublicKeyRequest{KeyId: id})
		if err != nil {
			return nil, err
		}
		k.publicKey = pub.GetPublicKey()
	case 2:
		mac, err := c.Crypto.GenerateMac(ctx, &keyholdv1.GenerateMacRequest{KeyId: id, Message: drillMessage, MacAlgorithm: keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256})
		if err != nil {
			return nil, err
		}
		k.mac = mac.GetMac()
	}
	return k, nil
}

// check wants the key to be what it was and to do what it did.
func (k *acknowledgedKey) check(t *testing.T, c *client.Client) {
	t.Helper()
	ctx, id := t.Context(), k.metadata.GetKeyId()
	resp, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: id})
	if err != nil {
		t.Errorf("acknowledged key %s: %v", id, err)
		return
	}
	if !proto.Equal(resp.GetKeyMetadata(), k.metadata) {
		t.Errorf("key %s is %v, was %v", id, resp.GetKeyMetadata(), k.metadata)
	}
	switch {
	case k.blob != nil:
		dec, err := c.Crypto.Decrypt(ctx, &keyholdv1.DecryptRequest{CiphertextBlob: k.blob})
		if err != nil || !bytes.Equal(dec.GetPlaintext(), drillMessage) {
			t.Errorf("key %s does not open its ciphertext: %v", id, err)
		}
		if _, err := c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: drillMessage}); err != nil {
			t.Errorf("key %s does not encrypt: %v", id, err)
		}
	case k.mac != nil:
		_, err := c.Crypto.VerifyMac(ctx, &keyholdv1.VerifyMacRequest{KeyId: id, Message: drillMessage, Mac: k.mac, MacAlgorithm: keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256})
		if err != nil {
			t.Errorf("key %s does not verify its MAC: %v", id, err)
		}
	default:
		pub, err := c.Crypto.GetPublicKey(ctx, &keyholdv1.GetPublicKeyRequest{KeyId: id})
		if err != nil || !bytes.Equal(pub.GetPublicKey(), k.publicKey) {
			t.Errorf("key %s has another public key: %v", id, err)
		}
		algorithm := keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256
		sig, err := c.Crypto.Sign(ctx, &keyholdv1.SignRequest{KeyId: id, Message: drillMessage, SigningAlgorithm: algorithm})
		if err == nil {
			_, err = c.Crypto.Verify(ctx, &keyholdv1.VerifyRequest{KeyId: id, Message: drillMessage, SigningAlgorithm: algorithm, Signature: sig.GetSignature()})
		}
		if err != nil {
			t.Errorf("key %s does not sign: %v", id, err)
		}
	}
}

// traffic keeps making and using keys until it is stopped.
type traffic struct {
	mu     sync.Mutex
	keys   []*acknowledgedKey
	errors []error
	stop   func()
}

func startTraffic(t *testing.T, c *client.Client) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	tr := &traffic{}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				k, err := makeKey(ctx, c, n)
				tr.mu.Lock()
				switch {
				case err == nil:
					tr.keys = append(tr.keys, k)
				case ctx.Err() == nil:
					tr.errors = append(tr.errors, err)
				}
				tr.mu.Unlock()
			}
		})
	}
	tr.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(tr.stop)
	return tr
}

// acknowledged returns the keys so far.
func (tr *traffic) acknowledged() []*acknowledgedKey {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.keys[:len(tr.keys):len(tr.keys)]
}

// keyholdd runs the daemon's program with a command that ends.
func keyholdd(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binaries.keyholdd, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("keyholdd %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func mustKeyholdd(t *testing.T, args ...string) string {
	t.Helper()
	out, err := keyholdd(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wipe moves away what a backup holds: the store, the journal and the token.
func wipe(t *testing.T, dir string) (old string) {
	t.Helper()
	old = t.TempDir()
	for _, name := range []string{"data", filepath.Join("softhsm", "tokens")} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(old, filepath.Base(name))); err != nil {
			t.Fatal(err)
		}
	}
	return old
}

var anchorText = regexp.MustCompile(`[0-9]+:[0-9a-f]{64}`)

// TestBackupDrill is the drill of docs/operations.md: backups while clients work,
// a loss of everything, a restore into empty folders, and each key that was
// acknowledged before the backup began does what it did.
func TestBackupDrill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	config, archive := filepath.Join(dir, "keyholdd.yaml"), filepath.Join(t.TempDir(), "backup.tar")
	d := start(t, dir)
	c := d.dial(t)
	first, err := makeKey(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr := startTraffic(t, c)
	eventually(t, "keys are made", func() error {
		if n := len(tr.acknowledged()); n < 30 {
			return fmt.Errorf("%d keys", n)
		}
		return nil
	})
	// The last backup is restored; those before it are for their own checks.
	var before []*acknowledgedKey
	var report string
	for i := range 4 {
		before = tr.acknowledged()
		if i < 3 {
			report = mustKeyholdd(t, "backup", "--config", config, archive+fmt.Sprint(i))
		} else {
			report = mustKeyholdd(t, "backup", "--config", config, archive)
		}
	}
	t.Logf("%d keys acknowledged before the backup:\n%s", len(before), report)
	if n := len(tr.acknowledged()); n <= len(before) {
		t.Error("no key was made during the backup: the test showed nothing")
	}
	if info, err := os.Stat(archive); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive: %v, %v", info, err)
	}
	listing, err := exec.CommandContext(t.Context(), "tar", "-tf", archive).Output()
	if err != nil || !strings.Contains(string(listing), "config/keyholdd.yaml") || strings.Contains(string(listing), "pin") || strings.Contains(string(listing), "server-key") {
		t.Errorf("tar lists %s, %v", listing, err)
	}
	if _, err := keyholdd(t, "restore", "--config", config, archive); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("restore over a running installation: %v", err)
	}
	tr.stop()
	for _, err := range tr.errors {
		t.Errorf("a client noticed the backup: %v", err)
	}
	d.stop(t)

	old := wipe(t, dir)
	restored := mustKeyholdd(t, "restore", "--config", config, archive)
	t.Logf("%s", restored)
	anchors := anchorText.FindAllString(restored, -1)
	if len(anchors) != 2 || anchors[0] != anchorText.FindString(report) {
		t.Errorf("anchors %q; the backup said %s", anchors, anchorText.FindString(report))
	}
	d = start(t, dir)
	c = d.dial(t)
	first.check(t, c)
	for _, k := range before {
		k.check(t, c)
	}
	// It goes on as an installation of its own.
	if _, err := makeKey(t.Context(), c, 0); err != nil {
		t.Error(err)
	}
	d.stop(t)
	verifyAudit(t, dir)
	// The same log up to the backup, and another one from there on.
	for path, want := range map[string]bool{filepath.Join(dir, "data", "audit"): true, filepath.Join(old, "data", "audit"): false} {
		if err := exec.CommandContext(t.Context(), binaries.keyhold, "audit", "verify", path, "--since", anchors[0]).Run(); err != nil {
			t.Errorf("%s does not hold the backup's end: %v", path, err)
		}
		err := exec.CommandContext(t.Context(), binaries.keyhold, "audit", "verify", path, "--since", anchors[1]).Run()
		if (err == nil) != want {
			t.Errorf("%s and the restore's anchor: %v", path, err)
		}
	}
	checkOrphans(t, dir)
}

// TestBackupOfStoppedDaemon: also of one that was killed, with two tokens, to a
// pipe, with secrets.
func TestBackupOfStoppedDaemon(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	config := filepath.Join(dir, "keyholdd.yaml")
	regions := []string{"--region", "us-east-1", "--region", "eu-central-1"}
	d := start(t, dir, regions...)
	k, err := makeKey(t.Context(), d.dial(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	d.kill()
	partial := without(t, config, "us-east-1")
	if out, err := keyholdd(t, "backup", "--config", partial, filepath.Join(dir, "partial.tar")); err == nil || !strings.Contains(out, "UNSERVED   the store has keys in us-east-1") {
		t.Errorf("without the region of the key: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), binaries.keyholdd, "backup", "--config", config, "--include-secrets", "-")
	var report bytes.Buffer
	cmd.Stderr = &report
	archive, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &report)
	}
	if n := strings.Count(report.String(), "in the backup"); n != 2 {
		t.Errorf("%d tokens in the backup:\n%s", n, &report)
	}
	brokenPipe(t, config)
	// All but SoftHSM's SO PIN is there: a machine of its own.
	wipe(t, dir)
	pin := filepath.Join(dir, "softhsm", "keyhold-us-east-1.pin")
	saved, err := os.ReadFile(pin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	fromPipe := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), binaries.keyholdd, "restore", "--config", config, "--keep-access-keys-active", "-")
		cmd.Stdin = bytes.NewReader(archive)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := fromPipe(); err == nil || !strings.Contains(out, pin) {
		t.Errorf("without a PIN: %v\n%s", err, out)
	}
	untar := exec.CommandContext(t.Context(), "tar", "-xOf", "-", "config/token-0.pin")
	untar.Stdin = bytes.NewReader(archive)
	got, err := untar.Output()
	if err != nil || !bytes.Equal(got, saved) {
		t.Fatalf("the PIN in the archive: %v", err)
	}
	if err := os.WriteFile(pin, got, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := fromPipe(); err != nil || !regexp.MustCompile(`access key AKIA\w+ of arn:aws:iam::\d+:root: ACTIVE, though`).MatchString(out) {
		t.Fatalf("%v\n%s", err, out)
	}
	d = start(t, dir, regions...)
	k.check(t, d.dial(t))
	d.stop(t)
	verifyAudit(t, dir)
}

// without writes the configuration without a region, and returns where.
func without(t *testing.T, config, region string) string {
	t.Helper()
	cfg, err := server.LoadConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Regions = slices.DeleteFunc(cfg.Regions, func(r server.RegionConfig) bool { return r.Name == region })
	b, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "keyholdd.yaml")
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// brokenPipe wants nothing left of a backup whose reader ends early.
func brokenPipe(t *testing.T, config string) {
	t.Helper()
	temp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), binaries.keyholdd, "backup", "--config", config, "-")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	err = cmd.Run()
	w.Close()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(stderr.String(), "broken pipe") {
		t.Errorf("backup into a broken pipe: %v\n%s", err, &stderr)
	}
	wantEmpty(t, temp)
}
