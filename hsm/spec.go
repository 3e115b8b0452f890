package hsm

import (
	"crypto"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// Limits of the operations, in bytes. They keep what a call can hold small; callers have narrower ones of their own.
const (
	MaxMessageBytes = 64 << 10 // plaintext of Seal, message of MAC and of an Ed25519 signature
	MaxAADBytes     = 64 << 10 // additional authenticated data
	MaxRandomBytes  = 4 << 10  // of one call of Random
	MaxIDBytes      = 64       // CKA_ID; some tokens take less and refuse
	MaxKeyLabel     = 64       // CKA_LABEL
)

// KeySpec is a type of key, as AWS KMS names them; the zero value is none.
type KeySpec uint8

// The key specs.
const (
	AES256 KeySpec = iota + 1
	HMAC224
	HMAC256
	HMAC384
	HMAC512
	RSA2048
	RSA3072
	RSA4096
	P256
	P384
	P521
	Secp256k1
	Ed25519
	keySpecEnd // one past the last
)

// Purpose is the one thing that a key is for; the zero value is none.
type Purpose uint8

// The purposes.
const (
	PurposeSeal    Purpose = iota + 1 // AES-256-GCM
	PurposeDecrypt                    // RSA-OAEP
	PurposeSign                       // RSA, ECDSA, Ed25519
	PurposeMAC                        // HMAC
	PurposeDerive                     // ECDH
	PurposeWrap                       // AES key wrap
	purposeEnd                        // one past the last
)

// SignatureAlgorithm is a signature algorithm, by AWS's names; package pubkey declares them.
type SignatureAlgorithm = pubkey.Algorithm

// specInfo is what PKCS#11 has to be told about a key spec.
type specInfo struct {
	name     string
	keyType  uint        // CKK_
	generate uint        // CKM_
	bytes    int         // CKA_VALUE_LEN of secret keys, the modulus' length of RSA, a coordinate's length of curves
	kind     pubkey.Kind // of the public key; 0 for secret keys
	hmac     uint        // CKM_ of HMAC keys
	purposes []Purpose
}

const (
	// CKK_EC_EDWARDS, CKM_EC_EDWARDS_KEY_PAIR_GEN and CKM_EDDSA of PKCS#11 v3.0, which miekg/pkcs11 does not name.
	ckkECEdwards           = 0x00000040
	ckmECEdwardsKeyPairGen = 0x00001055
	ckmEDDSA               = 0x00001057

	// CKM_AES_KEY_WRAP (RFC 3394) and CKM_AES_KEY_WRAP_PAD of v2.40, CKM_AES_KEY_WRAP_KWP of v3.0 (RFC 5649).
	ckmAESKeyWrap    = 0x00002109
	ckmAESKeyWrapPad = 0x0000210A
	ckmAESKeyWrapKWP = 0x0000210B
)

// info returns the facts about a key spec; false for values that are none.
func (s KeySpec) info() (specInfo, bool) {
	secret := func(name string, bytes int, mechanism uint) specInfo {
		return specInfo{name: name, keyType: pkcs11.CKK_GENERIC_SECRET, generate: pkcs11.CKM_GENERIC_SECRET_KEY_GEN, bytes: bytes, hmac: mechanism, purposes: []Purpose{PurposeMAC}}
	}
	rsa := func(name string, bits int) specInfo {
		return specInfo{name: name, keyType: pkcs11.CKK_RSA, generate: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, bytes: bits / 8, kind: pubkey.RSA, purposes: []Purpose{PurposeDecrypt, PurposeSign}}
	}
	curve := func(name string, kind pubkey.Kind) specInfo {
		return specInfo{name: name, keyType: pkcs11.CKK_EC, generate: pkcs11.CKM_EC_KEY_PAIR_GEN, bytes: kind.FieldBytes(), kind: kind, purposes: []Purpose{PurposeSign, PurposeDerive}}
	}
	switch s {
	case AES256:
		return specInfo{name: "SYMMETRIC_DEFAULT", keyType: pkcs11.CKK_AES, generate: pkcs11.CKM_AES_KEY_GEN, bytes: 32, purposes: []Purpose{PurposeSeal, PurposeWrap}}, true
	case HMAC224: // SoftHSM wants keys at least as long as the digest, AWS makes them exactly so
		return secret("HMAC_224", 28, pkcs11.CKM_SHA224_HMAC), true
	case HMAC256:
		return secret("HMAC_256", 32, pkcs11.CKM_SHA256_HMAC), true
	case HMAC384:
		return secret("HMAC_384", 48, pkcs11.CKM_SHA384_HMAC), true
	case HMAC512:
		return secret("HMAC_512", 64, pkcs11.CKM_SHA512_HMAC), true
	case RSA2048:
		return rsa("RSA_2048", 2048), true
	case RSA3072:
		return rsa("RSA_3072", 3072), true
	case RSA4096:
		return rsa("RSA_4096", 4096), true
	case P256:
		return curve("ECC_NIST_P256", pubkey.P256), true
	case P384:
		return curve("ECC_NIST_P384", pubkey.P384), true
	case P521:
		return curve("ECC_NIST_P521", pubkey.P521), true
	case Secp256k1: // AWS has no key agreement on it
		i := curve("ECC_SECG_P256K1", pubkey.Secp256k1)
		i.purposes = []Purpose{PurposeSign}
		return i, true
	case Ed25519:
		return specInfo{name: "ECC_NIST_EDWARDS25519", keyType: ckkECEdwards, generate: ckmECEdwardsKeyPairGen, bytes: 32, kind: pubkey.Ed25519, purposes: []Purpose{PurposeSign}}, true
	}
	return specInfo{}, false
}

// KeySpecs returns all key specs, in a fixed order.
func KeySpecs() []KeySpec {
	all := make([]KeySpec, 0, keySpecEnd-1)
	for s := AES256; s < keySpecEnd; s++ {
		all = append(all, s)
	}
	return all
}

// String returns AWS's name of the key spec.
func (s KeySpec) String() string {
	if i, ok := s.info(); ok {
		return i.name
	}
	return "unknown"
}

// Purposes returns what keys of the spec can be for; a key is for one of them.
func (s KeySpec) Purposes() []Purpose {
	i, _ := s.info()
	return slices.Clone(i.purposes)
}

// Algorithms returns the signature algorithms that keys of the spec sign by, none for specs that do not sign. Whether a token can do them its
// [Capabilities] tell.
func (s KeySpec) Algorithms() []SignatureAlgorithm {
	i, _ := s.info()
	var all []SignatureAlgorithm
	for _, alg := range pubkey.Algorithms() {
		if i.kind != 0 && alg.Fits(i.kind) {
			all = append(all, alg)
		}
	}
	return all
}

// asymmetric tells whether keys of the spec are pairs.
func (i specInfo) asymmetric() bool { return i.kind != 0 }

// class is the object class of the secret or private half.
func (i specInfo) class() uint {
	if i.asymmetric() {
		return pkcs11.CKO_PRIVATE_KEY
	}
	return pkcs11.CKO_SECRET_KEY
}

// can tells whether keys of the spec can be for the purpose.
func (i specInfo) can(p Purpose) bool { return slices.Contains(i.purposes, p) }

// String returns a word for the purpose.
func (p Purpose) String() string {
	switch p {
	case PurposeSeal:
		return "seal"
	case PurposeDecrypt:
		return "decrypt"
	case PurposeSign:
		return "sign"
	case PurposeMAC:
		return "mac"
	case PurposeDerive:
		return "derive"
	case PurposeWrap:
		return "wrap"
	}
	return "unknown"
}

// Names of the operations that are no signature algorithms, as Capabilities lists them.
const (
	OpSeal       = "AES_256_GCM"
	OpOAEPSHA1   = "RSAES_OAEP_SHA_1"
	OpOAEPSHA256 = "RSAES_OAEP_SHA_256"
	OpECDH       = "ECDH"
	OpKWP        = "AES_KWP" // RFC 5649
	OpKW         = "AES_KW"  // RFC 3394
)

// oaepName returns the name of RSA-OAEP with the hash, "" when it is not offered.
func oaepName(h crypto.Hash) string {
	switch h {
	case crypto.SHA1:
		return OpOAEPSHA1
	case crypto.SHA256:
		return OpOAEPSHA256
	}
	return ""
}

// operations returns the names of what a key of the spec does for the purpose.
func (s KeySpec) operations(p Purpose) []string {
	switch p {
	case PurposeSeal:
		return []string{OpSeal}
	case PurposeDecrypt:
		return []string{OpOAEPSHA1, OpOAEPSHA256}
	case PurposeDerive:
		return []string{OpECDH}
	case PurposeWrap:
		return []string{OpKWP, OpKW}
	case PurposeMAC:
		i, _ := s.info()
		return []string{hmacName(i.bytes)}
	case PurposeSign:
		var names []string
		for _, alg := range s.Algorithms() {
			names = append(names, alg.String())
		}
		return names
	}
	return nil
}

// hmacName returns AWS's name of the HMAC whose digest has so many bytes.
func hmacName(bytes int) string {
	switch bytes {
	case 28:
		return "HMAC_SHA_224"
	case 32:
		return "HMAC_SHA_256"
	case 48:
		return "HMAC_SHA_384"
	case 64:
		return "HMAC_SHA_512"
	}
	return ""
}
