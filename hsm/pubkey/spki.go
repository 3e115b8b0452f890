package pubkey

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxSPKIBytes bounds what Parse looks at: an RSA-4096 key takes 550 bytes.
const MaxSPKIBytes = 1024

// RSA exponents: odd, at least 3 (RFC 8017, 3.1), and within what the standard
// library computes with.
const maxRSAExponent = 1<<31 - 1

// algorithmOIDs name the key type: RFC 8017 A.1, RFC 5480 2.1.1, RFC 8410 3.
func oidRSA() asn1.ObjectIdentifier     { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1} }
func oidEC() asn1.ObjectIdentifier      { return asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1} }
func oidEd25519() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 101, 112} }

// CurveOID returns the object identifier of an ECDSA/ECDH curve (RFC 5480,
// 2.1.1.1; SEC 2, A.2.1), nil for other kinds.
func (k Kind) CurveOID() asn1.ObjectIdentifier {
	switch k {
	case P256:
		return asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	case P384:
		return asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	case P521:
		return asn1.ObjectIdentifier{1, 3, 132, 0, 35}
	case Secp256k1:
		return asn1.ObjectIdentifier{1, 3, 132, 0, 10}
	}
	return nil
}

// Parse reads a DER SubjectPublicKeyInfo. It refuses with [ErrMalformed] what
// is not the one accepted encoding of a supported key; see the package comment.
func Parse(spki []byte) (*Key, error) {
	if len(spki) > MaxSPKIBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrMalformed, len(spki), MaxSPKIBytes)
	}
	key, err := parse(cryptobyte.String(spki))
	if err != nil {
		return nil, err
	}
	// The parser is lenient in places (parameters, padding of integers in
	// future versions): the round trip is what makes the encoding unique.
	if string(key.spki) != string(spki) {
		return nil, fmt.Errorf("%w: not the canonical encoding", ErrMalformed)
	}
	return key, nil
}

func parse(in cryptobyte.String) (*Key, error) {
	var outer, algorithm, bits cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !in.Empty() ||
		!outer.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) ||
		!outer.ReadASN1(&bits, cbasn1.BIT_STRING) || !outer.Empty() {
		return nil, fmt.Errorf("%w: not a SubjectPublicKeyInfo", ErrMalformed)
	}
	var unused uint8
	if !bits.ReadUint8(&unused) || unused != 0 {
		return nil, fmt.Errorf("%w: key bits are not whole bytes", ErrMalformed)
	}
	switch {
	case oid.Equal(oidRSA()):
		n, e := new(big.Int), new(big.Int)
		var seq cryptobyte.String
		if !bits.ReadASN1(&seq, cbasn1.SEQUENCE) || !bits.Empty() ||
			!seq.ReadASN1Integer(n) || !seq.ReadASN1Integer(e) || !seq.Empty() {
			return nil, fmt.Errorf("%w: not an RSAPublicKey", ErrMalformed)
		}
		return newRSA(n, e)
	case oid.Equal(oidEC()):
		var curve asn1.ObjectIdentifier
		if !algorithm.ReadASN1ObjectIdentifier(&curve) || !algorithm.Empty() {
			return nil, fmt.Errorf("%w: not a named curve", ErrMalformed)
		}
		for _, kind := range []Kind{P256, P384, P521, Secp256k1} {
			if curve.Equal(kind.CurveOID()) {
				return FromPoint(kind, bits)
			}
		}
		return nil, fmt.Errorf("%w: curve %s", ErrMalformed, curve)
	case oid.Equal(oidEd25519()):
		return FromEd25519(bits)
	}
	return nil, fmt.Errorf("%w: algorithm %s", ErrMalformed, oid)
}

// FromRSA makes a key of a big-endian modulus and exponent, as PKCS#11 stores
// them; leading zeros are ignored.
func FromRSA(modulus, exponent []byte) (*Key, error) {
	if len(modulus) > MaxSPKIBytes || len(exponent) > MaxSPKIBytes {
		return nil, fmt.Errorf("%w: RSA numbers too long", ErrMalformed)
	}
	return newRSA(new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent))
}

func newRSA(n, e *big.Int) (*Key, error) {
	switch bits := n.BitLen(); {
	case n.Sign() <= 0 || n.Bit(0) == 0:
		return nil, fmt.Errorf("%w: RSA modulus is not odd and positive", ErrMalformed)
	case bits != 2048 && bits != 3072 && bits != 4096:
		return nil, fmt.Errorf("%w: RSA of %d bits, want 2048, 3072 or 4096", ErrMalformed, bits)
	case e.Sign() <= 0 || e.Bit(0) == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > maxRSAExponent:
		return nil, fmt.Errorf("%w: RSA exponent is not odd and within 3 to %d", ErrMalformed, maxRSAExponent)
	}
	var body cryptobyte.Builder
	body.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(n)
		b.AddASN1BigInt(e)
	})
	spki, err := marshal(oidRSA(), func(b *cryptobyte.Builder) { b.AddASN1NULL() }, body.BytesOrPanic())
	if err != nil {
		return nil, err
	}
	return &Key{kind: RSA, spki: spki, rsa: &rsa.PublicKey{N: n, E: int(e.Int64())}}, nil
}

// FromPoint makes a key of an uncompressed point (SEC 1, 2.3.3), which must lie
// on the curve; the point at infinity and compressed points are refused.
func FromPoint(kind Kind, point []byte) (*Key, error) {
	size := kind.FieldBytes()
	if size == 0 {
		return nil, fmt.Errorf("%w: %s has no such points", ErrMalformed, kind)
	}
	if len(point) != 1+2*size || point[0] != 4 {
		return nil, fmt.Errorf("%w: not an uncompressed %s point", ErrMalformed, kind)
	}
	key := &Key{kind: kind, point: append([]byte(nil), point...)}
	var err error
	if kind == Secp256k1 {
		key.koblz, err = secp256k1.ParsePubKey(key.point)
	} else {
		key.nist, err = ecdsa.ParseUncompressedPublicKey(kind.nist(), key.point)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: not a point of %s", ErrMalformed, kind)
	}
	key.spki, err = marshal(oidEC(), func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(kind.CurveOID()) }, key.point)
	return key, err
}

// FromEd25519 makes a key of the 32 bytes of RFC 8032, 5.1.5, which must be the
// canonical encoding of a point of the curve.
func FromEd25519(public []byte) (*Key, error) {
	if len(public) != 32 || !onEdwards25519(public) {
		return nil, fmt.Errorf("%w: not a canonical point of Ed25519", ErrMalformed)
	}
	key := &Key{kind: Ed25519, point: append([]byte(nil), public...)}
	var err error
	// RFC 8410, 3: the parameters must be absent.
	key.spki, err = marshal(oidEd25519(), func(*cryptobyte.Builder) {}, key.point)
	return key, err
}

func marshal(oid asn1.ObjectIdentifier, params cryptobyte.BuilderContinuation, key []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			params(b)
		})
		b.AddASN1BitString(key)
	})
	spki, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return spki, nil
}

// onEdwards25519 decodes as RFC 8032, 5.1.3 does, only to learn whether that
// works. The standard library takes y >= p and finds off-curve keys only when
// it verifies. The input is public, so big.Int's variable time does not matter.
func onEdwards25519(public []byte) bool {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	le := make([]byte, 32)
	for i, b := range public {
		le[31-i] = b
	}
	sign := le[0]>>7 == 1
	le[0] &= 0x7f
	y := new(big.Int).SetBytes(le)
	if y.Cmp(p) >= 0 {
		return false
	}
	// x^2 = (y^2 - 1) / (d y^2 + 1), d = -121665/121666.
	d := new(big.Int).ModInverse(big.NewInt(121666), p)
	d.Mul(d, big.NewInt(-121665)).Mod(d, p)
	y2 := new(big.Int).Mul(y, y)
	u := new(big.Int).Sub(y2, big.NewInt(1))
	v := new(big.Int).Mul(d, y2)
	v.Add(v, big.NewInt(1)).Mod(v, p) // never zero: -1/d is not a square
	x2 := u.Mul(u, v.ModInverse(v, p))
	x2.Mod(x2, p)
	if x2.Sign() == 0 {
		return !sign // x = 0 has one sign only
	}
	return big.Jacobi(x2, p) == 1
}
