package gosdk_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"hash"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func testEncrypt(t *tester) {
	id, other := t.key("", ""), t.key("", "")
	bound := map[string]string{"app": "größe", "empty": ""}
	plaintext := bytes.Repeat([]byte{0, 0xff, 'a', '\n'}, 1024)
	sealed := must[*kms.EncryptOutput](t)(t.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &id, Plaintext: plaintext, EncryptionContext: bound}))
	if sealed.EncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault {
		t.Errorf("encrypted: %+v", sealed)
	}
	for _, keyID := range []*string{nil, &id} {
		opened := must[*kms.DecryptOutput](t)(t.Decrypt(t.Context(), &kms.DecryptInput{KeyId: keyID, CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: bound}))
		if !bytes.Equal(opened.Plaintext, plaintext) || *opened.KeyId != *sealed.KeyId {
			t.Errorf("decrypted: %+v", opened)
		}
	}
	_, err := t.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
	wantAs[*types.InvalidCiphertextException](t, err)
	_, err = t.Decrypt(t.Context(), &kms.DecryptInput{KeyId: &other, CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: bound})
	wantAs[*types.IncorrectKeyException](t, err)
	_, err = t.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x"), DryRun: aws.Bool(true)})
	wantAs[*types.DryRunOperationException](t, err)
	_, err = t.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &id, Plaintext: append(plaintext, 'x')})
	if codeOf(err) != "ValidationException" {
		t.Errorf("4,097 bytes: %v", err)
	}
	again := must[*kms.ReEncryptOutput](t)(t.ReEncrypt(t.Context(), &kms.ReEncryptInput{
		CiphertextBlob: sealed.CiphertextBlob, SourceEncryptionContext: bound, DestinationKeyId: &other, DestinationEncryptionContext: map[string]string{"b": "2"},
	}))
	if *again.SourceKeyId != *sealed.KeyId || *again.KeyId == *again.SourceKeyId {
		t.Errorf("encrypted again: %+v", again)
	}
	opened := must[*kms.DecryptOutput](t)(t.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: again.CiphertextBlob, EncryptionContext: map[string]string{"b": "2"}}))
	if !bytes.Equal(opened.Plaintext, plaintext) {
		t.Error("encrypted again to something else")
	}
}

// testEncryptRSA: what is encrypted here is decrypted there.
func testEncryptRSA(t *tester) {
	id := t.key(types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt)
	pub := t.publicKey(id).(*rsa.PublicKey)
	for algorithm, h := range map[types.EncryptionAlgorithmSpec]func() hash.Hash{
		types.EncryptionAlgorithmSpecRsaesOaepSha1: crypto.SHA1.New, types.EncryptionAlgorithmSpecRsaesOaepSha256: crypto.SHA256.New,
	} {
		sealed, err := rsa.EncryptOAEP(h(), rand.Reader, pub, []byte("secret"), nil)
		if err != nil {
			t.Fatal(err)
		}
		opened := must[*kms.DecryptOutput](t)(t.Decrypt(t.Context(), &kms.DecryptInput{KeyId: &id, CiphertextBlob: sealed, EncryptionAlgorithm: algorithm}))
		if string(opened.Plaintext) != "secret" || opened.EncryptionAlgorithm != algorithm {
			t.Errorf("%s: %+v", algorithm, opened)
		}
		there := must[*kms.EncryptOutput](t)(t.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("secret"), EncryptionAlgorithm: algorithm}))
		must[*kms.DecryptOutput](t)(t.Decrypt(t.Context(), &kms.DecryptInput{KeyId: &id, CiphertextBlob: there.CiphertextBlob, EncryptionAlgorithm: algorithm}))
	}
}

func testDataKeys(t *tester) {
	id := t.key("", "")
	bound := map[string]string{"a": "1"}
	opens := func(blob, want []byte) {
		t.Helper()
		got := must[*kms.DecryptOutput](t)(t.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: bound}))
		if want != nil && !bytes.Equal(got.Plaintext, want) || len(got.Plaintext) == 0 {
			t.Error("the data key decrypts to something else")
		}
	}
	for spec, size := range map[types.DataKeySpec]int{types.DataKeySpecAes128: 16, types.DataKeySpecAes256: 32} {
		k := must[*kms.GenerateDataKeyOutput](t)(t.GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: spec, EncryptionContext: bound}))
		if len(k.Plaintext) != size {
			t.Errorf("%s has %d bytes", spec, len(k.Plaintext))
		}
		opens(k.CiphertextBlob, k.Plaintext)
	}
	k := must[*kms.GenerateDataKeyOutput](t)(t.GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: &id, NumberOfBytes: aws.Int32(64), EncryptionContext: bound}))
	if len(k.Plaintext) != 64 {
		t.Errorf("%d bytes", len(k.Plaintext))
	}
	blind := must[*kms.GenerateDataKeyWithoutPlaintextOutput](t)(t.GenerateDataKeyWithoutPlaintext(t.Context(), &kms.GenerateDataKeyWithoutPlaintextInput{
		KeyId: &id, KeySpec: types.DataKeySpecAes256, EncryptionContext: bound,
	}))
	opens(blind.CiphertextBlob, nil)
	for _, spec := range []types.DataKeyPairSpec{types.DataKeyPairSpecRsa2048, types.DataKeyPairSpecEccNistP384} {
		pair := must[*kms.GenerateDataKeyPairOutput](t)(t.GenerateDataKeyPair(t.Context(), &kms.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: spec, EncryptionContext: bound}))
		private, err := x509.ParsePKCS8PrivateKey(pair.PrivateKeyPlaintext)
		if err != nil {
			t.Fatal(err)
		}
		public, err := x509.ParsePKIXPublicKey(pair.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if pair.KeyPairSpec != spec || !private.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(public) {
			t.Errorf("%s is no pair", spec)
		}
		opens(pair.PrivateKeyCiphertextBlob, pair.PrivateKeyPlaintext)
	}
	half := must[*kms.GenerateDataKeyPairWithoutPlaintextOutput](t)(t.GenerateDataKeyPairWithoutPlaintext(t.Context(), &kms.GenerateDataKeyPairWithoutPlaintextInput{
		KeyId: &id, KeyPairSpec: types.DataKeyPairSpecEccNistP256, EncryptionContext: bound,
	}))
	opens(half.PrivateKeyCiphertextBlob, nil)
	random := must[*kms.GenerateRandomOutput](t)(t.GenerateRandom(t.Context(), &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1024)}))
	if len(random.Plaintext) != 1024 {
		t.Errorf("%d random bytes", len(random.Plaintext))
	}
}

// publicKey is what GetPublicKey answers, parsed.
func (t *tester) publicKey(id string) crypto.PublicKey {
	t.Helper()
	out := must[*kms.GetPublicKeyOutput](t)(t.GetPublicKey(t.Context(), &kms.GetPublicKeyInput{KeyId: &id}))
	pub, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// testSign: each algorithm, messages and digests, checked by crypto/… and by the
// service.
func testSign(t *tester) {
	rsaKey, p256 := t.key(types.KeySpecRsa2048, types.KeyUsageTypeSignVerify), t.key(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
	p384, p521 := t.key(types.KeySpecEccNistP384, types.KeyUsageTypeSignVerify), t.key(types.KeySpecEccNistP521, types.KeyUsageTypeSignVerify)
	ed := t.key(types.KeySpecEccNistEdwards25519, types.KeyUsageTypeSignVerify)
	for algorithm, c := range map[types.SigningAlgorithmSpec]struct {
		key  string
		hash crypto.Hash
	}{
		types.SigningAlgorithmSpecRsassaPssSha256: {rsaKey, crypto.SHA256}, types.SigningAlgorithmSpecRsassaPssSha384: {rsaKey, crypto.SHA384},
		types.SigningAlgorithmSpecRsassaPssSha512: {rsaKey, crypto.SHA512}, types.SigningAlgorithmSpecRsassaPkcs1V15Sha256: {rsaKey, crypto.SHA256},
		types.SigningAlgorithmSpecRsassaPkcs1V15Sha384: {rsaKey, crypto.SHA384}, types.SigningAlgorithmSpecRsassaPkcs1V15Sha512: {rsaKey, crypto.SHA512},
		types.SigningAlgorithmSpecEcdsaSha256: {p256, crypto.SHA256}, types.SigningAlgorithmSpecEcdsaSha384: {p384, crypto.SHA384},
		types.SigningAlgorithmSpecEcdsaSha512: {p521, crypto.SHA512}, types.SigningAlgorithmSpecEd25519Sha512: {ed, 0},
	} {
		for _, kind := range []types.MessageType{types.MessageTypeRaw, types.MessageTypeDigest} {
			message := []byte("attack at dawn")
			digest := message
			if c.hash != 0 {
				h := c.hash.New()
				h.Write(message)
				digest = h.Sum(nil)
			} else if kind == types.MessageTypeDigest {
				continue
			}
			if kind == types.MessageTypeDigest {
				message = digest
			}
			signed := must[*kms.SignOutput](t)(t.Sign(t.Context(), &kms.SignInput{KeyId: &c.key, Message: message, MessageType: kind, SigningAlgorithm: algorithm}))
			if !verifies(t.publicKey(c.key), c.hash, algorithm, digest, signed.Signature) {
				t.Errorf("%s of %s does not verify", algorithm, kind)
			}
			verify := &kms.VerifyInput{KeyId: &c.key, Message: message, MessageType: kind, Signature: signed.Signature, SigningAlgorithm: algorithm}
			if out := must[*kms.VerifyOutput](t)(t.Verify(t.Context(), verify)); !out.SignatureValid || out.SigningAlgorithm != algorithm {
				t.Errorf("%s: %+v", algorithm, out)
			}
			verify.Message = bytes.ToUpper(message)
			if kind == types.MessageTypeRaw {
				_, err := t.Verify(t.Context(), verify)
				wantAs[*types.KMSInvalidSignatureException](t, err)
			}
		}
	}
	_, err := t.Sign(t.Context(), &kms.SignInput{KeyId: aws.String(t.key("", "")), Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256})
	wantAs[*types.InvalidKeyUsageException](t, err)
}

func verifies(pub crypto.PublicKey, h crypto.Hash, algorithm types.SigningAlgorithmSpec, digest, signature []byte) bool {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if algorithm[:10] == "RSASSA_PSS" {
			return rsa.VerifyPSS(pub, h, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(pub, h, digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, digest, signature)
	}
	return false
}

func testMAC(t *tester) {
	id := t.key(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac)
	mac := must[*kms.GenerateMacOutput](t)(t.GenerateMac(t.Context(), &kms.GenerateMacInput{KeyId: &id, Message: []byte("m"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256}))
	if len(mac.Mac) != sha256.Size || hmac.Equal(mac.Mac, make([]byte, sha256.Size)) {
		t.Errorf("MAC %x", mac.Mac)
	}
	verify := &kms.VerifyMacInput{KeyId: &id, Message: []byte("m"), Mac: mac.Mac, MacAlgorithm: types.MacAlgorithmSpecHmacSha256}
	if out := must[*kms.VerifyMacOutput](t)(t.VerifyMac(t.Context(), verify)); !out.MacValid {
		t.Errorf("%+v", out)
	}
	verify.Message = []byte("n")
	_, err := t.VerifyMac(t.Context(), verify)
	wantAs[*types.KMSInvalidMacException](t, err)
}

func testDerive(t *tester) {
	id := t.key(types.KeySpecEccNistP256, types.KeyUsageTypeKeyAgreement)
	mine, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(mine.Public())
	if err != nil {
		t.Fatal(err)
	}
	there := must[*kms.DeriveSharedSecretOutput](t)(t.DeriveSharedSecret(t.Context(), &kms.DeriveSharedSecretInput{
		KeyId: &id, PublicKey: der, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh,
	}))
	var private *ecdh.PrivateKey
	if private, err = mine.ECDH(); err != nil {
		t.Fatal(err)
	}
	public, err := t.publicKey(id).(*ecdsa.PublicKey).ECDH()
	if err != nil {
		t.Fatal(err)
	}
	here, err := private.ECDH(public)
	if err != nil || !bytes.Equal(here, there.SharedSecret) {
		t.Errorf("the secrets differ: %v", err)
	}
}
