package hsm

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// sessionObjects counts the session objects of the process.
func sessionObjects(t *testing.T, tok *Token) int {
	t.Helper()
	n := 0
	manually(t, tok, func(s *session) error {
		all, err := s.find(nil, maxObjects)
		if err != nil {
			return err
		}
		token, err := s.find(tokenObjects(), maxObjects)
		n = len(all) - len(token)
		return err
	})
	return n
}

// hot uses a key until it is a session copy.
func hot(t *testing.T, tok *Token, k *Key) {
	t.Helper()
	c := tok.state.Load().conn
	until(t, "a copy is made", func() bool {
		works(t, k)
		c.copies.mu.Lock()
		defer c.copies.mu.Unlock()
		return c.copies.byName[k.object()] != nil
	})
}

func TestHotKeyIsCopied(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	iv, sealed, err := seal(ctx(t), k) // with the token's object
	check(t, err)
	hot(t, tok, k)
	if n := tok.Status().Copies; n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
	got, err := k.Open(ctx(t), iv, testAAD, sealed) // with the copy
	if err != nil || string(got) != "plaintext" {
		t.Fatalf("open: %q, %v", got, err)
	}
	copied := w.fault.Calls(t, "C_CopyObject")
	for range 20 {
		works(t, k)
	}
	if n := w.fault.Calls(t, "C_CopyObject"); n != copied {
		t.Errorf("copied again %d times", n-copied)
	}
	k.Release()
	until(t, "the copy is destroyed", func() bool { return sessionObjects(t, tok) == 0 })
	works(t, k) // with the token's object again
}

// TestDestroyedKeyHasNoCopy: on SoftHSM a copy would work on when its key is destroyed.
func TestDestroyedKeyHasNoCopy(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	hot(t, tok, k)
	check(t, tok.Destroy(ctx(t), []byte("one"), "label of one"))
	_, _, err := seal(ctx(t), k)
	wantErr(t, "seal after destroy", err, ErrKeyNotFound)
	until(t, "the copy is destroyed", func() bool { return sessionObjects(t, tok) == 0 })
}

// TestCopyOutlivesItsUsers: a copy that is in use is destroyed after its last user, and no user notices.
func TestCopyOutlivesItsUsers(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	hot(t, tok, k)
	w.fault.Hang(t, "C_Encrypt")
	errs := make(chan error)
	go func() {
		_, _, err := seal(ctx(t), k)
		errs <- err
	}()
	until(t, "the copy is in use", func() bool { return w.fault.Hanging(t, "C_Encrypt") == 1 })
	destroyed := w.fault.Calls(t, "C_DestroyObject")
	k.Release()
	if n := tok.Status().Copies; n != 0 {
		t.Errorf("%d copies in use after Release", n)
	}
	if n := sessionObjects(t, tok); n != 1 {
		t.Errorf("%d session objects, want the one in use", n)
	}
	if n := w.fault.Calls(t, "C_DestroyObject"); n != destroyed {
		t.Error("the copy was destroyed while in use")
	}
	w.fault.Clear(t, "C_Encrypt")
	check(t, <-errs)
	until(t, "the copy is destroyed", func() bool { return sessionObjects(t, tok) == 0 })
}

// TestCopyOfAbandonedCall: the caller has gone; the copy stays until the call itself returns.
func TestCopyOfAbandonedCall(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	hot(t, tok, k)
	w.fault.Hang(t, "C_Encrypt")
	if _, _, err := seal(short(t, 30*time.Millisecond), k); err == nil {
		t.Fatal("a hanging seal succeeded")
	}
	k.Release()
	if n := sessionObjects(t, tok); n != 1 {
		t.Errorf("%d session objects, want the one in use", n)
	}
	w.fault.Clear(t, "C_Encrypt")
	until(t, "the copy is destroyed", func() bool { return sessionObjects(t, tok) == 0 })
}

// TestCopiesAreBounded: the coldest copies go first.
func TestCopiesAreBounded(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.MaxCopies = 3
	tok := w.ready(cfg)
	var keys []*Key
	for i := range 5 {
		k := aesKey(t, tok, fmt.Sprint(i))
		keys = append(keys, k)
		hot(t, tok, k)
	}
	if n := tok.Status().Copies; n != 3 {
		t.Errorf("%d copies, want 3", n)
	}
	until(t, "the others are destroyed", func() bool { return sessionObjects(t, tok) == 3 })
	c := tok.state.Load().conn
	c.copies.mu.Lock()
	for i, k := range keys {
		if got, want := c.copies.byName[k.object()] != nil, i >= 2; got != want {
			t.Errorf("key %d has a copy: %v, want %v", i, got, want)
		}
	}
	c.copies.mu.Unlock()
	for _, k := range keys {
		works(t, k)
	}
}

// TestCopiesLeastRecentlyUsed: a copy that was used since stays, the other one goes.
func TestCopiesLeastRecentlyUsed(t *testing.T) {
	x := newCopies(2)
	name := func(id string) objectName { return objectName{pkcs11.CKO_SECRET_KEY, id} }
	put := func(id string, h pkcs11.ObjectHandle) {
		for range copyAfter {
			if k := x.acquire(name(id), h); k != nil {
				t.Fatalf("%s has a copy before there is one", id)
			}
		}
		if !x.put(name(id), h, h+100) {
			t.Fatalf("the copy of %s is not taken", id)
		}
	}
	put("a", 1)
	put("b", 2)
	k := x.acquire(name("a"), 1)
	if k == nil || k.h != 101 {
		t.Fatalf("a has the copy %v", k)
	}
	x.release(k)
	put("c", 3)
	if doomed, _, _, _ := x.next(); !slices.Equal(doomed, []pkcs11.ObjectHandle{102}) {
		t.Errorf("the copies %v are to be destroyed, want that of b", doomed)
	}
	if x.acquire(name("a"), 1) == nil || x.acquire(name("c"), 3) == nil || x.acquire(name("b"), 2) != nil || x.len() != 2 || x.recent.Len() != 2 {
		t.Errorf("%d copies, %d in order", x.len(), x.recent.Len())
	}
}

// TestUncopyableKey: a token that refuses to copy a key is not asked again and again, and serves with the token's object.
func TestUncopyableKey(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	w.fault.Set(t, "C_CopyObject", fault.Fault{RV: 0x1B})
	copied := w.fault.Calls(t, "C_CopyObject")
	for range 20 {
		works(t, k)
	}
	until(t, "it was asked", func() bool { return w.fault.Calls(t, "C_CopyObject") > copied })
	for range 20 {
		works(t, k)
	}
	if n := w.fault.Calls(t, "C_CopyObject") - copied; n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

// TestCopiesUnderChurn: releases, destructions and uses at once; nobody ever sees another error than that the key is gone.
func TestCopiesUnderChurn(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.MaxCopies = 2
	tok := w.ready(cfg)
	var keys []*Key
	for i := range 4 {
		keys = append(keys, aesKey(t, tok, fmt.Sprint(i)))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 150 {
				k := keys[(g+i)%len(keys)]
				if _, _, err := seal(ctx(t), k); err != nil {
					t.Errorf("seal: %v", err)
					return
				}
				if i%10 == g {
					k.Release()
				}
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		k.Release()
	}
	until(t, "all copies are destroyed", func() bool { return sessionObjects(t, tok) == 0 })
}

// TestHangingCopy: copying hangs; keys are used through their token objects, the hang is counted, and the module is not finalized under it.
func TestHangingCopy(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.CallTimeout = 300 * time.Millisecond
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	w.fault.Hang(t, "C_CopyObject")
	for range 2 * copyAfter {
		works(t, k)
	}
	until(t, "it is counted", func() bool { return tok.Status().Stuck == 1 })
	works(t, k)
	check(t, tok.Ready())
	w.fault.Clear(t, "C_CopyObject")
	until(t, "it has returned", func() bool { return tok.Status().Stuck == 0 })
	hot(t, tok, k)
}

// TestCopyOfAnotherKey: a copy serves the object that it was made of, and no other that has come to bear the name.
func TestCopyOfAnotherKey(t *testing.T) {
	x := newCopies(4)
	name := objectName{0, "one"}
	wanted := func(original pkcs11.ObjectHandle) {
		for range copyAfter {
			if x.acquire(name, original) != nil {
				t.Fatal("a copy before one was made")
			}
		}
	}
	wanted(7)
	x.drop(name) // destroyed while the keeper copies it
	wanted(8)
	if x.put(name, 7, 70) {
		t.Error("the copy of a destroyed key was put into use for its successor")
	}
	if !x.put(name, 8, 80) {
		t.Fatal("the successor's copy was refused")
	}
	if k := x.acquire(name, 8); k == nil || k.h != 80 {
		t.Errorf("got %+v", k)
	} else {
		x.release(k)
	}
	if k := x.acquire(name, 9); k != nil {
		t.Errorf("another object got the copy %+v", k)
	}
	if doomed, _, _, _ := x.next(); len(doomed) != 1 || doomed[0] != 80 {
		t.Errorf("doomed: %v", doomed)
	}
}

// TestReleaseOutOfService: a connection that is out of service for a moment does not come back with the copy of a released key.
func TestReleaseOutOfService(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	hot(t, tok, k)
	c := tok.state.Load().conn
	tok.setDown(unavailable("the breaker is open"))
	k.Release()
	tok.serve(nil, c)
	if n := tok.Status().Copies; n != 0 {
		t.Errorf("%d copies after Release", n)
	}
}

// TestAnchorLost: copies are made again after the session that they belong to has died.
func TestAnchorLost(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	before := tok.Status().Generation
	w.fault.Fail(t, "C_CopyObject", pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
	until(t, "the connection is replaced", func() bool {
		works(t, k)
		return tok.Status().Generation > before
	})
	check(t, tok.WaitReady(ctx(t)))
	hot(t, tok, k)
}
