// Package keypair makes the key pairs that GenerateDataKeyPair gives away: an
// RSA, elliptic curve or Ed25519 key whose private half is used outside the
// service. They are made on the host, not in a token
// (docs/decisions/0010-data-key-pairs-on-the-host.md).
//
// The private key is DER of PrivateKeyInfo (PKCS #8, RFC 5208), byte for byte
// what crypto/x509 and OpenSSL write, the public key DER of
// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
//
// The generators are those of Go's cryptographic module (FIPS 186-5), and of
// the decred library for secp256k1, which the module lacks. Go checks each RSA
// pair before it hands it out: that the primes give the modulus and that the
// exponents are inverse to each other modulo both. In FIPS 140-3 mode it makes
// a signature with each new RSA, NIST and Ed25519 pair as well, and verifies
// it; nothing is checked a second time here.
//
// Private keys are wiped as far as Go allows: our copies are, those inside the
// standard library's keys are out of reach and wait for the garbage collector.
package keypair

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// A Spec is a type of key pair, by the names of AWS KMS's DataKeyPairSpec.
type Spec uint8

// The specs. SM2 is not among them.
const (
	RSA2048 Spec = iota + 1
	RSA3072
	RSA4096
	P256
	P384
	P521
	Secp256k1
	Ed25519
	specEnd // one past the last
)

// Specs returns all specs, in a fixed order.
func Specs() []Spec {
	all := make([]Spec, 0, specEnd-1)
	for s := RSA2048; s < specEnd; s++ {
		all = append(all, s)
	}
	return all
}

// String returns AWS's name of the spec.
func (s Spec) String() string {
	switch s {
	case RSA2048:
		return "RSA_2048"
	case RSA3072:
		return "RSA_3072"
	case RSA4096:
		return "RSA_4096"
	case P256:
		return "ECC_NIST_P256"
	case P384:
		return "ECC_NIST_P384"
	case P521:
		return "ECC_NIST_P521"
	case Secp256k1:
		return "ECC_SECG_P256K1"
	case Ed25519:
		return "ECC_NIST_EDWARDS25519"
	}
	return "unknown"
}

// A Pair is a key pair. Both halves belong to who holds it.
type Pair struct {
	// PKCS8 is the private key, in the clear. At most MaxPKCS8Bytes.
	PKCS8 []byte
	// SPKI is the public key.
	SPKI []byte
}

// Wipe zeroes the private key.
func (p Pair) Wipe() { clear(p.PKCS8) }

// ErrSpec means: not one of the specs.
var ErrSpec = errors.New("no such type of key pair")

// Generate makes a pair. It takes microseconds, and for RSA up to seconds.
func Generate(spec Spec) (Pair, error) {
	pair, err := generate(spec)
	if err != nil {
		return Pair{}, fmt.Errorf("generate %s: %w", spec, err)
	}
	return pair, nil
}

func generate(spec Spec) (Pair, error) {
	switch spec {
	case RSA2048:
		return generateRSA(2048)
	case RSA3072:
		return generateRSA(3072)
	case RSA4096:
		return generateRSA(4096)
	case P256:
		return generateNIST(pubkey.P256, elliptic.P256())
	case P384:
		return generateNIST(pubkey.P384, elliptic.P384())
	case P521:
		return generateNIST(pubkey.P521, elliptic.P521())
	case Secp256k1:
		return generateSecp256k1()
	case Ed25519:
		return generateEd25519()
	}
	return Pair{}, ErrSpec
}

func generateRSA(bits int) (Pair, error) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return Pair{}, err
	}
	pre := &key.Precomputed
	secrets := []*big.Int{key.D, key.Primes[0], key.Primes[1], pre.Dp, pre.Dq, pre.Qinv}
	defer wipeInts(secrets)
	public, err := pubkey.FromRSA(key.N.Bytes(), big.NewInt(int64(key.E)).Bytes())
	if err != nil {
		return Pair{}, err
	}
	return encode(public, rsaPrivateKey(&key.PublicKey, secrets))
}

func generateNIST(kind pubkey.Kind, curve elliptic.Curve) (Pair, error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	defer wipeInts([]*big.Int{key.D}) //nolint:staticcheck // deprecated for arithmetic; there is no other way to wipe it
	scalar, err := key.Bytes()
	if err != nil {
		return Pair{}, err
	}
	defer clear(scalar)
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return Pair{}, err
	}
	return encodeEC(kind, scalar, point)
}

func generateSecp256k1() (Pair, error) {
	key, err := secp256k1.GeneratePrivateKey()
	if err != nil {
		return Pair{}, err
	}
	defer key.Zero()
	scalar := key.Serialize()
	defer clear(scalar)
	return encodeEC(pubkey.Secp256k1, scalar, key.PubKey().SerializeUncompressed())
}

func generateEd25519() (Pair, error) {
	point, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	defer clear(key)
	public, err := pubkey.FromEd25519(point)
	if err != nil {
		return Pair{}, err
	}
	// The seed is the first half of what Go calls the private key.
	return encode(public, ed25519PrivateKey(key[:ed25519.SeedSize]))
}

func encodeEC(kind pubkey.Kind, scalar, point []byte) (Pair, error) {
	public, err := pubkey.FromPoint(kind, point)
	if err != nil {
		return Pair{}, err
	}
	return encode(public, ecPrivateKey(scalar, point))
}

// wipeInts zeroes the words of numbers that are not used any more.
func wipeInts(numbers []*big.Int) {
	for _, n := range numbers {
		clear(n.Bits())
	}
}
