package pubkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	// The hashes that Algorithm and EncryptOAEP name.
	_ "crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 needs no collision resistance
	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Verify checks a signature over input: the digest that alg's Hash names, or
// for Ed25519SHA512 the message. It returns nil, [ErrSignature], [ErrAlgorithm]
// when alg does not fit the key, or [ErrLength] when the digest's length is
// wrong.
func (k *Key) Verify(alg Algorithm, input, signature []byte) error {
	if !alg.Fits(k.kind) {
		return fmt.Errorf("%w: %s with a key of kind %s", ErrAlgorithm, alg, k.kind)
	}
	if h := alg.Hash(); h != 0 && len(input) != h.Size() {
		return fmt.Errorf("%w: digest of %d bytes, %s takes %d", ErrLength, len(input), alg, h.Size())
	}
	var ok bool
	switch {
	case alg.IsPKCS1():
		ok = rsa.VerifyPKCS1v15(k.rsa, alg.Hash(), input, signature) == nil
	case alg.IsPSS():
		opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: alg.Hash()}
		ok = rsa.VerifyPSS(k.rsa, alg.Hash(), input, signature, opts) == nil
	case k.kind == Secp256k1:
		ok = verifySecp256k1(k.koblz, input, signature)
	case k.kind == Ed25519:
		opts := &ed25519.Options{Hash: alg.Hash()}
		ok = ed25519.VerifyWithOptions(k.point, input, signature, opts) == nil
	default:
		ok = ecdsa.VerifyASN1(k.nist, input, signature)
	}
	if !ok {
		return ErrSignature
	}
	return nil
}

func verifySecp256k1(key *secp256k1.PublicKey, digest, der []byte) bool {
	raw, err := ECDSAFromDER(der, Secp256k1.FieldBytes())
	if err != nil {
		return false
	}
	var r, s secp256k1.ModNScalar
	// SetByteSlice reports a value that is not below the group's order.
	if r.SetByteSlice(raw[:32]) || s.SetByteSlice(raw[32:]) || r.IsZero() || s.IsZero() {
		return false
	}
	return k1ecdsa.NewSignature(&r, &s).Verify(digest, key)
}

// ECDSAToDER turns r and s, concatenated in halves of equal length as PKCS#11
// (v2.40, 2.3.1) gives them, into a DER ECDSA-Sig-Value (RFC 3279, 2.2.3).
func ECDSAToDER(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 || len(raw) > 2*P521.FieldBytes() {
		return nil, fmt.Errorf("%w: raw ECDSA signature of %d bytes", ErrLength, len(raw))
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addUnsigned(b, raw[:len(raw)/2])
		addUnsigned(b, raw[len(raw)/2:])
	})
	return b.Bytes()
}

// addUnsigned adds a big-endian number as a minimal INTEGER.
func addUnsigned(b *cryptobyte.Builder, number []byte) {
	for len(number) > 1 && number[0] == 0 {
		number = number[1:]
	}
	b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) {
		if number[0]&0x80 != 0 {
			b.AddUint8(0)
		}
		b.AddBytes(number)
	})
}

// ECDSAFromDER is the inverse of [ECDSAToDER] for halves of size bytes. It
// refuses with [ErrSignature] what is not strict DER of two non-negative
// integers that fit.
func ECDSAFromDER(der []byte, size int) ([]byte, error) {
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	var r, s []byte
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || !seq.Empty() ||
		len(r) > size || len(s) > size {
		return nil, ErrSignature
	}
	raw := make([]byte, 2*size)
	copy(raw[size-len(r):], r)
	copy(raw[2*size-len(s):], s)
	return raw, nil
}

// MaxOAEP returns how many bytes fit into one RSA-OAEP ciphertext of the key
// (RFC 8017, 7.1.1), 0 for keys that are not RSA.
func (k *Key) MaxOAEP(hash crypto.Hash) int {
	if k.rsa == nil {
		return 0
	}
	return k.rsa.Size() - 2*hash.Size() - 2
}

// EncryptOAEP encrypts by RSAES-OAEP with an empty label and MGF1 over the same
// hash, which is SHA-1 or SHA-256. Plaintexts have 1 to [Key.MaxOAEP] bytes.
func (k *Key) EncryptOAEP(hash crypto.Hash, plaintext []byte) ([]byte, error) {
	if k.rsa == nil || (hash != crypto.SHA1 && hash != crypto.SHA256) {
		return nil, fmt.Errorf("%w: OAEP with %s and a key of kind %s", ErrAlgorithm, hash, k.kind)
	}
	if most := k.MaxOAEP(hash); len(plaintext) == 0 || len(plaintext) > most {
		return nil, fmt.Errorf("%w: plaintext of %d bytes, this key takes 1 to %d", ErrLength, len(plaintext), most)
	}
	ciphertext, err := rsa.EncryptOAEP(hash.New(), rand.Reader, k.rsa, plaintext, nil)
	if err != nil {
		return nil, fmt.Errorf("encrypt OAEP: %w", err)
	}
	return ciphertext, nil
}
