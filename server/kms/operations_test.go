package kms_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyhold/keyhold/hsm"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// fleet is one key of every kind in a world over SoftHSM.
type fleet struct {
	*world
	ids  []string // in the order of keyKinds
	aes  string
	blob []byte // by aes, without context
}

// TestKeys creates every kind of key for real and puts every operation to
// each, checking results with the standard library.
func TestKeys(t *testing.T) {
	t.Parallel()
	f := &fleet{world: newWorld(t), ids: make([]string, len(keyKinds))}
	var wg sync.WaitGroup
	for i, k := range keyKinds {
		wg.Go(func() {
			resp, err := try[*keyholdv1.CreateKeyResponse](f.world, &keyholdv1.CreateKeyRequest{
				KeySpec: k.spec, KeyUsage: k.usage, Description: "key " + k.spec.String(),
				Tags: []*keyholdv1.Tag{{TagKey: "kind", TagValue: ptr(k.spec.String())}, {TagKey: "empty", TagValue: ptr("")}},
			})
			if err != nil {
				t.Errorf("create %s %s: %s", k.spec, k.usage, describe(err))
				return
			}
			f.ids[i] = resp.GetKeyMetadata().GetKeyId()
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	f.aes = f.ids[0]
	f.blob = f.encrypt(f.aes, []byte("attack at dawn"), nil)

	t.Run("metadata", f.testMetadata)
	t.Run("usage and algorithm", f.testUsage)
	t.Run("signatures", f.testSignatures)
	t.Run("digests", f.testDigests)
	t.Run("macs", f.testMacs)
	t.Run("symmetric", f.testSymmetric)
	t.Run("oaep", f.testOAEP)
	t.Run("reencrypt", f.testReEncrypt)
	t.Run("datakeys", f.testDataKeys)
	t.Run("random", f.testRandom)
	t.Run("restart", f.testRestart)
}

// on gives the fleet's world a subtest's t.
func (f *fleet) on(t *testing.T) *world {
	w := *f.world
	w.t = t
	return &w
}

func (f *fleet) each(t *testing.T, test func(w *world, i int, id string)) {
	for i, k := range keyKinds {
		t.Run(fmt.Sprintf("%s/%s", k.spec, k.usage), func(t *testing.T) { test(f.on(t), i, f.ids[i]) })
	}
}

func (f *fleet) testMetadata(t *testing.T) {
	f.each(t, func(w *world, i int, id string) {
		k := keyKinds[i]
		want := &keyholdv1.KeyMetadata{
			AwsAccountId: testAccount, KeyId: id, Arn: "arn:aws:kms:us-east-1:" + testAccount + ":key/" + id,
			// Milliseconds: finer parts are not AWS's.
			CreationDate: timestamppb.New(w.clock.Now().Truncate(1_000_000)),
			Enabled:      ptr(true), Description: ptr("key " + k.spec.String()), KeyUsage: k.usage, KeyState: enabled,
			Origin: keyholdv1.OriginType_ORIGIN_TYPE_AWS_KMS, KeyManager: keyholdv1.KeyManagerType_KEY_MANAGER_TYPE_CUSTOMER,
			KeySpec: k.spec, EncryptionAlgorithms: k.encrypt, SigningAlgorithms: k.sign, MultiRegion: ptr(false),
			KeyCustody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED,
		}
		if k.mac != 0 {
			want.MacAlgorithms = []keyholdv1.MacAlgorithmSpec{k.mac}
		}
		if k.usage == usageAgree {
			want.KeyAgreementAlgorithms = []keyholdv1.KeyAgreementAlgorithmSpec{keyholdv1.KeyAgreementAlgorithmSpec_KEY_AGREEMENT_ALGORITHM_SPEC_ECDH}
		}
		got := w.metadata(id)
		if k.spec == symmetric {
			want.CurrentKeyMaterialId = got.GetCurrentKeyMaterialId()
			if len(got.GetCurrentKeyMaterialId()) != 64 {
				w.t.Errorf("CurrentKeyMaterialId is %q, want 64 digits", got.GetCurrentKeyMaterialId())
			}
		}
		if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
			w.t.Errorf("metadata (-want +got):\n%s", d)
		}
		stored, err := w.db.Key(t.Context(), kms.KeyID(id))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]kms.Tag{{Key: "kind", Value: k.spec.String()}, {Key: "empty"}}, stored.Tags); d != "" {
			w.t.Errorf("tags (-want +got):\n%s", d)
		}
		w.checkPublicKey(i, id)
	})
}

// checkPublicKey asks for the public key; only pairs have one.
func (w *world) checkPublicKey(i int, id string) {
	w.t.Helper()
	k := keyKinds[i]
	req := &keyholdv1.GetPublicKeyRequest{KeyId: id}
	if !k.pair {
		refuse(w, req, kms.CodeUnsupportedOperation)
		return
	}
	got := do[*keyholdv1.GetPublicKeyResponse](w, req)
	want := &keyholdv1.GetPublicKeyResponse{
		KeyId: w.metadata(id).GetArn(), PublicKey: got.GetPublicKey(), KeySpec: k.spec, KeyUsage: k.usage, EncryptionAlgorithms: k.encrypt,
		SigningAlgorithms: k.sign, KeyAgreementAlgorithms: w.metadata(id).GetKeyAgreementAlgorithms(),
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		w.t.Errorf("GetPublicKey (-want +got):\n%s", d)
	}
	// The answer is the caller's: changing it changes nobody else's.
	clear(got.GetPublicKey())
	again := do[*keyholdv1.GetPublicKeyResponse](w, req).GetPublicKey()
	if bytes.Equal(again, got.GetPublicKey()) {
		w.t.Error("the public key is shared with its reader")
	}
	if k.spec == secp256k1 {
		return // the standard library does not know it
	}
	if _, err := x509.ParsePKIXPublicKey(again); err != nil {
		w.t.Errorf("public key: %v", err)
	}
}

// testUsage puts every operation with every algorithm to every key. What is
// not in keyKinds must be InvalidKeyUsageException.
func (f *fleet) testUsage(t *testing.T) {
	f.each(t, func(w *world, i int, id string) {
		k := keyKinds[i]
		check := func(allowed bool, req proto.Message, also ...kms.Code) {
			w.t.Helper()
			_, err := try[proto.Message](w, req)
			switch {
			case err != nil && slices.Contains(also, err.Code):
			case allowed && err != nil:
				w.t.Errorf("%s: %s", brief(req), describe(err))
			case !allowed && err == nil:
				w.t.Errorf("%s succeeded", brief(req))
			case !allowed && err.Code != kms.CodeInvalidKeyUsage:
				w.t.Errorf("%s: %s, want %s", brief(req), describe(err), kms.CodeInvalidKeyUsage)
			}
		}
		for _, alg := range []keyholdv1.EncryptionAlgorithmSpec{0, algSymmetric, oaepSHA1, oaepSHA256} {
			meant := alg
			if alg == 0 {
				meant = algSymmetric
			}
			may := slices.Contains(k.encrypt, meant)
			check(may, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), EncryptionAlgorithm: alg})
			// A ciphertext of another key: where the usage fits, what is wrong
			// is the ciphertext.
			wrong := kms.CodeIncorrectKey
			if meant != algSymmetric {
				wrong = kms.CodeInvalidCiphertext
			}
			if may && k.spec != symmetric {
				check(false, &keyholdv1.DecryptRequest{KeyId: &id, CiphertextBlob: f.blob, EncryptionAlgorithm: alg}, wrong)
			} else {
				check(may, &keyholdv1.DecryptRequest{KeyId: &id, CiphertextBlob: f.blob, EncryptionAlgorithm: alg})
			}
			check(may, &keyholdv1.ReEncryptRequest{CiphertextBlob: f.blob, DestinationKeyId: id, DestinationEncryptionAlgorithm: alg})
		}
		check(k.spec == symmetric, &keyholdv1.GenerateDataKeyRequest{KeyId: id, NumberOfBytes: ptr(int32(16))})
		check(k.spec == symmetric, &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: id, NumberOfBytes: ptr(int32(16))})
		for alg := pss256; alg <= ed25519ph; alg++ {
			message, kind := []byte("m"), raw
			var also []kms.Code
			if alg == ed25519ph {
				message, kind = make([]byte, 64), digest
				if k.spec == edwards {
					also = append(also, kms.CodeInvalidSignature)
				}
			}
			check(slices.Contains(k.sign, alg), &keyholdv1.SignRequest{KeyId: id, Message: message, MessageType: kind, SigningAlgorithm: alg}, also...)
			if slices.Contains(k.sign, alg) {
				also = append(also, kms.CodeInvalidSignature)
			}
			check(false, &keyholdv1.VerifyRequest{KeyId: id, Message: message, MessageType: kind, Signature: []byte("s"), SigningAlgorithm: alg}, also...)
		}
		for alg := macSHA224; alg <= macSHA512; alg++ {
			check(k.mac == alg, &keyholdv1.GenerateMacRequest{KeyId: id, Message: []byte("m"), MacAlgorithm: alg})
			var also []kms.Code
			if k.mac == alg {
				also = append(also, kms.CodeInvalidMac)
			}
			check(false, &keyholdv1.VerifyMacRequest{KeyId: id, Message: []byte("m"), Mac: []byte("s"), MacAlgorithm: alg}, also...)
		}
	})
}

func (f *fleet) testSignatures(t *testing.T) {
	f.each(t, func(w *world, i int, id string) {
		arn := w.metadata(id).GetArn()
		for _, alg := range keyKinds[i].sign {
			spki := do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: id}).GetPublicKey()
			for _, n := range []int{1, 64, 4096} {
				message := randomBytes(n)
				kinds := []keyholdv1.MessageType{0, raw, digest}
				if alg == ed25519raw {
					kinds = kinds[:2]
				}
				for _, kind := range kinds {
					input := message
					if kind == digest {
						input = sum(hashOf(alg), message)
					}
					got := do[*keyholdv1.SignResponse](w, &keyholdv1.SignRequest{KeyId: id, Message: input, MessageType: kind, SigningAlgorithm: alg})
					if got.GetKeyId() != arn || got.GetSigningAlgorithm() != alg {
						w.t.Errorf("answer names %s and %s, want %s and %s", got.GetKeyId(), got.GetSigningAlgorithm(), arn, alg)
					}
					if err := hostVerify(spki, alg, message, got.GetSignature()); err != nil {
						w.t.Errorf("%s of %d bytes as %s: the host does not accept the signature: %v", alg, n, kind, err)
					}
					verify := &keyholdv1.VerifyRequest{KeyId: id, Message: input, MessageType: kind, SigningAlgorithm: alg, Signature: got.GetSignature()}
					if v := do[*keyholdv1.VerifyResponse](w, verify); !v.GetSignatureValid() || v.GetKeyId() != arn || v.GetSigningAlgorithm() != alg {
						w.t.Errorf("Verify answers %v", v)
					}
					w.refuseSpoiltSignatures(verify)
				}
			}
		}
	})
}

// refuseSpoiltSignatures changes a valid request in every way that must make
// it invalid.
func (w *world) refuseSpoiltSignatures(valid *keyholdv1.VerifyRequest) {
	w.t.Helper()
	spoil := func(f func(r *keyholdv1.VerifyRequest)) {
		r := proto.Clone(valid).(*keyholdv1.VerifyRequest)
		f(r)
		e := refuse(w, r, kms.CodeInvalidSignature)
		if e.Message != "" {
			w.t.Errorf("the refusal tells a reason: %q", e.Message)
		}
	}
	spoil(func(r *keyholdv1.VerifyRequest) { r.Message[rand.IntN(len(r.Message))] ^= 1 << rand.IntN(8) })
	spoil(func(r *keyholdv1.VerifyRequest) { r.Signature[len(r.Signature)-1] ^= 1 })
	spoil(func(r *keyholdv1.VerifyRequest) { r.Signature[rand.IntN(len(r.Signature))] ^= 1 << rand.IntN(8) })
	spoil(func(r *keyholdv1.VerifyRequest) { r.Signature = r.Signature[:len(r.Signature)-1] })
	spoil(func(r *keyholdv1.VerifyRequest) { r.Signature = append(r.Signature, 0) })
	spoil(func(r *keyholdv1.VerifyRequest) { r.Signature = r.Signature[:1] })
}

// testDigests checks the length of digests at n-1, n and n+1.
func (f *fleet) testDigests(t *testing.T) {
	f.each(t, func(w *world, i int, id string) {
		for _, alg := range keyKinds[i].sign {
			size := 64
			if alg != ed25519raw {
				size = hashOf(alg).Size()
			}
			for n := size - 1; n <= size+1; n++ {
				req := &keyholdv1.SignRequest{KeyId: id, Message: make([]byte, n), MessageType: digest, SigningAlgorithm: alg}
				verify := &keyholdv1.VerifyRequest{KeyId: id, Message: make([]byte, n), MessageType: digest, SigningAlgorithm: alg, Signature: []byte{1}}
				if n == size && alg != ed25519raw {
					verify.Signature = do[*keyholdv1.SignResponse](w, req).GetSignature()
					do[*keyholdv1.VerifyResponse](w, verify)
					continue
				}
				refuse(w, req, kms.CodeValidation)
				refuse(w, verify, kms.CodeValidation)
			}
		}
		if keyKinds[i].spec == edwards {
			refuse(w, &keyholdv1.SignRequest{KeyId: id, Message: make([]byte, 64), MessageType: raw, SigningAlgorithm: ed25519ph}, kms.CodeValidation)
			refuse(w, &keyholdv1.SignRequest{KeyId: id, Message: make([]byte, 63), MessageType: digest, SigningAlgorithm: ed25519ph}, kms.CodeValidation)
			refuse(w, &keyholdv1.SignRequest{KeyId: id, Message: make([]byte, 64), MessageType: digest, SigningAlgorithm: ed25519ph}, kms.CodeInvalidKeyUsage)
			// Nor does a dry run promise what cannot be done.
			refuse(w, &keyholdv1.SignRequest{KeyId: id, Message: make([]byte, 64), MessageType: digest, SigningAlgorithm: ed25519ph, DryRun: ptr(true)}, kms.CodeInvalidKeyUsage)
		}
	})
}

func (f *fleet) testMacs(t *testing.T) {
	specs := map[keyholdv1.KeySpec]hsm.KeySpec{hmac224: hsm.HMAC224, hmac256: hsm.HMAC256, hmac384: hsm.HMAC384, hmac512: hsm.HMAC512}
	sizes := map[keyholdv1.KeySpec]int{hmac224: 28, hmac256: 32, hmac384: 48, hmac512: 64}
	f.each(t, func(w *world, i int, id string) {
		k := keyKinds[i]
		if k.usage != usageMac {
			return
		}
		stored, err := w.db.Key(t.Context(), kms.KeyID(id))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 4096} {
			message := randomBytes(n)
			got := do[*keyholdv1.GenerateMacResponse](w, &keyholdv1.GenerateMacRequest{KeyId: id, Message: message, MacAlgorithm: k.mac})
			if len(got.GetMac()) != sizes[k.spec] || got.GetKeyId() != w.metadata(id).GetArn() || got.GetMacAlgorithm() != k.mac {
				w.t.Errorf("GenerateMac answers %d bytes, %s, %s", len(got.GetMac()), got.GetKeyId(), got.GetMacAlgorithm())
			}
			// Straight from the token, past the core.
			direct, err := sharedToken(t).Key(specs[k.spec], hsm.PurposeMAC, stored.Current().Locator.ID).MAC(t.Context(), message)
			if err != nil || !bytes.Equal(direct, got.GetMac()) {
				w.t.Errorf("the token's own answer differs (err %v)", err)
			}
			verify := &keyholdv1.VerifyMacRequest{KeyId: id, Message: message, Mac: got.GetMac(), MacAlgorithm: k.mac}
			if v := do[*keyholdv1.VerifyMacResponse](w, verify); !v.GetMacValid() || v.GetKeyId() != got.GetKeyId() || v.GetMacAlgorithm() != k.mac {
				w.t.Errorf("VerifyMac answers %v", v)
			}
			for _, spoilt := range [][]byte{
				got.GetMac()[:len(got.GetMac())-1], got.GetMac()[:1], append(slices.Clone(got.GetMac()), 0), flipped(got.GetMac(), 0), flipped(got.GetMac(), len(got.GetMac())*8-1),
			} {
				e := refuse(w, &keyholdv1.VerifyMacRequest{KeyId: id, Message: message, Mac: spoilt, MacAlgorithm: k.mac}, kms.CodeInvalidMac)
				if e.Message != "" {
					w.t.Errorf("the refusal tells a reason: %q", e.Message)
				}
			}
			refuse(w, &keyholdv1.VerifyMacRequest{KeyId: id, Message: flipped(message, 0), Mac: got.GetMac(), MacAlgorithm: k.mac}, kms.CodeInvalidMac)
		}
	})
}

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
		make([]byte, len(ciphertext)), bytes.Repeat([]byte{0xFF}, len(ciphertext)), {1},
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

func (f *fleet) testDataKeys(t *testing.T) {
	w := f.on(t)
	ec := map[string]string{"a": "1"}
	material := w.metadata(f.aes).GetCurrentKeyMaterialId()
	arn := w.metadata(f.aes).GetArn()
	for _, c := range []struct {
		bytes *int32
		spec  keyholdv1.DataKeySpec
		want  int
	}{
		{ptr(int32(1)), 0, 1}, {ptr(int32(1024)), 0, 1024}, {nil, keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256, 32}, {nil, keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_128, 16},
	} {
		got := do[*keyholdv1.GenerateDataKeyResponse](w, &keyholdv1.GenerateDataKeyRequest{KeyId: f.aes, NumberOfBytes: c.bytes, KeySpec: c.spec, EncryptionContext: ec})
		if len(got.GetPlaintext()) != c.want || got.GetKeyId() != arn || got.GetKeyMaterialId() != material {
			t.Errorf("GenerateDataKey answers %d bytes, %s, %s", len(got.GetPlaintext()), got.GetKeyId(), got.GetKeyMaterialId())
		}
		if !bytes.Equal(w.decrypt(got.GetCiphertextBlob(), ec), got.GetPlaintext()) {
			t.Error("the encrypted copy is another key")
		}
		refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: got.GetCiphertextBlob()}, kms.CodeInvalidCiphertext)
		without := do[*keyholdv1.GenerateDataKeyWithoutPlaintextResponse](w, &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: f.aes, NumberOfBytes: c.bytes, KeySpec: c.spec, EncryptionContext: ec})
		if without.GetKeyId() != arn || without.GetKeyMaterialId() != material {
			t.Errorf("GenerateDataKeyWithoutPlaintext answers %s, %s", without.GetKeyId(), without.GetKeyMaterialId())
		}
		key := w.decrypt(without.GetCiphertextBlob(), ec)
		if len(key) != c.want || c.want >= 16 && bytes.Equal(key, make([]byte, c.want)) {
			t.Errorf("the data key is %x", key)
		}
	}
}

func (f *fleet) testRandom(t *testing.T) {
	w := f.on(t)
	for _, n := range []int32{1, 32, 1024} {
		if got := do[*keyholdv1.GenerateRandomResponse](w, &keyholdv1.GenerateRandomRequest{NumberOfBytes: &n}); len(got.GetPlaintext()) != int(n) {
			t.Errorf("%d bytes, want %d", len(got.GetPlaintext()), n)
		}
	}
	one := do[*keyholdv1.GenerateRandomResponse](w, &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(32))}).GetPlaintext()
	two := do[*keyholdv1.GenerateRandomResponse](w, &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(32))}).GetPlaintext()
	if bytes.Equal(one, two) {
		t.Error("the same random bytes twice")
	}
}

// testRestart makes the service anew over the same store: all keys are there
// and reconciliation is content.
func (f *fleet) testRestart(t *testing.T) {
	w := f.on(t)
	w.svc = nil
	w.start()
	defer w.svc.Close()
	orphans, err := w.svc.Reconcile(t.Context())
	if err != nil || len(orphans) != 0 {
		t.Errorf("orphans %v, %v", orphans, err)
	}
	if got := w.decrypt(f.blob, nil); string(got) != "attack at dawn" {
		t.Errorf("after a restart the ciphertext opens to %q", got)
	}
	for i, id := range f.ids {
		if m := w.metadata(id); m.GetKeySpec() != keyKinds[i].spec || m.GetKeyState() != enabled {
			t.Errorf("after a restart %s is %s, %s", id, m.GetKeySpec(), m.GetKeyState())
		}
	}
}

// hashOf returns the hash of a signing algorithm.
func hashOf(alg keyholdv1.SigningAlgorithmSpec) crypto.Hash {
	switch alg {
	case pss256, pkcs256, ecdsa256:
		return crypto.SHA256
	case pss384, pkcs384, ecdsa384:
		return crypto.SHA384
	}
	return crypto.SHA512
}

func sum(h crypto.Hash, message []byte) []byte {
	w := h.New()
	w.Write(message)
	return w.Sum(nil)
}

// hostVerify checks a signature with the standard library alone.
func hostVerify(spki []byte, alg keyholdv1.SigningAlgorithmSpec, message, signature []byte) error {
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return verifySecp256k1(spki, sum(crypto.SHA256, message), signature)
	}
	h := hashOf(alg)
	switch k := key.(type) {
	case *rsa.PublicKey:
		if alg <= pss512 {
			return rsa.VerifyPSS(k, h, sum(h, message), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.VerifyPKCS1v15(k, h, sum(h, message), signature)
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(k, sum(h, message), signature) {
			return errors.New("ecdsa: not valid")
		}
		return nil
	case ed25519.PublicKey:
		if !ed25519.Verify(k, message, signature) {
			return errors.New("ed25519: not valid")
		}
		return nil
	}
	return fmt.Errorf("public key is a %T", key)
}

// verifySecp256k1 is ECDSA verification (SEC 1, 4.1.4) over y² = x³ + 7 in
// affine coordinates: slow, short, and of nobody else's making.
func verifySecp256k1(spki, digest, signature []byte) error {
	var info struct {
		Algorithm struct{ Algorithm, Curve asn1.ObjectIdentifier }
		Point     asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) != 0 {
		return fmt.Errorf("SPKI: %w", err)
	}
	if got := info.Algorithm.Curve.String(); got != "1.3.132.0.10" || len(info.Point.Bytes) != 65 || info.Point.Bytes[0] != 4 {
		return fmt.Errorf("not an uncompressed point of secp256k1: curve %s, %d bytes", got, len(info.Point.Bytes))
	}
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(signature, &sig); err != nil || len(rest) != 0 {
		return fmt.Errorf("signature: %w", err)
	}
	hex := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 16); return n }
	p := hex("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEFFFFFC2F")
	n := hex("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141")
	type point struct{ x, y *big.Int }
	add := func(a, b *point) *point {
		if a == nil {
			return b
		}
		if b == nil {
			return a
		}
		var top, bottom *big.Int
		if a.x.Cmp(b.x) == 0 {
			if new(big.Int).Mod(new(big.Int).Add(a.y, b.y), p).Sign() == 0 {
				return nil
			}
			top, bottom = new(big.Int).Mul(big.NewInt(3), new(big.Int).Mul(a.x, a.x)), new(big.Int).Lsh(a.y, 1)
		} else {
			top, bottom = new(big.Int).Sub(b.y, a.y), new(big.Int).Sub(b.x, a.x)
		}
		slope := top.Mul(top, bottom.ModInverse(bottom.Mod(bottom, p), p))
		x := new(big.Int).Mul(slope, slope)
		x.Mod(x.Sub(x.Sub(x, a.x), b.x), p)
		y := new(big.Int).Sub(a.x, x)
		return &point{x, y.Mod(y.Sub(y.Mul(y, slope), a.y), p)}
	}
	times := func(k *big.Int, a *point) (out *point) {
		for i := k.BitLen() - 1; i >= 0; i-- {
			out = add(out, out)
			if k.Bit(i) == 1 {
				out = add(out, a)
			}
		}
		return out
	}
	g := &point{hex("79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798"), hex("483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8")}
	q := &point{new(big.Int).SetBytes(info.Point.Bytes[1:33]), new(big.Int).SetBytes(info.Point.Bytes[33:])}
	if sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.Cmp(n) >= 0 || sig.S.Cmp(n) >= 0 {
		return errors.New("r or s out of range")
	}
	inverse := new(big.Int).ModInverse(sig.S, n)
	u1 := new(big.Int).Mul(new(big.Int).SetBytes(digest), inverse)
	u2 := new(big.Int).Mul(sig.R, inverse)
	sum := add(times(u1.Mod(u1, n), g), times(u2.Mod(u2, n), q))
	if sum == nil || new(big.Int).Mod(sum.x, n).Cmp(sig.R) != 0 {
		return errors.New("secp256k1: not valid")
	}
	return nil
}
