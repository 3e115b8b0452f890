package hsmtest_test

import (
	"testing"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
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
