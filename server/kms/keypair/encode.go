package keypair

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// MaxPKCS8Bytes bounds a private key: RSA_4096 takes 2,376 bytes. It is below
// what one encryption takes, 4,096.
const MaxPKCS8Bytes = 2560

// slackBytes is room for the lengths that the builder widens last, once per
// level: it notices contents that do not fit a fixed buffer, but not those.
const slackBytes = 16

// encode writes both halves. body writes what is inside PrivateKeyInfo's
// octet string.
//
// crypto/x509 would write the same, but leaves copies of the private key in
// buffers that nobody can wipe, and does not know secp256k1. Here there is one
// buffer, never reallocated, which the caller gets.
func encode(public *pubkey.Key, body cryptobyte.BuilderContinuation) (Pair, error) {
	spki := public.SPKI()
	// Both halves name the algorithm alike: RFC 8017, A.1 and appendix C;
	// RFC 5915, 3 with RFC 5480, 2; RFC 8410, 3 and 7.
	in := cryptobyte.String(spki)
	var outer, algorithm cryptobyte.String
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) {
		return Pair{}, errors.New("public key has no algorithm")
	}
	buf := make([]byte, 0, MaxPKCS8Bytes+slackBytes)
	b := cryptobyte.NewFixedBuilder(buf)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0) // RFC 5208, 5: v1
		b.AddBytes(algorithm)
		b.AddASN1(cbasn1.OCTET_STRING, body)
	})
	pkcs8, err := b.Bytes()
	if err == nil && len(pkcs8) > MaxPKCS8Bytes {
		err = errors.New("too long")
	}
	if err != nil {
		clear(buf[:cap(buf)])
		return Pair{}, fmt.Errorf("encode private key: %w", err)
	}
	return Pair{PKCS8: pkcs8, SPKI: spki}, nil
}

// rsaPrivateKey is RFC 8017, A.1.2. secrets are d, p, q, d mod (p-1),
// d mod (q-1) and the inverse of q mod p.
func rsaPrivateKey(public *rsa.PublicKey, secrets []*big.Int) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0) // two primes
			b.AddASN1BigInt(public.N)
			b.AddASN1Int64(int64(public.E))
			for _, n := range secrets {
				addSecret(b, n)
			}
		})
	}
}

// addSecret is AddASN1BigInt for a positive number, and wipes its copy.
func addSecret(b *cryptobyte.Builder, n *big.Int) {
	// One bit more than the number has: it is positive.
	digits := n.FillBytes(make([]byte, n.BitLen()/8+1))
	defer clear(digits)
	b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(digits) })
}

// ecPrivateKey is RFC 5915, 3. The curve is named outside, in PrivateKeyInfo,
// and not again here; the public key is given, as OpenSSL does.
func ecPrivateKey(scalar, point []byte) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(1) // ecPrivkeyVer1
			b.AddASN1OctetString(scalar)
			b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1BitString(point)
			})
		})
	}
}

// ed25519PrivateKey is RFC 8410, 7.
func ed25519PrivateKey(seed []byte) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) { b.AddASN1OctetString(seed) }
}
