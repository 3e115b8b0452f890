package hsm

import (
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// ckAttribute is CK_ATTRIBUTE, for templates that this test makes otherwise than directwrap.go does.
type ckAttribute struct {
	kind  uint
	value unsafe.Pointer
	bytes uint
}

// nested makes an attribute that holds attributes.
func nested(p *runtime.Pinner, attribute uint, inner ...*pkcs11.Attribute) *pkcs11.Attribute {
	array := make([]ckAttribute, len(inner))
	for i, a := range inner {
		p.Pin(&a.Value[0])
		array[i] = ckAttribute{a.Type, unsafe.Pointer(&a.Value[0]), uint(len(a.Value))}
	}
	p.Pin(&array[0])
	return &pkcs11.Attribute{Type: attribute, Value: unsafe.Slice((*byte)(unsafe.Pointer(&array[0])), len(array)*int(unsafe.Sizeof(array[0])))}
}

// readable is what a wrapping key may unwrap to, in the words of this test.
func readable() []*pkcs11.Attribute {
	attr := pkcs11.NewAttribute
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_EXTRACTABLE, true),
		attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_UNWRAP, false),
		attr(pkcs11.CKA_SIGN, false), attr(pkcs11.CKA_VERIFY, false), attr(pkcs11.CKA_DERIVE, false), attr(pkcs11.CKA_MODIFIABLE, false),
	}
}

// TestUnwrapTemplateBinds: whoever holds the PIN, and does not use this package, unwraps under a wrapping key to session objects that can be
// read, and to nothing that stays in the token, works there, or hides its value. Neither the key nor a copy of it can be made to allow more.
func TestUnwrapTemplateBinds(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(quiet(w.token("alpha")))
	k := wrapKey(t, tok, "kek")
	wrapped, err := k.WrapBytes(ctx(t), AESKWP, randomBytes(32))
	check(t, err)
	objects := count(t, tok)
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(ckmAESKeyWrapPad, nil)}
	handle, _, err := tok.state.Load().conn.index.get(k.object())
	check(t, err)
	manually(t, tok, func(s *session) error { // a RW session
		good, err := s.p.UnwrapKey(s.h, mechanism, handle, wrapped, readable())
		check(t, err)
		if _, err := s.p.CopyObject(s.h, good, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)}); err == nil {
			t.Error("what was unwrapped was copied into the token")
		}
		check(t, s.p.DestroyObject(s.h, good))
		refused := func(what string) {
			t.Helper()
			for name, template := range otherTemplates() {
				if h, err := s.p.UnwrapKey(s.h, mechanism, handle, wrapped, template); err == nil {
					t.Errorf("%s: unwrapped with %s", what, name)
					_ = s.p.DestroyObject(s.h, h)
				}
			}
		}
		refused("the key")
		var p runtime.Pinner
		defer p.Unpin()
		for _, attribute := range []uint{pkcs11.CKA_UNWRAP_TEMPLATE, pkcs11.CKA_WRAP_TEMPLATE} {
			wider := nested(&p, attribute, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY))
			if err := s.p.SetAttributeValue(s.h, handle, []*pkcs11.Attribute{wider}); err == nil {
				t.Errorf("attribute %#x was changed", attribute)
			}
			if h, err := s.p.CopyObject(s.h, handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), wider}); err == nil {
				t.Errorf("a copy has another attribute %#x", attribute)
				_ = s.p.DestroyObject(s.h, h)
			}
		}
		refused("the key, after that")
		return s.checkTemplates(handle, &tok.caps.Load().Wrapping)
	})
	if n := count(t, tok); n != objects {
		t.Errorf("%d token objects before, %d after", objects, n)
	}
	noObjects(t, "refused unwraps", tok)
}

// otherTemplates are those that differ from readable in one attribute, or lack it. Without CKA_TOKEN or CKA_PRIVATE SoftHSM makes a private
// session object, as it should.
func otherTemplates() map[string][]*pkcs11.Attribute {
	all := map[string][]*pkcs11.Attribute{}
	for i, a := range readable() {
		other, value := readable(), []byte{a.Value[0] ^ 1}
		switch a.Type {
		case pkcs11.CKA_CLASS:
			value = ulongs(pkcs11.CKO_PRIVATE_KEY)
		case pkcs11.CKA_KEY_TYPE:
			value = ulongs(pkcs11.CKK_AES)
		}
		other[i].Value = value
		all[fmt.Sprintf("another %#x", a.Type)] = other
		if a.Type == pkcs11.CKA_TOKEN || a.Type == pkcs11.CKA_PRIVATE {
			continue
		}
		all[fmt.Sprintf("no %#x", a.Type)] = append(readable()[:i:i], readable()[i+1:]...)
	}
	return all
}

// TestWrapTemplateBinds: under a wrapping key no private key leaves, no key that wraps, and nothing that could be read anyhow.
func TestWrapTemplateBinds(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(quiet(w.token("alpha")))
	k := wrapKey(t, tok, "kek")
	handle, _, err := tok.state.Load().conn.index.get(k.object())
	check(t, err)
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(ckmAESKeyWrapPad, nil)}
	attr := pkcs11.NewAttribute
	manually(t, tok, func(s *session) error {
		for name, other := range map[string]*pkcs11.Attribute{
			"": nil, "not sensitive": attr(pkcs11.CKA_SENSITIVE, false), "public": attr(pkcs11.CKA_PRIVATE, false),
			"wraps": attr(pkcs11.CKA_WRAP, true), "unwraps": attr(pkcs11.CKA_UNWRAP, true),
		} {
			template := []*pkcs11.Attribute{
				attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true),
				attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_VALUE_LEN, 32),
			}
			for _, a := range template {
				if other != nil && a.Type == other.Type {
					a.Value = other.Value
				}
			}
			target, err := s.p.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template)
			check(t, err)
			if _, err := s.p.WrapKey(s.h, mechanism, handle, target); (err == nil) != (name == "") {
				t.Errorf("wrap a key that is %q: %v", name, err)
			}
			check(t, s.p.DestroyObject(s.h, target))
		}
		info, _ := P256.info()
		public, private, err := s.p.GenerateKeyPair(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
			[]*pkcs11.Attribute{attr(pkcs11.CKA_EC_PARAMS, curveParams(info))},
			[]*pkcs11.Attribute{attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true)})
		check(t, err)
		if _, err := s.p.WrapKey(s.h, mechanism, handle, private); err == nil {
			t.Error("a private key was wrapped")
		}
		check(t, s.p.DestroyObject(s.h, public))
		return s.p.DestroyObject(s.h, private)
	})
}

// TestCheckTemplate: a key whose template is another, or that has none, does not pass.
func TestCheckTemplate(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(quiet(w.token("alpha")))
	attr := pkcs11.NewAttribute
	var p runtime.Pinner
	defer p.Unpin()
	longer := append(readable(), attr(pkcs11.CKA_VERIFY_RECOVER, false))
	manually(t, tok, func(s *session) error {
		for name, template := range map[string]*pkcs11.Attribute{
			"": nested(&p, pkcs11.CKA_UNWRAP_TEMPLATE, readable()...), "none": attr(pkcs11.CKA_LABEL, "none"),
			"one too few": nested(&p, pkcs11.CKA_UNWRAP_TEMPLATE, readable()[1:]...), "one too many": nested(&p, pkcs11.CKA_UNWRAP_TEMPLATE, longer...),
			"another value": nested(&p, pkcs11.CKA_UNWRAP_TEMPLATE, otherTemplates()["another 0x1"]...),
			"the other one": nested(&p, pkcs11.CKA_WRAP_TEMPLATE, readable()...),
		} {
			h, err := s.p.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
				[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_VALUE_LEN, 32), attr(pkcs11.CKA_UNWRAP, true), template})
			check(t, err)
			if err := s.checkTemplate(h, pkcs11.CKA_UNWRAP_TEMPLATE, unwrapItems()); (err == nil) != (name == "") {
				t.Errorf("template that is %q: %v", name, err)
			}
			check(t, s.p.DestroyObject(s.h, h))
		}
		return nil
	})
}
