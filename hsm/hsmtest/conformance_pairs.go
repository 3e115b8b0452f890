package hsmtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// digestBytes is the length of the algorithm's input, 0 when it is a message.
func digestBytes(alg hsm.SignatureAlgorithm) int {
	if h := alg.Hash(); h != 0 {
		return h.Size()
	}
	return 0
}

func (s *suite) public(t *testing.T, key *hsm.Key) *pubkey.Key {
	t.Helper()
	spki, err := key.PublicKey(t.Context())
	if err != nil {
		t.Fatalf("PublicKey: %v", err)
	}
	public, err := pubkey.Parse(spki)
	if err != nil {
		t.Fatalf("PublicKey: %v", err)
	}
	return public
}

// sign: what the token signs the host verifies, under the algorithm used and
// no other.
func (s *suite) sign(t *testing.T) {
	s.each(t, hsm.PurposeSign, func(t *testing.T, spec hsm.KeySpec) {
		key, _ := s.key(t, spec, hsm.PurposeSign)
		public := s.public(t, key)
		for _, alg := range spec.Algorithms() {
			if s.lacks(alg.String()) {
				if _, err := key.Sign(t.Context(), alg, make([]byte, digestBytes(alg))); !errors.Is(err, hsm.ErrUnsupported) {
					t.Errorf("%s: Sign = %v, want ErrUnsupported", alg, err)
				}
				continue
			}
			inputs := [][]byte{bytes.Repeat([]byte{0xff}, digestBytes(alg)), make([]byte, digestBytes(alg))}
			if digestBytes(alg) == 0 { // Ed25519: the message itself
				inputs = [][]byte{nil, []byte("message"), make([]byte, 4096), make([]byte, hsm.MaxMessageBytes)}
			}
			for _, input := range inputs {
				signature, err := key.Sign(t.Context(), alg, input)
				if err != nil {
					t.Fatalf("%s: Sign of %d bytes: %v", alg, len(input), err)
				}
				for _, other := range spec.Algorithms() {
					if digestBytes(other) != digestBytes(alg) {
						continue
					}
					if err := public.Verify(other, input, signature); (err == nil) != (other == alg) {
						t.Errorf("signature by %s verifies under %s: %v", alg, other, err)
					}
				}
				if len(input) > 0 {
					changed := bytes.Clone(input)
					changed[0] ^= 1
					if err := public.Verify(alg, changed, signature); !errors.Is(err, pubkey.ErrSignature) {
						t.Errorf("%s: the signature verifies another input: %v", alg, err)
					}
				}
			}
		}
	})
}

func (s *suite) signRefuses(t *testing.T) {
	s.each(t, hsm.PurposeSign, func(t *testing.T, spec hsm.KeySpec) {
		if spec == hsm.RSA3072 || spec == hsm.RSA4096 {
			return // nothing but the modulus differs from RSA2048
		}
		key, _ := s.key(t, spec, hsm.PurposeSign)
		for _, alg := range pubkey.Algorithms() {
			n := digestBytes(alg)
			if !slices.Contains(spec.Algorithms(), alg) {
				if _, err := key.Sign(t.Context(), alg, make([]byte, n)); !errors.Is(err, hsm.ErrInvalidInput) {
					t.Errorf("%s: Sign = %v, want ErrInvalidInput", alg, err)
				}
				continue
			}
			lengths := []int{0, n - 1, n + 1}
			if n == 0 {
				lengths = []int{hsm.MaxMessageBytes + 1}
			}
			for _, bad := range lengths {
				if _, err := key.Sign(t.Context(), alg, make([]byte, bad)); !errors.Is(err, hsm.ErrInvalidInput) {
					t.Errorf("%s of %d bytes: Sign = %v, want ErrInvalidInput", alg, bad, err)
				}
			}
		}
		if _, err := key.Sign(t.Context(), 0, make([]byte, 32)); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("no algorithm: Sign = %v, want ErrInvalidInput", err)
		}
	})
}

// decryptSomething encrypts for the key on the host and decrypts in the token.
func decryptSomething(ctx context.Context, key *hsm.Key) ([]byte, error) {
	spki, err := key.PublicKey(ctx)
	if err != nil {
		return nil, err
	}
	public, err := pubkey.Parse(spki)
	if err != nil {
		return nil, err
	}
	ciphertext, err := public.EncryptOAEP(crypto.SHA256, []byte("plaintext"))
	if err != nil {
		return nil, err
	}
	return key.DecryptOAEP(ctx, crypto.SHA256, ciphertext)
}

func (s *suite) decryptOAEP(t *testing.T) {
	s.each(t, hsm.PurposeDecrypt, func(t *testing.T, spec hsm.KeySpec) {
		key, _ := s.key(t, spec, hsm.PurposeDecrypt)
		public := s.public(t, key)
		size := public.Bits() / 8
		for hash, other := range map[crypto.Hash]crypto.Hash{crypto.SHA1: crypto.SHA256, crypto.SHA256: crypto.SHA1} {
			most := public.MaxOAEP(hash)
			var last []byte
			for _, n := range []int{1, 32, most - 1, most} {
				plaintext := bytes.Repeat([]byte{0xa5}, n)
				ciphertext, err := public.EncryptOAEP(hash, plaintext)
				if err != nil {
					t.Fatal(err)
				}
				got, err := key.DecryptOAEP(t.Context(), hash, ciphertext)
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("%v, %d bytes: DecryptOAEP = %x, %v", hash, n, got, err)
				}
				last = ciphertext
			}
			changed := bytes.Clone(last)
			changed[size-1] ^= 1
			tooBig := bytes.Repeat([]byte{0xff}, size) // above the modulus
			for name, bad := range map[string][]byte{
				"changed": changed, "zero": make([]byte, size), "one": append(make([]byte, size-1), 1), "above the modulus": tooBig,
				"short": last[1:], "long": append([]byte{0}, last...), "empty": nil,
			} {
				s.refusesOAEP(t, key, hash, name, bad)
			}
			s.refusesOAEP(t, key, other, "the other hash", last)
			if got, err := key.DecryptOAEP(t.Context(), hash, last); err != nil || len(got) != most {
				t.Errorf("%v after refusals: DecryptOAEP = %d bytes, %v", hash, len(got), err)
			}
		}
		for _, hash := range []crypto.Hash{0, crypto.MD5, crypto.SHA384, crypto.SHA512} {
			if _, err := key.DecryptOAEP(t.Context(), hash, make([]byte, size)); !errors.Is(err, hsm.ErrInvalidInput) {
				t.Errorf("%v: DecryptOAEP = %v, want ErrInvalidInput", hash, err)
			}
		}
	})
}

func (s *suite) refusesOAEP(t *testing.T, key *hsm.Key, hash crypto.Hash, name string, ciphertext []byte) {
	t.Helper()
	got, err := key.DecryptOAEP(t.Context(), hash, ciphertext)
	if err != hsm.ErrAuthentication || got != nil { // exactly this: anything wrapped around it would be detail
		t.Errorf("%v, %s: DecryptOAEP = %x, %v, want ErrAuthentication and nothing else", hash, name, got, err)
	}
}

// curveOf returns the standard library's curve of a spec for key agreement.
func curveOf(spec hsm.KeySpec) ecdh.Curve {
	switch spec {
	case hsm.P256:
		return ecdh.P256()
	case hsm.P384:
		return ecdh.P384()
	}
	return ecdh.P521()
}

func kindOfSpec(spec hsm.KeySpec) pubkey.Kind {
	switch spec {
	case hsm.P256:
		return pubkey.P256
	case hsm.P384:
		return pubkey.P384
	}
	return pubkey.P521
}

// peerOf returns a peer's public key, whose private key is lost.
func peerOf(spec hsm.KeySpec) *pubkey.Key {
	private, err := curveOf(spec).GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	key, err := pubkey.FromPoint(kindOfSpec(spec), private.PublicKey().Bytes())
	if err != nil {
		panic(err) // a public key of the standard library is on its curve
	}
	return key
}

// ecdh: both sides come to the same secret, often enough to meet one that
// begins with a zero byte (1 in 256).
func (s *suite) ecdh(t *testing.T) {
	s.each(t, hsm.PurposeDerive, func(t *testing.T, spec hsm.KeySpec) {
		key, _ := s.key(t, spec, hsm.PurposeDerive)
		ours, err := curveOf(spec).NewPublicKey(s.public(t, key).Point())
		if err != nil {
			t.Fatal(err)
		}
		zeros := 0
		for round := range 3000 {
			peer, err := curveOf(spec).GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			want, err := peer.ECDH(ours)
			if err != nil {
				t.Fatal(err)
			}
			// Finding a leading zero is cheaper on the host: the token is asked about the
			// first few, and about those.
			if round >= 5 && want[0] != 0 {
				continue
			}
			if want[0] == 0 {
				zeros++
			}
			point, err := pubkey.FromPoint(kindOfSpec(spec), peer.PublicKey().Bytes())
			if err != nil {
				t.Fatal(err)
			}
			got, err := key.ECDH(t.Context(), point.SPKI())
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("ECDH = %x, %v, want %x", got, err, want)
			}
			if zeros > 1 {
				break
			}
		}
		if zeros == 0 {
			t.Error("no shared secret began with a zero")
		}
		for _, other := range []hsm.KeySpec{hsm.P256, hsm.P384, hsm.P521} {
			if other == spec {
				continue
			}
			if _, err := key.ECDH(t.Context(), peerOf(other).SPKI()); !errors.Is(err, hsm.ErrInvalidInput) {
				t.Errorf("peer on %s: ECDH = %v, want ErrInvalidInput", other, err)
			}
		}
		good := peerOf(spec).SPKI()
		off := bytes.Clone(good)
		off[len(off)-1] ^= 1
		for name, bad := range map[string][]byte{"nothing": nil, "off the curve": off, "trailing byte": append(bytes.Clone(good), 0), "a point alone": good[len(good)-65:]} {
			if _, err := key.ECDH(t.Context(), bad); !errors.Is(err, hsm.ErrInvalidInput) {
				t.Errorf("%s: ECDH = %v, want ErrInvalidInput", name, err)
			}
		}
	})
}

// wrongPurpose: a key does nothing but what it was made for.
func (s *suite) wrongPurpose(t *testing.T) {
	ctx := t.Context()
	for _, spec := range s.caps.Specs {
		if spec == hsm.RSA3072 || spec == hsm.RSA4096 {
			continue
		}
		for _, purpose := range s.purposes(spec) {
			key, _ := s.key(t, spec, purpose)
			_, sealErr := key.Seal(ctx, make([]byte, 12), []byte("aad"), nil)
			_, openErr := key.Open(ctx, make([]byte, 12), []byte("aad"), make([]byte, 16))
			_, macErr := key.MAC(ctx, nil)
			_, signErr := key.Sign(ctx, pubkey.ECDSASHA256, make([]byte, 32))
			_, decryptErr := key.DecryptOAEP(ctx, crypto.SHA256, make([]byte, 256))
			_, deriveErr := key.ECDH(ctx, peerOf(hsm.P256).SPKI())
			_, wrapErr := key.WrapBytes(ctx, hsm.AESKW, make([]byte, 16))
			_, unwrapErr := key.UnwrapBytes(ctx, hsm.AESKW, make([]byte, 24))
			_, wrapKeyErr := key.WrapKey(ctx, hsm.AESKW, key)
			for of, err := range map[hsm.Purpose]error{
				hsm.PurposeMAC: macErr, hsm.PurposeSign: signErr, hsm.PurposeDecrypt: decryptErr, hsm.PurposeDerive: deriveErr,
				hsm.PurposeSeal: joint(sealErr, openErr), hsm.PurposeWrap: joint(wrapErr, unwrapErr, wrapKeyErr),
			} {
				if of != purpose && !errors.Is(err, hsm.ErrInvalidInput) {
					t.Errorf("%s for %s: %s = %v, want ErrInvalidInput", spec, purpose, of, err)
				}
			}
			// The token refuses too, when it is asked past the host's check.
			for _, other := range hsm.KeySpecs() {
				for _, forced := range other.Purposes() {
					if forced == purpose || other != spec {
						continue
					}
					err := use(ctx, s.token.Key(other, forced, ID(t.Name()+"/"+spec.String()+"/"+purpose.String())), other, forced)
					if err == nil {
						t.Errorf("%s made for %s was used for %s", spec, purpose, forced)
					}
				}
			}
		}
	}
}

// joint is an error that is ErrInvalidInput when all are.
func joint(all ...error) error {
	for _, err := range all {
		if !errors.Is(err, hsm.ErrInvalidInput) {
			return err
		}
	}
	return hsm.ErrInvalidInput
}
