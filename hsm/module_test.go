package hsm

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// TestForeignInitialize: another part of the process owns C_Initialize. The token works, does not finalize what is not its own, and heals when
// the owner does.
func TestForeignInitialize(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	p := pkcs11.New(w.module)
	check(t, p.Initialize())
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	works(t, k)
	check(t, tok.Close(ctx(t)))
	if _, err := p.GetInfo(); err != nil {
		t.Fatalf("the library was finalized under its owner: %v", err)
	}
	tok = w.ready(cfg)
	k = tok.Key(AES256, PurposeSeal, []byte("one"))
	works(t, k)
	check(t, p.Finalize())
	until(t, "it is healed", func() bool { return tok.Status().Generation > 1 })
	check(t, tok.WaitReady(ctx(t)))
	works(t, k)
}

// TestModuleByTwoNames: the linker knows one library under two names, and so must we, or one owner would finalize the other's.
func TestModuleByTwoNames(t *testing.T) {
	w := newWorld(t, true)
	alpha, beta := w.token("alpha"), w.token("beta")
	link := filepath.Join(w.dir, "link.so")
	check(t, os.Symlink(w.module, link))
	beta.Module = link
	tokA, tokB := w.ready(alpha), w.ready(beta)
	aesKey(t, tokA, "one")
	b := aesKey(t, tokB, "one")
	check(t, tokA.Close(ctx(t)))
	works(t, b)
	tokA = w.ready(alpha)
	works(t, tokA.Key(AES256, PurposeSeal, []byte("one")))
}

// TestManagementSessionDies: the idle RW session is dead when it is needed; nothing was done yet, so the caller does not notice.
func TestManagementSessionDies(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	w.fault.Fail(t, "C_GetSessionInfo", pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
	aesKey(t, tok, "one")
	// And no session is free for a new one: an error, but no lasting damage.
	w.fault.Fail(t, "C_GetSessionInfo", pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
	w.fault.Fail(t, "C_OpenSession", pkcs11.CKR_SESSION_COUNT, 1)
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("two"), Label: "two"})
	wantErr(t, "generate", err, ErrUnavailable)
	works(t, aesKey(t, tok, "three"))
	if n := tok.Status().MaxSessions; n != 4 {
		t.Errorf("the pool of %d sessions suffered", n)
	}
}

// TestFinalizeHangs: a library that hangs in C_Finalize while it is healed for a token whose folder is gone. The neighbour waits for a while, and is
// told then; all is well when the library comes back.
func TestFinalizeHangs(t *testing.T) {
	w := newWorld(t, true)
	cfgA, cfgB := w.token("alpha"), w.token("beta")
	tokA, tokB := w.ready(cfgA), w.ready(cfgB)
	b := aesKey(t, tokB, "one")
	dir := tokenDir(t, tokA)
	w.fault.Hang(t, "C_Finalize")
	check(t, os.Rename(dir, filepath.Join(w.dir, "away")))
	until(t, "it hangs", func() bool { return w.fault.Hanging(t, "C_Finalize") == 1 })
	_, _, err := seal(short(t, 50*time.Millisecond), b)
	wantErr(t, "seal beside a hanging C_Finalize", err, context.DeadlineExceeded)
	check(t, os.Rename(filepath.Join(w.dir, "away"), dir))
	w.fault.Clear(t, "C_Finalize")
	check(t, tokA.WaitReady(ctx(t)))
	until(t, "the neighbour serves", func() bool {
		_, _, err := seal(ctx(t), b)
		return err == nil
	})
}
