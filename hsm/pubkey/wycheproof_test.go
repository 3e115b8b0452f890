package pubkey_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/hsm/hsmtest/vectors"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// TestWycheproofSignatures runs every vector of the algorithms we have. In the
// "bitcoin" file high S is refused, which FIPS 186-5 and AWS KMS do not.
func TestWycheproofSignatures(t *testing.T) {
	for file, alg := range map[string]pubkey.Algorithm{
		"rsa_signature_2048_sha256_test.json":      pubkey.RSAPKCS1SHA256,
		"rsa_signature_2048_sha384_test.json":      pubkey.RSAPKCS1SHA384,
		"rsa_signature_2048_sha512_test.json":      pubkey.RSAPKCS1SHA512,
		"rsa_signature_3072_sha256_test.json":      pubkey.RSAPKCS1SHA256,
		"rsa_signature_3072_sha384_test.json":      pubkey.RSAPKCS1SHA384,
		"rsa_signature_3072_sha512_test.json":      pubkey.RSAPKCS1SHA512,
		"rsa_signature_4096_sha256_test.json":      pubkey.RSAPKCS1SHA256,
		"rsa_signature_4096_sha384_test.json":      pubkey.RSAPKCS1SHA384,
		"rsa_signature_4096_sha512_test.json":      pubkey.RSAPKCS1SHA512,
		"rsa_pss_2048_sha256_mgf1_32_test.json":    pubkey.RSAPSSSHA256,
		"rsa_pss_2048_sha384_mgf1_48_test.json":    pubkey.RSAPSSSHA384,
		"rsa_pss_3072_sha256_mgf1_32_test.json":    pubkey.RSAPSSSHA256,
		"rsa_pss_4096_sha256_mgf1_32_test.json":    pubkey.RSAPSSSHA256,
		"rsa_pss_4096_sha384_mgf1_48_test.json":    pubkey.RSAPSSSHA384,
		"rsa_pss_4096_sha512_mgf1_64_test.json":    pubkey.RSAPSSSHA512,
		"ecdsa_secp256r1_sha256_test.json":         pubkey.ECDSASHA256,
		"ecdsa_secp384r1_sha384_test.json":         pubkey.ECDSASHA384,
		"ecdsa_secp521r1_sha512_test.json":         pubkey.ECDSASHA512,
		"ecdsa_secp256k1_sha256_test.json":         pubkey.ECDSASHA256,
		"ecdsa_secp256k1_sha256_bitcoin_test.json": pubkey.ECDSASHA256,
		"ed25519_test.json":                        pubkey.Ed25519SHA512,
	} {
		t.Run(file, func(t *testing.T) {
			ran := 0
			for _, group := range vectors.Load[vectors.SignatureGroup](t, file) {
				key, err := pubkey.Parse(group.PublicKeyDER)
				if err != nil {
					t.Fatalf("parse public key %x: %v", group.PublicKeyDER, err)
				}
				for _, tc := range group.Tests {
					if tc.Has("SignatureMalleabilityBitcoin") || (tc.Comment == "edge case for signature malleability" && strings.Contains(file, "bitcoin")) {
						continue
					}
					ran++
					err := key.Verify(alg, digest(alg, tc.Message), tc.Signature)
					if (tc.Valid() && err != nil) || (tc.Invalid() && err == nil) {
						t.Errorf("%v is %s: Verify = %v", tc.Case, tc.Result, err)
					}
				}
			}
			if ran < 50 {
				t.Errorf("only %d vectors ran", ran)
			}
		})
	}
}

// A salt of another length than the hash's is refused, though the signature is
// good in itself.
func TestWycheproofPSSOtherSalt(t *testing.T) {
	for _, group := range vectors.Load[vectors.SignatureGroup](t, "rsa_pss_2048_sha256_mgf1_0_test.json") {
		key, err := pubkey.Parse(group.PublicKeyDER)
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range group.Tests {
			if tc.Comment == "s_len changed to 32" {
				continue // which is the one length that we take
			}
			if err := key.Verify(pubkey.RSAPSSSHA256, digest(pubkey.RSAPSSSHA256, tc.Message), tc.Signature); err == nil {
				t.Errorf("%v: a salt of %d bytes was accepted", tc.Case, group.SaltBytes)
			}
		}
	}
}

// TestWycheproofPeerKeys parses the peers' keys of the ECDH vectors. Valid ones
// are accepted and written back as they were; invalid ones (off the curve, other
// curves, twists, explicit parameters) are refused, and so are the acceptable
// ones, whose encodings are not the one that we take.
func TestWycheproofPeerKeys(t *testing.T) {
	for file, kind := range map[string]pubkey.Kind{
		"ecdh_secp256r1_test.json": pubkey.P256,
		"ecdh_secp384r1_test.json": pubkey.P384,
		"ecdh_secp521r1_test.json": pubkey.P521,
		"ecdh_secp256k1_test.json": pubkey.Secp256k1,
	} {
		t.Run(file, func(t *testing.T) {
			accepted, refused := 0, 0
			for _, group := range vectors.Load[vectors.ECDHGroup](t, file) {
				for _, tc := range group.Tests {
					key, err := pubkey.Parse(tc.Public)
					onCurve := err == nil && key.Kind() == kind
					if onCurve != tc.Valid() {
						t.Errorf("%v is %s: Parse = %v", tc.Case, tc.Result, err)
					}
					if err != nil {
						refused++
						continue
					}
					accepted++
					if !bytes.Equal(key.SPKI(), tc.Public) {
						t.Errorf("%v: written back differently", tc.Case)
					}
				}
			}
			if accepted < 100 || refused < 30 {
				t.Errorf("%d keys accepted, %d refused: too few to mean anything", accepted, refused)
			}
		})
	}
}
