package tokenstore_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/hsm/hsmtest"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
)

const (
	symmetric = keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT
	encrypts  = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT
	wraps     = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP
	kwp       = keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP
	kw        = keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW
	generated = keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED
	mayLeave  = keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE
)

func locator(name string, spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) kms.Locator {
	return kms.Locator{ID: hsmtest.ID(name), Label: name, Spec: spec, Usage: usage}
}

// generate makes a key and wants the custody that was asked for.
func generate(t *testing.T, s *tokenstore.Store, l kms.Locator, exportable bool) {
	t.Helper()
	want := generated
	if exportable {
		want = mayLeave
	}
	made, err := s.Generate(t.Context(), l, exportable)
	if err != nil || made.Custody != want {
		t.Fatalf("Generate = %+v, %v, want custody %s", made, err, want)
	}
}

// TestWrapper: the promises of kms.Wrapper, and of Generate about custody.
func TestWrapper(t *testing.T) {
	s := tokenstore.New(hsmtest.New(t).Open(t))
	wrapping := locator("wrapping", symmetric, wraps)
	if err := s.Supports(symmetric, wraps); err != nil {
		t.Fatal(err)
	}
	generate(t, s, wrapping, false)
	for _, alg := range []keyholdv1.WrappingAlgorithmSpec{kwp, kw} {
		plaintext := []byte("a key of sixteen")
		wrapped, err := s.WrapBytes(t.Context(), wrapping, alg, plaintext)
		if err != nil {
			t.Fatalf("%s: WrapBytes = %v", alg, err)
		}
		got, err := s.UnwrapBytes(t.Context(), wrapping, alg, wrapped)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%s: UnwrapBytes = %q, %v", alg, got, err)
		}
		wrapped[3] ^= 1
		for name, bad := range map[string][]byte{"changed": wrapped, "cut": wrapped[:16], "odd": wrapped[:23], "empty": nil} {
			if got, err := s.UnwrapBytes(t.Context(), wrapping, alg, bad); !errors.Is(err, kms.ErrNotAuthentic) || got != nil {
				t.Errorf("%s, %s: UnwrapBytes = %x, %v, want ErrNotAuthentic", alg, name, got, err)
			}
		}
	}
	if _, err := s.WrapBytes(t.Context(), locator("missing", symmetric, wraps), kw, make([]byte, 16)); !errors.Is(err, kms.ErrKeyMissing) {
		t.Errorf("a missing key: WrapBytes = %v, want ErrKeyMissing", err)
	}
	for _, tc := range []struct {
		alg  keyholdv1.WrappingAlgorithmSpec
		n    int
		want string // "" for nil
	}{
		{kwp, 8, ""},
		{kwp, 4096, ""},
		{kw, 16, ""},
		{kw, 4096, ""},
		{kwp, 5, "AES_KWP"},
		{kwp, 0, "AES_KWP"},
		{kwp, 4097, "AES_KWP"},
		{kw, 8, "AES_KW"},
		{kw, 17, "AES_KW"},
		{kw, 4104, "AES_KW"},
		{0, 16, "wrapping algorithm"},
	} {
		err := s.CanWrap(tc.alg, tc.n)
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, kms.ErrUnsupported) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("CanWrap(%s, %d) = %v, want %q", tc.alg, tc.n, err, tc.want)
		}
	}
}

// TestExport: keys that were made to leave do, wrapped, and others do not.
func TestExport(t *testing.T) {
	s := tokenstore.New(hsmtest.New(t).Open(t))
	wrapping := locator("wrapping", symmetric, wraps)
	generate(t, s, wrapping, false)
	mac := keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC
	for _, tc := range []struct {
		l          kms.Locator
		exportable bool
		bytes      int
	}{
		{locator("aes", symmetric, encrypts), true, 32},
		{locator("hmac", keyholdv1.KeySpec_KEY_SPEC_HMAC_512, mac), true, 64},
		{locator("stays", symmetric, encrypts), false, 0},
	} {
		generate(t, s, tc.l, tc.exportable)
		wrapped, err := s.WrapKey(t.Context(), wrapping, kwp, tc.l)
		if tc.exportable != (err == nil) {
			t.Errorf("%s: WrapKey = %v", tc.l.Label, err)
		}
		if !tc.exportable {
			if !errors.Is(err, kms.ErrUnsupported) {
				t.Errorf("%s: WrapKey = %v, want ErrUnsupported", tc.l.Label, err)
			}
			continue
		}
		if got, err := s.UnwrapBytes(t.Context(), wrapping, kwp, wrapped); err != nil || len(got) != tc.bytes {
			t.Errorf("%s: unwraps to %d bytes, %v, want %d", tc.l.Label, len(got), err, tc.bytes)
		}
	}
	pair := locator("pair", keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY)
	generate(t, s, pair, false)
	if _, err := s.WrapKey(t.Context(), wrapping, kwp, pair); !errors.Is(err, kms.ErrUnsupported) {
		t.Errorf("a pair: WrapKey = %v, want ErrUnsupported", err)
	}
	if _, err := s.WrapKey(t.Context(), wrapping, kwp, locator("missing", symmetric, encrypts)); !errors.Is(err, kms.ErrKeyMissing) {
		t.Errorf("a missing key: WrapKey = %v, want ErrKeyMissing", err)
	}
	for _, l := range []kms.Locator{pair, wrapping} {
		l.ID = hsmtest.ID("never")
		if made, err := s.Generate(t.Context(), l, true); err == nil {
			t.Errorf("%s made exportable: %+v", l.Label, made)
		}
	}
}
