package hsmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest/vectors"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// imported runs fn with a key that the test knows.
func (s *suite) imported(t *testing.T, spec hsm.KeySpec, purpose hsm.Purpose, m Material, name string, fn func(key *hsm.Key)) {
	t.Helper()
	id := ID(t.Name() + name)
	remove, err := s.importer.Import(id, m)
	if err != nil {
		t.Fatalf("import %s: %v", name, err)
	}
	key := s.token.Key(spec, purpose, id)
	fn(key)
	key.Release()
	if err := remove(); err != nil {
		t.Fatalf("remove %s: %v", name, err)
	}
}

// vectorsGCM: those of 256-bit keys with the IVs, tags and AAD that we take.
func (s *suite) vectorsGCM(t *testing.T) {
	ran := 0
	for _, group := range vectors.Load[vectors.AEADGroup](t, "aes_gcm_test.json") {
		if group.KeyBits != 256 || group.TagBits != 128 || group.IVBits < 96 || group.IVBits > 128 {
			continue
		}
		for _, tc := range group.Tests {
			if len(tc.AAD) == 0 {
				continue // refused before the token is asked
			}
			ran++
			s.imported(t, hsm.AES256, hsm.PurposeSeal, Material{AES: tc.Key}, tc.Case.String(), func(key *hsm.Key) {
				want := append(bytes.Clone(tc.Ciphertext), tc.Tag...)
				opened, err := key.Open(t.Context(), tc.IV, tc.AAD, want)
				if tc.Invalid() {
					if !errors.Is(err, hsm.ErrAuthentication) {
						t.Errorf("%v: Open = %v, want ErrAuthentication", tc.Case, err)
					}
					return
				}
				if err != nil || !bytes.Equal(opened, tc.Message) {
					t.Errorf("%v: Open = %x, %v, want %x", tc.Case, opened, err, tc.Message)
				}
				if len(tc.IV) != 12 {
					return
				}
				sealed, err := key.Seal(t.Context(), tc.IV, tc.AAD, tc.Message)
				if err != nil || !bytes.Equal(sealed, want) {
					t.Errorf("%v: Seal = %x, %v, want %x", tc.Case, sealed, err, want)
				}
			})
		}
	}
	if ran < 15 {
		t.Errorf("only %d vectors ran", ran)
	}
}

func (s *suite) vectorsHMAC(t *testing.T) {
	for file, spec := range map[string]hsm.KeySpec{
		"hmac_sha224_test.json": hsm.HMAC224, "hmac_sha256_test.json": hsm.HMAC256,
		"hmac_sha384_test.json": hsm.HMAC384, "hmac_sha512_test.json": hsm.HMAC512,
	} {
		if !s.has(spec) {
			continue
		}
		t.Run(file, func(t *testing.T) {
			size := map[hsm.KeySpec]int{hsm.HMAC224: 28, hsm.HMAC256: 32, hsm.HMAC384: 48, hsm.HMAC512: 64}[spec]
			ran := 0
			for _, group := range vectors.Load[vectors.MACGroup](t, file) {
				if group.TagBits != 8*size || group.KeyBits < 8*size {
					continue // truncated codes, and keys shorter than we make and SoftHSM takes
				}
				for _, tc := range group.Tests {
					if tc.Invalid() && ran%8 != 0 {
						ran++
						continue // a wrong code is wrong whatever is wrong with it: each costs a token object
					}
					ran++
					s.imported(t, spec, hsm.PurposeMAC, Material{HMAC: tc.Key}, tc.Case.String(), func(key *hsm.Key) {
						got, err := key.MAC(t.Context(), tc.Message)
						if err != nil || bytes.Equal(got, tc.Tag) != tc.Valid() {
							t.Errorf("%v is %s: MAC = %x, %v", tc.Case, tc.Result, got, err)
						}
					})
				}
			}
			if ran < 20 {
				t.Errorf("only %d vectors ran", ran)
			}
		})
	}
}

func (s *suite) vectorsOAEP(t *testing.T) {
	for file, hash := range map[string]crypto.Hash{
		"rsa_oaep_2048_sha1_mgf1sha1_test.json":     crypto.SHA1,
		"rsa_oaep_2048_sha256_mgf1sha256_test.json": crypto.SHA256,
		"rsa_oaep_3072_sha256_mgf1sha256_test.json": crypto.SHA256,
		"rsa_oaep_4096_sha256_mgf1sha256_test.json": crypto.SHA256,
	} {
		t.Run(file, func(t *testing.T) {
			ran := 0
			for _, group := range vectors.Load[vectors.OAEPGroup](t, file) {
				parsed, err := x509.ParsePKCS8PrivateKey(group.PKCS8)
				if err != nil {
					t.Fatal(err)
				}
				private, ok := parsed.(*rsa.PrivateKey)
				if !ok {
					t.Fatalf("private key is a %T", parsed)
				}
				m := Material{RSA: private}
				spec, purpose := m.specOf()
				if !s.has(spec) {
					continue
				}
				s.imported(t, spec, purpose, m, file, func(key *hsm.Key) {
					for _, tc := range group.Tests {
						if len(tc.Label) > 0 && tc.Valid() {
							continue // we use no labels
						}
						ran++
						got, err := key.DecryptOAEP(t.Context(), hash, tc.Ciphertext)
						switch {
						case tc.Valid() && (err != nil || !bytes.Equal(got, tc.Message)):
							t.Errorf("%v: DecryptOAEP = %x, %v, want %x", tc.Case, got, err, tc.Message)
						case tc.Invalid() && !errors.Is(err, hsm.ErrAuthentication):
							t.Errorf("%v: DecryptOAEP = %x, %v, want ErrAuthentication", tc.Case, got, err)
						}
					}
				})
			}
			if ran < 20 {
				t.Errorf("only %d vectors ran", ran)
			}
		})
	}
}

// vectorsECDH imports the vectors' private keys, as many as suffices: each is
// another token object. Peers that are refused never reach the token, and are
// all tried, on one key.
func (s *suite) vectorsECDH(t *testing.T) {
	const perFile = 60
	for file, curve := range map[string]elliptic.Curve{
		"ecdh_secp256r1_test.json": elliptic.P256(), "ecdh_secp384r1_test.json": elliptic.P384(), "ecdh_secp521r1_test.json": elliptic.P521(),
	} {
		t.Run(file, func(t *testing.T) {
			agreed, refused := 0, 0
			var any *hsm.Key
			for _, group := range vectors.Load[vectors.ECDHGroup](t, file) {
				for _, tc := range group.Tests {
					private, err := ecdsa.ParseRawPrivateKey(curve, leftPad(tc.Private, (curve.Params().BitSize+7)/8))
					if err != nil {
						t.Fatalf("%v: %v", tc.Case, err)
					}
					m := Material{ECDH: private}
					spec, purpose := m.specOf()
					if !s.has(spec) {
						return
					}
					if any == nil {
						any, _ = s.key(t, spec, purpose)
					}
					if !tc.Valid() {
						refused++
						if _, err := any.ECDH(t.Context(), tc.Public); !errors.Is(err, hsm.ErrInvalidInput) {
							t.Errorf("%v is %s: ECDH = %v, want ErrInvalidInput", tc.Case, tc.Result, err)
						}
						continue
					}
					if _, err := pubkey.Parse(tc.Public); err != nil {
						t.Errorf("%v: %v", tc.Case, err)
					}
					if agreed >= perFile {
						continue
					}
					agreed++
					s.imported(t, spec, purpose, m, tc.Case.String(), func(key *hsm.Key) {
						got, err := key.ECDH(t.Context(), tc.Public)
						if err != nil || !bytes.Equal(got, tc.Shared) {
							t.Errorf("%v: ECDH = %x, %v, want %x", tc.Case, got, err, tc.Shared)
						}
					})
				}
			}
			if agreed < 20 || refused < 20 {
				t.Errorf("%d vectors agreed, %d refused: too few", agreed, refused)
			}
		})
	}
}

// leftPad brings a big-endian number, which the vectors write as ASN.1 does, to
// its length.
func leftPad(b []byte, n int) []byte {
	b = bytes.TrimLeft(b, "\x00")
	return append(make([]byte, n-len(b)), b...)
}
