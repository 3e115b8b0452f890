package hsm

import (
	"context"
	"crypto"
	"crypto/subtle"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Where the OAEP padding is taken off.
const (
	oaepInToken = "token"
	oaepOnHost  = "host"
)

// DecryptOAEP decrypts RSAES-OAEP with SHA-1 or SHA-256, MGF1 over the same hash, and an empty label. Where the token has been proven to do
// that, it does; where not, it does the raw RSA and the padding is taken off here in constant time. Whatever does not decrypt gives
// ErrAuthentication and nothing else.
func (k *Key) DecryptOAEP(ctx context.Context, h crypto.Hash, ciphertext []byte) ([]byte, error) {
	info, _ := k.spec.info()
	switch {
	case k.purpose != PurposeDecrypt:
		return nil, k.misuse("DecryptOAEP")
	case oaepName(h) == "":
		return nil, fmt.Errorf("%w: OAEP with %s", ErrInvalidInput, h)
	case len(ciphertext) != info.bytes:
		return nil, ErrAuthentication // RFC 8017, 7.1.2, step 1b: one error for all
	}
	caps, err := k.t.proven(ctx, "DecryptOAEP")
	if err != nil {
		return nil, err
	}
	where := caps.oaep(h)
	if where == "" {
		return nil, fmt.Errorf("%w: %s: %s", ErrUnsupported, oaepName(h), caps.Operation(k.spec, oaepName(h)).Why)
	}
	ciphertext = own(ciphertext)
	var out handover
	err = k.use(ctx, "DecryptOAEP", func(s *session, handle pkcs11.ObjectHandle) error {
		plaintext, err := s.decryptOAEP(handle, info, where, h, ciphertext)
		out.give(plaintext)
		return err
	})
	return out.take(err)
}

func (c *Capabilities) oaep(h crypto.Hash) string {
	if h == crypto.SHA1 {
		return c.OAEPSHA1
	}
	return c.OAEPSHA256
}

// oaepMechanism returns what the token is asked to do: OAEP, or raw RSA.
func oaepMechanism(h crypto.Hash, where string) (mechanism uint, param []byte) {
	if where != oaepInToken {
		return pkcs11.CKM_RSA_X_509, nil
	}
	hash, mgf := hashMechanisms(h)
	// CK_RSA_PKCS_OAEP_PARAMS: hash, MGF, CKZ_DATA_SPECIFIED, and no label. SoftHSM would take a label, and not use it.
	return pkcs11.CKM_RSA_PKCS_OAEP, ulongs(hash, mgf, pkcs11.CKZ_DATA_SPECIFIED, 0, 0)
}

// decryptOAEP decrypts on a session.
func (s *session) decryptOAEP(key pkcs11.ObjectHandle, info specInfo, where string, h crypto.Hash, ciphertext []byte) ([]byte, error) {
	mechanism, param := oaepMechanism(h, where)
	out, call, err := s.direct().one(opDecrypt(), s.h, key, mechanism, param, ciphertext, info.bytes)
	switch {
	case err != nil && call == opDecrypt().initName:
		return nil, s.fail(call, err)
	case err != nil:
		return nil, s.authFail(call, err)
	case where == oaepInToken:
		return out, nil
	}
	defer clear(out[:cap(out)])
	return unpadOAEP(h, out, info.bytes)
}

// unpadOAEP is EME-OAEP decoding, RFC 8017, 7.1.2, step 3, with an empty label, of a message em that stands for a modulus of k bytes. Which of
// the checks failed, and where the padding ended, must not show: an attacker who learns whether the first byte was zero decrypts
// everything (Manger, CRYPTO 2001). So everything is computed for every input, and the one branch at the end is on the verdict alone.
//
// The caller wipes em; temporaries are wiped here.
func unpadOAEP(h crypto.Hash, em []byte, k int) ([]byte, error) {
	hLen := h.Size()
	if len(em) > k || k < 2*hLen+2 { // facts about the key and the token, not about the secret
		return nil, ErrAuthentication
	}
	// Tokens that strip leading zeros of the number have told its length by that already.
	padded := make([]byte, k)
	defer clear(padded)
	copy(padded[k-len(em):], em)

	first := padded[0]
	seed, db := padded[1:1+hLen], padded[1+hLen:]
	mgf1XOR(h, seed, db)
	mgf1XOR(h, db, seed)

	label := h.New().Sum(nil) // the digest of the empty label
	good := subtle.ConstantTimeByteEq(first, 0) & subtle.ConstantTimeCompare(label, db[:hLen])

	// Find the 01 that ends the zeros without stopping at it.
	looking, index, invalid := 1, 0, 0
	rest := db[hLen:]
	for i, b := range rest {
		zero, one := subtle.ConstantTimeByteEq(b, 0), subtle.ConstantTimeByteEq(b, 1)
		index = subtle.ConstantTimeSelect(looking&one, i, index)
		looking = subtle.ConstantTimeSelect(one, 0, looking)
		invalid = subtle.ConstantTimeSelect(looking&^zero, 1, invalid)
	}
	if good&(1^invalid)&(1^looking) != 1 {
		return nil, ErrAuthentication
	}
	return append([]byte(nil), rest[index+1:]...), nil
}

// mgf1XOR xors MGF1 (RFC 8017, B.2.1) of seed into out.
func mgf1XOR(h crypto.Hash, out, seed []byte) {
	digest := h.New()
	sum := make([]byte, 0, h.Size())
	defer func() { clear(sum[:cap(sum)]) }()
	var counter [4]byte
	for done := 0; done < len(out); {
		digest.Reset()
		digest.Write(seed)
		digest.Write(counter[:])
		sum = digest.Sum(sum[:0])
		done += subtle.XORBytes(out[done:], out[done:], sum)
		for i := 3; i >= 0; i-- {
			counter[i]++
			if counter[i] != 0 {
				break
			}
		}
	}
	digest.Reset()
}
