package hsm

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// TestHangingCall: a call returns at its deadline, the worker counts as stuck and is replaced, and the count falls when the call comes back.
func TestHangingCall(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxSessions, cfg.MaxStuck = 1, 3
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	w.fault.Hang(t, "C_EncryptInit")
	began := time.Now()
	_, _, err := seal(short(t, 50*time.Millisecond), k)
	wantErr(t, "seal that hangs", err, context.DeadlineExceeded)
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it returned after %s", d)
	}
	until(t, "it is counted", func() bool { return tok.Status().Stuck == 1 })
	if err := tok.Ready(); err != nil {
		t.Errorf("ready with one hanging call: %v", err)
	}
	// The only session hangs; its replacement serves what does not hang.
	if _, err := tok.Random(ctx(t), 16); err != nil {
		t.Errorf("random beside a hanging call: %v", err)
	}
	w.fault.Clear(t, "C_EncryptInit")
	until(t, "it has returned", func() bool { return tok.Status().Stuck == 0 })
	works(t, k)
	until(t, "the extra session is closed", func() bool {
		all, _ := w.fault.Sessions()
		return all <= 1+ownSessions
	})
}

// TestBreaker: hanging calls are bounded. At the bound the token refuses calls at once, and serves again when they have returned.
func TestBreaker(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.MaxSessions, cfg.MaxStuck = 2, 3
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	data := tok.Key(HMAC256, PurposeMAC, []byte("mac"))
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: HMAC256, Purpose: PurposeMAC, ID: []byte("mac"), Label: "mac"})
	check(t, err)
	// C_SignInit: the canary does not use it, so that the breaker alone decides.
	w.fault.Hang(t, "C_SignInit")
	until(t, "the breaker opens", func() bool {
		if _, err := data.MAC(short(t, 30*time.Millisecond), []byte("x")); err == nil {
			t.Fatal("a hanging MAC succeeded")
		}
		return tok.Status().State == StateDown
	})
	// Two sessions and two replacements; the third that hangs trips the breaker.
	if n := w.fault.Hanging(t, "C_SignInit"); n < 3 || n > 4 {
		t.Errorf("%d calls hang, want 3 or 4", n)
	}
	began := time.Now()
	_, _, err = seal(ctx(t), k)
	wantErr(t, "seal with the breaker open", err, ErrUnavailable)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("refused after %s", d)
	}
	if r := tok.Ready(); r == nil || !strings.Contains(r.Error(), "calls hang") {
		t.Errorf("ready: %v", r)
	}
	finalized := w.fault.Calls(t, "C_Finalize")
	tok.Reload() // even when asked to try again
	w.fault.Clear(t, "C_SignInit")
	check(t, tok.WaitReady(ctx(t)))
	if n := w.fault.Calls(t, "C_Finalize"); n != finalized {
		t.Errorf("finalized %d times while calls hung", n-finalized)
	}
	works(t, k)
	if _, err := data.MAC(ctx(t), []byte("x")); err != nil {
		t.Errorf("MAC: %v", err)
	}
	until(t, "extra sessions are closed", func() bool {
		all, _ := w.fault.Sessions()
		return all <= 2+ownSessions
	})
}

// TestHangingCanary: a library in which everything hangs makes the token not ready, and is not finalized.
func TestHangingCanary(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.CallTimeout = 200 * time.Millisecond
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	w.fault.Hang(t, "C_EncryptInit")
	until(t, "it is down", func() bool { return tok.Status().State == StateDown })
	if r := tok.Ready(); r == nil || !strings.Contains(r.Error(), "does not answer") {
		t.Errorf("ready: %v", r)
	}
	_, _, err := seal(ctx(t), k)
	wantErr(t, "seal", err, ErrUnavailable)
	until(t, "it is counted", func() bool { return tok.Status().Stuck >= 1 })
	finalized := w.fault.Calls(t, "C_Finalize")
	w.fault.Clear(t, "C_EncryptInit")
	check(t, tok.WaitReady(ctx(t)))
	works(t, k)
	if n := w.fault.Calls(t, "C_Finalize"); n != finalized {
		t.Errorf("finalized %d times while the canary hung", n-finalized)
	}
}

// TestHangingManagement: an object call that hangs blocks further ones, but no cryptography.
func TestHangingManagement(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	w.fault.Hang(t, "C_GenerateKey")
	req := GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("two"), Label: "two"}
	_, err := tok.Generate(short(t, 50*time.Millisecond), req)
	wantErr(t, "generate that hangs", err, context.DeadlineExceeded)
	until(t, "it is counted", func() bool { return tok.Status().Stuck == 1 })
	_, err = tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("three"), Label: "three"})
	wantErr(t, "generate behind it", err, ErrUnavailable)
	works(t, k)
	w.fault.Clear(t, "C_GenerateKey")
	until(t, "it is free again", func() bool { return tok.Status().Stuck == 0 })
	// The key whose caller had gone must not be left.
	until(t, "the unfinished key is gone", func() bool {
		objects, err := tok.Objects(ctx(t))
		if err != nil {
			t.Fatalf("objects: %v", err)
		}
		for _, o := range objects {
			if string(o.ID) == "two" {
				return false
			}
		}
		return true
	})
	aesKey(t, tok, "two")
}

// TestHangWhileOpening: a library that hangs in any call of connecting gives a token that is down and says where, and serves when it returns.
func TestHangWhileOpening(t *testing.T) {
	for _, call := range []string{"C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_Login", "C_FindObjects", "C_GetAttributeValue"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t, true)
			cfg := w.token("alpha")
			cfg.CallTimeout = 100 * time.Millisecond
			w.fault.Hang(t, call)
			tok := w.open(cfg)
			until(t, "it is down", func() bool { return tok.Status().State == StateDown })
			if r := tok.Ready(); r == nil || !strings.Contains(r.Error(), "has not returned") {
				t.Errorf("ready: %v", r)
			}
			w.fault.Clear(t, call)
			check(t, tok.WaitReady(ctx(t)))
		})
	}
}

// TestCloseWithHangingCall: Close returns at its deadline, does not finalize, and what hung is cleaned up when it returns.
func TestCloseWithHangingCall(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	w.fault.Hang(t, "C_EncryptInit")
	_, _, err := seal(short(t, 30*time.Millisecond), k)
	wantErr(t, "seal", err, context.DeadlineExceeded)
	finalized := w.fault.Calls(t, "C_Finalize")
	wantErr(t, "close", tok.Close(short(t, 100*time.Millisecond)), context.DeadlineExceeded)
	if n := w.fault.Calls(t, "C_Finalize"); n != finalized {
		t.Error("finalized while a call hung")
	}
	w.fault.Clear(t, "C_EncryptInit")
	check(t, tok.Close(ctx(t)))
	if n := w.fault.Calls(t, "C_Finalize"); n != finalized+1 {
		t.Errorf("finalized %d times after all, want once", n-finalized)
	}
}

// TestAbandonedMemory: a call that outlives its caller must not touch the caller's memory; the race detector watches.
func TestAbandonedMemory(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	w.fault.Hang(t, "C_EncryptInit")
	iv, aad, plaintext := make([]byte, 12), []byte("additional data"), []byte("plaintext")
	_, err := k.Seal(short(t, 30*time.Millisecond), iv, aad, plaintext)
	wantErr(t, "seal", err, context.DeadlineExceeded)
	clear(iv)
	clear(aad)
	clear(plaintext)
	w.fault.Clear(t, "C_EncryptInit")
	until(t, "the call has returned", func() bool { return w.fault.Hanging(t, "C_EncryptInit") == 0 && tok.Status().Stuck == 0 })
}

// TestInputsAreZeroed: buffers that a request owns are zeroed when it is over, whoever ends it.
func TestInputsAreZeroed(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	secret := func() []byte { return []byte("secret") }
	zero := func(b []byte) bool { return string(b) == "\x00\x00\x00\x00\x00\x00" }

	b := secret()
	check(t, tok.use(ctx(t), "test", func(*session) error { return nil }, b))
	if !zero(b) {
		t.Error("not zeroed after success")
	}
	b = secret()
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	wantErr(t, "use", tok.use(canceled, "test", func(*session) error { return nil }, b), context.Canceled)
	if !zero(b) {
		t.Error("not zeroed after a call that never ran")
	}
	b = secret()
	release, ended := make(chan struct{}), make(chan struct{})
	err := tok.use(short(t, 20*time.Millisecond), "test", func(*session) error {
		<-release
		if zero(b) {
			t.Error("zeroed while the call runs")
		}
		close(ended)
		return nil
	}, b)
	wantErr(t, "use", err, context.DeadlineExceeded)
	close(release)
	<-ended
	check(t, tok.Close(ctx(t))) // waits for the worker
	if !zero(b) {
		t.Error("not zeroed after an abandoned call")
	}
}

// TestPanicInOperation: a bug in an operation costs one call and one session, not the process.
func TestPanicInOperation(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	err := tok.use(ctx(t), "test", func(*session) error { panic("a bug") })
	if err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Fatalf("use: %v", err)
	}
	if n := tok.Status().Evicted; n != 1 {
		t.Errorf("%d sessions evicted, want 1", n)
	}
	works(t, aesKey(t, tok, "one"))
}

// TestBusyManagementIsNoIllness: without a canary, health must not depend on the lock around token objects being free.
func TestBusyManagementIsNoIllness(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.bareToken("alpha")
	cfg.CallTimeout = 100 * time.Millisecond
	tok := w.open(cfg)
	k := aesKey(t, tok, "one")
	w.fault.Hang(t, "C_GenerateKey") // stands for the search for a large prime
	errs := make(chan error)
	go func() {
		_, err := tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("two"), Label: "two"})
		errs <- err
	}()
	until(t, "it is generating", func() bool { return w.fault.Hanging(t, "C_GenerateKey") == 1 })
	asked := tok.Status().CanaryAt
	until(t, "health was looked at", func() bool { return tok.Status().CanaryAt.After(asked) })
	works(t, k)
	w.fault.Clear(t, "C_GenerateKey")
	check(t, <-errs)
}

// TestWaitingAtTheGateIsNoHanging: while the module is to be initialised again for a neighbour, calls wait and their callers leave. That does not
// count against the token, nor against the initialisation; but a call that hangs once it is in the library does.
func TestWaitingAtTheGateIsNoHanging(t *testing.T) {
	w := newWorld(t, true)
	cfgA, cfgB := quiet(w.token("alpha")), quiet(w.token("beta"))
	cfgA.MaxSessions, cfgA.MaxStuck = 4, 8
	cfgA.CallTimeout = 10 * cfgA.StuckAfter // the canary waits at the gate for so long
	tokA, tokB := w.ready(cfgA), w.ready(cfgB)
	_, err := tokA.Generate(ctx(t), GenerateRequest{Spec: HMAC256, Purpose: PurposeMAC, ID: []byte("mac"), Label: "mac"})
	check(t, err)
	k := tokA.Key(HMAC256, PurposeMAC, []byte("mac"))
	m := tokA.mod
	epoch, _ := m.now()
	if !m.enterNow(epoch) { // stands for a slow call, which the initialisation waits for
		t.Fatal("the module cannot be entered")
	}
	defer m.leave()
	waiting, giveUp := context.WithCancel(ctx(t))
	defer giveUp()
	given := make(chan error, 1)
	go func() { given <- m.reinitialise(waiting, epoch, tokB) }()
	until(t, "the gate is closed", func() bool { return m.pausedFor() > 0 })

	calls, leave := context.WithCancel(ctx(t))
	defer leave()
	left := make(chan error, cfgA.MaxSessions)
	for range cfgA.MaxSessions {
		go func() {
			_, err := k.MAC(calls, []byte("x"))
			left <- err
		}()
	}
	until(t, "all workers wait", func() bool { return tokA.Status().InUse == cfgA.MaxSessions })
	leave()
	for range cfgA.MaxSessions {
		if <-left == nil {
			t.Error("a call passed the closed gate")
		}
	}
	at := tokA.Status().CanaryAt
	tokA.nudge() // the canary takes ten times as long as it takes to hang
	until(t, "health was looked at", func() bool { return tokA.Status().CanaryAt.After(at) })
	if st := tokA.Status(); st.Stuck != 0 || st.State == StateDown || m.hanging() != 0 {
		t.Errorf("at the gate %d calls count as hanging, %d in the module; %s, %s", st.Stuck, m.hanging(), st.State, st.Reason)
	}

	w.fault.Hang(t, "C_SignInit")
	giveUp()
	wantErr(t, "an initialisation that was given up", <-given, ErrUnavailable)
	until(t, "what hangs behind the gate is counted", func() bool { return tokA.Status().Stuck == cfgA.MaxSessions })
	w.fault.Clear(t, "C_SignInit")
	until(t, "it has returned", func() bool { return tokA.Status().Stuck == 0 })
	eventually(t, "it serves", func() error {
		_, err := k.MAC(ctx(t), []byte("x"))
		return err
	})
}

// TestStuckAndBackAtOnce: a call that comes back in the moment in which it is found to hang leaves its lane open, and the counts at zero.
func TestStuckAndBackAtOnce(t *testing.T) {
	tok, err := newToken(Config{Module: "/nowhere/lib.so", TokenLabel: "alpha", PIN: PINFile("/nowhere/pin")}, Options{})
	check(t, err)
	c := newConn(tok, 0, 0, pkcs11.TokenInfo{})
	w := &worker{c: c, ln: laneObjects}
	for range 20000 {
		j := &job{request: request{call: "Objects"}}
		j.inside.Store(true) // since ever
		w.hold(j)
		noticed := make(chan struct{})
		go func() {
			defer close(noticed)
			w.markStuck(j)
		}()
		for !w.hangs() {
			runtime.Gosched()
		}
		if w.drop() {
			c.unstick(w)
		}
		<-noticed
		select {
		case <-*c.hangs[laneObjects].Load():
			t.Fatal("the lane counts as hanging though its worker is free")
		default:
		}
		if n := tok.stuck.Load(); n != 0 {
			t.Fatalf("%d calls count as hanging", n)
		}
	}
}
