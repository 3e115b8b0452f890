package kms_test

import (
	"crypto/rand"
	"slices"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Short words for the API's enums.
const (
	symmetric = keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT
	rsa2048   = keyholdv1.KeySpec_KEY_SPEC_RSA_2048
	rsa3072   = keyholdv1.KeySpec_KEY_SPEC_RSA_3072
	rsa4096   = keyholdv1.KeySpec_KEY_SPEC_RSA_4096
	p256      = keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256
	p384      = keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P384
	p521      = keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P521
	secp256k1 = keyholdv1.KeySpec_KEY_SPEC_ECC_SECG_P256K1
	edwards   = keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_EDWARDS25519
	hmac224   = keyholdv1.KeySpec_KEY_SPEC_HMAC_224
	hmac256   = keyholdv1.KeySpec_KEY_SPEC_HMAC_256
	hmac384   = keyholdv1.KeySpec_KEY_SPEC_HMAC_384
	hmac512   = keyholdv1.KeySpec_KEY_SPEC_HMAC_512

	usageEncrypt = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT
	usageSign    = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY
	usageMac     = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC
	usageAgree   = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_KEY_AGREEMENT
	usageWrap    = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP

	custodyGenerated  = keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED
	custodyExportable = keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE

	algKWP = keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP
	algKW  = keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW

	algSymmetric = keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_SYMMETRIC_DEFAULT
	oaepSHA1     = keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_1
	oaepSHA256   = keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_256

	pss256     = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_256
	pss384     = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_384
	pss512     = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_512
	pkcs256    = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_256
	pkcs384    = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_384
	pkcs512    = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_512
	ecdsa256   = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256
	ecdsa384   = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_384
	ecdsa512   = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_512
	ed25519raw = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_SHA_512
	ed25519ph  = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_PH_SHA_512

	macSHA224 = keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_224
	macSHA256 = keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256
	macSHA384 = keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_384
	macSHA512 = keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_512

	raw    = keyholdv1.MessageType_MESSAGE_TYPE_RAW
	digest = keyholdv1.MessageType_MESSAGE_TYPE_DIGEST

	enabled     = keyholdv1.KeyState_KEY_STATE_ENABLED
	disabled    = keyholdv1.KeyState_KEY_STATE_DISABLED
	pending     = keyholdv1.KeyState_KEY_STATE_PENDING_DELETION
	creating    = keyholdv1.KeyState_KEY_STATE_CREATING
	unavailable = keyholdv1.KeyState_KEY_STATE_UNAVAILABLE
)

// keyKinds is every key spec with every usage that AWS documents for it, and
// what such a key can do.
var keyKinds = []struct {
	spec    keyholdv1.KeySpec
	usage   keyholdv1.KeyUsageType
	encrypt []keyholdv1.EncryptionAlgorithmSpec
	sign    []keyholdv1.SigningAlgorithmSpec
	mac     keyholdv1.MacAlgorithmSpec
	pair    bool
}{
	{spec: symmetric, usage: usageEncrypt, encrypt: []keyholdv1.EncryptionAlgorithmSpec{algSymmetric}},
	{spec: rsa2048, usage: usageEncrypt, encrypt: []keyholdv1.EncryptionAlgorithmSpec{oaepSHA1, oaepSHA256}, pair: true},
	{spec: rsa3072, usage: usageEncrypt, encrypt: []keyholdv1.EncryptionAlgorithmSpec{oaepSHA1, oaepSHA256}, pair: true},
	{spec: rsa4096, usage: usageEncrypt, encrypt: []keyholdv1.EncryptionAlgorithmSpec{oaepSHA1, oaepSHA256}, pair: true},
	{spec: rsa2048, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{pss256, pss384, pss512, pkcs256, pkcs384, pkcs512}, pair: true},
	{spec: rsa3072, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{pss256, pss384, pss512, pkcs256, pkcs384, pkcs512}, pair: true},
	{spec: rsa4096, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{pss256, pss384, pss512, pkcs256, pkcs384, pkcs512}, pair: true},
	{spec: p256, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{ecdsa256}, pair: true},
	{spec: p384, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{ecdsa384}, pair: true},
	{spec: p521, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{ecdsa512}, pair: true},
	{spec: secp256k1, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{ecdsa256}, pair: true},
	// SoftHSM signs plain Ed25519 where it is asked for the prehashed form, so
	// that form is not offered.
	{spec: edwards, usage: usageSign, sign: []keyholdv1.SigningAlgorithmSpec{ed25519raw}, pair: true},
	{spec: p256, usage: usageAgree, pair: true},
	{spec: p384, usage: usageAgree, pair: true},
	{spec: p521, usage: usageAgree, pair: true},
	{spec: symmetric, usage: usageWrap},
	{spec: hmac224, usage: usageMac, mac: macSHA224},
	{spec: hmac256, usage: usageMac, mac: macSHA256},
	{spec: hmac384, usage: usageMac, mac: macSHA384},
	{spec: hmac512, usage: usageMac, mac: macSHA512},
}

// ptr is for optional fields.
func ptr[T any](v T) *T { return &v }

// newKey creates a key and returns its id.
func (w *world) newKey(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) string {
	w.t.Helper()
	return do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{KeySpec: spec, KeyUsage: usage}).GetKeyMetadata().GetKeyId()
}

// newExportableKey creates a key that may leave the token.
func (w *world) newExportableKey(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) string {
	w.t.Helper()
	return do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{KeySpec: spec, KeyUsage: usage, KeyCustody: custodyExportable}).GetKeyMetadata().GetKeyId()
}

// newAESKey creates a symmetric key.
func (w *world) newAESKey() string {
	w.t.Helper()
	return w.newKey(symmetric, usageEncrypt)
}

// encrypt encrypts under a symmetric key.
func (w *world) encrypt(key string, plaintext []byte, ec map[string]string) []byte {
	w.t.Helper()
	return do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: key, Plaintext: plaintext, EncryptionContext: ec}).GetCiphertextBlob()
}

// decrypt decrypts what encrypt made.
func (w *world) decrypt(blob []byte, ec map[string]string) []byte {
	w.t.Helper()
	return do[*keyholdv1.DecryptResponse](w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec}).GetPlaintext()
}

// metadata describes a key.
func (w *world) metadata(key string) *keyholdv1.KeyMetadata {
	w.t.Helper()
	return do[*keyholdv1.DescribeKeyResponse](w, &keyholdv1.DescribeKeyRequest{KeyId: key}).GetKeyMetadata()
}

// inState brings a fresh key into a state.
func (w *world) inState(key string, state keyholdv1.KeyState) {
	w.t.Helper()
	switch state {
	case disabled:
		do[*keyholdv1.DisableKeyResponse](w, &keyholdv1.DisableKeyRequest{KeyId: key})
	case pending:
		do[*keyholdv1.ScheduleKeyDeletionResponse](w, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: key, PendingWindowInDays: ptr(int32(7))})
	}
	if got := w.metadata(key).GetKeyState(); got != state {
		w.t.Fatalf("key is %s, want %s", got, state)
	}
}

// cryptoRand is crypto/rand as a reader.
type cryptoRand struct{}

func (cryptoRand) Read(b []byte) (int, error) { return rand.Read(b) }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// flipped returns a copy of b with one bit changed.
func flipped(b []byte, bit int) []byte {
	c := slices.Clone(b)
	c[bit/8] ^= 1 << (bit % 8)
	return c
}
