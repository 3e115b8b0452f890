package hsm

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// traffic seals and opens from several goroutines until stop is called. What comes back is right or an error that says "unavailable".
func traffic(t *testing.T, k *Key) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				iv, sealed, err := seal(ctx(t), k)
				var opened []byte
				if err == nil {
					opened, err = k.Open(ctx(t), iv, testAAD, sealed)
				}
				switch {
				case errors.Is(err, ErrUnavailable):
					time.Sleep(time.Millisecond) // a token that is down refuses at once
				case err != nil:
					t.Errorf("under traffic: %v", err)
					return
				case string(opened) != "plaintext":
					t.Errorf("opened to %q", opened)
					return
				}
			}
		})
	}
	return func() { close(done); wg.Wait() }
}

// TestBehindOurBack: sessions, logins and the token itself go, under traffic. All comes back by itself, without an initialisation of the module.
func TestBehindOurBack(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	for range 2 * copyAfter {
		works(t, k)
	}
	stop := traffic(t, k)
	defer stop()
	inits := w.fault.Calls(t, "C_Initialize")
	for _, c := range []struct {
		name        string
		begin, over func()
	}{
		{"sessions lost", w.fault.LoseSessions, func() {}},
		{"login forgotten", w.fault.ForgetLogin, func() {}},
		{"token removed", w.fault.Remove, w.fault.Return},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 3 {
				c.begin()
				until(t, "it happened", func() bool { return !w.fault.Pending() })
				if c.name == "token removed" {
					until(t, "it is down", func() bool { return tok.Status().State == StateDown })
					_, _, err := seal(ctx(t), k)
					wantErr(t, "seal without a token", err, ErrUnavailable)
				}
				c.over()
				began := time.Now()
				until(t, "it serves", func() bool {
					_, _, err := seal(ctx(t), k)
					return err == nil && tok.Ready() == nil
				})
				t.Logf("served %s afterwards", time.Since(began).Round(time.Millisecond))
			}
		})
	}
	if n := w.fault.Calls(t, "C_Initialize") - inits; n > 3 {
		t.Errorf("initialised %d times; only a token that was away may need that", n)
	}
	aesKey(t, tok, "two")
	stopped := tok.Status()
	if all, _ := w.fault.Sessions(); all != stopped.Open {
		until(t, "the sessions are those of the connection", func() bool {
			all, _ := w.fault.Sessions()
			return all == tok.Status().Open
		})
	}
}

// TestWrongLengths: a library that tells wrong lengths gives errors, never short or padded data.
func TestWrongLengths(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	iv, sealed, err := seal(ctx(t), k)
	check(t, err)
	gen := func(spec KeySpec, p Purpose, id string) *Key {
		t.Helper()
		_, err := tok.Generate(ctx(t), GenerateRequest{Spec: spec, Purpose: p, ID: []byte(id), Label: id})
		check(t, err)
		return tok.Key(spec, p, []byte(id))
	}
	mac, ec := gen(HMAC256, PurposeMAC, "mac"), gen(P256, PurposeSign, "ec")
	ecdh, kek := gen(P256, PurposeDerive, "ecdh"), gen(AES256, PurposeWrap, "kek")
	peer, err := ecdh.PublicKey(ctx(t))
	check(t, err)
	digest := make([]byte, 32)
	wrapped, err := kek.WrapBytes(ctx(t), AESKWP, digest)
	check(t, err)
	operations := []struct {
		call string
		do   func() error
	}{
		{"C_Encrypt", func() error { _, _, err := seal(ctx(t), k); return err }},
		{"C_Decrypt", func() error { _, err := k.Open(ctx(t), iv, testAAD, sealed); return err }},
		{"C_Sign", func() error { _, err := mac.MAC(ctx(t), []byte("x")); return err }},
		{"C_Sign", func() error { _, err := ec.Sign(ctx(t), pubkey.ECDSASHA256, digest); return err }},
		{"C_GetAttributeValue", func() error { _, err := ecdh.ECDH(ctx(t), peer); return err }},
		{"C_WrapKey", func() error { _, err := kek.WrapBytes(ctx(t), AESKWP, digest); return err }},
		{"C_GetAttributeValue", func() error { _, err := kek.UnwrapBytes(ctx(t), AESKWP, wrapped); return err }},
		{"C_GetAttributeValue", func() error {
			_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("new"), Label: "new"})
			return err
		}},
		{"C_GetAttributeValue", func() error { _, err := tok.Objects(ctx(t)); return err }},
		{"C_GetAttributeValue", func() error { _, err := tok.Custody(ctx(t)); return err }},
	}
	for i, op := range operations {
		for _, how := range []fault.Length{fault.Long, fault.Short, fault.Zero} {
			w.fault.Set(t, op.call, fault.Fault{Len: how})
			err := op.do()
			w.fault.Clear(t, op.call)
			if err == nil {
				t.Errorf("operation %d: %s with a wrong length (%d) is believed", i, op.call, how)
			}
			if errors.Is(err, ErrAuthentication) || errors.Is(err, ErrKeyNotFound) {
				t.Errorf("operation %d: %s with a wrong length (%d): %v blames the caller", i, op.call, how, err)
			}
			// The canary that the failure asks for may have met the fault too, and say so later than this: so all is asked until it is well.
			eventually(t, fmt.Sprintf("operation %d is well after %s told a wrong length (%d)", i, op.call, how), func() error {
				if err := op.do(); err != nil && !errors.Is(err, ErrDuplicate) {
					if errors.Is(err, ErrAuthentication) || errors.Is(err, ErrKeyNotFound) {
						t.Errorf("operation %d: %s afterwards: %v blames the caller", i, op.call, err)
					}
					return err
				}
				if err := tok.Destroy(ctx(t), []byte("new"), "new"); err != nil && !errors.Is(err, ErrKeyNotFound) {
					return fmt.Errorf("destroy: %w", err)
				}
				return tok.Ready()
			})
		}
	}
	// A list that is too short hides keys: that there is none is not believed of it.
	w.fault.Set(t, "C_FindObjects", fault.Fault{Len: fault.Zero})
	fresh := tok.Key(AES256, PurposeSeal, []byte("other"))
	if _, _, err := seal(ctx(t), fresh); err == nil {
		t.Error("a key that is not there seals")
	}
	w.fault.ClearAll()
	check(t, tok.WaitReady(ctx(t)))
	works(t, k)
}

// TestCannotBeFinalized: a module whose C_Finalize fails heals without it where connecting anew is enough, says why where it is not, and does
// not lose what it has.
func TestCannotBeFinalized(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	works(t, k)
	w.fault.Fail(t, "C_Finalize", pkcs11.CKR_FUNCTION_FAILED, 0)
	w.fault.Remove()
	until(t, "it is down", func() bool { return tok.Status().State == StateDown })
	until(t, "it was tried", func() bool { return w.fault.Calls(t, "C_Finalize") > 0 })
	w.fault.Return()
	check(t, tok.WaitReady(ctx(t)))
	works(t, k)
	w.fault.LoseSessions()
	until(t, "it serves again", func() bool {
		_, _, err := seal(ctx(t), k)
		return err == nil && !w.fault.Pending()
	})
	w.fault.Clear(t, "C_Finalize")
	check(t, tok.Close(ctx(t)))
}
