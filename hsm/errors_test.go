package hsm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/miekg/pkcs11"
)

func TestCodeName(t *testing.T) {
	for rv, want := range map[uint]string{
		0: "CKR_OK", 5: "CKR_GENERAL_ERROR", 0x1B: "CKR_ACTION_PROHIBITED", 0x140: "CKR_CURVE_NOT_SUPPORTED", 0x191: "CKR_CRYPTOKI_ALREADY_INITIALIZED",
		0x1B6: "CKR_PUBLIC_KEY_INVALID", 0x202: "CKR_OPERATION_CANCEL_FAILED", 0x80000000: "CKR_VENDOR_DEFINED", 0x80000001: "CKR_VENDOR_DEFINED+0x1", 0x999: "CKR_0x999",
	} {
		if got := CodeName(rv); got != want {
			t.Errorf("0x%X: got %s, want %s", rv, got, want)
		}
	}
}

func TestErrorKinds(t *testing.T) {
	for rv, want := range map[uint]error{
		pkcs11.CKR_DEVICE_REMOVED: ErrUnavailable, pkcs11.CKR_SESSION_HANDLE_INVALID: ErrUnavailable, pkcs11.CKR_USER_NOT_LOGGED_IN: ErrUnavailable,
		pkcs11.CKR_PIN_LOCKED: ErrUnavailable, pkcs11.CKR_SESSION_COUNT: ErrUnavailable, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED: ErrUnavailable,
		pkcs11.CKR_MECHANISM_INVALID: ErrUnsupported, pkcs11.CKR_FUNCTION_NOT_SUPPORTED: ErrUnsupported,
		pkcs11.CKR_KEY_UNEXTRACTABLE: ErrNotExtractable, pkcs11.CKR_KEY_NOT_WRAPPABLE: ErrNotExtractable, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID: nil,
		pkcs11.CKR_DATA_LEN_RANGE: nil, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: nil, pkcs11.CKR_OBJECT_HANDLE_INVALID: nil,
	} {
		err := fmt.Errorf("doing: %w", callError("C_X", pkcs11.Error(rv)))
		for _, kind := range []error{ErrUnavailable, ErrUnsupported, ErrAuthentication, ErrKeyNotFound, ErrNotExtractable} {
			if got := errors.Is(err, kind); got != (kind == want) {
				t.Errorf("%s is %v: %v", CodeName(rv), kind, got)
			}
		}
		var e *Error
		if !errors.As(err, &e) || e.RV != rv || e.Call != "C_X" {
			t.Errorf("%s: %v", CodeName(rv), err)
		}
	}
	if callError("C_X", nil) != nil {
		t.Error("an error out of nothing")
	}
	if plain := errors.New("x"); callError("C_X", plain) != plain {
		t.Error("another error was changed")
	}
}

// TestAuthFail: which answers of C_Decrypt say that a ciphertext is bad, and which that the token is.
func TestAuthFail(t *testing.T) {
	tok := &Token{wake: make(chan struct{}, 1)}
	for _, c := range []struct {
		rv                uint
		authentication    bool
		survives, tainted bool
	}{
		{pkcs11.CKR_GENERAL_ERROR, true, true, false}, // SoftHSM's word for a wrong tag
		{pkcs11.CKR_GENERAL_ERROR, true, false, true},
		{pkcs11.CKR_FUNCTION_FAILED, true, true, false},
		{pkcs11.CKR_ENCRYPTED_DATA_INVALID, true, true, false},
		{pkcs11.CKR_ENCRYPTED_DATA_INVALID, true, false, true},
		{pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, true, true, false},
		{pkcs11.CKR_DATA_LEN_RANGE, true, true, false},
		{0x80000001, true, true, false},
		{pkcs11.CKR_DEVICE_ERROR, false, true, true},
		{pkcs11.CKR_DEVICE_REMOVED, false, true, true},
		{pkcs11.CKR_SESSION_HANDLE_INVALID, false, true, true},
		{pkcs11.CKR_USER_NOT_LOGGED_IN, false, true, true},
		{pkcs11.CKR_OBJECT_HANDLE_INVALID, false, true, true},
	} {
		tok.caps.Store(&Capabilities{SessionSurvivesBadTag: c.survives})
		s := &session{c: &conn{t: tok}}
		err := s.authFail("C_Decrypt", pkcs11.Error(c.rv))
		if got := errors.Is(err, ErrAuthentication); got != c.authentication {
			t.Errorf("%s: %v", CodeName(c.rv), err)
		}
		if c.authentication && err != ErrAuthentication {
			t.Errorf("%s: the error has detail: %v", CodeName(c.rv), err)
		}
		if got := s.spot != ""; got != c.tainted {
			t.Errorf("%s, survives=%v: session to be closed: %v", CodeName(c.rv), c.survives, got)
		}
	}
}

func TestSessionLimits(t *testing.T) {
	for n, want := range map[uint]int{0: unlimited, ^uint(0): unlimited, 1: 1, 16: 16, unlimited - 1: unlimited - 1, unlimited: unlimited, 0xffffffff: unlimited} {
		if got := sessionLimit(pkcs11.TokenInfo{MaxSessionCount: n}); got != want {
			t.Errorf("%d: got %d, want %d", n, got, want)
		}
	}
}
