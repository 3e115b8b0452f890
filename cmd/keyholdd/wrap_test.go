package main

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKeysThatLeave: the tool wraps, unwraps, exports, derives and makes pairs,
// and what comes out is what the rest of the world makes of it.
func TestKeysThatLeave(t *testing.T) {
	t.Parallel()
	d := start(t, filepath.Join(t.TempDir(), "dev"))
	dir := t.TempDir()
	try := func(stdin []byte, args ...string) ([]byte, error) {
		return d.keyhold(t.Context(), stdin, args...)
	}
	do := func(stdin []byte, args ...string) []byte {
		t.Helper()
		out, err := try(stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	do(nil, "key", "create", "--usage", "WRAP_UNWRAP", "--alias", "wrapper")
	own := []byte("0123456789abcdef0123456789abcdef")
	for _, algorithm := range []string{"AES_KWP", "AES_KW"} {
		wrapped := do(own, "wrap", "--key", "alias/wrapper", "--algorithm", algorithm)
		if len(wrapped) != len(own)+8 || bytes.Contains(wrapped, own[:8]) {
			t.Errorf("%s: %x", algorithm, wrapped)
		}
		if got := do(wrapped, "unwrap", "--key", "alias/wrapper", "--algorithm", algorithm); !bytes.Equal(got, own) {
			t.Errorf("%s: %q", algorithm, got)
		}
		wrapped[0] ^= 1
		if _, err := try(wrapped, "unwrap", "--key", "alias/wrapper", "--algorithm", algorithm); err == nil || !strings.Contains(err.Error(), "InvalidCiphertextException") {
			t.Errorf("%s, changed: %v", algorithm, err)
		}
	}

	// An HMAC key that has left makes the same MACs outside.
	do(nil, "key", "create", "--spec", "HMAC_256", "--custody", "EXPORTABLE", "--alias", "mac")
	exported := do(nil, "key", "export", "alias/mac", "--wrapping-key", "alias/wrapper")
	h := hmac.New(sha256.New, do(exported, "unwrap", "--key", "alias/wrapper"))
	h.Write([]byte("message"))
	if inside := do([]byte("message"), "mac", "--key", "alias/mac"); !hmac.Equal(inside, h.Sum(nil)) {
		t.Errorf("MACs: %x inside, %x outside", inside, h.Sum(nil))
	}
	do(nil, "key", "create", "--alias", "stays")
	if out, err := try(nil, "key", "export", "alias/stays", "--wrapping-key", "alias/wrapper"); err == nil {
		t.Errorf("a key that is not exportable left: %x", out)
	}

	// The peer derives the same secret.
	do(nil, "key", "create", "--spec", "ECC_NIST_P256", "--usage", "KEY_AGREEMENT", "--alias", "agree")
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(peer.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	secret := do(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), "derive", "--key", "alias/agree")
	ours, err := x509.ParsePKIXPublicKey(do(nil, "pubkey", "--key", "alias/agree", "--format", "der"))
	if err != nil {
		t.Fatal(err)
	}
	ourECDH, err := ours.(*ecdsa.PublicKey).ECDH()
	if err != nil {
		t.Fatal(err)
	}
	if want, err := peer.ECDH(ourECDH); err != nil || !bytes.Equal(secret, want) {
		t.Errorf("secret %x, want %x, %v", secret, want, err)
	}

	// A pair: the encrypted private key opens to the one of the public key.
	public, sealed := filepath.Join(dir, "pub.pem"), filepath.Join(dir, "k.kh")
	do(nil, "datakeypair", "--key", "alias/stays", "--spec", "ECC_NIST_P256", "--context", "a=b",
		"--private-out", filepath.Join(dir, "k.pem"), "--public-out", public, "--ciphertext-out", sealed)
	private, err := x509.ParsePKCS8PrivateKey(do(nil, "decrypt", "--context", "a=b", sealed))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM: %s", text)
	}
	if pub, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil || !private.(*ecdsa.PrivateKey).PublicKey.Equal(pub) {
		t.Errorf("the public key is not the private one's: %v", err)
	}
	do(nil, "datakeypair", "--key", "alias/stays", "--spec", "RSA_2048", "--without-plaintext")
	d.stop(t)
	verifyAudit(t, d.dir)
}
