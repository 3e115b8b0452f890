package kms_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// hashOf returns the hash of a signing algorithm.
func hashOf(alg keyholdv1.SigningAlgorithmSpec) crypto.Hash {
	switch alg {
	case pss256, pkcs256, ecdsa256:
		return crypto.SHA256
	case pss384, pkcs384, ecdsa384:
		return crypto.SHA384
	}
	return crypto.SHA512
}

func sum(h crypto.Hash, message []byte) []byte {
	w := h.New()
	w.Write(message)
	return w.Sum(nil)
}

// hostVerify checks a signature with the standard library alone.
func hostVerify(spki []byte, alg keyholdv1.SigningAlgorithmSpec, message, signature []byte) error {
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return verifySecp256k1(spki, sum(crypto.SHA256, message), signature)
	}
	h := hashOf(alg)
	switch k := key.(type) {
	case *rsa.PublicKey:
		if alg <= pss512 {
			return rsa.VerifyPSS(k, h, sum(h, message), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.VerifyPKCS1v15(k, h, sum(h, message), signature)
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(k, sum(h, message), signature) {
			return errors.New("ecdsa: not valid")
		}
		return nil
	case ed25519.PublicKey:
		if !ed25519.Verify(k, message, signature) {
			return errors.New("ed25519: not valid")
		}
		return nil
	}
	return fmt.Errorf("public key is a %T", key)
}

// verifySecp256k1 is ECDSA verification (SEC 1, 4.1.4) over y² = x³ + 7 in
// affine coordinates: slow, short, and of nobody else's making.
func verifySecp256k1(spki, digest, signature []byte) error {
	var info struct {
		Algorithm struct{ Algorithm, Curve asn1.ObjectIdentifier }
		Point     asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) != 0 {
		return fmt.Errorf("SPKI: %w", err)
	}
	if got := info.Algorithm.Curve.String(); got != "1.3.132.0.10" || len(info.Point.Bytes) != 65 || info.Point.Bytes[0] != 4 {
		return fmt.Errorf("not an uncompressed point of secp256k1: curve %s, %d bytes", got, len(info.Point.Bytes))
	}
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(signature, &sig); err != nil || len(rest) != 0 {
		return fmt.Errorf("signature: %w", err)
	}
	hex := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 16); return n }
	p := hex("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEFFFFFC2F")
	n := hex("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141")
	type point struct{ x, y *big.Int }
	add := func(a, b *point) *point {
		if a == nil {
			return b
		}
		if b == nil {
			return a
		}
		var top, bottom *big.Int
		if a.x.Cmp(b.x) == 0 {
			if new(big.Int).Mod(new(big.Int).Add(a.y, b.y), p).Sign() == 0 {
				return nil
			}
			top, bottom = new(big.Int).Mul(big.NewInt(3), new(big.Int).Mul(a.x, a.x)), new(big.Int).Lsh(a.y, 1)
		} else {
			top, bottom = new(big.Int).Sub(b.y, a.y), new(big.Int).Sub(b.x, a.x)
		}
		slope := top.Mul(top, bottom.ModInverse(bottom.Mod(bottom, p), p))
		x := new(big.Int).Mul(slope, slope)
		x.Mod(x.Sub(x.Sub(x, a.x), b.x), p)
		y := new(big.Int).Sub(a.x, x)
		return &point{x, y.Mod(y.Sub(y.Mul(y, slope), a.y), p)}
	}
	times := func(k *big.Int, a *point) (out *point) {
		for i := k.BitLen() - 1; i >= 0; i-- {
			out = add(out, out)
			if k.Bit(i) == 1 {
				out = add(out, a)
			}
		}
		return out
	}
	g := &point{hex("79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798"), hex("483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8")}
	q := &point{new(big.Int).SetBytes(info.Point.Bytes[1:33]), new(big.Int).SetBytes(info.Point.Bytes[33:])}
	if sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.Cmp(n) >= 0 || sig.S.Cmp(n) >= 0 {
		return errors.New("r or s out of range")
	}
	inverse := new(big.Int).ModInverse(sig.S, n)
	u1 := new(big.Int).Mul(new(big.Int).SetBytes(digest), inverse)
	u2 := new(big.Int).Mul(sig.R, inverse)
	sum := add(times(u1.Mod(u1, n), g), times(u2.Mod(u2, n), q))
	if sum == nil || new(big.Int).Mod(sum.x, n).Cmp(sig.R) != 0 {
		return errors.New("secp256k1: not valid")
	}
	return nil
}
