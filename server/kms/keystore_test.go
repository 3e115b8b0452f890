package kms_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
)

// fullStore is a key store with the powers that the fake has too.
type fullStore interface {
	kms.KeyStore
	kms.Generator
	kms.MACer
	kms.RandomSource
}

// TestKeyStores holds the token and the fake to what kms.KeyStore documents:
// the fake is worth what it has in common with the token.
func TestKeyStores(t *testing.T) {
	t.Parallel()
	t.Run("token", func(t *testing.T) { testKeyStore(t, tokenstore.New(sharedToken(t))) })
	t.Run("fake", func(t *testing.T) { testKeyStore(t, newFakeStore()) })
}

func newLocator(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) kms.Locator {
	id := make([]byte, 16)
	rand.Read(id)
	return kms.Locator{ID: id, Label: "keyhold:testtest:" + rand.Text(), Spec: spec, Usage: usage}
}

func testKeyStore(t *testing.T, ks fullStore) {
	ctx := t.Context()
	l, mac := newLocator(symmetric, usageEncrypt), newLocator(hmac256, usageMac)
	for _, l := range []kms.Locator{l, mac} {
		if err := ks.Supports(l.Spec, l.Usage); err != nil {
			t.Fatal(err)
		}
		made, err := ks.Generate(ctx, l, false)
		if err != nil || made.Custody != keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED || made.PublicKey != nil {
			t.Fatalf("generated %+v, %v", made, err)
		}
	}
	if err := ks.Health(); err != nil {
		t.Errorf("health: %v", err)
	}
	testSealing(t, ks, l)
	one, err := ks.MAC(ctx, mac, []byte("message"))
	two, err2 := ks.MAC(ctx, mac, []byte("message"))
	if err != nil || err2 != nil || len(one) != 32 || !bytes.Equal(one, two) {
		t.Errorf("MAC: %x and %x, %v, %v", one, two, err, err2)
	}
	for _, n := range []int{1, 1024} {
		if b, err := ks.Random(ctx, n); err != nil || len(b) != n {
			t.Errorf("Random(%d): %d bytes, %v", n, len(b), err)
		}
	}
	objects, err := ks.Inventory(ctx)
	for _, l := range []kms.Locator{l, mac} {
		if err != nil || !slices.ContainsFunc(objects, func(o kms.StoredObject) bool { return bytes.Equal(o.ID, l.ID) && o.Label == l.Label && !o.Public }) {
			t.Errorf("the inventory of %d objects lacks one of ours, %v", len(objects), err)
		}
	}
	testDestroying(t, ks, l, mac)
}

func testSealing(t *testing.T, ks fullStore, l kms.Locator) {
	ctx, aad := t.Context(), []byte("additional data")
	for _, n := range []int{1, 4096} {
		plaintext := randomBytes(n)
		kept := bytes.Clone(plaintext)
		s, err := ks.Seal(ctx, l, aad, plaintext)
		if err != nil || len(s.IV) < 12 || len(s.IV) > 16 || len(s.Meta) > 20 || len(s.Tag) != 16 || len(s.Ciphertext) != n || !bytes.Equal(plaintext, kept) {
			t.Fatalf("sealed %d bytes to %d, %d, %d, %d, %v", n, len(s.IV), len(s.Meta), len(s.Ciphertext), len(s.Tag), err)
		}
		if got, err := ks.Open(ctx, l, aad, s); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("opened to %d bytes, %v", len(got), err)
		}
		for name, bad := range map[string]kms.Sealed{
			"tag":        {IV: s.IV, Meta: s.Meta, Ciphertext: s.Ciphertext, Tag: flipped(s.Tag, 127)},
			"ciphertext": {IV: s.IV, Meta: s.Meta, Ciphertext: flipped(s.Ciphertext, 0), Tag: s.Tag},
			"IV":         {IV: flipped(s.IV, 5), Meta: s.Meta, Ciphertext: s.Ciphertext, Tag: s.Tag},
			"metadata":   {IV: s.IV, Meta: append(bytes.Clone(s.Meta), 1), Ciphertext: s.Ciphertext, Tag: s.Tag},
			"IV of 16":   {IV: append(bytes.Clone(s.IV), 0, 0, 0, 0), Meta: s.Meta, Ciphertext: s.Ciphertext, Tag: s.Tag},
		} {
			if got, err := ks.Open(ctx, l, aad, bad); !errors.Is(err, kms.ErrNotAuthentic) || got != nil {
				t.Errorf("%s: opened to %d bytes, %v", name, len(got), err)
			}
		}
		if _, err := ks.Open(ctx, l, []byte("other data"), s); !errors.Is(err, kms.ErrNotAuthentic) {
			t.Errorf("opens with other data: %v", err)
		}
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := ks.Seal(over, l, aad, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("sealing after the end: %v", err)
	}
	late, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	if _, err := ks.Open(late, l, aad, kms.Sealed{IV: make([]byte, 12), Ciphertext: []byte("x"), Tag: make([]byte, 16)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("opening after the deadline: %v", err)
	}
}

func testDestroying(t *testing.T, ks fullStore, l, mac kms.Locator) {
	ctx, aad := t.Context(), []byte("additional data")
	s, err := ks.Seal(ctx, l, aad, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for range 10 { // hot keys may have copies
		if _, err := ks.Open(ctx, l, aad, s); err != nil {
			t.Fatal(err)
		}
	}
	ks.Retire(l)
	if _, err := ks.Open(ctx, l, aad, s); err != nil {
		t.Errorf("a retired key does not work: %v", err)
	}
	other := l
	other.Label = "another"
	if err := ks.Destroy(ctx, other); !errors.Is(err, kms.ErrKeyMissing) {
		t.Errorf("destroyed by id alone: %v", err)
	}
	for _, l := range []kms.Locator{l, mac} {
		if err := ks.Destroy(ctx, l); err != nil {
			t.Errorf("destroy: %v", err)
		}
		if err := ks.Destroy(ctx, l); !errors.Is(err, kms.ErrKeyMissing) {
			t.Errorf("destroy again: %v", err)
		}
	}
	if _, err := ks.Open(ctx, l, aad, s); !errors.Is(err, kms.ErrKeyMissing) {
		t.Errorf("opens with a key that is destroyed: %v", err)
	}
	if _, err := ks.Seal(ctx, l, aad, []byte("x")); !errors.Is(err, kms.ErrKeyMissing) {
		t.Errorf("seals with a key that is destroyed: %v", err)
	}
	if _, err := ks.MAC(ctx, mac, []byte("x")); !errors.Is(err, kms.ErrKeyMissing) {
		t.Errorf("computes a MAC with a key that is destroyed: %v", err)
	}
	ks.Retire(l)
	objects, err := ks.Inventory(ctx)
	if err != nil || slices.ContainsFunc(objects, func(o kms.StoredObject) bool { return bytes.Equal(o.ID, l.ID) }) {
		t.Errorf("the inventory still has the key, %v", err)
	}
}
