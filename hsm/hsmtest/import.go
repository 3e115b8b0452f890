package hsmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// Material is a key that a test knows: exactly one of the members is set.
type Material struct {
	AES  []byte          // 32 bytes, for sealing
	KEK  []byte          // 32 bytes, for wrapping
	HMAC []byte          // any length that the token takes
	RSA  *rsa.PrivateKey // for decryption
	ECDH *ecdsa.PrivateKey
}

// An Importer brings keys into a token from outside, for known-answer tests
// only. The token object must be gone when the returned function was called.
type Importer interface {
	// Import makes a token object with that CKA_ID. The error is the token's.
	Import(id []byte, m Material) (remove func() error, err error)
}

// Importer returns an importer for the fixture's token, which must be open:
// the importer lives in its login, and ends with it.
func (f *Fixture) Importer(t testing.TB) Importer {
	t.Helper()
	p := pkcs11.New(f.Module)
	if p == nil {
		t.Fatalf("load %s", f.Module)
	}
	// The open token has initialised the library, and will finalize it.
	if err := p.Initialize(); !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		t.Fatalf("C_Initialize = %v: the token must be open when an importer is made", err)
	}
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatalf("C_GetSlotList: %v", err)
	}
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(info.Label, " \x00") != f.Label {
			continue
		}
		session, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatalf("C_OpenSession: %v", err)
		}
		t.Cleanup(func() { _ = p.CloseSession(session) }) // the library may be finalized by now
		return &importer{p, session}
	}
	t.Fatalf("no token %q in %s", f.Label, f.Module)
	return nil
}

type importer struct {
	p       *pkcs11.Ctx
	session pkcs11.SessionHandle
}

func (i *importer) Import(id []byte, m Material) (remove func() error, err error) {
	template, err := m.template(id)
	if err != nil {
		return nil, err
	}
	h, err := i.p.CreateObject(i.session, template)
	if err != nil {
		return nil, fmt.Errorf("C_CreateObject: %w", err)
	}
	return func() error { return i.p.DestroyObject(i.session, h) }, nil
}

func (m Material) template(id []byte) ([]*pkcs11.Attribute, error) {
	attr := pkcs11.NewAttribute
	common := func(class, keyType uint, usages ...uint) []*pkcs11.Attribute {
		all := []*pkcs11.Attribute{
			attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_KEY_TYPE, keyType), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true),
			attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_LABEL, "imported for a test"),
		}
		for _, u := range usages {
			all = append(all, attr(u, true))
		}
		return all
	}
	switch {
	case m.AES != nil:
		return append(common(pkcs11.CKO_SECRET_KEY, pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT), attr(pkcs11.CKA_VALUE, m.AES)), nil
	case m.KEK != nil:
		return append(common(pkcs11.CKO_SECRET_KEY, pkcs11.CKK_AES, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP), attr(pkcs11.CKA_VALUE, m.KEK)), nil
	case m.HMAC != nil:
		return append(common(pkcs11.CKO_SECRET_KEY, pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN), attr(pkcs11.CKA_VALUE, m.HMAC)), nil
	case m.RSA != nil && len(m.RSA.Primes) == 2:
		m.RSA.Precompute()
		return append(common(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_RSA, pkcs11.CKA_DECRYPT),
			attr(pkcs11.CKA_MODULUS, m.RSA.N.Bytes()),
			attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{byte(m.RSA.E >> 16), byte(m.RSA.E >> 8), byte(m.RSA.E)}),
			attr(pkcs11.CKA_PRIVATE_EXPONENT, m.RSA.D.Bytes()),
			attr(pkcs11.CKA_PRIME_1, m.RSA.Primes[0].Bytes()),
			attr(pkcs11.CKA_PRIME_2, m.RSA.Primes[1].Bytes()),
			attr(pkcs11.CKA_EXPONENT_1, m.RSA.Precomputed.Dp.Bytes()),
			attr(pkcs11.CKA_EXPONENT_2, m.RSA.Precomputed.Dq.Bytes()),
			attr(pkcs11.CKA_COEFFICIENT, m.RSA.Precomputed.Qinv.Bytes())), nil
	case m.ECDH != nil:
		scalar, err := m.ECDH.Bytes()
		if err != nil {
			return nil, err
		}
		params, err := asn1.Marshal(kindOf(m.ECDH).CurveOID())
		if err != nil {
			return nil, err
		}
		return append(common(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_EC, pkcs11.CKA_DERIVE),
			attr(pkcs11.CKA_EC_PARAMS, params), attr(pkcs11.CKA_VALUE, bytes.TrimLeft(scalar, "\x00"))), nil
	}
	return nil, errors.New("no material")
}

func kindOf(key *ecdsa.PrivateKey) pubkey.Kind {
	switch key.Curve.Params().BitSize {
	case 256:
		return pubkey.P256
	case 384:
		return pubkey.P384
	}
	return pubkey.P521
}

// specOf returns the key spec that a material stands for.
func (m Material) specOf() (hsm.KeySpec, hsm.Purpose) {
	switch {
	case m.AES != nil:
		return hsm.AES256, hsm.PurposeSeal
	case m.KEK != nil:
		return hsm.AES256, hsm.PurposeWrap
	case m.RSA != nil:
		return map[int]hsm.KeySpec{2048: hsm.RSA2048, 3072: hsm.RSA3072, 4096: hsm.RSA4096}[m.RSA.N.BitLen()], hsm.PurposeDecrypt
	case m.ECDH != nil:
		return map[pubkey.Kind]hsm.KeySpec{pubkey.P256: hsm.P256, pubkey.P384: hsm.P384, pubkey.P521: hsm.P521}[kindOf(m.ECDH)], hsm.PurposeDerive
	}
	return 0, 0 // HMAC: the digest is the test's choice
}
