package kms_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"hash"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/keyhold/keyhold/hsm"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// testSymmetric opens what Encrypt made with the token alone and with an AAD
// that is put together here from docs/ciphertext-format.md.
func (f *fleet) testSymmetric(t *testing.T) {
	w := f.on(t)
	stored, err := w.db.Key(t.Context(), kms.KeyID(f.aes))
	if err != nil {
		t.Fatal(err)
	}
	plaintext, ec := []byte("attack at dawn"), map[string]string{"tenant": "42", "purpose": "backup"}
	got := do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: f.aes, Plaintext: plaintext, EncryptionContext: ec})
	if got.GetEncryptionAlgorithm() != algSymmetric || got.GetKeyId() != stored.ARN() {
		t.Errorf("Encrypt answers %s and %s", got.GetEncryptionAlgorithm(), got.GetKeyId())
	}
	b := got.GetCiphertextBlob()
	if len(b) != 63+len(plaintext) {
		t.Fatalf("the blob has %d bytes, want 63 more than the plaintext's %d", len(b), len(plaintext))
	}
	ref := stored.Current().Ref
	if !bytes.Equal(b[17:33], ref[:]) || b[33] != 12 || b[46] != 0 {
		t.Errorf("the blob's head is %x", b[:47])
	}
	h := sha256.Sum256([]byte("\x00\x00\x00\x02\x00\x00\x00\x07purpose\x00\x00\x00\x06backup\x00\x00\x00\x06tenant\x00\x00\x00\x0242"))
	aad := slices.Concat([]byte{0xFF, 0xFF, 1}, b[1:33], h[:])
	opened, err := sharedToken(t).Key(hsm.AES256, hsm.PurposeSeal, stored.Current().Locator.ID).Open(t.Context(), b[34:46], aad, b[47:])
	if err != nil || !bytes.Equal(opened, plaintext) {
		t.Errorf("the token opens it to %q, %v", opened, err)
	}
	back := do[*keyholdv1.DecryptResponse](w, &keyholdv1.DecryptRequest{CiphertextBlob: b, EncryptionContext: ec})
	want := &keyholdv1.DecryptResponse{
		KeyId: stored.ARN(), Plaintext: plaintext, EncryptionAlgorithm: algSymmetric, KeyMaterialId: string(stored.Current().MaterialID),
	}
	if d := cmp.Diff(want, back, protocmp.Transform()); d != "" {
		t.Errorf("Decrypt (-want +got):\n%s", d)
	}
	if other := w.encrypt(f.aes, plaintext, ec); bytes.Equal(other, b) {
		t.Error("two encryptions gave one ciphertext")
	}
}

// testOAEP checks RSA encryption at its limits, both ways against the host.
func (f *fleet) testOAEP(t *testing.T) {
	limits := map[keyholdv1.KeySpec]map[keyholdv1.EncryptionAlgorithmSpec]int{
		rsa2048: {oaepSHA256: 190, oaepSHA1: 214}, rsa3072: {oaepSHA256: 318, oaepSHA1: 342}, rsa4096: {oaepSHA256: 446, oaepSHA1: 470},
	}
	hashes := map[keyholdv1.EncryptionAlgorithmSpec]func() hash.Hash{oaepSHA1: sha1.New, oaepSHA256: sha256.New}
	f.each(t, func(w *world, i int, id string) {
		k := keyKinds[i]
		if !k.pair || k.usage != usageEncrypt {
			return
		}
		pub := w.rsaKey(id)
		for alg, most := range limits[k.spec] {
			for _, n := range []int{1, most} {
				plaintext := randomBytes(n)
				got := do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: plaintext, EncryptionAlgorithm: alg})
				if len(got.GetCiphertextBlob()) != pub.Size() || got.GetEncryptionAlgorithm() != alg {
					w.t.Errorf("%d bytes by %s, want %d by %s", len(got.GetCiphertextBlob()), got.GetEncryptionAlgorithm(), pub.Size(), alg)
				}
				host, err := rsa.EncryptOAEP(hashes[alg](), cryptoRand{}, pub, plaintext, nil)
				if err != nil {
					w.t.Fatal(err)
				}
				for _, ciphertext := range [][]byte{got.GetCiphertextBlob(), host} {
					back := do[*keyholdv1.DecryptResponse](w, &keyholdv1.DecryptRequest{KeyId: &id, CiphertextBlob: ciphertext, EncryptionAlgorithm: alg})
					if !bytes.Equal(back.GetPlaintext(), plaintext) || back.GetEncryptionAlgorithm() != alg || back.GetKeyMaterialId() != "" {
						w.t.Errorf("Decrypt of %d bytes by %s differs", n, alg)
					}
				}
				w.refuseSpoiltOAEP(id, alg, host)
			}
			for _, dry := range []bool{false, true} {
				e := refuse(w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: randomBytes(most + 1), EncryptionAlgorithm: alg, DryRun: &dry}, kms.CodeValidation)
				if want := fmt.Sprintf("cannot encrypt data larger than %d bytes", most); !bytes.Contains([]byte(e.Message), []byte(want)) {
					w.t.Errorf("the refusal says %q, want the limit %d", e.Message, most)
				}
			}
			refuse(w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), EncryptionAlgorithm: alg, EncryptionContext: map[string]string{"a": "b"}}, kms.CodeValidation)
			refuse(w, &keyholdv1.DecryptRequest{KeyId: &id, CiphertextBlob: f.blob, EncryptionAlgorithm: alg, EncryptionContext: map[string]string{"a": "b"}}, kms.CodeValidation)
			refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: make([]byte, pub.Size()), EncryptionAlgorithm: alg}, kms.CodeValidation)
		}
	})
}

func (w *world) refuseSpoiltOAEP(id string, alg keyholdv1.EncryptionAlgorithmSpec, ciphertext []byte) {
	w.t.Helper()
	other := oaepSHA1 + oaepSHA256 - alg
	for _, spoilt := range [][]byte{
		flipped(ciphertext, len(ciphertext)*8-1), flipped(ciphertext, 0), ciphertext[:len(ciphertext)-1], append(slices.Clone(ciphertext), 0),
		make([]byte, len(ciphertext)), bytes.Repeat([]byte{0xFF}, len(ciphertext)),
		{1},
	} {
		e := refuse(w, &keyholdv1.DecryptRequest{KeyId: &id, CiphertextBlob: spoilt, EncryptionAlgorithm: alg}, kms.CodeInvalidCiphertext)
		if e.Message != "" {
			w.t.Errorf("the refusal tells a reason: %q", e.Message)
		}
	}
	refuse(w, &keyholdv1.DecryptRequest{KeyId: &id, CiphertextBlob: ciphertext, EncryptionAlgorithm: other}, kms.CodeInvalidCiphertext)
}

func (w *world) rsaKey(id string) *rsa.PublicKey {
	w.t.Helper()
	spki := do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: id}).GetPublicKey()
	k, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		w.t.Fatal(err)
	}
	return k.(*rsa.PublicKey)
}

// testReEncrypt moves ciphertexts between keys of all kinds that encrypt.
func (f *fleet) testReEncrypt(t *testing.T) {
	w := f.on(t)
	second := w.newAESKey()
	plaintext, ec, ec2 := []byte("re-encrypted"), map[string]string{"a": "1"}, map[string]string{"b": "2"}
	type side struct {
		key string
		alg keyholdv1.EncryptionAlgorithmSpec
		ec  map[string]string
	}
	sides := []side{{f.aes, 0, ec}, {f.aes, algSymmetric, nil}, {second, 0, ec2}}
	for i, k := range keyKinds {
		if k.usage == usageEncrypt && k.pair {
			sides = append(sides, side{f.ids[i], k.encrypt[i%2], nil})
		}
	}
	for _, from := range sides {
		blob := do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: from.key, Plaintext: plaintext, EncryptionAlgorithm: from.alg, EncryptionContext: from.ec}).GetCiphertextBlob()
		for _, to := range sides {
			req := &keyholdv1.ReEncryptRequest{
				CiphertextBlob: blob, SourceEncryptionContext: from.ec, SourceEncryptionAlgorithm: from.alg,
				DestinationKeyId: to.key, DestinationEncryptionContext: to.ec, DestinationEncryptionAlgorithm: to.alg,
			}
			if from.alg > algSymmetric {
				refuse(w, req, kms.CodeValidation) // an RSA ciphertext does not name its key
				req.SourceKeyId = &from.key
			}
			got := do[*keyholdv1.ReEncryptResponse](w, req)
			source, destination := w.metadata(from.key), w.metadata(to.key)
			want := &keyholdv1.ReEncryptResponse{
				CiphertextBlob: got.GetCiphertextBlob(), SourceKeyId: source.GetArn(), KeyId: destination.GetArn(),
				SourceEncryptionAlgorithm: max(from.alg, algSymmetric), DestinationEncryptionAlgorithm: max(to.alg, algSymmetric),
				SourceKeyMaterialId: source.GetCurrentKeyMaterialId(), DestinationKeyMaterialId: destination.GetCurrentKeyMaterialId(),
			}
			if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
				t.Errorf("ReEncrypt (-want +got):\n%s", d)
			}
			back := do[*keyholdv1.DecryptResponse](w, &keyholdv1.DecryptRequest{KeyId: &to.key, CiphertextBlob: got.GetCiphertextBlob(), EncryptionAlgorithm: to.alg, EncryptionContext: to.ec})
			if !bytes.Equal(back.GetPlaintext(), plaintext) {
				t.Error("what comes back is not what went in")
			}
		}
	}
	f.refuseReEncrypt(w, second)
}

func (f *fleet) refuseReEncrypt(w *world, second string) {
	w.t.Helper()
	ec := map[string]string{"a": "1"}
	blob := w.encrypt(f.aes, make([]byte, 191), ec)
	rsaID := f.ids[1]
	refuse(w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: second}, kms.CodeInvalidCiphertext)
	refuse(w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, SourceKeyId: &second, DestinationKeyId: second}, kms.CodeIncorrectKey)
	refuse(w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: rsaID}, kms.CodeInvalidKeyUsage)
	refuse(w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: rsaID, DestinationEncryptionAlgorithm: oaepSHA256, DestinationEncryptionContext: ec}, kms.CodeValidation)
	refuse(w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: rsaID, DestinationEncryptionAlgorithm: oaepSHA256}, kms.CodeValidation)
	do[*keyholdv1.ReEncryptResponse](w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: rsaID, DestinationEncryptionAlgorithm: oaepSHA1})
	// Nothing that Decrypt could not read again is ever handed out: an empty
	// plaintext, which only somebody else can have encrypted, has no blob.
	empty, err := rsa.EncryptOAEP(sha256.New(), cryptoRand{}, w.rsaKey(rsaID), nil, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	refuse(w, &keyholdv1.ReEncryptRequest{CiphertextBlob: empty, SourceKeyId: &rsaID, SourceEncryptionAlgorithm: oaepSHA256, DestinationKeyId: second}, kms.CodeInvalidCiphertext)
}
