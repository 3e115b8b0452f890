package hsm

import (
	"context"
	"crypto"
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

const algEd25519ph = pubkey.Ed25519phSHA512

// Sign signs by alg, which must fit the key and be proven on the token (else ErrUnsupported). input is the digest that alg's Hash names, of its
// exact length, or for ED25519_SHA_512 the message of up to MaxMessageBytes. ECDSA signatures are DER, Ed25519's 64 bytes (RFC 8032), RSA's
// as long as the modulus; PSS uses a salt as long as the hash.
func (k *Key) Sign(ctx context.Context, alg SignatureAlgorithm, input []byte) ([]byte, error) {
	info, _ := k.spec.info()
	if k.purpose != PurposeSign {
		return nil, k.misuse("Sign")
	}
	if !alg.Fits(info.kind) {
		return nil, fmt.Errorf("%w: algorithm %s with a key of spec %s", ErrInvalidInput, alg, k.spec)
	}
	if hash := alg.Hash(); hash != 0 && len(input) != hash.Size() {
		return nil, fmt.Errorf("%w: digest of %d bytes, %s takes %d", ErrInvalidInput, len(input), alg, hash.Size())
	}
	if len(input) > MaxMessageBytes {
		return nil, fmt.Errorf("%w: message of %d bytes, at most %d", ErrInvalidInput, len(input), MaxMessageBytes)
	}
	// While the token is being opened this waits: SoftHSM would sign plain Ed25519 where Ed25519ph is asked for.
	caps, err := k.t.proven(ctx, "Sign")
	if err != nil {
		return nil, err
	}
	if p := caps.Operation(k.spec, alg.String()); !p.OK {
		return nil, fmt.Errorf("%w: %s: %s", ErrUnsupported, alg, p.Why)
	}
	input = own(input)
	var signature []byte
	err = k.use(ctx, "Sign", func(s *session, h pkcs11.ObjectHandle) error {
		var err error
		signature, err = s.sign(h, info, alg, input)
		return err
	}, input)
	if err != nil {
		return nil, err
	}
	return signature, nil
}

// sign signs on a session.
func (s *session) sign(h pkcs11.ObjectHandle, info specInfo, alg SignatureAlgorithm, input []byte) ([]byte, error) {
	switch {
	case alg.IsPKCS1():
		return s.signature(h, pkcs11.CKM_RSA_PKCS, nil, digestInfo(alg.Hash(), input), info.bytes)
	case alg.IsPSS():
		return s.signature(h, pkcs11.CKM_RSA_PKCS_PSS, pssParams(alg.Hash()), input, info.bytes)
	case alg == algEd25519ph:
		return s.signature(h, ckmEDDSA, ed25519phParams(), input, 2*info.bytes)
	case info.kind == pubkey.Ed25519:
		return s.signature(h, ckmEDDSA, nil, input, 2*info.bytes)
	}
	// The token truncates nothing and pads nothing here: each curve goes with a hash that is not longer than its order. SoftHSM 2.6.1 has
	// no CKM_ECDSA_SHA256, so the digest is made by the caller for all tokens.
	raw, err := s.signature(h, pkcs11.CKM_ECDSA, nil, input, 2*info.bytes)
	if err != nil {
		return nil, err
	}
	return pubkey.ECDSAToDER(raw)
}

// signature makes a signature or MAC of exactly so many bytes.
func (s *session) signature(h pkcs11.ObjectHandle, mechanism uint, param, input []byte, bytes int) ([]byte, error) {
	out, call, err := s.direct().one(opSign(), s.h, h, mechanism, param, input, bytes)
	if err != nil {
		return nil, s.failed(opSign(), call, err)
	}
	if len(out) != bytes {
		return nil, s.initDone(opSign().finalName, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
	}
	return out, nil
}

// digestInfo is the DER DigestInfo of RFC 8017, 9.2, note 1.
func digestInfo(h crypto.Hash, digest []byte) []byte {
	prefix := []byte{0x30, byte(17 + len(digest)), 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0, 0x05, 0x00, 0x04, byte(len(digest))}
	switch h {
	case crypto.SHA256:
		prefix[14] = 1
	case crypto.SHA384:
		prefix[14] = 2
	case crypto.SHA512:
		prefix[14] = 3
	}
	return append(prefix, digest...)
}

// hashMechanisms returns the hash as a mechanism and its MGF1.
func hashMechanisms(h crypto.Hash) (mechanism, mgf uint) {
	switch h {
	case crypto.SHA1:
		return pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1
	case crypto.SHA256:
		return pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256
	case crypto.SHA384:
		return pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384
	case crypto.SHA512:
		return pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512
	}
	return 0, 0
}

// ulongs encodes CK_ULONGs as they lie in memory; a pointer member that is NULL is a zero among them.
func ulongs(values ...uint) []byte {
	var out []byte
	for _, v := range values {
		if unsafe.Sizeof(uint(0)) == 8 {
			out = binary.NativeEndian.AppendUint64(out, uint64(v))
		} else {
			out = binary.NativeEndian.AppendUint32(out, uint32(v))
		}
	}
	return out
}

// pssParams is CK_RSA_PKCS_PSS_PARAMS: hash, MGF, length of the salt.
func pssParams(h crypto.Hash) []byte {
	mechanism, mgf := hashMechanisms(h)
	return ulongs(mechanism, mgf, uint(h.Size()))
}

// ed25519phParams is CK_EDDSA_PARAMS (PKCS#11 v3.0, 2.3.5): phFlag in a CK_ULONG's room, length and address of the context, which is empty.
func ed25519phParams() []byte { return ulongs(1, 0, 0) }
