package hsm

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// wrapKey makes a key for wrapping.
func wrapKey(t testing.TB, tok *Token, id string) *Key {
	t.Helper()
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeWrap, ID: []byte(id), Label: "label of " + id})
	if err != nil {
		t.Fatalf("generate %s: %v", id, err)
	}
	return tok.Key(AES256, PurposeWrap, []byte(id))
}

// exportableKey makes a key that may be wrapped.
func exportableKey(t testing.TB, tok *Token, spec KeySpec, id string) *Key {
	t.Helper()
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: spec, Purpose: spec.Purposes()[0], ID: []byte(id), Label: "label of " + id, Exportable: true})
	if err != nil {
		t.Fatalf("generate %s: %v", id, err)
	}
	return tok.Key(spec, spec.Purposes()[0], []byte(id))
}

// wraps proves that a key wraps and unwraps.
func wraps(t testing.TB, k *Key) {
	t.Helper()
	for _, alg := range []WrapAlgorithm{AESKWP, AESKW} {
		wrapped, err := k.WrapBytes(ctx(t), alg, []byte("a plaintext of 24 bytes."))
		if err != nil {
			t.Fatalf("wrap by %s: %v", alg, err)
		}
		got, err := k.UnwrapBytes(ctx(t), alg, wrapped)
		if err != nil || string(got) != "a plaintext of 24 bytes." {
			t.Fatalf("unwrap by %s: %q, %v", alg, got, err)
		}
	}
}

// noObjects checks that a test left no session objects behind.
func noObjects(t *testing.T, what string, tok *Token) {
	t.Helper()
	if n := sessionObjects(t, tok); n != 0 {
		t.Errorf("%s: %d session objects are left", what, n)
	}
}

// TestUnwrapFail: which answers of C_UnwrapKey say that a wrapped key is bad, and which that something else is.
func TestUnwrapFail(t *testing.T) {
	tok := &Token{wake: make(chan struct{}, 1)}
	for _, c := range []struct {
		rv                                uint
		authentication, survives, tainted bool
	}{
		{pkcs11.CKR_GENERAL_ERROR, true, true, false}, // SoftHSM's word for a blob that was changed
		{pkcs11.CKR_GENERAL_ERROR, true, false, true},
		{pkcs11.CKR_FUNCTION_FAILED, true, true, false},
		{pkcs11.CKR_WRAPPED_KEY_INVALID, true, true, false},
		{pkcs11.CKR_WRAPPED_KEY_INVALID, true, false, true},
		{pkcs11.CKR_WRAPPED_KEY_LEN_RANGE, true, true, false},
		{pkcs11.CKR_ENCRYPTED_DATA_INVALID, true, true, false},
		{0x80000001, true, true, false},
		{pkcs11.CKR_DEVICE_ERROR, false, true, false},
		{pkcs11.CKR_SESSION_HANDLE_INVALID, false, true, false},
		{pkcs11.CKR_USER_NOT_LOGGED_IN, false, true, false},
		{pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID, false, true, false},
		{pkcs11.CKR_MECHANISM_INVALID, false, true, false},
		{pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, false, true, false},
		{pkcs11.CKR_TEMPLATE_INCONSISTENT, false, true, false},
	} {
		tok.caps.Store(&Capabilities{Wrapping: WrapCapability{SessionSurvives: c.survives}})
		s := &session{c: &conn{t: tok}}
		err := s.unwrapFail("C_UnwrapKey", pkcs11.Error(c.rv))
		if c.authentication != (err == ErrAuthentication) || c.authentication != errors.Is(err, ErrAuthentication) {
			t.Errorf("%s: %v", CodeName(c.rv), err)
		}
		if got := s.spot != ""; got != c.tainted {
			t.Errorf("%s, survives=%v: session to be closed: %v", CodeName(c.rv), c.survives, got)
		}
	}
}

// TestWrapFaults lets each call fail, before and after it has done its work: the error reaches the caller, or is healed; nothing is left.
func TestWrapFaults(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxCopies = -1
	tok := w.ready(cfg)
	k := wrapKey(t, tok, "kek")
	plaintext := bytes.Repeat([]byte{7}, 32)
	wrapped, err := k.WrapBytes(ctx(t), AESKW, plaintext)
	check(t, err)
	wrap := func() ([]byte, error) { return k.WrapBytes(ctx(t), AESKW, plaintext) }
	unwrap := func() ([]byte, error) { return k.UnwrapBytes(ctx(t), AESKW, wrapped) }
	for _, c := range []struct {
		call   string
		do     func() ([]byte, error)
		rv     uint
		healed bool
		want   error
	}{
		{"C_CreateObject", wrap, pkcs11.CKR_SESSION_HANDLE_INVALID, true, nil},
		{"C_CreateObject", wrap, pkcs11.CKR_DEVICE_ERROR, true, nil},
		{"C_CreateObject", wrap, pkcs11.CKR_TEMPLATE_INCONSISTENT, false, nil},
		{"C_WrapKey", wrap, pkcs11.CKR_SESSION_HANDLE_INVALID, true, nil},
		{"C_WrapKey", wrap, pkcs11.CKR_GENERAL_ERROR, true, nil},
		{"C_WrapKey", wrap, pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID, true, nil},
		{"C_WrapKey", wrap, pkcs11.CKR_KEY_NOT_WRAPPABLE, false, ErrNotExtractable},
		{"C_WrapKey", wrap, pkcs11.CKR_KEY_SIZE_RANGE, false, nil},
		{"C_DestroyObject", wrap, pkcs11.CKR_ARGUMENTS_BAD, false, nil},
		{"C_DestroyObject", wrap, pkcs11.CKR_DEVICE_ERROR, true, nil},
		{"C_UnwrapKey", unwrap, pkcs11.CKR_SESSION_HANDLE_INVALID, true, nil},
		{"C_UnwrapKey", unwrap, pkcs11.CKR_DEVICE_ERROR, true, nil},
		{"C_UnwrapKey", unwrap, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID, true, nil},
		{"C_UnwrapKey", unwrap, pkcs11.CKR_GENERAL_ERROR, false, ErrAuthentication},
		{"C_UnwrapKey", unwrap, pkcs11.CKR_WRAPPED_KEY_INVALID, false, ErrAuthentication},
		{"C_UnwrapKey", unwrap, pkcs11.CKR_MECHANISM_INVALID, false, ErrUnsupported},
		{"C_GetAttributeValue", unwrap, pkcs11.CKR_ATTRIBUTE_SENSITIVE, false, nil},
		{"C_GetAttributeValue", unwrap, pkcs11.CKR_DEVICE_ERROR, true, nil},
		{"C_DestroyObject", unwrap, pkcs11.CKR_ARGUMENTS_BAD, false, nil},
		{"C_DestroyObject", unwrap, pkcs11.CKR_SESSION_HANDLE_INVALID, true, nil},
	} {
		name := c.call + " " + CodeName(c.rv)
		w.fault.Set(t, c.call, fault.Fault{RV: c.rv, Times: 1})
		got, err := c.do()
		w.fault.Clear(t, c.call)
		if (err == nil) != c.healed || (err != nil) != (got == nil) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		if c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		noObjects(t, name, tok)
		wraps(t, k)
		check(t, tok.WaitReady(ctx(t)))
	}
}

// TestWrapAbandoned: the caller goes while the library hangs, wherever it does; what it makes in the end is destroyed.
func TestWrapAbandoned(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxCopies = -1
	tok := w.ready(cfg)
	k := wrapKey(t, tok, "kek")
	wrapped, err := k.WrapBytes(ctx(t), AESKW, make([]byte, 32))
	check(t, err)
	for _, call := range []string{"C_CreateObject", "C_WrapKey", "C_UnwrapKey", "C_GetAttributeValue", "C_DestroyObject"} {
		w.fault.Hang(t, call)
		var err error
		if call == "C_CreateObject" || call == "C_WrapKey" {
			_, err = k.WrapBytes(short(t, 30*time.Millisecond), AESKW, make([]byte, 32))
		} else {
			_, err = k.UnwrapBytes(short(t, 30*time.Millisecond), AESKW, wrapped)
		}
		wantErr(t, call, err, context.DeadlineExceeded)
		w.fault.Clear(t, call)
		until(t, "nothing is left after "+call, func() bool { return sessionObjects(t, tok) == 0 && tok.Status().Stuck == 0 })
		wraps(t, k)
	}
	ended, cancel := context.WithCancel(ctx(t))
	cancel()
	_, err = k.WrapBytes(ended, AESKW, make([]byte, 32))
	wantErr(t, "wrap with an ended context", err, context.Canceled)
	_, err = k.UnwrapBytes(ended, AESKW, wrapped)
	wantErr(t, "unwrap with an ended context", err, context.Canceled)
	noObjects(t, "ended contexts", tok)
}

// TestFloodOfBadWrappedKeys: they take no session, and ask for no canary each.
func TestFloodOfBadWrappedKeys(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := wrapKey(t, tok, "kek")
	began, canaries := time.Now(), w.fault.Calls(t, "C_EncryptInit")
	for _, alg := range []WrapAlgorithm{AESKWP, AESKW} {
		wrapped, err := k.WrapBytes(ctx(t), alg, make([]byte, 32))
		check(t, err)
		wrapped[20] ^= 1
		for range 1000 {
			if _, err := k.UnwrapBytes(ctx(t), alg, wrapped); err != ErrAuthentication { // exactly this
				t.Fatalf("unwrap: %v", err)
			}
		}
	}
	if n := tok.Status().Evicted; n != 0 {
		t.Errorf("%d sessions evicted, want none", n)
	}
	most := int(time.Since(began)/suspectSpacing) + 3
	if n := w.fault.Calls(t, "C_EncryptInit") - canaries; n > most {
		t.Errorf("%d canaries, want at most %d", n, most)
	}
	wraps(t, k)
	check(t, tok.Ready())
}

// TestWrapStaleHandles: both objects of WrapKey are found again, whichever is stale, and no session is lost.
func TestWrapStaleHandles(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxCopies = -1
	tok := w.ready(cfg)
	k, target := wrapKey(t, tok, "kek"), exportableKey(t, tok, AES256, "target")
	index := tok.state.Load().conn.index
	for name, stale := range map[string][]*Key{"wrapping key": {k}, "target": {target}, "both": {k, target}, "none": nil} {
		for _, s := range stale {
			index.put(s.object(), []pkcs11.ObjectHandle{0xdeadbeef})
		}
		if _, err := k.WrapKey(ctx(t), AESKW, target); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range stale {
			index.put(s.object(), []pkcs11.ObjectHandle{0xdeadbeef})
		}
		wraps(t, k)
		works(t, target)
	}
	if n := tok.Status().Evicted; n != 0 {
		t.Errorf("%d sessions evicted, want none", n)
	}
	missing := tok.Key(AES256, PurposeSeal, []byte("none"))
	_, err := k.WrapKey(ctx(t), AESKW, missing)
	wantErr(t, "a target that is not there", err, ErrKeyNotFound)
	_, err = tok.Key(AES256, PurposeWrap, []byte("none")).WrapKey(ctx(t), AESKW, target)
	wantErr(t, "a wrapping key that is not there", err, ErrKeyNotFound)
}

// TestWrapCopies: a wrapping key becomes a session copy, which is limited as the key is; where that is not proven there is no copy.
func TestWrapCopies(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := wrapKey(t, tok, "kek")
	c := tok.state.Load().conn
	copied := func() *keyCopy {
		c.copies.mu.Lock()
		defer c.copies.mu.Unlock()
		return c.copies.byName[k.object()]
	}
	until(t, "a copy is made", func() bool { wraps(t, k); return copied() != nil })
	h := copied().h
	manually(t, tok, func(s *session) error {
		if err := s.checkTemplates(h, &tok.caps.Load().Wrapping); err != nil {
			t.Errorf("the copy: %v", err)
		}
		return s.pairUnwrapTemplate(h, tok.caps.Load())
	})
	k.Release()
	until(t, "the copy is destroyed", func() bool { return sessionObjects(t, tok) == 0 })

	caps := *tok.caps.Load()
	caps.Wrapping.Copies = false
	tok.caps.Store(&caps)
	before := w.fault.Calls(t, "C_CopyObject")
	for range 3 * copyAfter {
		wraps(t, k)
	}
	works(t, aesKey(t, tok, "one"))
	if n := w.fault.Calls(t, "C_CopyObject"); n != before || k.copyable() {
		t.Errorf("a wrapping key was copied on a token whose copies are not proven")
	}
}
