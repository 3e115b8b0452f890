package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// TestSession is what a new user does: the real daemon, the real tool.
func TestSession(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir, "--aws", "127.0.0.1:0", "--xks", "127.0.0.1:0")
	do := func(stdin string, args ...string) []byte {
		t.Helper()
		out, err := d.keyhold(t.Context(), []byte(stdin), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var meta struct{ KeyId, KeyState, KeyUsage, AWSAccountId, KeyCustody string }
	if err := json.Unmarshal(do("", "key", "create", "--alias", "app", "--output", "json"), &meta); err != nil {
		t.Fatal(err)
	}
	if meta.KeyState != "Enabled" || meta.AWSAccountId != "000000000000" || meta.KeyCustody != "GENERATED" || meta.KeyUsage != "ENCRYPT_DECRYPT" {
		t.Errorf("the new key is %+v", meta)
	}
	const secret = "canary plaintext: attack at dawn"
	sealed := do(secret, "encrypt", "--key", "alias/app", "--context", "purpose=test")
	if bytes.Contains(sealed, []byte("dawn")) {
		t.Error("the ciphertext shows its plaintext")
	}
	if got := do(string(sealed), "decrypt", "--context", "purpose=test"); string(got) != secret {
		t.Errorf("decrypt gives %q", got)
	}
	if _, err := d.keyhold(t.Context(), sealed, "decrypt"); err == nil || !strings.Contains(err.Error(), "InvalidCiphertextException") {
		t.Errorf("decrypt without its context: %v", err)
	}

	do("", "key", "create", "--spec", "HMAC_256", "--alias", "mac")
	mac := do("message", "mac", "--key", "alias/mac")
	if again := do("message", "mac", "--key", "alias/mac"); len(mac) != 32 || !bytes.Equal(mac, again) {
		t.Errorf("mac gives %x, then %x", mac, again)
	}

	do("", "key", "create", "--spec", "ECC_NIST_P256", "--alias", "sig")
	sig := do("message", "sign", "--key", "alias/sig", "--algorithm", "ECDSA_SHA_256")
	block, _ := pem.Decode(do("", "pubkey", "--key", "alias/sig"))
	if block == nil {
		t.Fatal("pubkey gives no PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	if !ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), digest[:], sig) {
		t.Error("the signature does not verify with the public key")
	}

	if fi, err := os.Stat(filepath.Join(dir, "dev.env")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("dev.env: %v, %v", fi, err)
	}
	for _, name := range []string{
		"KEYHOLD_ADDR", "KEYHOLD_CA", "KEYHOLD_CERT", "KEYHOLD_KEY", "KEYHOLD_ADMIN_URL", "KEYHOLD_TOKEN_MODULE",
		"KEYHOLD_TOKEN_LABEL", "KEYHOLD_TOKEN_PIN_FILE", "SOFTHSM2_CONF", "AWS_ACCOUNT_ID", "AWS_REGION", "AWS_DEFAULT_REGION",
	} {
		if d.env[name] == "" {
			t.Errorf("dev.env lacks %s", name)
		}
	}

	// Ctrl-C, and a second start finds all keys again.
	d.stop(t)
	verifyAudit(t, dir)
	d = start(t, dir)
	if got := do(string(sealed), "decrypt", "--context", "purpose=test"); string(got) != secret {
		t.Errorf("after a restart decrypt gives %q", got)
	}
	if again := do("message", "mac", "--key", "alias/mac"); !bytes.Equal(mac, again) {
		t.Error("after a restart the MAC differs")
	}
	d.stop(t)
	checkNoSecret(t, dir, d.log.String(), secret)
}

// checkNoSecret looks for a plaintext in everything that the daemon wrote.
func checkNoSecret(t *testing.T, dir, log, secret string) {
	t.Helper()
	if strings.Contains(log, secret) {
		t.Error("the log shows a plaintext")
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s holds a plaintext", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRegions: each region has a token of its own, and knows its keys only.
func TestRegions(t *testing.T) {
	t.Parallel()
	d := start(t, filepath.Join(t.TempDir(), "dev"), "--region", "eu-west-1", "--region", "us-west-2", "--account", "123456789012")
	c := d.dial(t)
	west := metadata.AppendToOutgoingContext(t.Context(), "keyhold-region", "us-west-2")
	resp, err := c.Keys.CreateKey(west, &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	arn := resp.GetKeyMetadata().GetArn()
	if !strings.HasPrefix(arn, "arn:aws:kms:us-west-2:123456789012:key/") {
		t.Errorf("the key is %s", arn)
	}
	if _, err := c.Keys.DescribeKey(west, &keyholdv1.DescribeKeyRequest{KeyId: arn}); err != nil {
		t.Error(err)
	}
	if _, err := c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: resp.GetKeyMetadata().GetKeyId()}); err == nil {
		t.Error("the other region knows the key")
	}
	nowhere := metadata.AppendToOutgoingContext(t.Context(), "keyhold-region", "mars-1")
	if _, err := c.Keys.ListKeys(nowhere, &keyholdv1.ListKeysRequest{}); err == nil {
		t.Error("a region that is not served answers")
	}
	tokens, err := filepath.Glob(filepath.Join(d.dir, "softhsm", "tokens", "*"))
	if err != nil || len(tokens) != 2 {
		t.Errorf("tokens: %v, %v, want two", tokens, err)
	}
	d.stop(t)
}

// TestSecondDaemonIsRefused: two processes on one folder would each think
// that it owns the keys.
func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	out, err := exec.Command(binaries.keyholdd, "serve", "--config", filepath.Join(dir, "keyholdd.yaml")).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("in use")) {
		t.Errorf("a second daemon: %v\n%s", err, out)
	}
	if _, err := d.dial(t).Keys.ListKeys(t.Context(), &keyholdv1.ListKeysRequest{}); err != nil {
		t.Errorf("the first one after it: %v", err)
	}
	d.stop(t)
}

// TestCommandLine: misuse is told apart from failure, and both say what to do.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"version"}, 0, "keyholdd"},
		{[]string{"serve"}, 2, "--config"},
		{[]string{"serve", "--config", "/nonexistent"}, 1, "no such file"},
		{[]string{"serve", "--nonsense"}, 2, "unknown flag"},
		{[]string{"nonsense"}, 2, "unknown command"},
		{[]string{"dev", "extra"}, 2, "unknown command"},
		{[]string{"dev", "--dir", t.TempDir(), "--account", "12"}, 1, "12 digits"},
		{[]string{"dev", "--dir", t.TempDir(), "--grpc", "nonsense"}, 1, "--grpc"},
		{[]string{"dev", "--dir", t.TempDir() + "/with blank"}, 1, "another folder"},
		{[]string{"dev", "--dir", t.TempDir() + "/a=b"}, 1, "another folder"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), tt.args, strings.NewReader(""), &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("keyholdd %s: exit %d, %q; want %d and %q", strings.Join(tt.args, " "), code, out.String(), tt.code, tt.want)
		}
	}
}
