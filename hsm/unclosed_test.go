package hsm

import (
	"testing"

	"github.com/miekg/pkcs11"
)

// TestUnclosedSessions: sessions that the token does not close are counted, and closed with the connection, which is replaced when they are many.
func TestUnclosedSessions(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	evict := func(n int) {
		t.Helper()
		for range n {
			w.fault.Fail(t, "C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
			works(t, k)
		}
	}
	agree := func() bool {
		open, _ := w.fault.Sessions()
		return open == tok.Status().Open
	}
	w.fault.Fail(t, "C_CloseSession", pkcs11.CKR_DEVICE_ERROR, 0)
	before, _ := w.fault.Sessions()
	evict(5)
	if open, _ := w.fault.Sessions(); open < before+5 || !agree() {
		t.Fatalf("%d sessions are open after 5 were not closed, %d before, the token says %d", open, before, tok.Status().Open)
	}
	w.fault.Clear(t, "C_CloseSession")
	alls := w.fault.Calls(t, "C_CloseAllSessions")
	w.fault.ForgetLogin() // the connection is replaced for another reason
	until(t, "all sessions are those of a connection", func() bool {
		works(t, k)
		open, _ := w.fault.Sessions()
		return tok.Ready() == nil && agree() && open <= ownSessions+4 && w.fault.Calls(t, "C_CloseAllSessions") > alls
	})

	w.fault.Fail(t, "C_CloseSession", pkcs11.CKR_DEVICE_ERROR, 0)
	generation := tok.Status().Generation
	evict(maxUnclosed)
	w.fault.Clear(t, "C_CloseSession")
	tok.nudge() // the canary is asked at long intervals here
	until(t, "the connection is replaced", func() bool {
		works(t, k)
		open, _ := w.fault.Sessions()
		return tok.Status().Generation > generation && agree() && open <= ownSessions+4
	})
	check(t, tok.WaitReady(ctx(t)))
	works(t, k)
}
