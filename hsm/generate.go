package hsm

import (
	"cmp"
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"
)

// GenerateRequest says which key to make.
type GenerateRequest struct {
	Spec    KeySpec
	Purpose Purpose
	ID      []byte // CKA_ID, 1 to MaxIDBytes, unique in the token
	Label   string // CKA_LABEL, 1 to MaxKeyLabel bytes; Destroy wants it again

	// Exportable makes a key that [Key.WrapKey] takes: CKA_EXTRACTABLE is true for ever. Only for secret keys, and not for PurposeWrap.
	Exportable bool
}

// Generate makes a key in the token and returns what the token says about it. When it returns nil the key
//
//   - was generated in the token, is sensitive, private, and, unless it was to be exportable, has never been and can never be extractable: read
//     back and proven;
//   - may do what its purpose needs and nothing else, by usages and, where the token enforces it, by CKA_ALLOWED_MECHANISMS;
//   - if it is for wrapping: wraps secret keys alone, and unwraps to session objects that can be read alone, where the token enforces templates;
//   - has passed a pairwise test with host code;
//   - is durable, as far as the token lets one know (SoftHSM: its files are synced).
//
// The errors are ErrInvalidInput, ErrUnsupported when the probe did not prove what the key is for, ErrDuplicate when the token is known to
// have an object with that CKA_ID, ErrCustody when the proof fails, and those of the token. After an error nothing is left in the token, unless the
// token fails to destroy it too or the process ends: an orphan that [Token.Objects] shows.
func (t *Token) Generate(ctx context.Context, req GenerateRequest) (*Attestation, error) {
	req.ID = own(req.ID)
	info, ok := req.Spec.info()
	switch {
	case !ok || !info.can(req.Purpose):
		return nil, fmt.Errorf("%w: there are no keys of spec %s for %s", ErrInvalidInput, req.Spec, req.Purpose)
	case req.Exportable && (info.asymmetric() || req.Purpose == PurposeWrap):
		return nil, fmt.Errorf("%w: keys of spec %s for %s are not exportable", ErrInvalidInput, req.Spec, req.Purpose)
	case len(req.ID) == 0 || len(req.ID) > MaxIDBytes:
		return nil, fmt.Errorf("%w: CKA_ID of %d bytes, want 1 to %d", ErrInvalidInput, len(req.ID), MaxIDBytes)
	case req.Label == "" || len(req.Label) > MaxKeyLabel:
		return nil, fmt.Errorf("%w: label of %d bytes, want 1 to %d", ErrInvalidInput, len(req.Label), MaxKeyLabel)
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.GenerateTimeout)
	defer cancel()
	caps, err := t.proven(ctx, "Generate")
	if err != nil {
		return nil, err
	}
	if err := caps.CanGenerate(req.Spec, req.Purpose); err != nil {
		return nil, err
	}
	b := &birth{over: ctx.Err, req: req, info: info, caps: caps}
	err = t.manage(ctx, "Generate", b.run)
	if err == nil {
		return b.attestation, nil
	}
	if b.giveUp() {
		t.destroyLater(ctx, req) // there is or may be something in the token
	}
	return nil, err
}

// destroyLater destroys the objects of a key that was made but not delivered: its caller had gone, or it could not be made durable. It waits
// for that while the caller's context lasts, and goes on without it.
func (t *Token) destroyLater(ctx context.Context, req GenerateRequest) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := t.Destroy(context.WithoutCancel(ctx), req.ID, req.Label) // bounded by GenerateTimeout
		if err != nil && !errors.Is(err, ErrKeyNotFound) {
			t.log.WarnContext(ctx, "an unfinished key stays in the token", "id", fmt.Sprintf("%x", req.ID), "label", req.Label, "err", err)
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// birth is one generation on its way through the worker that does it.
type birth struct {
	over        func() error // the caller's ctx.Err
	req         GenerateRequest
	info        specInfo
	caps        *Capabilities
	attestation *Attestation // to be read after manage returned nil

	mu     sync.Mutex
	began  bool // the token was asked: it may have made the key, whatever it answered
	gaveUp bool // nobody waits for the key any more
}

// deliver tells whether somebody still wants the key.
func (b *birth) deliver() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.gaveUp && b.over() == nil
}

// begin notes that the token is about to be asked, unless nobody waits any more.
func (b *birth) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.began = !b.gaveUp && b.over() == nil
	return b.began
}

// ended is the error of a generation whose caller has gone.
func (b *birth) ended() error {
	return fmt.Errorf("hsm: Generate: %w", cmp.Or(b.over(), context.Canceled))
}

// giveUp tells whether something may be in the token that has to be destroyed. If not, nothing will be.
func (b *birth) giveUp() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gaveUp = true
	return b.began
}

// run makes the key, on the session of manage: alone among all that create, find and destroy token objects.
func (b *birth) run(s *session) error {
	if err := b.unique(s); err != nil {
		return err
	}
	if !b.begin() {
		return b.ended()
	}
	secret, public, err := b.generate(s)
	if err != nil {
		return err
	}
	err = b.prove(s, secret, public)
	if err == nil && !b.deliver() {
		err = b.ended()
	}
	if err == nil {
		s.remember(b.info.class(), b.req.ID, b.req.Label, secret)
		if b.info.asymmetric() {
			s.remember(pkcs11.CKO_PUBLIC_KEY, b.req.ID, b.req.Label, public)
		}
		return nil
	}
	return errors.Join(err, b.undo(s, secret, public))
}

// unique refuses a CKA_ID that is taken. The token is searched only for an id that the index knows, since its object may be gone: SoftHSM reads
// every object's file for a search, which at 10,000 keys takes ten times as long as making one. What another process has made since the
// connection was made goes unnoticed here; ids are random, and two objects of one name are noticed where they are searched for or loaded.
func (b *birth) unique(s *session) error {
	if !s.c.index.knows(string(b.req.ID)) {
		return nil
	}
	found, err := s.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, b.req.ID)}, 1)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("%w: CKA_ID %x is taken", ErrDuplicate, b.req.ID)
	}
	return nil
}

// prove reads the key back and tests it, and fills in the attestation.
func (b *birth) prove(s *session, secret, public pkcs11.ObjectHandle) error {
	a, err := s.attest(b.req, b.info, secret, public, b.caps.AllowedMechanismsEnforced)
	if err != nil {
		return err
	}
	if err := s.pairwise(b.req.Spec, b.req.Purpose, secret, a.PublicKey, b.caps); err != nil {
		return custody("pairwise test of a new key of spec "+b.req.Spec.String(), err)
	}
	b.attestation = a
	return nil
}

// undo destroys what generate made, at once and on the same session. If that fails destroyLater tries again on another.
func (b *birth) undo(s *session, secret, public pkcs11.ObjectHandle) error {
	s.forget(b.req.ID)
	var errs []error
	for i, h := range []pkcs11.ObjectHandle{secret, public} {
		if i == 1 && !b.info.asymmetric() {
			break
		}
		if err := s.p.DestroyObject(s.h, h); err != nil {
			errs = append(errs, s.fail("C_DestroyObject", err))
		}
	}
	return errors.Join(errs...)
}

// generate makes the token objects.
func (b *birth) generate(s *session) (secret, public pkcs11.ObjectHandle, err error) {
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(b.info.generate, nil)}
	private, pub := templates(b.req, b.info, b.caps, true)
	if !b.info.asymmetric() {
		secret, err = s.p.GenerateKey(s.h, mechanism, private)
		if err != nil {
			return 0, 0, s.fail("C_GenerateKey", err)
		}
		return secret, 0, nil
	}
	public, secret, err = s.p.GenerateKeyPair(s.h, mechanism, pub, private)
	if err != nil {
		return 0, 0, s.fail("C_GenerateKeyPair", err)
	}
	return secret, public, nil
}

// allowedMechanisms returns exactly what a key of that kind is used with. RSA keys for decryption get raw RSA only where OAEP needs it.
func allowedMechanisms(info specInfo, p Purpose, caps *Capabilities) []uint {
	switch p {
	case PurposeSeal:
		return []uint{pkcs11.CKM_AES_GCM}
	case PurposeMAC:
		return []uint{info.hmac}
	case PurposeDerive:
		return []uint{pkcs11.CKM_ECDH1_DERIVE}
	case PurposeWrap:
		var all []uint
		if caps.Wrapping.KW.OK {
			all = append(all, ckmAESKeyWrap)
		}
		if caps.Wrapping.KWPMechanism != 0 {
			all = append(all, caps.Wrapping.KWPMechanism)
		}
		return all
	case PurposeDecrypt:
		var all []uint
		if caps.OAEPSHA1 == oaepInToken || caps.OAEPSHA256 == oaepInToken {
			all = append(all, pkcs11.CKM_RSA_PKCS_OAEP)
		}
		if caps.OAEPSHA1 == oaepOnHost || caps.OAEPSHA256 == oaepOnHost {
			all = append(all, pkcs11.CKM_RSA_X_509)
		}
		return all
	}
	switch info.keyType {
	case pkcs11.CKK_RSA:
		return []uint{pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS}
	case ckkECEdwards:
		return []uint{ckmEDDSA}
	}
	return []uint{pkcs11.CKM_ECDSA}
}

// templates returns the attributes of a new key: of its secret or private object, and of its public object.
//
// Vendors refuse attributes that they do not know, so what defaults rightly (DESTROYABLE) or was not proven (COPYABLE, ALLOWED_MECHANISMS) is left
// out. Where ALLOWED_MECHANISMS is enforced it cannot be changed and limits every widened usage, so the object may stay modifiable, which
// SoftHSM demands of what is to be copied into a session. Where it is not, MODIFIABLE=false is what keeps usages as they are.
func templates(req GenerateRequest, info specInfo, caps *Capabilities, token bool) (private, public []*pkcs11.Attribute) {
	attr := pkcs11.NewAttribute
	common := func(class uint) []*pkcs11.Attribute {
		return []*pkcs11.Attribute{
			attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_KEY_TYPE, info.keyType), attr(pkcs11.CKA_TOKEN, token),
			attr(pkcs11.CKA_ID, req.ID), attr(pkcs11.CKA_LABEL, req.Label),
		}
	}
	private = append(common(info.class()),
		attr(pkcs11.CKA_PRIVATE, true), // SoftHSM keeps PRIVATE=false objects in the clear, sensitive or not
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, req.Exportable),
		attr(pkcs11.CKA_DECRYPT, req.Purpose == PurposeSeal || req.Purpose == PurposeDecrypt),
		attr(pkcs11.CKA_SIGN, req.Purpose == PurposeSign || req.Purpose == PurposeMAC),
		attr(pkcs11.CKA_UNWRAP, req.Purpose == PurposeWrap),
		attr(pkcs11.CKA_DERIVE, req.Purpose == PurposeDerive),
	)
	if caps.AllowedMechanismsEnforced {
		private = append(private, attr(pkcs11.CKA_ALLOWED_MECHANISMS, ulongs(allowedMechanisms(info, req.Purpose, caps)...)))
	} else {
		private = append(private, attr(pkcs11.CKA_MODIFIABLE, false))
	}
	if req.Purpose == PurposeWrap {
		if caps.Wrapping.UnwrapTemplate {
			private = append(private, unwrapTemplate())
		}
		if caps.Wrapping.WrapTemplate {
			private = append(private, wrapTemplate())
		}
	}
	if !info.asymmetric() {
		return append(private,
			attr(pkcs11.CKA_VALUE_LEN, info.bytes), attr(pkcs11.CKA_ENCRYPT, req.Purpose == PurposeSeal),
			attr(pkcs11.CKA_VERIFY, false), attr(pkcs11.CKA_WRAP, req.Purpose == PurposeWrap)), nil
	}
	public = append(common(pkcs11.CKO_PUBLIC_KEY),
		attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_MODIFIABLE, false),
		attr(pkcs11.CKA_ENCRYPT, req.Purpose == PurposeDecrypt), attr(pkcs11.CKA_VERIFY, req.Purpose == PurposeSign), attr(pkcs11.CKA_WRAP, false),
	)
	if info.keyType == pkcs11.CKK_RSA {
		return private, append(public, attr(pkcs11.CKA_MODULUS_BITS, 8*info.bytes), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	return private, append(public, attr(pkcs11.CKA_EC_PARAMS, curveParams(info)))
}

// curveParams is CKA_EC_PARAMS: the DER object identifier of the curve. Ed25519's is that of RFC 8410.
func curveParams(info specInfo) []byte {
	oid := info.kind.CurveOID()
	if oid == nil {
		oid = asn1.ObjectIdentifier{1, 3, 101, 112}
	}
	der, err := asn1.Marshal(oid)
	if err != nil {
		panic("hsm: object identifier of a curve: " + err.Error()) // they are constants
	}
	return der
}
