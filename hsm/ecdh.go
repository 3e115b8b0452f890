package hsm

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// ECDH returns the x coordinate of the product of the private key and the peer's public key, leading zeros kept (SP 800-56A, 5.7.1.2; NIST
// curves have cofactor 1). The peer's SubjectPublicKeyInfo is checked here, before the token sees it: it must be a point of the key's curve in
// the one encoding that package pubkey takes, else ErrInvalidInput.
func (k *Key) ECDH(ctx context.Context, peerSPKI []byte) ([]byte, error) {
	info, _ := k.spec.info()
	if k.purpose != PurposeDerive {
		return nil, k.misuse("ECDH")
	}
	peer, err := pubkey.Parse(peerSPKI)
	if err != nil {
		return nil, fmt.Errorf("%w: peer's public key: %w", ErrInvalidInput, err)
	}
	if peer.Kind() != info.kind {
		return nil, fmt.Errorf("%w: peer's public key is on %s, the key is on %s", ErrInvalidInput, peer.Kind(), info.kind)
	}
	caps, err := k.t.proven(ctx, "ECDH")
	if err != nil {
		return nil, err
	}
	var out handover
	err = k.use(ctx, "ECDH", func(s *session, h pkcs11.ObjectHandle) error {
		secret, err := s.ecdh(h, info, peer.Point(), caps.DERPoints)
		out.give(secret)
		return err
	})
	return out.take(err)
}

// ecdh derives on a session. The secret becomes a session object that can be read, is read, and is destroyed again.
func (s *session) ecdh(h pkcs11.ObjectHandle, info specInfo, point []byte, der bool) (secret []byte, err error) {
	if der {
		point = octetString(point)
	}
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, point))}
	derived, err := s.p.DeriveKey(s.h, mechanism, h, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, info.bytes),
	})
	if err != nil {
		return nil, s.fail("C_DeriveKey", err)
	}
	defer func() {
		if derr := s.p.DestroyObject(s.h, derived); derr != nil {
			// It dies with its session.
			clear(secret)
			secret, err = nil, s.initDone("C_DestroyObject", derr)
		}
	}()
	secret, rerr := s.direct().attribute(s.h, derived, pkcs11.CKA_VALUE, info.bytes)
	if rerr != nil {
		return nil, s.fail("C_GetAttributeValue", rerr)
	}
	if len(secret) != info.bytes {
		clear(secret)
		return nil, s.initDone("C_GetAttributeValue", pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
	}
	return secret, nil
}

// octetString wraps a point of up to 133 bytes in DER.
func octetString(point []byte) []byte {
	if len(point) < 128 {
		return append([]byte{0x04, byte(len(point))}, point...)
	}
	return append([]byte{0x04, 0x81, byte(len(point))}, point...)
}
