package kms_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

func (w *world) wrapKey(key string, alg keyholdv1.WrappingAlgorithmSpec, plaintext []byte) []byte {
	w.t.Helper()
	return do[*keyholdv1.WrapKeyResponse](w, &keyholdv1.WrapKeyRequest{KeyId: key, PlaintextKey: plaintext, WrappingAlgorithm: alg}).GetWrappedKey()
}

func (w *world) unwrapKey(key string, alg keyholdv1.WrappingAlgorithmSpec, wrapped []byte) []byte {
	w.t.Helper()
	return do[*keyholdv1.UnwrapKeyResponse](w, &keyholdv1.UnwrapKeyRequest{KeyId: key, WrappedKey: wrapped, WrappingAlgorithm: alg}).GetPlaintextKey()
}

// A caller's bytes go in and come out, by both algorithms, with the lengths of
// the RFCs. That others open them is tested with the token (hsm/hsmtest).
func TestWrapKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, other := w.newKey(symmetric, usageWrap), w.newKey(symmetric, usageWrap)
	for _, c := range []struct {
		alg   keyholdv1.WrappingAlgorithmSpec
		sizes []int
	}{{0, []int{8, 16, 32, 4096}}, {algKWP, []int{8, 24, 32, 2048}}, {algKW, []int{16, 32, 64, 4096}}} {
		for _, n := range c.sizes {
			plaintext := randomBytes(n)
			resp := do[*keyholdv1.WrapKeyResponse](w, &keyholdv1.WrapKeyRequest{KeyId: id, PlaintextKey: plaintext, WrappingAlgorithm: c.alg})
			used := c.alg
			if used == 0 {
				used = algKWP
			}
			if resp.GetWrappingAlgorithm() != used || resp.GetKeyId() != w.metadata(id).GetArn() || len(resp.GetWrappedKey()) != n+8 {
				t.Errorf("%d bytes by %s: %d by %s", n, c.alg, len(resp.GetWrappedKey()), resp.GetWrappingAlgorithm())
			}
			if got := w.unwrapKey(id, c.alg, resp.GetWrappedKey()); !bytes.Equal(got, plaintext) {
				t.Errorf("%d bytes by %s come back as %d others", n, c.alg, len(got))
			}
			refuse(w, &keyholdv1.UnwrapKeyRequest{KeyId: other, WrappedKey: resp.GetWrappedKey(), WrappingAlgorithm: c.alg}, kms.CodeInvalidCiphertext)
		}
	}
	// AES_KW is deterministic, and AES_KWP of the same bytes is another value.
	key := randomBytes(32)
	if kw := w.wrapKey(id, algKW, key); !bytes.Equal(kw, w.wrapKey(id, algKW, key)) || bytes.Equal(kw, w.wrapKey(id, algKWP, key)) {
		t.Error("AES_KW and AES_KWP are not told apart")
	}
}

// What does not unwrap is one error without detail.
func TestUnwrapRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.newKey(symmetric, usageWrap)
	for _, alg := range []keyholdv1.WrappingAlgorithmSpec{algKWP, algKW} {
		wrapped := w.wrapKey(id, alg, randomBytes(32))
		var bad [][]byte
		for i := range wrapped {
			bad = append(bad, flipped(wrapped, 8*i))
		}
		for n := 1; n < len(wrapped); n++ {
			bad = append(bad, wrapped[:n])
		}
		bad = append(bad, append(bytes.Clone(wrapped), 0), append(bytes.Clone(wrapped), make([]byte, 8)...), make([]byte, 40), make([]byte, 4104), w.wrapKey(id, algKWP+algKW-alg, randomBytes(32)))
		for _, b := range bad {
			e := refuse(w, &keyholdv1.UnwrapKeyRequest{KeyId: id, WrappedKey: b, WrappingAlgorithm: alg}, kms.CodeInvalidCiphertext)
			if e.Message != "" || e.Unavailable {
				t.Errorf("%d bytes by %s: the refusal says %q", len(b), alg, e.Message)
			}
		}
		if got := w.unwrapKey(id, alg, wrapped); len(got) != 32 {
			t.Errorf("after %d refusals the key unwraps to %d bytes", len(bad), len(got))
		}
	}
}

// SoftHSM puts a wrong length into wrapped keys that are no multiples of 8: what
// others would read wrongly is refused, also in a dry run, and says why.
func TestWrapLengthsThatTheTokenGetsWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.newKey(symmetric, usageWrap)
	for _, n := range []int{1, 5, 7, 9, 31, 33, 4095} {
		for _, dry := range []bool{false, true} {
			e := refuse(w, &keyholdv1.WrapKeyRequest{KeyId: id, PlaintextKey: make([]byte, n), DryRun: &dry}, kms.CodeUnsupportedOperation)
			if !strings.Contains(e.Message, "multiple") || !strings.Contains(e.Message, "CKM_AES_KEY_WRAP") {
				t.Errorf("%d bytes: the refusal %q gives neither mechanism nor remedy", n, e.Message)
			}
		}
	}
	for _, n := range []int{8, 15, 17, 31, 4095} {
		e := refuse(w, &keyholdv1.WrapKeyRequest{KeyId: id, PlaintextKey: make([]byte, n), WrappingAlgorithm: algKW}, kms.CodeValidation)
		if len(e.Violations) != 1 || e.Violations[0].Field != "plaintext_key" {
			t.Errorf("%d bytes by AES_KW: %v", n, e)
		}
	}
}

// A key that was made to leave can, under one that cannot; it shows what it is,
// and works as any other.
func TestExportKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wrap := w.newKey(symmetric, usageWrap)
	for _, k := range []struct {
		spec  keyholdv1.KeySpec
		usage keyholdv1.KeyUsageType
		bytes int
	}{{symmetric, usageEncrypt, 32}, {hmac256, usageMac, 32}, {hmac384, usageMac, 48}, {hmac512, usageMac, 64}} {
		id := w.newExportableKey(k.spec, k.usage)
		if got := w.metadata(id).GetKeyCustody(); got != custodyExportable {
			t.Errorf("%s shows the custody %s", k.spec, got)
		}
		for _, alg := range []keyholdv1.WrappingAlgorithmSpec{algKWP, algKW} {
			events := w.eventsOf(func() {
				resp := do[*keyholdv1.ExportKeyResponse](w, &keyholdv1.ExportKeyRequest{KeyId: id, WrappingKeyId: wrap, WrappingAlgorithm: alg})
				if resp.GetKeyId() != w.metadata(id).GetArn() || resp.GetWrappingKeyId() != w.metadata(wrap).GetArn() || resp.GetWrappingAlgorithm() != alg {
					t.Errorf("the answer is about %v", resp)
				}
				if got := w.unwrapKey(wrap, alg, resp.GetWrappedKey()); len(got) != k.bytes {
					t.Errorf("%s by %s unwraps to %d bytes, want %d", k.spec, alg, len(got), k.bytes)
				}
			})
			if i := slices.IndexFunc(events, func(e event) bool { return e.EventName == "ExportKey" }); i < 0 || len(events[i].Resources) != 2 {
				t.Errorf("the export is recorded as %+v", events)
			}
		}
	}
	id := w.newExportableKey(symmetric, usageEncrypt)
	if blob := w.encrypt(id, []byte("x"), nil); string(w.decrypt(blob, nil)) != "x" {
		t.Error("an exportable key does not decrypt what it encrypted")
	}
	w.start()
	if got := w.metadata(id).GetKeyCustody(); got != custodyExportable {
		t.Errorf("after a restart it shows the custody %s", got)
	}
	w.testExportRefusals(wrap, id)
}

func (w *world) testExportRefusals(wrap, exportable string) {
	generated := w.newAESKey()
	off := w.newKey(symmetric, usageWrap)
	w.inState(off, disabled)
	for name, c := range map[string]struct {
		key, wrapping string
		want          kms.Code
	}{
		"a generated key":              {generated, wrap, kms.CodeInvalidKeyUsage},
		"a wrapping key":               {wrap, wrap, kms.CodeInvalidKeyUsage},
		"under a key that encrypts":    {exportable, generated, kms.CodeInvalidKeyUsage},
		"under itself":                 {exportable, exportable, kms.CodeInvalidKeyUsage},
		"an unknown key":               {unknownID, wrap, kms.CodeNotFound},
		"under an unknown key":         {exportable, unknownID, kms.CodeNotFound},
		"somebody else's key":          {arnOfForeign + "key/" + unknownID, wrap, kms.CodeAccessDenied},
		"under somebody else's key":    {exportable, arnOfForeign + "key/" + unknownID, kms.CodeAccessDenied},
		"under a key that is disabled": {exportable, off, kms.CodeDisabled},
	} {
		for _, dry := range []bool{false, true} {
			req := &keyholdv1.ExportKeyRequest{KeyId: c.key, WrappingKeyId: c.wrapping, DryRun: &dry}
			if _, err := try[proto.Message](w, req); err == nil || err.Code != c.want {
				w.t.Errorf("%s: %v, want %s", name, err, c.want)
			}
		}
	}
	refuse(w, &keyholdv1.ExportKeyRequest{KeyId: exportable, WrappingKeyId: wrap, DryRun: ptr(true)}, kms.CodeDryRun)
	for _, k := range []struct {
		spec  keyholdv1.KeySpec
		usage keyholdv1.KeyUsageType
	}{{p256, usageSign}, {rsa2048, usageEncrypt}, {p256, usageAgree}, {symmetric, usageWrap}} {
		e := refuse(w, &keyholdv1.CreateKeyRequest{KeySpec: k.spec, KeyUsage: k.usage, KeyCustody: custodyExportable}, kms.CodeValidation)
		if len(e.Violations) != 1 || e.Violations[0].Field != "key_custody" {
			w.t.Errorf("%s for %s: %v", k.spec, k.usage, e)
		}
	}
	// 28 bytes are what SoftHSM wraps wrongly and AES_KW not at all.
	if e := refuse(w, &keyholdv1.CreateKeyRequest{KeySpec: hmac224, KeyUsage: usageMac, KeyCustody: custodyExportable}, kms.CodeUnsupportedOperation); !strings.Contains(e.Message, "CKM_AES_KEY_WRAP") {
		w.t.Errorf("the refusal %q does not name the mechanism", e.Message)
	}
	refuse(w, &keyholdv1.CreateKeyRequest{KeyCustody: 3}, kms.CodeValidation)
	if got := w.metadata(do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{KeyCustody: custodyGenerated}).GetKeyMetadata().GetKeyId()).GetKeyCustody(); got != custodyGenerated {
		w.t.Errorf("a key that was asked for as GENERATED shows %s", got)
	}
}

// What no request can bring about is refused all the same: records may come from
// a later version, or from a hand that changed them.
func TestExportKeyMistrustsRecords(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(key, wrapping *kms.KeyRecord)
		want   kms.Code
		words  string
	}{
		"as they were made":          {func(_, _ *kms.KeyRecord) {}, kms.CodeDryRun, ""},
		"a wrapping key can leave":   {func(_, wrapping *kms.KeyRecord) { wrapping.Current().Custody = custodyExportable }, kms.CodeInvalidKeyUsage, "only under a GENERATED one"},
		"they are in two key stores": {func(key, _ *kms.KeyRecord) { key.KeyStore = "cks-1234567890abcdef0" }, kms.CodeUnsupportedOperation, "different key stores"},
	} {
		w := newWorld(t)
		key, wrapping := w.record(w.newExportableKey(symmetric, usageEncrypt)), w.record(w.newKey(symmetric, usageWrap))
		c.change(key, wrapping)
		for _, r := range []*kms.KeyRecord{key, wrapping} {
			if err := w.db.UpdateKey(t.Context(), r); err != nil {
				t.Fatal(name, err)
			}
		}
		w.start()
		e := refuse(w, &keyholdv1.ExportKeyRequest{KeyId: string(key.ID), WrappingKeyId: string(wrapping.ID), DryRun: ptr(true)}, c.want)
		if !strings.Contains(e.Message, c.words) {
			t.Errorf("%s: %q", name, e.Message)
		}
	}
}

// record returns a key's record as it is stored.
func (w *world) record(id string) *kms.KeyRecord {
	w.t.Helper()
	r, err := w.db.Key(w.t.Context(), kms.KeyID(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}
