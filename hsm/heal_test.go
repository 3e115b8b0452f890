package hsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// TestErrorsOfOneSession: what a session's or the device's error costs. The call is repeated once on a fresh session where that may help.
func TestErrorsOfOneSession(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	works(t, k)
	for _, c := range []struct {
		call    string
		rv      uint
		evicted uint64 // sessions that one error costs
		healed  bool   // by the repetition
	}{
		{"C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 1, true},
		{"C_EncryptInit", pkcs11.CKR_SESSION_CLOSED, 1, true},
		{"C_EncryptInit", pkcs11.CKR_OPERATION_ACTIVE, 1, true},
		{"C_EncryptInit", pkcs11.CKR_DEVICE_ERROR, 1, true},
		{"C_EncryptInit", pkcs11.CKR_DEVICE_REMOVED, 1, true},
		{"C_EncryptInit", pkcs11.CKR_TOKEN_NOT_PRESENT, 1, true},
		{"C_EncryptInit", pkcs11.CKR_GENERAL_ERROR, 1, true},
		{"C_EncryptInit", pkcs11.CKR_FUNCTION_FAILED, 1, true},
		{"C_EncryptInit", pkcs11.CKR_HOST_MEMORY, 1, true},
		{"C_EncryptInit", pkcs11.CKR_MECHANISM_INVALID, 0, false}, // refused: nothing began, and a second try would not help
		{"C_EncryptInit", pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, 0, false},
		{"C_Encrypt", pkcs11.CKR_SESSION_HANDLE_INVALID, 1, true},
		{"C_Encrypt", pkcs11.CKR_DEVICE_ERROR, 1, true},
		{"C_Encrypt", pkcs11.CKR_DATA_LEN_RANGE, 1, false}, // the operation may still be active
		{"C_Encrypt", 0x80000123, 1, false},
	} {
		name := c.call + " " + CodeName(c.rv)
		before, canaries := tok.Status().Evicted, w.fault.Calls(t, "C_Decrypt")
		w.fault.Fail(t, c.call, c.rv, 1)
		_, _, err := seal(ctx(t), k)
		if (err == nil) != c.healed {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.RV != c.rv || e.Call != c.call {
				t.Errorf("%s: error %v does not tell", name, err)
			}
		}
		if n := tok.Status().Evicted - before; n != c.evicted {
			t.Errorf("%s: %d sessions evicted, want %d", name, n, c.evicted)
		}
		w.fault.Clear(t, c.call)
		works(t, k)
		check(t, tok.WaitReady(ctx(t)))
		if classify(callError(c.call, pkcs11.Error(c.rv))) == classDevice {
			// The canary that was asked for would meet the next row's fault.
			until(t, "the canary was looked at", func() bool { return w.fault.Calls(t, "C_Decrypt")-canaries > 1 })
		}
	}
	// Not for ever: a second error reaches the caller.
	w.fault.Fail(t, "C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 2)
	_, _, err := seal(ctx(t), k)
	wantErr(t, "seal", err, ErrUnavailable)
}

// TestFloodOfBadCiphertexts: they take no session and no pool down, and ask for no canary each.
func TestFloodOfBadCiphertexts(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	iv, sealed, err := seal(ctx(t), k)
	check(t, err)
	sealed[0] ^= 1
	began, canaries := time.Now(), w.fault.Calls(t, "C_EncryptInit")
	for range 2000 {
		_, err := k.Open(ctx(t), iv, testAAD, sealed)
		wantErr(t, "open", err, ErrAuthentication)
	}
	if n := tok.Status().Evicted; n != 0 {
		t.Errorf("%d sessions evicted, want none", n)
	}
	most := int(time.Since(began)/suspectSpacing) + 3
	if n := w.fault.Calls(t, "C_EncryptInit") - canaries; n > most {
		t.Errorf("%d canaries, want at most %d", n, most)
	}
	works(t, k)
	check(t, tok.Ready())
}

// TestLoginLost: CKR_USER_NOT_LOGGED_IN makes the supervisor log in again, and the call is repeated.
func TestLoginLost(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	works(t, k)
	logins := w.fault.Calls(t, "C_Login")
	// Somebody in this process logs out.
	check(t, tok.use(ctx(t), "test", func(s *session) error { return s.p.Logout(s.h) }))
	works(t, k)
	if n := w.fault.Calls(t, "C_Login") - logins; n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	aesKey(t, tok, "two") // management heals as well
	check(t, tok.use(ctx(t), "test", func(s *session) error { return s.p.Logout(s.h) }))
	aesKey(t, tok, "three")
	check(t, tok.WaitReady(ctx(t)))
}

// TestFinalizedUnderUs: somebody in this process finalized the library.
func TestFinalizedUnderUs(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	p := pkcs11.New(w.module)
	check(t, p.Finalize())
	check(t, tok.WaitReady(ctx(t)))
	until(t, "it heals", func() bool {
		_, _, err := seal(ctx(t), k)
		return err == nil
	})
	check(t, tok.WaitReady(ctx(t)))
}

// tokenDir is the folder of the only token of the world with that serial number.
func tokenDir(t *testing.T, tok *Token) string {
	t.Helper()
	dir := tok.Status().TokenDir
	if _, err := os.Stat(filepath.Join(dir, "token.object")); err != nil {
		t.Fatalf("token folder: %v", err)
	}
	return dir
}

// TestTokenDirMovedAway: the token's files vanish and come back. Operations fail fast, the token says why, and heals by itself.
func TestTokenDirMovedAway(t *testing.T) {
	for _, copies := range []int{-1, 16} {
		t.Run(fmt.Sprintf("copies %d", copies), func(t *testing.T) {
			w := newWorld(t, true)
			cfg := w.token("alpha")
			cfg.MaxCopies = copies
			tok := w.ready(cfg)
			k := aesKey(t, tok, "one")
			for range 2 * copyAfter {
				works(t, k)
			}
			iv, sealed, err := seal(ctx(t), k)
			check(t, err)
			dir := tokenDir(t, tok)
			for range 2 {
				away := filepath.Join(w.dir, "away")
				check(t, os.Rename(dir, away))
				until(t, "it is down", func() bool { return tok.Status().State == StateDown })
				until(t, "it says why", func() bool { return strings.Contains(tok.Status().Reason, `token with label "alpha" not found`) })
				_, err = k.Open(ctx(t), iv, testAAD, sealed)
				wantErr(t, "open", err, ErrUnavailable)
				_, err = tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("two"), Label: "two"})
				wantErr(t, "generate", err, ErrUnavailable)
				check(t, os.Rename(away, dir))
				check(t, tok.WaitReady(ctx(t)))
				got, err := k.Open(ctx(t), iv, testAAD, sealed)
				if err != nil || string(got) != "plaintext" {
					t.Fatalf("open: %q, %v", got, err)
				}
			}
			aesKey(t, tok, "two")
		})
	}
}

// TestGoneIsNotKeyNotFound: while the token is going away nobody may be told that a key does not exist.
func TestGoneIsNotKeyNotFound(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxCopies = -1
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	check(t, os.Rename(tokenDir(t, tok), filepath.Join(w.dir, "away")))
	_, _, err := seal(ctx(t), k)
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrKeyNotFound) {
		t.Fatalf("seal: %v", err)
	}
}

// TestDeviceErrors: a token that answers every call with an error is down, and heals when it stops.
func TestDeviceErrors(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	calls := []string{"C_EncryptInit", "C_DecryptInit", "C_SignInit", "C_OpenSession", "C_FindObjectsInit", "C_GetSessionInfo", "C_GenerateKey"}
	for _, c := range calls {
		w.fault.Fail(t, c, pkcs11.CKR_DEVICE_ERROR, 0)
	}
	until(t, "it is down", func() bool { return tok.Status().State == StateDown })
	_, _, err := seal(ctx(t), k)
	wantErr(t, "seal", err, ErrUnavailable)
	if r := tok.Ready().Error(); !strings.Contains(r, "CKR_DEVICE_ERROR") {
		t.Errorf("ready: %s", r)
	}
	w.fault.ClearAll()
	check(t, tok.WaitReady(ctx(t)))
	works(t, k)
}

// TestNeighbourServesOn: of two tokens on one module one fails. The other serves on, though the module is initialised again now and then.
func TestNeighbourServesOn(t *testing.T) {
	w := newWorld(t, true)
	cfgA, cfgB := w.token("alpha"), w.token("beta")
	cfgB.MaxCopies = 16
	tokA, tokB := w.ready(cfgA), w.ready(cfgB)
	b := aesKey(t, tokB, "one")
	dir := tokenDir(t, tokA)
	stop := make(chan struct{})
	var served, failed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := seal(ctx(t), b); err != nil {
					failed.Add(1)
					t.Errorf("neighbour: %v", err)
					return
				}
				served.Add(1)
			}
		})
	}
	inits := w.fault.Calls(t, "C_Initialize")
	check(t, os.Rename(dir, filepath.Join(w.dir, "away")))
	until(t, "alpha is down", func() bool { return tokA.Status().State == StateDown })
	until(t, "the module was initialised again", func() bool { return w.fault.Calls(t, "C_Initialize") > inits })
	at := served.Load()
	until(t, "beta serves on", func() bool { return served.Load() > at+200 || failed.Load() > 0 })
	check(t, os.Rename(filepath.Join(w.dir, "away"), dir))
	check(t, tokA.WaitReady(ctx(t)))
	close(stop)
	wg.Wait()
	check(t, tokB.WaitReady(ctx(t)))
	works(t, b)
	// A failing neighbour interrupts rarely: once at first, then after 2 s and longer.
	if n := w.fault.Calls(t, "C_Initialize") - inits; n > 6 {
		t.Errorf("initialised %d times", n)
	}
}

// TestNeverFinalizeWhileNeighbourHangs: healing one token must not finalize under a call of another that hangs.
func TestNeverFinalizeWhileNeighbourHangs(t *testing.T) {
	w := newWorld(t, true)
	cfgA, cfgB := w.token("alpha"), quiet(w.token("beta"))
	tokA, tokB := w.ready(cfgA), w.ready(cfgB)
	b := aesKey(t, tokB, "one")
	_, err := tokB.Generate(ctx(t), GenerateRequest{Spec: HMAC256, Purpose: PurposeMAC, ID: []byte("mac"), Label: "mac"})
	check(t, err)
	mac := tokB.Key(HMAC256, PurposeMAC, []byte("mac"))
	w.fault.Hang(t, "C_SignInit")
	_, err = mac.MAC(short(t, 30*time.Millisecond), []byte("x"))
	if err == nil {
		t.Fatal("a hanging MAC succeeded")
	}
	until(t, "it is counted", func() bool { return tokB.Status().Stuck == 1 })
	finalized := w.fault.Calls(t, "C_Finalize")
	dir := tokenDir(t, tokA)
	check(t, os.Rename(dir, filepath.Join(w.dir, "away")))
	until(t, "alpha is down", func() bool { return tokA.Status().State == StateDown })
	until(t, "alpha says that it cannot heal", func() bool { return strings.Contains(tokA.Status().Reason, "have not returned") })
	if n := w.fault.Calls(t, "C_Finalize"); n != finalized {
		t.Fatal("finalized under a hanging call")
	}
	works(t, b)
	check(t, os.Rename(filepath.Join(w.dir, "away"), dir))
	w.fault.Clear(t, "C_SignInit")
	check(t, tokA.WaitReady(ctx(t)))
	works(t, b)
}

// TestInitializeFailsAgain: C_Initialize fails for a while after C_Finalize.
func TestInitializeFailsAgain(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	dir := tokenDir(t, tok)
	w.fault.Fail(t, "C_Initialize", pkcs11.CKR_GENERAL_ERROR, 0)
	check(t, os.Rename(dir, filepath.Join(w.dir, "away")))
	until(t, "it cannot initialise", func() bool { return strings.Contains(tok.Status().Reason, "initialise PKCS#11 module") })
	check(t, os.Rename(filepath.Join(w.dir, "away"), dir))
	w.fault.Clear(t, "C_Initialize")
	check(t, tok.WaitReady(ctx(t)))
	works(t, k)
}

// TestCanaryLies: a token that decrypts to something else, or does not decrypt what it encrypted, is not healthy.
func TestCanaryFails(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	w.fault.Set(t, "C_Decrypt", fault.Fault{RV: pkcs11.CKR_ENCRYPTED_DATA_INVALID})
	until(t, "it is down", func() bool { return tok.Status().State == StateDown })
	if r := tok.Ready().Error(); !strings.Contains(r, "canary") {
		t.Errorf("ready: %s", r)
	}
	w.fault.Clear(t, "C_Decrypt")
	check(t, tok.WaitReady(ctx(t)))
}

// TestTroubleIsNoBadCiphertext: a code that no ciphertext brings about is not blamed on one.
func TestTroubleIsNoBadCiphertext(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	iv, sealed, err := seal(ctx(t), k)
	check(t, err)
	for _, rv := range []uint{
		pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_PIN_EXPIRED, ckrTokenResourceExceeded,
		pkcs11.CKR_DEVICE_MEMORY,
	} {
		w.fault.Fail(t, "C_Decrypt", rv, 2)
		if _, err := k.Open(ctx(t), iv, testAAD, sealed); err == nil || errors.Is(err, ErrAuthentication) {
			t.Errorf("%s: %v", CodeName(rv), err)
		}
		w.fault.Clear(t, "C_Decrypt")
	}
}
