package kms_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// Each bit of each byte of a ciphertext changed, and every truncation: one
// error without a reason. In the key id it is another key's ciphertext.
func TestSpoiltCiphertexts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ec := map[string]string{"a": "b"}
	id := w.newAESKey()
	for _, n := range []int{1, 40} {
		blob := w.encrypt(id, randomBytes(n), ec)
		spoilt := make(map[string][]byte)
		for i := range blob {
			for _, bit := range []int{0, 7} {
				spoilt[fmt.Sprintf("byte %d, bit %d", i, bit)] = flipped(blob, i*8+bit)
			}
			if i > 0 {
				spoilt[fmt.Sprintf("first %d", i)] = blob[:i]
				spoilt[fmt.Sprintf("last %d", i)] = blob[len(blob)-i:]
			}
		}
		spoilt["one byte more"] = append(slices.Clone(blob), 0)
		spoilt["one byte before"] = append([]byte{0}, blob...)
		spoilt["twice"] = append(slices.Clone(blob), blob...)
		spoilt["longest"] = append(slices.Clone(blob), make([]byte, 6144-len(blob))...)
		for name, b := range spoilt {
			want := kms.CodeInvalidCiphertext
			if i := differs(blob, b); len(b) == len(blob) && i >= 1 && i <= 16 {
				want = kms.CodeAccessDenied
			}
			e := refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: b, EncryptionContext: ec}, want)
			if want == kms.CodeInvalidCiphertext && (e.Message != "" || len(e.Violations) != 0 || e.Unavailable) {
				t.Errorf("%s: the refusal tells more: %+v", name, e)
			}
		}
		for name, other := range map[string]map[string]string{
			"none": nil, "empty pair": {"": ""}, "other value": {"a": "c"}, "other key": {"b": "b"}, "one more": {"a": "b", "c": "d"}, "other case": {"A": "b"}, "swapped": {"b": "a"}, "joined": {"ab": ""},
		} {
			if e := refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: other}, kms.CodeInvalidCiphertext); e.Message != "" {
				t.Errorf("context %s: the refusal tells more: %+v", name, e)
			}
		}
		if got := w.decrypt(blob, ec); len(got) != n {
			t.Errorf("the whole ciphertext opens to %d bytes", len(got))
		}
	}
}

// differs returns the first place where a and b differ, or -1.
func differs(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// A bad ciphertext is as cheap as a good one for everybody else: no seal is
// counted and the store goes on.
func TestBadCiphertextsAreHarmless(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.newAESKey()
	blob := w.encrypt(id, []byte("x"), nil)
	bad := flipped(blob, len(blob)*8-1)
	for range 200 {
		refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: bad}, kms.CodeInvalidCiphertext)
	}
	if got := string(w.decrypt(blob, nil)); got != "x" || w.svc.Ready() != nil {
		t.Errorf("afterwards it opens to %q, ready: %v", got, w.svc.Ready())
	}
}

func TestWrongKeyID(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id, other, mac := w.newAESKey(), w.newAESKey(), w.newKey(hmac256, usageMac)
	w.createAlias("alias/other", other)
	w.createAlias("alias/mine", id)
	blob := w.encrypt(id, []byte("x"), nil)
	for _, name := range []string{other, arnOfTest + "key/" + other, "alias/other", arnOfTest + "alias/other"} {
		refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, KeyId: &name}, kms.CodeIncorrectKey)
		refuse(w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceKeyId: &name, DestinationKeyId: id}, kms.CodeIncorrectKey)
		refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: []byte("garbage"), KeyId: &name}, kms.CodeInvalidCiphertext)
	}
	for _, name := range []string{id, arnOfTest + "key/" + id, "alias/mine", arnOfTest + "alias/mine"} {
		do[proto.Message](w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, KeyId: &name})
		do[proto.Message](w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceKeyId: &name, DestinationKeyId: other})
	}
	refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, KeyId: &mac}, kms.CodeInvalidKeyUsage)
	refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, KeyId: &id, EncryptionAlgorithm: oaepSHA256}, kms.CodeInvalidKeyUsage)
	refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, KeyId: ptr(unknownID)}, kms.CodeNotFound)
}

func TestEncryptionContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.newAESKey()
	many := make(map[string]string)
	for i := range 200 {
		many[fmt.Sprintf("key %d", i)] = strings.Repeat("v", i%7)
	}
	// Go's maps have another order at every look.
	for range 5 {
		if got := w.decrypt(w.encrypt(id, []byte("x"), many), cloneContext(many)); string(got) != "x" {
			t.Fatalf("it opens to %q", got)
		}
	}
	w.decrypt(w.encrypt(id, []byte("x"), nil), map[string]string{})
	w.decrypt(w.encrypt(id, []byte("x"), map[string]string{}), nil)
	w.decrypt(w.encrypt(id, []byte("x"), map[string]string{"": ""}), map[string]string{"": ""})
	longest := contextOf(8192)
	w.decrypt(w.encrypt(id, []byte("x"), longest), longest)
}

func cloneContext(ec map[string]string) map[string]string {
	c := make(map[string]string)
	for k, v := range ec {
		c[k] = v
	}
	return c
}

// A key store may choose an IV of 16 bytes and metadata of its own.
func TestExternalFraming(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ iv, meta int }{{12, 0}, {12, 20}, {13, 1}, {16, 0}, {16, 20}} {
		fake := newFakeStore()
		fake.ivBytes, fake.meta = c.iv, randomBytes(c.meta)
		w := buildWorld(t, fake)
		id := w.newAESKey()
		blob := w.encrypt(id, []byte("attack"), nil)
		if want := 1 + 16 + 16 + 1 + c.iv + 1 + c.meta + 6 + 16; len(blob) != want {
			t.Errorf("IV %d, metadata %d: the blob has %d bytes, want %d", c.iv, c.meta, len(blob), want)
		}
		if got := w.decrypt(blob, nil); string(got) != "attack" {
			t.Errorf("it opens to %q", got)
		}
		for i := range blob {
			want := kms.CodeInvalidCiphertext
			if i >= 1 && i <= 16 {
				want = kms.CodeAccessDenied
			}
			refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: flipped(blob, i*8)}, want)
		}
	}
}

// A store that breaks its promise about lengths is an internal fault, and
// nothing that could not be read again is handed out.
func TestBrokenPromises(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(*kms.Sealed){
		"short IV": func(s *kms.Sealed) { s.IV = s.IV[:11] }, "no IV": func(s *kms.Sealed) { s.IV = nil }, "long IV": func(s *kms.Sealed) { s.IV = make([]byte, 17) },
		"short tag": func(s *kms.Sealed) { s.Tag = s.Tag[:12] }, "no tag": func(s *kms.Sealed) { s.Tag = nil }, "long metadata": func(s *kms.Sealed) { s.Meta = make([]byte, 21) },
		"no ciphertext": func(s *kms.Sealed) { s.Ciphertext = nil }, "giant": func(s *kms.Sealed) { s.Ciphertext = make([]byte, 6144) },
	} {
		w := buildWorld(t, &liar{fakeStore: newFakeStore(), lie: breakIt})
		e := refuse(w, &keyholdv1.EncryptRequest{KeyId: w.newAESKey(), Plaintext: []byte("x")}, kms.CodeInternal)
		if e.Unavailable {
			t.Errorf("%s: a broken store is no outage", name)
		}
	}
	short := buildWorld(t, &liar{fakeStore: newFakeStore(), lie: func(*kms.Sealed) {}, fewer: true})
	refuse(short, &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(8))}, kms.CodeInternal)
	refuse(short, &keyholdv1.GenerateDataKeyRequest{KeyId: short.newAESKey(), NumberOfBytes: ptr(int32(8))}, kms.CodeInternal)
}

// liar changes what sealing returns.
type liar struct {
	*fakeStore
	lie   func(*kms.Sealed)
	fewer bool
}

func (l *liar) Seal(ctx context.Context, at kms.Locator, aad, plaintext []byte) (kms.Sealed, error) {
	s, err := l.fakeStore.Seal(ctx, at, aad, plaintext)
	l.lie(&s)
	return s, err
}

func (l *liar) Random(ctx context.Context, n int) ([]byte, error) {
	if l.fewer {
		n--
	}
	return l.fakeStore.Random(ctx, n)
}

// Powers that a store lacks are said to lack.
func TestMissingPowers(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, fake)
	aes, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	blob := w.encrypt(aes, []byte("x"), nil)
	w.cfg.Regions[testRegion] = onlyStore{fake}
	w.start()
	if !bytes.Equal(w.decrypt(blob, nil), []byte("x")) {
		t.Error("sealing does not work")
	}
	for _, req := range []proto.Message{&keyholdv1.CreateKeyRequest{}, &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(1))}} {
		refuse(w, req, kms.CodeUnsupportedOperation)
	}
	// These do not declare UnsupportedOperationException.
	for _, req := range []proto.Message{
		&keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("x"), MacAlgorithm: macSHA256},
		&keyholdv1.VerifyMacRequest{KeyId: mac, Message: []byte("x"), Mac: []byte("x"), MacAlgorithm: macSHA256},
		&keyholdv1.GenerateDataKeyRequest{KeyId: aes, NumberOfBytes: ptr(int32(1))},
	} {
		refuse(w, req, kms.CodeInvalidKeyUsage)
	}
	if orphans, err := w.svc.Reconcile(t.Context()); err != nil || len(orphans) != 0 {
		t.Errorf("a store without inventory: %v, %v", orphans, err)
	}
}
