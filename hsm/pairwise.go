package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// pairwise tests a key pair, or a secret key against itself, before it is used: what the token does with the private half the host undoes
// with the public one (SP 800-57 part 1, 5.4.4; FIPS 140-3 IG 10.3.A asks tokens for the same). spki is nil for secret keys.
func (s *session) pairwise(spec KeySpec, purpose Purpose, h pkcs11.ObjectHandle, spki []byte, caps *Capabilities) error {
	info, _ := spec.info()
	switch purpose {
	case PurposeSeal:
		return s.pairSeal(h)
	case PurposeMAC:
		return s.pairMAC(h, info)
	case PurposeWrap:
		if caps.Wrapping.UnwrapTemplate {
			return s.pairUnwrapTemplate(h, caps)
		}
		return s.pairWrap(h, caps)
	}
	key, err := pubkey.Parse(spki)
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	switch purpose {
	case PurposeSign:
		for _, alg := range pairAlgorithms(info) {
			if err := s.pairSign(h, info, key, alg); err != nil {
				return fmt.Errorf("%s: %w", alg, err)
			}
		}
		return nil
	case PurposeDecrypt:
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
			if err := s.pairDecrypt(h, info, key, hash, caps.oaep(hash)); err != nil {
				return fmt.Errorf("%s: %w", oaepName(hash), err)
			}
		}
		return nil
	case PurposeDerive:
		return s.pairDerive(h, info, key, caps.DERPoints)
	}
	return fmt.Errorf("%w: purpose %s", ErrInvalidInput, purpose)
}

var errPair = errors.New("the two halves do not match")

// pairAlgorithms is one algorithm of each padding: the hash does not matter to the key.
func pairAlgorithms(info specInfo) []SignatureAlgorithm {
	switch info.kind {
	case pubkey.RSA:
		return []SignatureAlgorithm{pubkey.RSAPKCS1SHA256, pubkey.RSAPSSSHA256}
	case pubkey.P384:
		return []SignatureAlgorithm{pubkey.ECDSASHA384}
	case pubkey.P521:
		return []SignatureAlgorithm{pubkey.ECDSASHA512}
	case pubkey.Ed25519:
		return []SignatureAlgorithm{pubkey.Ed25519SHA512}
	}
	return []SignatureAlgorithm{pubkey.ECDSASHA256}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

func (s *session) pairSeal(h pkcs11.ObjectHandle) error {
	iv, aad, plaintext := randomBytes(sealIVBytes), []byte("keyhold pairwise test"), randomBytes(32)
	sealed, err := s.seal(h, iv, aad, plaintext)
	if err != nil {
		return err
	}
	opened, err := s.open(h, iv, aad, sealed)
	if err != nil {
		return err
	}
	if !bytes.Equal(opened, plaintext) || bytes.Contains(sealed, plaintext) {
		return errPair
	}
	return nil
}

// pairMAC: the host has no copy of the key, so a code must repeat itself and change with the message.
func (s *session) pairMAC(h pkcs11.ObjectHandle, info specInfo) error {
	var codes [3][]byte
	for i, message := range []string{"keyhold pairwise test", "keyhold pairwise test", "keyhold pairwise test."} {
		var err error
		if codes[i], err = s.mac(h, info, []byte(message)); err != nil {
			return err
		}
	}
	if !hmac.Equal(codes[0], codes[1]) || hmac.Equal(codes[0], codes[2]) {
		return errPair
	}
	return nil
}

// pairWrap wraps and unwraps by each algorithm that the token has.
func (s *session) pairWrap(h pkcs11.ObjectHandle, caps *Capabilities) error {
	for _, alg := range []WrapAlgorithm{AESKWP, AESKW} {
		mechanism, err := caps.wrapMechanism(alg)
		if err != nil {
			continue
		}
		plaintext := randomBytes(32)
		wrapped, err := s.wrapBytes(h, mechanism, plaintext, wrappedBytes(len(plaintext)))
		if err != nil {
			return err
		}
		got, err := s.unwrapBytes(h, alg, mechanism, wrapped)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, plaintext) || bytes.Contains(wrapped, plaintext[:wrapBlock]) {
			return errPair
		}
	}
	return nil
}

// pairUnwrapTemplate does that, and tries to unwrap to each kind of object that CKA_UNWRAP_TEMPLATE does not allow: to a token object too, on
// the session of manage.
func (s *session) pairUnwrapTemplate(h pkcs11.ObjectHandle, caps *Capabilities) error {
	if err := s.pairWrap(h, caps); err != nil {
		return err
	}
	for _, alg := range []WrapAlgorithm{AESKWP, AESKW} {
		mechanism, err := caps.wrapMechanism(alg)
		if err != nil {
			continue
		}
		wrapped, err := s.wrapBytes(h, mechanism, randomBytes(32), wrappedBytes(32))
		if err != nil {
			return err
		}
		for i, item := range unwrapItems() {
			object, err := s.direct().unwrap(s.h, mechanism, h, wrapped, i)
			if err == nil {
				return errors.Join(fmt.Errorf("the token unwraps though CKA_UNWRAP_TEMPLATE has another value of %#x", item.attribute), s.destroyAtOnce(object))
			}
			if err = callError("C_UnwrapKey", err); gone(err) {
				return err
			}
		}
	}
	return nil
}

func (s *session) pairSign(h pkcs11.ObjectHandle, info specInfo, key *pubkey.Key, alg SignatureAlgorithm) error {
	input := randomBytes(32)
	if hash := alg.Hash(); hash != 0 {
		input = randomBytes(hash.Size())
	}
	signature, err := s.sign(h, info, alg, input)
	if err != nil {
		return err
	}
	return key.Verify(alg, input, signature)
}

func (s *session) pairDecrypt(h pkcs11.ObjectHandle, info specInfo, key *pubkey.Key, hash crypto.Hash, where string) error {
	plaintext := randomBytes(32)
	ciphertext, err := key.EncryptOAEP(hash, plaintext)
	if err != nil {
		return err
	}
	got, err := s.decryptOAEP(h, info, where, hash, ciphertext)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, plaintext) {
		return errPair
	}
	return nil
}

func (s *session) pairDerive(h pkcs11.ObjectHandle, info specInfo, key *pubkey.Key, der bool) error {
	var curve ecdh.Curve
	switch info.kind {
	case pubkey.P256:
		curve = ecdh.P256()
	case pubkey.P384:
		curve = ecdh.P384()
	case pubkey.P521:
		curve = ecdh.P521()
	default:
		return fmt.Errorf("%w: ECDH on %s", ErrInvalidInput, info.kind)
	}
	peer, err := curve.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("peer's key: %w", err)
	}
	ours, err := curve.NewPublicKey(key.Point())
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	want, err := peer.ECDH(ours)
	if err != nil {
		return fmt.Errorf("host's half of ECDH: %w", err)
	}
	defer clear(want)
	got, err := s.ecdh(h, info, peer.PublicKey().Bytes(), der)
	if err != nil {
		return err
	}
	defer clear(got)
	if !bytes.Equal(got, want) {
		return errPair
	}
	return nil
}
