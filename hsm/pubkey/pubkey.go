// Package pubkey is everything Keyhold does with public keys, and does on the
// host: reading and writing SubjectPublicKeyInfo (RFC 5280, 4.1.2.7), verifying
// signatures, RSA-OAEP encryption, and translation between the two encodings
// of ECDSA signatures.
//
// It is strict. [Parse] accepts exactly one encoding of each key: DER, named
// curves, uncompressed points that lie on the curve, RSA of 2048, 3072 or 4096
// bits; what it accepts it writes back byte for byte. [Key.Verify] accepts only
// DER ECDSA signatures, and PSS only with a salt as long as the hash. ECDSA
// signatures with a high S are valid, as FIPS 186-5 says and as AWS KMS treats
// them, on secp256k1 too.
//
// It knows nothing of PKCS#11 and nothing of private keys, and it does not
// hash: callers bring digests.
package pubkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// Errors of this package. None carries more detail than its message.
var (
	// ErrMalformed: not the one accepted encoding of a supported public key.
	ErrMalformed = errors.New("malformed or unsupported public key")
	// ErrSignature: the signature does not verify, for whatever reason.
	ErrSignature = errors.New("signature does not verify")
	// ErrAlgorithm: the algorithm does not go with the key.
	ErrAlgorithm = errors.New("algorithm does not fit the key")
	// ErrLength: a digest or plaintext has a length that the algorithm refuses.
	ErrLength = errors.New("wrong input length")
)

// A Kind is a type of public key; RSA keys of all sizes are of one kind.
type Kind uint8

// The kinds.
const (
	RSA Kind = iota + 1
	P256
	P384
	P521
	Secp256k1
	Ed25519
)

// String returns the usual name of the kind.
func (k Kind) String() string {
	switch k {
	case RSA:
		return "RSA"
	case P256:
		return "P-256"
	case P384:
		return "P-384"
	case P521:
		return "P-521"
	case Secp256k1:
		return "secp256k1"
	case Ed25519:
		return "Ed25519"
	}
	return "unknown"
}

// FieldBytes returns the length in bytes of a coordinate, and of each half of
// a raw ECDSA signature, of a curve that ECDSA and ECDH use; else 0.
func (k Kind) FieldBytes() int {
	switch k {
	case P256, Secp256k1:
		return 32
	case P384:
		return 48
	case P521:
		return 66
	}
	return 0
}

func (k Kind) nist() elliptic.Curve {
	switch k {
	case P256:
		return elliptic.P256()
	case P384:
		return elliptic.P384()
	case P521:
		return elliptic.P521()
	}
	return nil
}

// A Key is a valid public key. It is immutable and safe for concurrent use.
type Key struct {
	kind  Kind
	spki  []byte // DER
	point []byte // EC: uncompressed point; Ed25519: the 32 bytes

	// Exactly one of these is set, by kind; Ed25519 uses point.
	rsa   *rsa.PublicKey
	nist  *ecdsa.PublicKey
	koblz *secp256k1.PublicKey
}

// Kind returns the kind of the key.
func (k *Key) Kind() Kind { return k.kind }

// SPKI returns a copy of the DER SubjectPublicKeyInfo.
func (k *Key) SPKI() []byte { return append([]byte(nil), k.spki...) }

// Bits returns the size of the modulus, the field or, for Ed25519, 256.
func (k *Key) Bits() int {
	switch k.kind {
	case RSA:
		return k.rsa.N.BitLen()
	case P521:
		return 521
	case Ed25519:
		return 256
	}
	return 8 * k.kind.FieldBytes()
}

// Point returns a copy of an elliptic curve key's uncompressed point
// (SEC 1, 2.3.3: 04, x, y), of an Ed25519 key's 32 bytes (RFC 8032, 5.1.5),
// and nil for RSA.
func (k *Key) Point() []byte { return append([]byte(nil), k.point...) }

// Equal reports whether both are the same key.
func (k *Key) Equal(other *Key) bool { return other != nil && string(k.spki) == string(other.spki) }

// Crypto returns the key as the standard library's type, for callers that
// build certificates or other tools' formats; nil for secp256k1, which it has
// no type for. The caller must not change it.
func (k *Key) Crypto() crypto.PublicKey {
	switch {
	case k.rsa != nil:
		return k.rsa
	case k.nist != nil:
		return k.nist
	case k.kind == Ed25519:
		return ed25519.PublicKey(k.Point())
	}
	return nil
}
