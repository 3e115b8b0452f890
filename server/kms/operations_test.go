package kms_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
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
		if old, ok := keyholdv1.CustomerMasterKeySpec_value["CUSTOMER_MASTER_"+k.spec.String()]; ok {
			want.CustomerMasterKeySpec = keyholdv1.CustomerMasterKeySpec(old) //nolint:staticcheck // AWS still sends it
		}
		if k.mac != 0 {
			want.MacAlgorithms = []keyholdv1.MacAlgorithmSpec{k.mac}
		}
		if k.usage == usageAgree {
			want.KeyAgreementAlgorithms = []keyholdv1.KeyAgreementAlgorithmSpec{keyholdv1.KeyAgreementAlgorithmSpec_KEY_AGREEMENT_ALGORITHM_SPEC_ECDH}
		}
		if k.usage == usageWrap {
			want.WrappingAlgorithms = []keyholdv1.WrappingAlgorithmSpec{algKWP, algKW}
		}
		got := w.metadata(id)
		if k.spec == symmetric && k.usage == usageEncrypt {
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
		CustomerMasterKeySpec: w.metadata(id).GetCustomerMasterKeySpec(), //nolint:staticcheck // AWS still sends it
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
		encrypts := k.spec == symmetric && k.usage == usageEncrypt
		check(encrypts, &keyholdv1.GenerateDataKeyRequest{KeyId: id, NumberOfBytes: ptr(int32(16))})
		check(encrypts, &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: id, NumberOfBytes: ptr(int32(16))})
		check(encrypts, &keyholdv1.GenerateDataKeyPairRequest{KeyId: id, KeyPairSpec: pairEd25519})
		check(encrypts, &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: id, KeyPairSpec: pairEd25519})
		check(k.usage == usageWrap, &keyholdv1.WrapKeyRequest{KeyId: id, PlaintextKey: make([]byte, 32)})
		check(false, &keyholdv1.UnwrapKeyRequest{KeyId: id, WrappedKey: make([]byte, 40)}, only(k.usage == usageWrap, kms.CodeInvalidCiphertext)...)
		check(false, &keyholdv1.ExportKeyRequest{KeyId: id, WrappingKeyId: id})
		check(false, &keyholdv1.DeriveSharedSecretRequest{KeyId: id, KeyAgreementAlgorithm: algECDH, PublicKey: []byte("x")}, only(k.usage == usageAgree, kms.CodeValidation)...)
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

// only returns the code where the condition holds.
func only(condition bool, code kms.Code) []kms.Code {
	if condition {
		return []kms.Code{code}
	}
	return nil
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
