package hsmtest_test

import (
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// TestSoftHSM runs the conformance suite on SoftHSM.
func TestSoftHSM(t *testing.T) {
	f := hsmtest.New(t)
	caps := hsmtest.SoftHSM()
	var token *hsm.Token
	caps.Importer = func(t testing.TB) hsmtest.Importer { return f.Importer(t) }
	caps.Reopen = func(t testing.TB) *hsm.Token {
		hsmtest.Close(t, token)
		token = f.Open(t)
		return token
	}
	hsmtest.Test(t, func(t testing.TB) *hsm.Token {
		token = f.Open(t)
		return token
	}, caps)
}

// TestLesserToken runs the suite on a token that can do less: no key pairs, and
// no copies into a session. What it lacks is data, and the rest must hold.
func TestLesserToken(t *testing.T) {
	library := fault.New(t, hsmtest.Library(t))
	library.Fail(t, "C_GenerateKeyPair", pkcs11.CKR_MECHANISM_INVALID, 0)
	library.Fail(t, "C_CopyObject", pkcs11.CKR_FUNCTION_NOT_SUPPORTED, 0)
	f := hsmtest.NewAt(t, t.TempDir(), library.Path)
	caps := hsmtest.SoftHSM()
	caps.Specs = []hsm.KeySpec{hsm.AES256, hsm.HMAC224, hsm.HMAC256, hsm.HMAC384, hsm.HMAC512}
	caps.SessionCopies, caps.WrapCopies, caps.OAEPSHA1, caps.OAEPSHA256 = false, false, "", ""
	hsmtest.Test(t, func(t testing.TB) *hsm.Token { return f.Open(t) }, caps)
	for _, v := range library.Violations() {
		t.Errorf("violation: %s", v)
	}
}
