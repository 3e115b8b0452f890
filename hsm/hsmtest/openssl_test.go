package hsmtest_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
)

// opensslWrap wraps, or unwraps with "-d", by the openssl command: an
// implementation that is not ours. It passes on 4,096 bytes at a time, and does not
// wrap in parts.
func opensslWrap(t *testing.T, direction string, alg hsm.WrapAlgorithm, key, input []byte) ([]byte, error) {
	t.Helper()
	cipher := []string{"-id-aes256-wrap-pad", "-iv", "A65959A6"}
	if alg == hsm.AESKW {
		cipher = []string{"-id-aes256-wrap", "-iv", "A6A6A6A6A6A6A6A6"}
	}
	file := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(file, input, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"enc", direction, "-in", file, "-K", hex.EncodeToString(key)}, cipher...)
	return exec.CommandContext(t.Context(), "openssl", args...).Output()
}

// opensslMost is what opensslWrap can unwrap to.
const opensslMost = 4096 - 8

// TestOpenSSLAgrees: what the token wraps openssl unwraps, and the other way
// round, under keys that both have.
func TestOpenSSLAgrees(t *testing.T) {
	f := hsmtest.New(t)
	token := f.Open(t)
	kek := make([]byte, 32)
	rand.Read(kek) // never fails (crypto/rand)
	if _, err := f.Importer(t).Import(hsmtest.ID("kek"), hsmtest.Material{KEK: kek}); err != nil {
		t.Fatal(err)
	}
	key := token.Key(hsm.AES256, hsm.PurposeWrap, hsmtest.ID("kek"))
	wraps := 0
	for _, alg := range []hsm.WrapAlgorithm{hsm.AESKWP, hsm.AESKW} {
		for _, n := range []int{1, 5, 7, 8, 9, 16, 24, 28, 32, 33, 48, 64, 1000, 2048, opensslMost, hsm.MaxWrapBytes - 1, hsm.MaxWrapBytes} {
			if alg == hsm.AESKW && (n < 16 || n%8 != 0) {
				continue
			}
			plaintext := make([]byte, n)
			rand.Read(plaintext)
			theirs, err := opensslWrap(t, "-e", alg, kek, plaintext)
			if err != nil {
				t.Fatalf("openssl wraps %d bytes by %s: %v", n, alg, err)
			}
			got, err := key.UnwrapBytes(t.Context(), alg, theirs)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s, %d bytes: the token unwraps openssl's to %d bytes, %v", alg, n, len(got), err)
			}
			ours, err := key.WrapBytes(t.Context(), alg, plaintext)
			if n%8 != 0 && errors.Is(err, hsm.ErrUnsupported) {
				continue // SoftHSM 2.6.1
			}
			if err != nil {
				t.Fatalf("the token wraps %d bytes by %s: %v", n, alg, err)
			}
			if wraps++; n > opensslMost {
				continue
			}
			got, err = opensslWrap(t, "-d", alg, kek, ours)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s, %d bytes: openssl unwraps the token's to %d bytes, %v", alg, n, len(got), err)
			}
		}
	}
	if wraps < 12 {
		t.Errorf("the token wrapped %d times only", wraps)
	}
}

// TestOpenSSLExport: a key that leaves the token under a key that openssl has
// too is the same key there.
func TestOpenSSLExport(t *testing.T) {
	f := hsmtest.New(t)
	token := f.Open(t)
	kek := bytes.Repeat([]byte{0x42}, 32)
	if _, err := f.Importer(t).Import(hsmtest.ID("kek"), hsmtest.Material{KEK: kek}); err != nil {
		t.Fatal(err)
	}
	req := hsm.GenerateRequest{Spec: hsm.HMAC256, Purpose: hsm.PurposeMAC, ID: hsmtest.ID("mac"), Label: "mac", Exportable: true}
	if _, err := token.Generate(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	target := token.Key(req.Spec, req.Purpose, req.ID)
	wrapped, err := token.Key(hsm.AES256, hsm.PurposeWrap, hsmtest.ID("kek")).WrapKey(t.Context(), hsm.AESKWP, target)
	if err != nil {
		t.Fatal(err)
	}
	value, err := opensslWrap(t, "-d", hsm.AESKWP, kek, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	code, err := token.Key(req.Spec, req.Purpose, req.ID).MAC(t.Context(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:"+hex.EncodeToString(value), "-binary")
	cmd.Stdin = bytes.NewReader([]byte("message"))
	theirs, err := cmd.Output()
	if err != nil || !bytes.Equal(theirs, code) {
		t.Errorf("openssl's HMAC is %x, %v, the token's %x", theirs, err, code)
	}
}
