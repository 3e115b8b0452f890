package hsm

import (
	"bytes"
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// Attestation is what a token says about a key, read back from it after generation. It proves as much as the token is trusted.
type Attestation struct {
	Spec      KeySpec
	Purpose   Purpose
	ID        []byte
	Label     string
	PublicKey []byte // DER SubjectPublicKeyInfo; nil for secret keys

	// The custody attributes of the secret or private object (PKCS#11 v2.40, 4.8 to 4.10).
	Sensitive, AlwaysSensitive, Extractable, NeverExtractable, Local, Private bool

	// MechanismsLocked: CKA_ALLOWED_MECHANISMS names exactly what the purpose needs, and the token enforces it.
	MechanismsLocked bool
	Modifiable       bool

	// UnwrapLimited and WrapLimited, of wrapping keys: CKA_UNWRAP_TEMPLATE and CKA_WRAP_TEMPLATE are in place, and the token enforces them.
	UnwrapLimited, WrapLimited bool

	TokenLabel, TokenSerial, TokenModel, TokenManufacturer, TokenFirmware string
}

// proven tells whether the key was made in the token and can never leave it, or can leave it wrapped alone if it is to be exportable.
func (a *Attestation) proven(exportable bool) error {
	for _, c := range []struct {
		name      string
		got, want bool
	}{
		{"CKA_SENSITIVE", a.Sensitive, true},
		{"CKA_ALWAYS_SENSITIVE", a.AlwaysSensitive, true},
		{"CKA_EXTRACTABLE", a.Extractable, exportable},
		{"CKA_NEVER_EXTRACTABLE", a.NeverExtractable, !exportable},
		{"CKA_LOCAL", a.Local, true},
		{"CKA_PRIVATE", a.Private, true},
		{"CKA_MODIFIABLE without enforced CKA_ALLOWED_MECHANISMS", a.Modifiable && !a.MechanismsLocked, false},
	} {
		if c.got != c.want {
			return fmt.Errorf("%w: %s is %t, want %t", ErrCustody, c.name, c.got, c.want)
		}
	}
	return nil
}

// attest reads a new key back, and refuses it with ErrCustody when it is not what was asked for.
func (s *session) attest(req GenerateRequest, info specInfo, secret, public pkcs11.ObjectHandle, locked bool) (*Attestation, error) {
	a := &Attestation{Spec: req.Spec, Purpose: req.Purpose, ID: req.ID, Label: req.Label, MechanismsLocked: locked}
	a.TokenLabel, a.TokenSerial, a.TokenModel = s.c.info.Label, s.c.info.SerialNumber, s.c.info.Model
	a.TokenManufacturer, a.TokenFirmware = s.c.info.ManufacturerID, version(s.c.info.FirmwareVersion)
	for _, f := range []struct {
		attribute uint
		to        *bool
	}{
		{pkcs11.CKA_SENSITIVE, &a.Sensitive},
		{pkcs11.CKA_ALWAYS_SENSITIVE, &a.AlwaysSensitive},
		{pkcs11.CKA_EXTRACTABLE, &a.Extractable},
		{pkcs11.CKA_NEVER_EXTRACTABLE, &a.NeverExtractable},
		{pkcs11.CKA_LOCAL, &a.Local},
		{pkcs11.CKA_PRIVATE, &a.Private},
		{pkcs11.CKA_MODIFIABLE, &a.Modifiable},
	} {
		var err error
		if *f.to, err = s.flag(secret, f.attribute); err != nil {
			return nil, custody("read back a new key", err)
		}
	}
	if locked {
		if err := s.checkAllowed(secret, allowedMechanisms(info, req.Purpose, s.token().caps.Load())); err != nil {
			return nil, err
		}
	}
	if err := a.proven(req.Exportable); err != nil {
		return nil, err
	}
	if req.Purpose == PurposeWrap {
		if err := s.attestTemplates(secret, a); err != nil {
			return nil, err
		}
	}
	if !info.asymmetric() {
		return a, nil
	}
	key, err := s.publicKey(public, info)
	if err != nil {
		return nil, custody("public key of a new pair", err)
	}
	a.PublicKey = key.SPKI()
	return a, nil
}

// attestTemplates reads the templates of a new wrapping key back.
func (s *session) attestTemplates(h pkcs11.ObjectHandle, a *Attestation) error {
	caps := s.token().caps.Load()
	a.UnwrapLimited, a.WrapLimited = caps.Wrapping.UnwrapTemplate, caps.Wrapping.WrapTemplate
	if err := s.checkTemplates(h, &caps.Wrapping); err != nil {
		return custody("read back a new key", err)
	}
	return nil
}

// checkTemplates checks that a wrapping key has the templates that the token enforces.
func (s *session) checkTemplates(h pkcs11.ObjectHandle, w *WrapCapability) error {
	if w.UnwrapTemplate {
		if err := s.checkTemplate(h, pkcs11.CKA_UNWRAP_TEMPLATE, unwrapItems()); err != nil {
			return err
		}
	}
	if w.WrapTemplate {
		return s.checkTemplate(h, pkcs11.CKA_WRAP_TEMPLATE, wrapItems())
	}
	return nil
}

// custody reports that a key could not be proven, unless the token just went away.
func custody(what string, err error) error {
	if errors.Is(err, ErrUnavailable) || classify(err) == classHandle { // the handle was good a moment ago: the login went, and took it along
		return fmt.Errorf("%s: %w", what, asUnavailable(err))
	}
	return fmt.Errorf("%w: %s: %v", ErrCustody, what, err) //nolint:errorlint // a custody error is that and nothing else
}

// checkAllowed compares CKA_ALLOWED_MECHANISMS with what was asked for, in any order.
func (s *session) checkAllowed(h pkcs11.ObjectHandle, want []uint) error {
	raw, err := s.attribute(h, pkcs11.CKA_ALLOWED_MECHANISMS)
	if err != nil {
		return custody("read back a new key", err)
	}
	var got []uint
	for chunk := range slices.Chunk(raw, ulongBytes) {
		got = append(got, ulong(chunk))
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		return fmt.Errorf("%w: CKA_ALLOWED_MECHANISMS is %#x, want %#x", ErrCustody, got, want)
	}
	return nil
}

// flag reads a CK_BBOOL.
func (s *session) flag(h pkcs11.ObjectHandle, attribute uint) (bool, error) {
	v, err := s.attribute(h, attribute)
	if err != nil {
		return false, err
	}
	if len(v) != 1 || v[0] > 1 {
		return false, fmt.Errorf("attribute %#x is no CK_BBOOL", attribute)
	}
	return v[0] == 1, nil
}

// attribute reads an attribute that holds no secret.
func (s *session) attribute(h pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	attrs, err := s.p.GetAttributeValue(s.h, h, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	if err != nil {
		return nil, fmt.Errorf("read attribute %#x: %w", attribute, s.fail("C_GetAttributeValue", err))
	}
	return attrs[0].Value, nil
}

// PublicKey returns the DER SubjectPublicKeyInfo of a key pair, as the token's public object has it; it is read once and kept.
//
// The public object is not secret and nothing signs it: who can write the token's storage can change it. A caller that wants to notice
// compares with [Attestation.PublicKey].
func (k *Key) PublicKey(ctx context.Context) ([]byte, error) {
	if p := k.spki.Load(); p != nil {
		return own(*p), nil
	}
	info, _ := k.spec.info()
	if !info.asymmetric() {
		return nil, k.misuse("PublicKey")
	}
	var spki []byte
	err := k.usePublic(ctx, "PublicKey", func(s *session, h pkcs11.ObjectHandle) error {
		key, err := s.publicKey(h, info)
		if err != nil {
			return err
		}
		spki = key.SPKI()
		return nil
	})
	if err != nil {
		return nil, err
	}
	k.spki.Store(&spki)
	return own(spki), nil
}

// publicKey reads a public object, which must be of the kind and size that info says.
func (s *session) publicKey(h pkcs11.ObjectHandle, info specInfo) (*pubkey.Key, error) {
	if info.keyType == pkcs11.CKK_RSA {
		modulus, err := s.attribute(h, pkcs11.CKA_MODULUS)
		if err != nil {
			return nil, err
		}
		exponent, err := s.attribute(h, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, err
		}
		key, err := pubkey.FromRSA(modulus, exponent)
		if err == nil && key.Bits() != 8*info.bytes {
			err = fmt.Errorf("RSA modulus of %d bits, want %d", key.Bits(), 8*info.bytes)
		}
		return key, err
	}
	params, err := s.attribute(h, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, err
	}
	// Ed25519 has two spellings (PKCS#11 v3.0, 2.3.3); the length of the point and its place on the curve tell it.
	if info.kind != pubkey.Ed25519 && !bytes.Equal(params, curveParams(info)) {
		return nil, fmt.Errorf("CKA_EC_PARAMS is %x, want %x", params, curveParams(info))
	}
	point, err := s.attribute(h, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	if info.kind == pubkey.Ed25519 {
		return pubkey.FromEd25519(unwrapPoint(point, 32))
	}
	return pubkey.FromPoint(info.kind, unwrapPoint(point, 1+2*info.bytes))
}

// unwrapPoint takes the DER OCTET STRING off CKA_EC_POINT (PKCS#11 v2.40, 2.3.3), which some tokens leave out.
func unwrapPoint(point []byte, size int) []byte {
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 && len(inner) == size {
		return inner
	}
	return point
}

// version writes a CK_VERSION.
func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
