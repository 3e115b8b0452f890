package kms_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

const algECDH = keyholdv1.KeyAgreementAlgorithmSpec_KEY_AGREEMENT_ALGORITHM_SPEC_ECDH

// spkiOf marshals a public key.
func spkiOf(t testing.TB, pub any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The token and the standard library agree on the same secret, its leading
// zeros included.
func TestDeriveSharedSecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for spec, c := range map[keyholdv1.KeySpec]struct {
		curve ecdh.Curve
		bytes int
	}{p256: {ecdh.P256(), 32}, keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P384: {ecdh.P384(), 48}, keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P521: {ecdh.P521(), 66}} {
		t.Run(spec.String(), func(t *testing.T) {
			w := w.with(t)
			id := w.newKey(spec, usageAgree)
			public := do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: id}).GetPublicKey()
			parsed, err := x509.ParsePKIXPublicKey(public)
			if err != nil {
				t.Fatal(err)
			}
			own, err := parsed.(*ecdsa.PublicKey).ECDH()
			if err != nil {
				t.Fatal(err)
			}
			// One in 256 secrets begins with a zero byte, most of P-521 do: such a
			// peer is looked for.
			for zero := false; !zero; {
				peer, err := c.curve.GenerateKey(rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				want, err := peer.ECDH(own)
				if err != nil {
					t.Fatal(err)
				}
				if zero = want[0] == 0; !zero && want[1] != 7 { // and a few others
					continue
				}
				resp := do[*keyholdv1.DeriveSharedSecretResponse](w, &keyholdv1.DeriveSharedSecretRequest{KeyId: id, KeyAgreementAlgorithm: algECDH, PublicKey: spkiOf(t, peer.PublicKey())})
				if !bytes.Equal(resp.GetSharedSecret(), want) || len(want) != c.bytes {
					t.Errorf("%d bytes, want the %d of the standard library (leading zero: %v)", len(resp.GetSharedSecret()), len(want), zero)
				}
				if resp.GetKeyId() != w.metadata(id).GetArn() || resp.GetKeyAgreementAlgorithm() != algECDH || resp.GetKeyOrigin() != keyholdv1.OriginType_ORIGIN_TYPE_AWS_KMS {
					t.Errorf("the answer is about %s, %s, %s", resp.GetKeyId(), resp.GetKeyAgreementAlgorithm(), resp.GetKeyOrigin())
				}
			}
		})
	}
	// Two keys of the token agree with each other.
	a, b := w.newKey(p256, usageAgree), w.newKey(p256, usageAgree)
	secret := func(key, peer string) []byte {
		pub := do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: peer}).GetPublicKey()
		return do[*keyholdv1.DeriveSharedSecretResponse](w, &keyholdv1.DeriveSharedSecretRequest{KeyId: key, KeyAgreementAlgorithm: algECDH, PublicKey: pub}).GetSharedSecret()
	}
	if !bytes.Equal(secret(a, b), secret(b, a)) {
		t.Error("two keys do not agree")
	}
}

// What is no point of the key's own curve is refused before the token sees it,
// in a dry run too.
func TestDeriveSharedSecretRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, sign := w.newKey(p256, usageAgree), w.newKey(p256, usageSign)
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	spki := spkiOf(t, &good.PublicKey)
	offCurve := bytes.Clone(spki)
	offCurve[len(offCurve)-1] ^= 1
	infinity := append(bytes.Clone(spki[:len(spki)-65]), make([]byte, 65)...)
	for name, peer := range map[string][]byte{
		"another curve": spkiOf(t, &other.PublicKey), "Ed25519": spkiOf(t, edPublic), "X25519": spkiOf(t, x.PublicKey()), "RSA": spkiOf(t, &rsaKey.PublicKey),
		"off the curve": offCurve, "zeros": infinity, "garbage": []byte("garbage"), "nothing": nil,
		"cut off": spki[:len(spki)-1], "more behind": append(bytes.Clone(spki), 0), "8,193 bytes": make([]byte, 8193), "8,192 bytes": make([]byte, 8192),
	} {
		for _, dry := range []bool{false, true} {
			e := refuse(w, &keyholdv1.DeriveSharedSecretRequest{KeyId: id, KeyAgreementAlgorithm: algECDH, PublicKey: peer, DryRun: &dry}, kms.CodeValidation)
			if len(e.Violations) != 1 || e.Violations[0].Field != "public_key" {
				t.Errorf("%s: the refusal is about %+v", name, e.Violations)
			}
		}
	}
	refuse(w, &keyholdv1.DeriveSharedSecretRequest{KeyId: id, PublicKey: spki}, kms.CodeValidation)
	refuse(w, &keyholdv1.DeriveSharedSecretRequest{KeyId: id, KeyAgreementAlgorithm: 2, PublicKey: spki}, kms.CodeValidation)
	refuse(w, &keyholdv1.DeriveSharedSecretRequest{KeyId: sign, KeyAgreementAlgorithm: algECDH, PublicKey: spki}, kms.CodeInvalidKeyUsage)
	refuse(w, &keyholdv1.DeriveSharedSecretRequest{KeyId: id, KeyAgreementAlgorithm: algECDH, PublicKey: spki, DryRun: ptr(true)}, kms.CodeDryRun)
	do[*keyholdv1.DeriveSharedSecretResponse](w, &keyholdv1.DeriveSharedSecretRequest{KeyId: id, KeyAgreementAlgorithm: algECDH, PublicKey: spki})
}
