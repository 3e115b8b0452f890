package kms

import (
	"crypto"
	"slices"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// keyKind is AWS's coarse division of keys: an alias may move within one.
type keyKind int

const (
	kindSymmetric keyKind = iota + 1
	kindAsymmetric
	kindHMAC
)

// specFacts are the fixed facts about one key spec.
type specFacts struct {
	kind    keyKind
	usages  []keyholdv1.KeyUsageType
	signing []keyholdv1.SigningAlgorithmSpec
	mac     keyholdv1.MacAlgorithmSpec
	// modulusBytes is set for RSA.
	modulusBytes int
	// secretBytes is the length of a secret key.
	secretBytes int
}

// allFacts has the facts of each key spec. It is never changed.
var allFacts = func() map[keyholdv1.KeySpec]specFacts {
	all := make(map[keyholdv1.KeySpec]specFacts)
	for n := range keyholdv1.KeySpec_name {
		all[keyholdv1.KeySpec(n)] = findFacts(keyholdv1.KeySpec(n))
	}
	return all
}()

// factsOf returns the zero value for what is no key spec. What is in it must not
// be changed.
func factsOf(spec keyholdv1.KeySpec) specFacts { return allFacts[spec] }

func findFacts(spec keyholdv1.KeySpec) specFacts {
	const (
		encrypt = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT
		sign    = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY
		mac     = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC
		agree   = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_KEY_AGREEMENT
		wrap    = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP
	)
	rsa := func(modulus int) specFacts {
		return specFacts{kind: kindAsymmetric, usages: []keyholdv1.KeyUsageType{encrypt, sign}, signing: rsaSigning(), modulusBytes: modulus}
	}
	ec := func(alg keyholdv1.SigningAlgorithmSpec) specFacts {
		return specFacts{kind: kindAsymmetric, usages: []keyholdv1.KeyUsageType{sign, agree}, signing: []keyholdv1.SigningAlgorithmSpec{alg}}
	}
	hmac := func(alg keyholdv1.MacAlgorithmSpec, bytes int) specFacts {
		return specFacts{kind: kindHMAC, usages: []keyholdv1.KeyUsageType{mac}, mac: alg, secretBytes: bytes}
	}
	switch spec {
	case keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT:
		return specFacts{kind: kindSymmetric, usages: []keyholdv1.KeyUsageType{encrypt, wrap}, secretBytes: 32}
	case keyholdv1.KeySpec_KEY_SPEC_RSA_2048:
		return rsa(256)
	case keyholdv1.KeySpec_KEY_SPEC_RSA_3072:
		return rsa(384)
	case keyholdv1.KeySpec_KEY_SPEC_RSA_4096:
		return rsa(512)
	case keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256:
		return ec(keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256)
	case keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P384:
		return ec(keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_384)
	case keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P521:
		return ec(keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_512)
	case keyholdv1.KeySpec_KEY_SPEC_ECC_SECG_P256K1:
		f := ec(keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256)
		f.usages = f.usages[:1] // AWS offers no key agreement on secp256k1.
		return f
	case keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_EDWARDS25519:
		return specFacts{kind: kindAsymmetric, usages: []keyholdv1.KeyUsageType{sign}, signing: []keyholdv1.SigningAlgorithmSpec{
			keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_SHA_512,
			keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_PH_SHA_512,
		}}
	case keyholdv1.KeySpec_KEY_SPEC_HMAC_224:
		return hmac(keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_224, 28)
	case keyholdv1.KeySpec_KEY_SPEC_HMAC_256:
		return hmac(keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256, 32)
	case keyholdv1.KeySpec_KEY_SPEC_HMAC_384:
		return hmac(keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_384, 48)
	case keyholdv1.KeySpec_KEY_SPEC_HMAC_512:
		return hmac(keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_512, 64)
	case keyholdv1.KeySpec_KEY_SPEC_UNSPECIFIED:
	}
	return specFacts{}
}

func rsaSigning() []keyholdv1.SigningAlgorithmSpec {
	return []keyholdv1.SigningAlgorithmSpec{
		keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_256,
		keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_384,
		keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_512,
		keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_256,
		keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_384,
		keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_512,
	}
}

// The algorithms of encryption. They are never changed.
var (
	symmetricAlgorithms = []keyholdv1.EncryptionAlgorithmSpec{keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_SYMMETRIC_DEFAULT}
	oaepAlgorithms      = []keyholdv1.EncryptionAlgorithmSpec{
		keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_1,
		keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_256,
	}
)

// encryptionAlgorithms returns what Encrypt and Decrypt take with such a key. It
// must not be changed.
func encryptionAlgorithms(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) []keyholdv1.EncryptionAlgorithmSpec {
	f := factsOf(spec)
	switch {
	case usage != keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT:
		return nil
	case f.kind == kindSymmetric:
		return symmetricAlgorithms
	}
	return oaepAlgorithms
}

// signingAlgorithms returns what Sign and Verify take with such a key.
func signingAlgorithms(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) []keyholdv1.SigningAlgorithmSpec {
	if usage != keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY {
		return nil
	}
	f := factsOf(spec)
	return f.signing
}

// agreementAlgorithms returns what key agreement takes with such a key.
func agreementAlgorithms(usage keyholdv1.KeyUsageType) []keyholdv1.KeyAgreementAlgorithmSpec {
	if usage != keyholdv1.KeyUsageType_KEY_USAGE_TYPE_KEY_AGREEMENT {
		return nil
	}
	return []keyholdv1.KeyAgreementAlgorithmSpec{keyholdv1.KeyAgreementAlgorithmSpec_KEY_AGREEMENT_ALGORITHM_SPEC_ECDH}
}

// wrappingAlgorithms returns what WrapKey and UnwrapKey take with such a key.
func wrappingAlgorithms(usage keyholdv1.KeyUsageType) []keyholdv1.WrappingAlgorithmSpec {
	if usage != keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP {
		return nil
	}
	return []keyholdv1.WrappingAlgorithmSpec{
		keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP,
		keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW,
	}
}

// oaepHash returns the hash of an RSAES-OAEP algorithm, or 0.
func oaepHash(alg keyholdv1.EncryptionAlgorithmSpec) crypto.Hash {
	switch alg {
	case keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_1:
		return crypto.SHA1
	case keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_256:
		return crypto.SHA256
	case keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_UNSPECIFIED,
		keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_SYMMETRIC_DEFAULT:
	}
	return 0
}

// defaultAlgorithm gives the algorithm that absent means.
func defaultAlgorithm(alg keyholdv1.EncryptionAlgorithmSpec) keyholdv1.EncryptionAlgorithmSpec {
	if alg == keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_UNSPECIFIED {
		return keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_SYMMETRIC_DEFAULT
	}
	return alg
}

// checkEncryptionAlgorithm is part of step 8: does the algorithm suit the key?
func checkEncryptionAlgorithm(r *KeyRecord, alg keyholdv1.EncryptionAlgorithmSpec) error {
	if !slices.Contains(encryptionAlgorithms(r.Spec, r.Usage), alg) {
		return errorf(CodeInvalidKeyUsage, "Algorithm %s is incompatible with key spec %s.", awsName(alg), awsName(r.Spec))
	}
	return nil
}
