package hsm

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// errPaddedLength is trap 13 of SoftHSM 2.6.1: what it wraps unwraps with zeros at the end, everywhere.
var errPaddedLength = errors.New("the token's AES-KWP puts the padded length into the wrapped key, so that others unwrap trailing zeros")

// wraps probes AES key wrap. Nothing but known answers is believed: one mechanism number means RFC 5649 on one token and something else on
// the next, and some tokens wrap some lengths wrongly. A token whose AES keys the host cannot read does not get to wrap.
func (p *prober) wraps() error {
	if !p.caps.Specs[AES256.String()].Generate.OK {
		return nil // setGenerate has said why
	}
	w := &p.caps.Wrapping
	var err error
	if w.KW, err = p.tryWrap(AESKW, ckmAESKeyWrap, (*prober).kwAnswers); err != nil {
		return err
	}
	p.set(AES256, OpKW, w.KW)
	if err := p.chooseKWP(); err != nil {
		return err
	}
	usable := Proof{OK: w.KWPMechanism != 0, How: w.KWPUnwraps.How}
	if !usable.OK {
		usable.Why = cmp.Or(w.KWPWrapsEights.Why, w.KWPUnwraps.Why)
	}
	p.set(AES256, OpKWP, usable)
	if usable.OK && !w.KWPWrapsOdd.OK {
		p.caps.Reasons["kwpWrapsOdd"] = w.KWPWrapsOdd.Why
	}
	return nil
}

// chooseKWP finds the mechanism that is RFC 5649: the one that is it for all lengths, else one that is it for multiples of 8.
func (p *prober) chooseKWP() error {
	w := &p.caps.Wrapping
	var reasons []string
	for _, mechanism := range []uint{ckmAESKeyWrapKWP, ckmAESKeyWrapPad} {
		found := WrapCapability{KWPMechanism: mechanism}
		for _, try := range []struct {
			to   *Proof
			what func(*prober, wrapTrial) error
		}{
			{&found.KWPUnwraps, (*prober).kwpUnwraps},
			{&found.KWPWrapsEights, (*prober).kwpWrapsEights},
			{&found.KWPWrapsOdd, (*prober).kwpWrapsOdd},
		} {
			var err error
			if *try.to, err = p.tryWrap(AESKWP, mechanism, try.what); err != nil {
				return err
			}
		}
		if found.KWPUnwraps.OK && found.KWPWrapsEights.OK && (w.KWPMechanism == 0 || found.KWPWrapsOdd.OK && !w.KWPWrapsOdd.OK) {
			w.KWPMechanism, w.KWPUnwraps, w.KWPWrapsEights, w.KWPWrapsOdd = mechanism, found.KWPUnwraps, found.KWPWrapsEights, found.KWPWrapsOdd
		}
		reasons = append(reasons, fmt.Sprintf("%s: %s", kwpName(mechanism), cmp.Or(found.KWPUnwraps.Why, found.KWPWrapsEights.Why)))
	}
	if w.KWPMechanism == 0 {
		why := Proof{Why: fmt.Sprintf("%s; %s", reasons[0], reasons[1])}
		w.KWPUnwraps, w.KWPWrapsEights, w.KWPWrapsOdd = why, why, why
	}
	return nil
}

// wrapTrial is a mechanism with a key that the host knows.
type wrapTrial struct {
	alg       WrapAlgorithm
	mechanism uint
	h         pkcs11.ObjectHandle
	value     []byte
}

// tryWrap runs a test with a fresh key that only the mechanism is allowed for.
func (p *prober) tryWrap(alg WrapAlgorithm, mechanism uint, test func(*prober, wrapTrial) error) (Proof, error) {
	saved := p.caps
	caps := *saved
	caps.Wrapping = WrapCapability{KW: Proof{OK: alg == AESKW}}
	if alg == AESKWP {
		caps.Wrapping.KWPMechanism = mechanism
	}
	p.caps = &caps
	h, value, err := p.known(AES256, PurposeWrap)
	p.caps = saved
	if err == nil {
		defer p.destroy(h)
		defer clear(value)
		if value == nil {
			err = errors.New("the token makes no keys that the host can compare with")
		} else {
			err = test(p, wrapTrial{alg, mechanism, h, value})
		}
	}
	return verdict("known answer", err)
}

func (p *prober) kwAnswers(w wrapTrial) error {
	lengths := []int{minKWBytes, 24, 32, 64, MaxWrapBytes}
	return errors.Join(p.unwrapsKnown(w, lengths...), p.wrapsKnown(w, lengths...))
}

func (p *prober) kwpWrapsEights(w wrapTrial) error {
	return p.wrapsKnown(w, 8, 16, 24, 32, 64, MaxWrapBytes)
}

func (p *prober) kwpWrapsOdd(w wrapTrial) error {
	return p.wrapsKnown(w, 5, 1, 7, 9, 28, 33, MaxWrapBytes-1)
}

func (p *prober) kwpUnwraps(w wrapTrial) error {
	return p.unwrapsKnown(w, 1, 5, 7, 8, 9, 15, 16, 17, 28, 32, 33, MaxWrapBytes-1, MaxWrapBytes)
}

// wrapsKnown compares what the token wraps with what the host does.
func (p *prober) wrapsKnown(w wrapTrial, lengths ...int) error {
	for _, n := range lengths {
		plaintext := randomBytes(n)
		want, err := hostWrap(w.alg, w.value, plaintext)
		if err != nil {
			return err
		}
		object, err := p.s.direct().createSecret(p.s.h, plaintext)
		if err != nil {
			return callError("C_CreateObject", err)
		}
		got, err := p.s.direct().wrap(p.s.h, w.mechanism, w.h, object, len(want)+wrapBlock)
		p.destroy(object)
		if err != nil {
			return callError("C_WrapKey", err)
		}
		if bytes.Equal(got, want) {
			continue
		}
		if padded, err := hostUnwrap(w.alg, w.value, got); err == nil && len(padded) > n && bytes.HasPrefix(padded, plaintext) {
			return errPaddedLength
		}
		return fmt.Errorf("%d bytes: %w", n, errWrongAnswer)
	}
	return nil
}

// unwrapsKnown lets the token unwrap what the host wrapped.
func (p *prober) unwrapsKnown(w wrapTrial, lengths ...int) error {
	for _, n := range lengths {
		plaintext := randomBytes(n)
		wrapped, err := hostWrap(w.alg, w.value, plaintext)
		if err != nil {
			return err
		}
		got, err := p.rawUnwrap(w, wrapped)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, plaintext) {
			return fmt.Errorf("%d bytes: %w", n, errWrongAnswer)
		}
	}
	return nil
}

// rawUnwrap goes past unwrapFail, since a refusal here says what the token cannot do.
func (p *prober) rawUnwrap(w wrapTrial, wrapped []byte) ([]byte, error) {
	object, err := p.s.direct().unwrap(p.s.h, w.mechanism, w.h, wrapped, asAllowed)
	if err != nil {
		return nil, callError("C_UnwrapKey", err)
	}
	defer p.destroy(object)
	got, err := p.s.direct().attribute(p.s.h, object, pkcs11.CKA_VALUE, len(wrapped))
	return got, callError("C_GetAttributeValue", err)
}

// wrapRefusals probes what a wrapping key must refuse: what its templates do not allow, and what was changed.
func (p *prober) wrapRefusals() error {
	for _, try := range []struct {
		member string
		to     *bool
		test   func() error
	}{
		{"unwrapTemplate", &p.caps.Wrapping.UnwrapTemplate, p.unwrapTemplate},
		{"wrapTemplate", &p.caps.Wrapping.WrapTemplate, p.wrapTemplate},
		{"wrapSessionSurvives", &p.caps.Wrapping.SessionSurvives, p.wrapRefuses},
		{"wrapCopies", &p.caps.Wrapping.Copies, p.wrapCopies},
	} {
		if w := p.caps.Wrapping; !w.KW.OK && w.KWPMechanism == 0 {
			return nil
		}
		err := try.test()
		if err != nil && gone(err) {
			return err
		}
		if *try.to = err == nil; err != nil {
			p.caps.Reasons[try.member] = because(err)
		}
	}
	return nil
}

// wrappingKey makes a session key as Generate would, with the templates that the test is about.
func (p *prober) wrappingKey(unwrapTemplate, wrapTemplate bool) (pkcs11.ObjectHandle, error) {
	saved := p.caps
	caps := *saved
	caps.Wrapping.UnwrapTemplate, caps.Wrapping.WrapTemplate = unwrapTemplate, wrapTemplate
	p.caps = &caps
	h, err := p.secret(AES256, PurposeWrap, false)
	p.caps = saved
	return h, err
}

// unwrapTemplate: a key with the template unwraps to what it allows and to nothing else, and the template stays.
func (p *prober) unwrapTemplate() error {
	h, err := p.wrappingKey(true, false)
	if err != nil {
		return err
	}
	defer p.destroy(h)
	if err := p.s.checkTemplate(h, pkcs11.CKA_UNWRAP_TEMPLATE, unwrapItems()); err != nil {
		return err
	}
	if err := p.s.pairUnwrapTemplate(h, p.caps); err != nil {
		return err
	}
	// Refused, or taken without effect.
	wider := unwrapTemplate()
	wider.Value = wider.Value[:len(wider.Value)/len(unwrapItems())]
	_ = p.s.p.SetAttributeValue(p.s.h, h, []*pkcs11.Attribute{wider})
	return p.s.pairUnwrapTemplate(h, p.caps)
}

// wrapTemplate: a key with the template wraps secret keys that are to be exported, and nothing else.
func (p *prober) wrapTemplate() error {
	h, err := p.wrappingKey(false, true)
	if err != nil {
		return err
	}
	defer p.destroy(h)
	if err := p.s.checkTemplate(h, pkcs11.CKA_WRAP_TEMPLATE, wrapItems()); err != nil {
		return err
	}
	if err := p.limited(h); err != nil {
		return err
	}
	wider := wrapTemplate()
	wider.Value = wider.Value[:len(wider.Value)/len(wrapItems())]
	_ = p.s.p.SetAttributeValue(p.s.h, h, []*pkcs11.Attribute{wider})
	return p.limited(h)
}

// limited tries the key on targets of which only the first may be wrapped.
func (p *prober) limited(h pkcs11.ObjectHandle) error {
	attr := pkcs11.NewAttribute
	alg, mechanism := p.anyWrap()
	for i, other := range [][]*pkcs11.Attribute{
		{}, {attr(pkcs11.CKA_SENSITIVE, false)}, {attr(pkcs11.CKA_PRIVATE, false)}, {attr(pkcs11.CKA_WRAP, true)}, {attr(pkcs11.CKA_UNWRAP, true)},
	} {
		target, err := p.exportable(other...)
		if err != nil {
			return err
		}
		_, err = p.s.direct().wrap(p.s.h, mechanism, h, target, MaxWrapBytes)
		p.destroy(target)
		if err = callError("C_WrapKey", err); err != nil && (i == 0 || gone(err)) {
			return err
		}
		if err == nil && i > 0 {
			return fmt.Errorf("the token wraps a key whose attribute %#x the template does not allow, by %s", other[0].Type, alg)
		}
	}
	private, public, _, err := p.pair(P256, PurposeSign, attr(pkcs11.CKA_EXTRACTABLE, true))
	if err != nil {
		if gone(err) {
			return err
		}
		return nil // what it does not make it does not wrap
	}
	defer p.destroy(private, public)
	if _, err = p.s.direct().wrap(p.s.h, mechanism, h, private, MaxWrapBytes); err == nil {
		return errors.New("the token wraps a private key though the template allows secret keys alone")
	}
	if err = callError("C_WrapKey", err); gone(err) {
		return err
	}
	return nil
}

// exportable generates a session key that may be wrapped, but for what other says.
func (p *prober) exportable(other ...*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	info, _ := AES256.info()
	template, _ := templates(GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: randomBytes(16), Label: "keyhold-probe", Exportable: true}, info, p.caps, false)
	for _, o := range other {
		for _, a := range template {
			if a.Type == o.Type {
				a.Value = o.Value
			}
		}
	}
	h, err := p.s.p.GenerateKey(p.s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(info.generate, nil)}, template)
	return h, p.s.fail("C_GenerateKey", err)
}

// anyWrap returns an algorithm that was proven.
func (p *prober) anyWrap() (WrapAlgorithm, uint) {
	if p.caps.Wrapping.KW.OK {
		return AESKW, ckmAESKeyWrap
	}
	return AESKWP, p.caps.Wrapping.KWPMechanism
}

// wrapRefuses checks that what was changed does not unwrap, and that the session works on. A token that unwraps it does not get to wrap.
func (p *prober) wrapRefuses() error {
	h, err := p.wrappingKey(p.caps.Wrapping.UnwrapTemplate, p.caps.Wrapping.WrapTemplate)
	if err != nil {
		return err
	}
	defer p.destroy(h)
	var taken error
	for _, alg := range []WrapAlgorithm{AESKW, AESKWP} {
		mechanism, no := p.caps.wrapMechanism(alg)
		if no != nil {
			continue
		}
		err := p.refusesChanges(wrapTrial{alg: alg, mechanism: mechanism, h: h})
		switch {
		case errors.Is(err, errUnwraps):
			p.noWrap(alg, err.Error())
			taken = err // and see whether the other one is better
		case err != nil:
			return err
		}
	}
	return taken
}

// refusesChanges changes each byte of a wrapped key, and cuts it.
func (p *prober) refusesChanges(w wrapTrial) error {
	good, err := p.s.wrapBytes(w.h, w.mechanism, randomBytes(32), wrappedBytes(32))
	if err != nil {
		return err
	}
	for i := range len(good) + 1 {
		bad := bytes.Clone(good)
		if i < len(good) {
			bad[i] ^= 1
		} else {
			bad = bad[:len(bad)-wrapBlock]
		}
		_, err := p.rawUnwrap(w, bad)
		if err == nil {
			return errUnwraps
		}
		if gone(err) {
			return err
		}
		if err := p.s.pairWrap(w.h, p.caps); err != nil {
			return fmt.Errorf("after a wrapped key that did not unwrap: %w", err)
		}
	}
	return nil
}

// noWrap takes back what wraps found.
func (p *prober) noWrap(alg WrapAlgorithm, why string) {
	no := Proof{Why: why}
	p.set(AES256, alg.String(), no)
	if w := &p.caps.Wrapping; alg == AESKW {
		w.KW = no
	} else {
		w.KWPMechanism, w.KWPWrapsEights, w.KWPWrapsOdd, w.KWPUnwraps = 0, no, no, no
	}
}

var errUnwraps = errors.New("the token unwraps keys that were changed")

// wrapCopies: a session copy of a wrapping key is limited as the original is.
func (p *prober) wrapCopies() error {
	if !p.caps.SessionCopies {
		return errors.New(p.caps.Reasons["sessionCopies"])
	}
	w := &p.caps.Wrapping
	h, err := p.wrappingKey(w.UnwrapTemplate, w.WrapTemplate)
	if err != nil {
		return err
	}
	defer p.destroy(h)
	copied, err := p.s.p.CopyObject(p.s.h, h, copyTemplate(false))
	if err != nil {
		return callError("C_CopyObject", err)
	}
	defer p.destroy(copied)
	if err := p.s.checkTemplates(copied, w); err != nil {
		return err
	}
	info, _ := AES256.info()
	if err := p.s.checkAllowed(copied, allowedMechanisms(info, PurposeWrap, p.caps)); err != nil {
		return err
	}
	if w.WrapTemplate {
		if err := p.limited(copied); err != nil {
			return err
		}
	}
	if w.UnwrapTemplate {
		return p.s.pairUnwrapTemplate(copied, p.caps)
	}
	return p.s.pairWrap(copied, p.caps)
}
