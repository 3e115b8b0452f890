package hsmtest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// Caps says what a token is expected to be able to do, and what its vendor
// lacks. A token that can do less, or more, than it says fails the suite: both
// would be news.
type Caps struct {
	// Specs that it generates, all if nil. Sizes of RSA cost seconds each.
	Specs []hsm.KeySpec
	// Lacks names operations of those specs that it cannot do, with the reason,
	// by the names of hsm.Capabilities; ED25519_PH_SHA_512 is the usual one. Each
	// spec must be good for one purpose at least.
	Lacks map[string]string
	// OAEPSHA1 and OAEPSHA256 say where the padding is taken off: "token", "host".
	OAEPSHA1, OAEPSHA256 string

	AllowedMechanismsEnforced bool // as hsm.Capabilities has it
	SessionCopies             bool
	SessionSurvivesBadTag     bool

	WrapTemplates  bool // unwrapping and wrapping are limited by templates
	WrapCopies     bool // session copies of wrapping keys are, too
	KWPWrapsEights bool // AES-KWP wraps multiples of 8 bytes alone

	// Importer brings known keys into the token that newToken returned last, for
	// vectors. Nil where the vendor refuses that: those subtests are not there.
	Importer func(t testing.TB) Importer
	// Reopen closes the token that newToken returned last and opens it anew, as a
	// restart would. Nil where a test cannot.
	Reopen func(t testing.TB) *hsm.Token
}

// SoftHSM returns what SoftHSM 2.6.1 and later 2.x can do.
func SoftHSM() Caps {
	return Caps{
		Lacks:    map[string]string{pubkey.Ed25519phSHA512.String(): "signs plain Ed25519 whatever the flag says"},
		OAEPSHA1: "token", OAEPSHA256: "host",
		AllowedMechanismsEnforced: true, SessionCopies: true, SessionSurvivesBadTag: true,
		WrapTemplates: true, WrapCopies: true, KWPWrapsEights: true,
	}
}

// Test runs every promise of package hsm about a token as a named subtest.
// newToken returns an open, ready token, the same one or a new one; the suite
// makes keys of its own names in it and destroys them, and does not close it.
func Test(t *testing.T, newToken func(t testing.TB) *hsm.Token, caps Caps) {
	if caps.Specs == nil {
		caps.Specs = hsm.KeySpecs()
	}
	token := newToken(t)
	s := &suite{token: token, caps: caps}
	t.Run("Capabilities", s.capabilities)
	t.Run("Generate", s.generate)
	t.Run("GenerateRefuses", s.generateRefuses)
	t.Run("Destroy", s.destroy)
	t.Run("Objects", s.objects)
	t.Run("PublicKey", s.publicKey)
	t.Run("Random", s.random)
	t.Run("Canary", s.canary)
	t.Run("Context", s.context)
	if s.has(hsm.AES256) {
		t.Run("Seal", s.seal)
		t.Run("OpenRefuses", s.openRefuses)
		t.Run("BadCiphertextFlood", s.flood)
		t.Run("SessionCopies", s.copies)
		t.Run("Concurrency", s.concurrency)
	}
	if s.has(hsm.AES256) && !s.lacks(hsm.OpKWP) && !s.lacks(hsm.OpKW) {
		t.Run("Wrap", s.wrap)
		t.Run("UnwrapRefuses", s.unwrapRefuses)
		t.Run("BadWrappedKeyFlood", s.wrapFlood)
		t.Run("WrapConcurrency", s.wrapConcurrency)
		t.Run("WrapKey", s.wrapKey)
		t.Run("Exportable", s.exportable)
	}
	t.Run("MAC", s.mac)
	t.Run("Sign", s.sign)
	t.Run("SignRefuses", s.signRefuses)
	t.Run("DecryptOAEP", s.decryptOAEP)
	t.Run("ECDH", s.ecdh)
	t.Run("WrongPurpose", s.wrongPurpose)
	if caps.Importer != nil {
		s.importer = caps.Importer(t)
		t.Run("WycheproofAESGCM", s.vectorsGCM)
		t.Run("WycheproofHMAC", s.vectorsHMAC)
		t.Run("WycheproofOAEP", s.vectorsOAEP)
		t.Run("WycheproofECDH", s.vectorsECDH)
		if s.has(hsm.AES256) && !s.lacks(hsm.OpKWP) && !s.lacks(hsm.OpKW) {
			t.Run("WycheproofAESKW", s.vectorsKW)
			t.Run("WycheproofAESKWP", s.vectorsKWP)
		}
	}
	if caps.Reopen != nil {
		t.Run("Reopen", s.reopen)
	}
}

type suite struct {
	token    *hsm.Token
	caps     Caps
	importer Importer
}

func (s *suite) has(spec hsm.KeySpec) bool { return slices.Contains(s.caps.Specs, spec) }

// purposes returns what keys of a spec are for on this token: without what it
// cannot do at all.
func (s *suite) purposes(spec hsm.KeySpec) []hsm.Purpose {
	return slices.DeleteFunc(spec.Purposes(), func(p hsm.Purpose) bool {
		switch p {
		case hsm.PurposeSeal:
			return s.lacks(hsm.OpSeal)
		case hsm.PurposeDerive:
			return s.lacks(hsm.OpECDH)
		case hsm.PurposeDecrypt:
			return s.lacks(hsm.OpOAEPSHA1) || s.lacks(hsm.OpOAEPSHA256)
		case hsm.PurposeWrap:
			return s.lacks(hsm.OpKWP) && s.lacks(hsm.OpKW)
		}
		return false
	})
}

// lacks tells whether the token is expected not to do an operation.
func (s *suite) lacks(operation string) bool { _, ok := s.caps.Lacks[operation]; return ok }

// key generates a key that lasts as long as the test.
func (s *suite) key(t *testing.T, spec hsm.KeySpec, purpose hsm.Purpose) (*hsm.Key, *hsm.Attestation) {
	t.Helper()
	name := t.Name() + "/" + spec.String() + "/" + purpose.String()
	a, err := s.token.Generate(t.Context(), hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: ID(name), Label: Label(name)})
	if err != nil {
		t.Fatalf("generate %s for %s: %v", spec, purpose, err)
	}
	t.Cleanup(func() {
		err := s.token.Destroy(context.Background(), ID(name), Label(name))
		if err != nil && !errors.Is(err, hsm.ErrKeyNotFound) {
			t.Errorf("destroy %s: %v", name, err)
		}
	})
	return s.token.Key(spec, purpose, ID(name)), a
}

// each runs fn for each spec that the token has and that can be for the
// purpose.
func (s *suite) each(t *testing.T, purpose hsm.Purpose, fn func(t *testing.T, spec hsm.KeySpec)) {
	t.Helper()
	for _, spec := range s.caps.Specs {
		if slices.Contains(s.purposes(spec), purpose) {
			t.Run(spec.String(), func(t *testing.T) { fn(t, spec) })
		}
	}
}

func (s *suite) capabilities(t *testing.T) {
	got := s.token.Capabilities()
	for _, spec := range hsm.KeySpecs() {
		sc := got.Specs[spec.String()]
		if sc.Generate.OK != s.has(spec) {
			t.Errorf("%s: generate %+v, want %t", spec, sc.Generate, s.has(spec))
		}
		for name, proof := range sc.Operations {
			if want := s.has(spec) && !s.lacks(name); proof.OK != want {
				t.Errorf("%s %s: %+v, want %t (%s)", spec, name, proof, want, s.caps.Lacks[name])
			}
			if !proof.OK && proof.Why == "" {
				t.Errorf("%s %s is not proven, without a reason", spec, name)
			}
		}
		for _, purpose := range spec.Purposes() {
			can := s.has(spec) && slices.Contains(s.purposes(spec), purpose)
			if err := got.CanGenerate(spec, purpose); can && err != nil {
				t.Errorf("CanGenerate(%s, %s) = %v", spec, purpose, err)
			} else if !can && !errors.Is(err, hsm.ErrUnsupported) {
				t.Errorf("CanGenerate(%s, %s) = %v, want ErrUnsupported", spec, purpose, err)
			}
		}
	}
	type flags struct {
		Allowed, Copies, Survives bool
		Templates, WrapCopies     bool
		SHA1, SHA256              string
	}
	want := flags{s.caps.AllowedMechanismsEnforced, s.caps.SessionCopies, s.caps.SessionSurvivesBadTag, s.caps.WrapTemplates, s.caps.WrapCopies, s.caps.OAEPSHA1, s.caps.OAEPSHA256}
	have := flags{
		got.AllowedMechanismsEnforced, got.SessionCopies, got.SessionSurvivesBadTag, got.Wrapping.UnwrapTemplate && got.Wrapping.WrapTemplate, got.Wrapping.Copies,
		got.OAEPSHA1, got.OAEPSHA256,
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s%v", diff, maps.Collect(maps.All(got.Reasons)))
	}
}
