package client_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/keyhold/keyhold/client"
)

// TestEnvelopeReal: an Envelope against the real service.
func TestEnvelopeReal(t *testing.T) {
	c := dialReal(t)
	e := newEnvelope(t, c.Crypto, client.EnvelopeConfig{Cache: client.CacheConfig{MaxAge: time.Hour}})
	ec := map[string]string{"tenant": "42"}
	message := seal(t, e, "attack at dawn", ec)
	if want := 158 + len("attack at dawn"); len(message) != want {
		t.Errorf("the message has %d bytes, want %d", len(message), want)
	}
	plain := newEnvelope(t, c.Crypto, client.EnvelopeConfig{})
	if got, err := plain.Decrypt(t.Context(), message, ec); err != nil || string(got) != "attack at dawn" {
		t.Errorf("%q, %v", got, err)
	}
	refused := func(what string, e *client.Envelope, m []byte, ec map[string]string) {
		t.Helper()
		if got, err := e.Decrypt(t.Context(), m, ec); err != client.ErrDecrypt {
			t.Errorf("%s: %q, %v, want ErrDecrypt", what, got, err)
		}
	}
	for i := range message {
		bad := bytes.Clone(message)
		bad[i] ^= 0x40
		refused(fmt.Sprint("byte ", i), plain, bad, ec)
		refused(fmt.Sprint("cut to ", i), plain, message[:i], ec)
	}
	refused("context", plain, message, nil)
	refused("key", newEnvelope(t, c.Crypto, client.EnvelopeConfig{KeyID: "alias/other"}), message, ec)
	if _, err := newEnvelope(t, c.Crypto, client.EnvelopeConfig{KeyID: "alias/nothing"}).Encrypt(t.Context(), nil, nil); !isException(err, "NotFoundException") {
		t.Errorf("a key that is not there: %v", err)
	}
	anyKey := newEnvelope(t, c.Crypto, client.EnvelopeConfig{KeyID: "alias/other", AnyKey: true})
	if got, err := anyKey.Decrypt(t.Context(), message, ec); err != nil || string(got) != "attack at dawn" {
		t.Errorf("AnyKey: %q, %v", got, err)
	}
	for i := range message {
		bad := bytes.Clone(message)
		bad[i] ^= 0x40
		_, err := anyKey.Decrypt(t.Context(), bad, ec)
		const keyID, n = 3 + 1, 16 // docs/envelope-format.md and docs/ciphertext-format.md
		if named := i >= keyID && i < keyID+n; named && !isException(err, "AccessDeniedException") || !named && err != client.ErrDecrypt {
			t.Errorf("AnyKey, byte %d: %v", i, err)
		}
	}
}
