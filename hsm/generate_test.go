package hsm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// count returns how many token objects there are.
func count(t *testing.T, tok *Token) int {
	t.Helper()
	objects, err := tok.Objects(ctx(t))
	check(t, err)
	return len(objects)
}

// TestGenerateFaults lets each call of a generation fail, before and after it
// has done its work. Whatever happens, either the key is whole and works, or
// nothing of it is left.
func TestGenerateFaults(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.HealthInterval = time.Hour // the canary would meet the faults
	tok := w.ready(cfg)
	n := 0
	for _, kind := range []struct {
		spec    KeySpec
		purpose Purpose
	}{{AES256, PurposeSeal}, {AES256, PurposeWrap}, {HMAC256, PurposeMAC}, {P256, PurposeSign}, {Ed25519, PurposeSign}} {
		spec := kind.spec
		info, _ := spec.info()
		calls := []string{"C_GetAttributeValue"}
		switch {
		case info.asymmetric():
			calls = append(calls, "C_GenerateKeyPair", "C_SignInit", "C_Sign")
		case kind.purpose == PurposeWrap:
			calls = append(calls, "C_GenerateKey", "C_CreateObject", "C_WrapKey", "C_UnwrapKey", "C_DestroyObject")
		case spec == AES256:
			calls = append(calls, "C_GenerateKey", "C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt")
		default:
			calls = append(calls, "C_GenerateKey", "C_SignInit", "C_Sign")
		}
		for _, call := range calls {
			for _, after := range []bool{false, true} {
				// None of these makes the supervisor ask the canary, which would meet the next fault.
				for _, rv := range []uint{pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_ARGUMENTS_BAD} {
					n++
					name := fmt.Sprintf("%s for %s: %s after=%t %s", spec, kind.purpose, call, after, CodeName(rv))
					before := count(t, tok)
					w.fault.Set(t, call, fault.Fault{RV: rv, After: after, Times: 1})
					req := GenerateRequest{Spec: spec, Purpose: kind.purpose, ID: fmt.Appendf(nil, "key %d", n), Label: "label"}
					_, err := tok.Generate(ctx(t), req)
					w.fault.ClearAll()
					if err == nil {
						check(t, tok.Destroy(ctx(t), req.ID, req.Label))
						t.Errorf("%s: Generate succeeded", name)
						continue
					}
					if errors.Is(err, ErrDuplicate) || errors.Is(err, ErrInvalidInput) {
						t.Errorf("%s: Generate = %v", name, err)
					}
					if after := count(t, tok); after != before {
						t.Errorf("%s: %d objects before, %d after", name, before, after)
					}
				}
			}
		}
	}
}

// TestGenerateDeviceError: the same for a token that may be broken, and is asked
// whether it is.
func TestGenerateDeviceError(t *testing.T) {
	for _, after := range []bool{false, true} {
		w := newWorld(t, true)
		cfg := w.token("alpha")
		cfg.HealthInterval = time.Hour
		tok := w.ready(cfg)
		before := count(t, tok)
		w.fault.Set(t, "C_GenerateKeyPair", fault.Fault{RV: pkcs11.CKR_DEVICE_ERROR, After: after, Times: 1})
		_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("key"), Label: "label"})
		wantErr(t, "Generate", err, ErrUnavailable)
		if got := count(t, tok); got != before {
			t.Errorf("after=%t: %d objects before, %d after", after, before, got)
		}
	}
}

// TestGenerateLosesLogin: the login goes while a key is made, and takes the new
// key's handle along. That says nothing of the key's custody.
func TestGenerateLosesLogin(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	before := count(t, tok)
	w.fault.Set(t, "C_GetAttributeValue", fault.Fault{RV: pkcs11.CKR_OBJECT_HANDLE_INVALID, Times: 1})
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("key"), Label: "label"})
	wantErr(t, "Generate", err, ErrUnavailable)
	until(t, "nothing is left", func() bool { return count(t, tok) == before })
}

// TestGenerateUndoFails: the pairwise test fails and so does the first attempt
// to destroy; the second one, on another session, does not.
func TestGenerateUndoFails(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.HealthInterval = time.Hour
	tok := w.ready(cfg)
	before := count(t, tok)
	w.fault.Set(t, "C_Sign", fault.Fault{RV: pkcs11.CKR_FUNCTION_FAILED, Times: 1})
	w.fault.Set(t, "C_DestroyObject", fault.Fault{RV: pkcs11.CKR_ARGUMENTS_BAD, Times: 2})
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("key"), Label: "label"})
	if err == nil {
		t.Fatal("Generate succeeded")
	}
	w.fault.ClearAll()
	if after := count(t, tok); after != before {
		t.Errorf("%d objects before, %d after", before, after)
	}
}

// TestGenerateAbandoned: the library hangs, the caller goes at its deadline, and
// what the library makes in the end is destroyed.
func TestGenerateAbandoned(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.HealthInterval = time.Hour
	tok := w.ready(cfg)
	before := count(t, tok)
	for _, call := range []string{"C_GenerateKeyPair", "C_Sign", "C_GetAttributeValue"} {
		made := w.fault.Calls(t, "C_GenerateKeyPair")
		w.fault.Hang(t, call)
		_, err := tok.Generate(short(t, 200*time.Millisecond), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("key"), Label: "label"})
		wantErr(t, call, err, context.DeadlineExceeded)
		w.fault.ClearAll()
		until(t, "the key is made, and gone", func() bool {
			if w.fault.Calls(t, "C_GenerateKeyPair") == made {
				return false
			}
			objects, err := tok.Objects(ctx(t))
			return err == nil && len(objects) == before
		})
	}
}

// TestAttestationProven: each custody attribute counts.
func TestAttestationProven(t *testing.T) {
	good := Attestation{Sensitive: true, AlwaysSensitive: true, NeverExtractable: true, Local: true, Private: true, MechanismsLocked: true, Modifiable: true}
	check(t, good.proven(false))
	for name, change := range map[string]func(*Attestation){
		"not sensitive":         func(a *Attestation) { a.Sensitive = false },
		"once not sensitive":    func(a *Attestation) { a.AlwaysSensitive = false },
		"extractable":           func(a *Attestation) { a.Extractable = true },
		"once extractable":      func(a *Attestation) { a.NeverExtractable = false },
		"not made in the token": func(a *Attestation) { a.Local = false },
		"not private":           func(a *Attestation) { a.Private = false },
		"modifiable, not bound": func(a *Attestation) { a.MechanismsLocked = false },
	} {
		a := good
		change(&a)
		wantErr(t, name, a.proven(false), ErrCustody)
	}
	wantErr(t, "not exportable, though it was to be", good.proven(true), ErrCustody)
	exportable := good
	exportable.Extractable, exportable.NeverExtractable = true, false
	check(t, exportable.proven(true))
	wantErr(t, "exportable, though it was not to be", exportable.proven(false), ErrCustody)
	for name, change := range map[string]func(*Attestation){
		"exportable, not sensitive":        func(a *Attestation) { a.Sensitive = false },
		"exportable, once in the clear":    func(a *Attestation) { a.AlwaysSensitive = false },
		"exportable, not from the token":   func(a *Attestation) { a.Local = false },
		"never extractable, a broken word": func(a *Attestation) { a.NeverExtractable = true },
	} {
		a := exportable
		change(&a)
		wantErr(t, name, a.proven(true), ErrCustody)
	}
	unbound := good
	unbound.MechanismsLocked, unbound.Modifiable = false, false
	check(t, unbound.proven(false))
}

// TestTemplates: where ALLOWED_MECHANISMS is not enforced keys are not
// modifiable, and nobody gets a usage too many.
func TestTemplates(t *testing.T) {
	flags := map[uint]string{
		pkcs11.CKA_ENCRYPT: "encrypt", pkcs11.CKA_DECRYPT: "decrypt", pkcs11.CKA_SIGN: "sign", pkcs11.CKA_VERIFY: "verify",
		pkcs11.CKA_WRAP: "wrap", pkcs11.CKA_UNWRAP: "unwrap", pkcs11.CKA_DERIVE: "derive",
	}
	want := map[Purpose]string{PurposeSeal: "decrypt encrypt", PurposeWrap: "unwrap wrap", PurposeDecrypt: "decrypt", PurposeSign: "sign", PurposeMAC: "sign", PurposeDerive: "derive"}
	for _, enforced := range []bool{true, false} {
		caps := &Capabilities{AllowedMechanismsEnforced: enforced, Wrapping: WrapCapability{KW: Proof{OK: true}}, OAEPSHA1: oaepInToken, OAEPSHA256: oaepOnHost}
		for _, spec := range KeySpecs() {
			info, _ := spec.info()
			for _, purpose := range spec.Purposes() {
				private, public := templates(GenerateRequest{Spec: spec, Purpose: purpose, ID: []byte("id"), Label: "label"}, info, caps, true)
				if got := usages(private, flags); got != want[purpose] {
					t.Errorf("%s for %s: private object may %q, want %q", spec, purpose, got, want[purpose])
				}
				if wantPublic := map[Purpose]string{PurposeDecrypt: "encrypt", PurposeSign: "verify"}[purpose]; usages(public, flags) != wantPublic && info.asymmetric() {
					t.Errorf("%s for %s: public object may %q, want %q", spec, purpose, usages(public, flags), wantPublic)
				}
				if got := has(private, pkcs11.CKA_ALLOWED_MECHANISMS); got != enforced {
					t.Errorf("%s: CKA_ALLOWED_MECHANISMS in the template: %t, want %t", spec, got, enforced)
				}
				if got := has(private, pkcs11.CKA_MODIFIABLE); got == enforced {
					t.Errorf("%s: CKA_MODIFIABLE=false in the template: %t, want %t", spec, got, !enforced)
				}
				if len(allowedMechanisms(info, purpose, caps)) == 0 {
					t.Errorf("%s for %s: no mechanism is allowed", spec, purpose)
				}
			}
		}
	}
	rsa, _ := RSA2048.info()
	for _, tc := range []struct {
		sha1, sha256 string
		want         int
	}{{oaepInToken, oaepInToken, 1}, {oaepInToken, oaepOnHost, 2}, {oaepOnHost, oaepOnHost, 1}} {
		if got := allowedMechanisms(rsa, PurposeDecrypt, &Capabilities{OAEPSHA1: tc.sha1, OAEPSHA256: tc.sha256}); len(got) != tc.want {
			t.Errorf("OAEP in %s and %s: mechanisms %#x, want %d", tc.sha1, tc.sha256, got, tc.want)
		}
	}
}

func usages(template []*pkcs11.Attribute, flags map[uint]string) string {
	var all string
	for _, flag := range []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_DERIVE, pkcs11.CKA_ENCRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_UNWRAP, pkcs11.CKA_VERIFY, pkcs11.CKA_WRAP} {
		for _, a := range template {
			if a.Type == flag && len(a.Value) == 1 && a.Value[0] == 1 {
				if all != "" {
					all += " "
				}
				all += flags[flag]
			}
		}
	}
	return all
}

func has(template []*pkcs11.Attribute, attribute uint) bool {
	for _, a := range template {
		if a.Type == attribute {
			return true
		}
	}
	return false
}

// TestGenerateSearchesWhatIsKnown: a search costs more than a key on a full token, so one is made only for an id that was seen before.
func TestGenerateSearchesWhatIsKnown(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	finds := w.fault.Calls(t, "C_FindObjectsInit")
	works(t, aesKey(t, tok, "one"))
	if n := w.fault.Calls(t, "C_FindObjectsInit") - finds; n != 0 {
		t.Errorf("%d searches for a key with an id of its own", n)
	}
	request := GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("one"), Label: "another"}
	_, err := tok.Generate(ctx(t), request)
	wantErr(t, "a key with the id of another", err, ErrDuplicate)
	for _, call := range []string{"C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal"} {
		before := count(t, tok)
		w.fault.Fail(t, call, pkcs11.CKR_ARGUMENTS_BAD, 1)
		if _, err := tok.Generate(ctx(t), request); err == nil || errors.Is(err, ErrDuplicate) {
			t.Errorf("%s fails: Generate = %v", call, err)
		}
		w.fault.ClearAll()
		if after := count(t, tok); after != before {
			t.Errorf("%s fails: %d objects before, %d after", call, before, after)
		}
	}
	// Another process destroyed it: the id is free, whatever was known.
	manually(t, tok, func(s *session) error {
		found, err := findRaw(s, "one")
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%d objects, %w", len(found), err)
		}
		return s.p.DestroyObject(s.h, found[0])
	})
	_, err = tok.Generate(ctx(t), request)
	check(t, err)
}
