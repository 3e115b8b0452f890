package hsm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// countingCache tells how often it was asked and given.
type countingCache struct {
	value      []byte
	gets, puts int
}

func (c *countingCache) Get(string) ([]byte, bool) { c.gets++; return c.value, c.value != nil }
func (c *countingCache) Put(_ string, v []byte)    { c.puts++; c.value = bytes.Clone(v) }

func TestProbeCache(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.bareToken("alpha")
	cache := &countingCache{}
	cfg.ProbeCache = cache
	open := func() Capabilities {
		tok := w.open(cfg)
		_, err := tok.EnsureCanary(ctx(t))
		check(t, err)
		caps := tok.Capabilities()
		check(t, tok.Close(ctx(t)))
		return caps
	}
	first := open()
	if cache.puts != 1 {
		t.Fatalf("%d capabilities were kept, want 1", cache.puts)
	}
	pairs := w.fault.Calls(t, "C_GenerateKeyPair")
	second := open()
	if n := w.fault.Calls(t, "C_GenerateKeyPair"); n != pairs || cache.puts != 1 {
		t.Errorf("the token was probed though the cache knew it: %d pairs, %d puts", n-pairs, cache.puts)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("capabilities from the cache differ (-probed +cached):\n%s", diff)
	}
	for name, bad := range map[string][]byte{
		"no JSON":        []byte("x"),
		"of a format":    bytes.Replace(cache.value, fmt.Appendf(nil, `"format":%d`, capabilitiesFormat), []byte(`"format":0`), 1),
		"of a token":     bytes.Replace(cache.value, []byte(first.Token), []byte("v1 another"), 1),
		"empty document": []byte("{}"),
	} {
		cache.value, cache.puts = bad, 0
		third := open()
		if cache.puts != 1 {
			t.Errorf("%s: a cached value that is not understood was believed", name)
		}
		if diff := cmp.Diff(first, third); diff != "" {
			t.Errorf("%s: (-first +again):\n%s", name, diff)
		}
	}
}

// TestProbeFindsLess: what fails in the probe is not offered, with a reason, and
// the rest is.
func TestProbeFindsLess(t *testing.T) {
	for name, tc := range map[string]struct {
		call  string
		rv    uint
		check func(t *testing.T, caps Capabilities)
	}{
		"no pairs": {"C_GenerateKeyPair", pkcs11.CKR_MECHANISM_INVALID, func(t *testing.T, caps Capabilities) {
			for _, spec := range KeySpecs() {
				info, _ := spec.info()
				for _, p := range spec.Purposes() {
					err := caps.CanGenerate(spec, p)
					if info.asymmetric() {
						wantErr(t, spec.String(), err, ErrUnsupported)
						if !strings.Contains(err.Error(), "CKR_MECHANISM_INVALID") {
							t.Errorf("%s: %v does not name the reason", spec, err)
						}
					} else if err != nil {
						t.Errorf("%s: %v", spec, err)
					}
				}
			}
		}},
		"no copies": {"C_CopyObject", pkcs11.CKR_FUNCTION_NOT_SUPPORTED, func(t *testing.T, caps Capabilities) {
			if caps.Wrapping.Copies || caps.SessionCopies || !strings.Contains(caps.Reasons["sessionCopies"], "CKR_FUNCTION_NOT_SUPPORTED") || !caps.AllowedMechanismsEnforced {
				t.Errorf("copies %t (%s), lock %t", caps.SessionCopies, caps.Reasons["sessionCopies"], caps.AllowedMechanismsEnforced)
			}
		}},
		"no derivation": {"C_DeriveKey", pkcs11.CKR_MECHANISM_INVALID, func(t *testing.T, caps Capabilities) {
			wantErr(t, "derive", caps.CanGenerate(P256, PurposeDerive), ErrUnsupported)
			check(t, caps.CanGenerate(P256, PurposeSign))
		}},
		"no wrapping":          {"C_WrapKey", pkcs11.CKR_MECHANISM_INVALID, noWrapping("C_WrapKey answers CKR_MECHANISM_INVALID")},
		"no unwrapping":        {"C_UnwrapKey", pkcs11.CKR_GENERAL_ERROR, noWrapping("C_UnwrapKey answers CKR_GENERAL_ERROR")},
		"no keys from outside": {"C_CreateObject", pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, noWrapping("C_CreateObject answers CKR_ATTRIBUTE_VALUE_INVALID")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, true)
			cfg := w.bareToken("alpha")
			cfg.ProbeCache = nil
			w.fault.Set(t, tc.call, fault.Fault{RV: tc.rv})
			tok := w.open(cfg)
			_, err := tok.EnsureCanary(ctx(t))
			check(t, err)
			caps := tok.Capabilities()
			tc.check(t, caps)
			k := aesKey(t, tok, "key") // on the rest of what the token can do
			for range 10 {
				works(t, k)
			}
			if len(caps.Missing()) < 2 {
				t.Errorf("Missing() = %q", caps.Missing())
			}
		})
	}
}

// noWrapping checks that nothing of key wrap is offered, for that reason.
func noWrapping(why string) func(t *testing.T, caps Capabilities) {
	return func(t *testing.T, caps Capabilities) {
		t.Helper()
		for _, err := range []error{caps.CanGenerate(AES256, PurposeWrap), caps.CanWrap(AESKW, 32), caps.CanWrap(AESKWP, 32)} {
			wantErr(t, "wrapping", err, ErrUnsupported)
			if !strings.Contains(err.Error(), why) {
				t.Errorf("%v does not name the reason, %s", err, why)
			}
		}
		if w := caps.Wrapping; w.UnwrapTemplate || w.WrapTemplate || w.Copies || w.KWPMechanism != 0 {
			t.Errorf("found of a token that does not wrap: %+v", w)
		}
		check(t, caps.CanGenerate(AES256, PurposeSeal))
	}
}

// TestProbeTokenGone: a token that goes away in the middle of the probe has no
// capabilities, rather than few, and is probed when it is back.
func TestProbeTokenGone(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cache := &countingCache{}
	cfg.ProbeCache = cache
	w.fault.Set(t, "C_GenerateKeyPair", fault.Fault{RV: pkcs11.CKR_DEVICE_REMOVED})
	tok := w.open(cfg)
	until(t, "the probe fails", func() bool { return w.fault.Calls(t, "C_GenerateKeyPair") > 0 && tok.Ready() != nil })
	_, err := tok.Generate(short(t, time.Second), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("key"), Label: "label"})
	if err == nil {
		t.Fatal("Generate succeeded on a token that is gone")
	}
	if cache.puts != 0 {
		t.Error("half a probe was kept")
	}
	w.fault.ClearAll()
	check(t, tok.WaitReady(ctx(t)))
	if err := tok.Capabilities().CanGenerate(RSA4096, PurposeSign); err != nil {
		t.Errorf("after the token is back: %v", err)
	}
}

// TestProbeLeavesNothing: probing makes no token object.
func TestProbeLeavesNothing(t *testing.T) {
	w := newWorld(t, false)
	cfg := w.bareToken("alpha")
	cfg.ProbeCache = nil
	tok := w.open(cfg)
	if n := count(t, tok); n != 0 {
		t.Errorf("%d token objects after the probe, want none", n)
	}
}
