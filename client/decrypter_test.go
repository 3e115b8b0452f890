package client_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"testing"

	"github.com/keyhold/keyhold/client"
)

func TestDecrypter(t *testing.T) {
	d, err := client.NewDecrypter(t.Context(), dialReal(t).Crypto, "alias/unwrap", client.CallOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pub, _ := d.Public().(*rsa.PublicKey)
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		sealed, err := rsa.EncryptOAEP(h.New(), rand.Reader, pub, []byte("attack at dawn"), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, opts := range []*rsa.OAEPOptions{{Hash: h}, {Hash: h, MGFHash: h}} {
			if got, err := d.Decrypt(rand.Reader, sealed, opts); err != nil || string(got) != "attack at dawn" {
				t.Errorf("%v: %q, %v", h, got, err)
			}
		}
		bad := bytes.Clone(sealed)
		bad[100] ^= 1
		for name, ciphertext := range map[string][]byte{"changed": bad, "short": sealed[1:], "long": append(sealed, 0), "empty": nil} {
			if got, err := d.Decrypt(rand.Reader, ciphertext, &rsa.OAEPOptions{Hash: h}); err != client.ErrDecrypt {
				t.Errorf("%s: %q, %v, want ErrDecrypt", name, got, err)
			}
		}
		for name, opts := range map[string]crypto.DecrypterOpts{
			"none": nil, "nil": (*rsa.OAEPOptions)(nil), "PKCS #1 v1.5": &rsa.PKCS1v15DecryptOptions{}, //nolint:staticcheck // what it must refuse
			"SHA-512": &rsa.OAEPOptions{Hash: crypto.SHA512}, "no hash": &rsa.OAEPOptions{},
			"another MGF1": &rsa.OAEPOptions{Hash: h, MGFHash: crypto.SHA512}, "label": &rsa.OAEPOptions{Hash: h, Label: []byte("x")},
		} {
			if _, err := d.Decrypt(rand.Reader, sealed, opts); err == nil || errors.Is(err, client.ErrDecrypt) {
				t.Errorf("options %s: %v, want a refusal", name, err)
			}
		}
	}
	for _, alias := range []string{"alias/rsa", "alias/app", "alias/nothing"} {
		if _, err := client.NewDecrypter(t.Context(), dialReal(t).Crypto, alias, client.CallOptions{}); err == nil {
			t.Errorf("%s: it was taken", alias)
		}
	}
}

// opens encrypts text to the Decrypter's key, and wants it back.
func opens(t *testing.T, d *client.Decrypter, text string) {
	t.Helper()
	pub, _ := d.Public().(*rsa.PublicKey)
	sealed, err := rsa.EncryptOAEP(crypto.SHA256.New(), rand.Reader, pub, []byte(text), nil)
	if err != nil {
		t.Error(err)
		return
	}
	if got, err := d.Decrypt(nil, sealed, &rsa.OAEPOptions{Hash: crypto.SHA256}); err != nil || string(got) != text {
		t.Errorf("%q, %v", got, err)
	}
}
