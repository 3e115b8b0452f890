package hsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// manually runs fn on the RW session, as another program with the PIN would act.
func manually(t *testing.T, tok *Token, fn func(s *session) error) {
	t.Helper()
	check(t, tok.search(ctx(t), "test", fn))
}

// findRaw returns the handles of all token objects of that CKA_ID.
func findRaw(s *session, id string) ([]pkcs11.ObjectHandle, error) {
	return s.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id))}, 10)
}

// makeRaw makes an AES key without Generate.
func makeRaw(s *session, id string) error {
	_, err := s.p.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
	})
	return err
}

func TestStaleHandleIsFoundAgain(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxCopies = -1
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	works(t, k)
	finds := w.fault.Calls(t, "C_FindObjectsInit")
	works(t, k)
	if n := w.fault.Calls(t, "C_FindObjectsInit"); n != finds {
		t.Errorf("%d searches on the hot path", n-finds)
	}
	// The index points to a handle that does not exist.
	c := tok.state.Load().conn
	c.index.put(k.object(), []pkcs11.ObjectHandle{0xdeadbeef})
	works(t, k)
	if n := w.fault.Calls(t, "C_FindObjectsInit") - finds; n != 1 {
		t.Errorf("%d searches, want 1", n)
	}
	works(t, k)
	if n := w.fault.Calls(t, "C_FindObjectsInit") - finds; n != 1 {
		t.Errorf("%d searches after that, want no more", n)
	}
	if tok.Status().Evicted != 0 {
		t.Error("a stale handle cost a session")
	}
}

// TestFoundLater: a key that another program made after the connection was made.
func TestFoundLater(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	manually(t, tok, func(s *session) error { return makeRaw(s, "theirs") })
	works(t, tok.Key(AES256, PurposeSeal, []byte("theirs")))
}

func TestKeyNotFound(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := tok.Key(AES256, PurposeSeal, []byte("none"))
	finds := w.fault.Calls(t, "C_FindObjectsInit")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, _, err := seal(ctx(t), k); !errors.Is(err, ErrKeyNotFound) {
				t.Errorf("seal: %v", err)
			}
		})
	}
	wg.Wait()
	// The token is asked about once a second, not once a call.
	if n := w.fault.Calls(t, "C_FindObjectsInit") - finds; n > 5 {
		t.Errorf("%d searches for 50 calls", n)
	}
	// A key that is made is found at once, whatever was remembered.
	works(t, aesKey(t, tok, "none"))
	check(t, tok.Ready())
}

// TestKindsAreKeptApart: a secret key does not answer for a private key with the same CKA_ID.
func TestKindsAreKeptApart(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	aesKey(t, tok, "one")
	_, err := tok.Key(P256, PurposeSign, []byte("one")).PublicKey(ctx(t))
	wantErr(t, "public key of a secret key", err, ErrKeyNotFound)
}

func TestDuplicates(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxCopies = -1
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	manually(t, tok, func(s *session) error { return makeRaw(s, "one") })
	works(t, k) // its handle is still the one that we know
	c := tok.state.Load().conn
	h, _, err := c.index.get(k.object())
	check(t, err)
	c.index.drop(k.object(), h)
	_, _, err = seal(ctx(t), k)
	wantErr(t, "seal after a search", err, ErrDuplicate)
	check(t, tok.Close(ctx(t)))
	tok = w.ready(cfg)
	k = tok.Key(AES256, PurposeSeal, []byte("one"))
	_, _, err = seal(ctx(t), k)
	wantErr(t, "seal after loading", err, ErrDuplicate)
	// Whoever made the other one takes it away again: no restart is needed.
	manually(t, tok, func(s *session) error {
		found, err := s.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, []byte("one")), pkcs11.NewAttribute(pkcs11.CKA_LABEL, "")}, 2)
		if err == nil && len(found) != 1 {
			t.Errorf("%d objects without a label, want one", len(found))
		}
		return cmp.Or(err, s.destroy(found))
	})
	until(t, "the key works again", func() bool {
		_, _, err := seal(ctx(t), k)
		if err != nil && !errors.Is(err, ErrDuplicate) {
			t.Fatalf("seal: %v", err)
		}
		return err == nil
	})
}

// TestDestroyedBehindOurBack: another program destroyed the object.
func TestDestroyedBehindOurBack(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.MaxCopies = -1
	tok := w.ready(cfg)
	k, other := aesKey(t, tok, "one"), aesKey(t, tok, "two")
	works(t, k)
	manually(t, tok, func(s *session) error {
		handles, err := findRaw(s, "one")
		if err != nil {
			return err
		}
		for _, h := range handles {
			if err := s.p.DestroyObject(s.h, h); err != nil {
				return err
			}
		}
		return nil
	})
	_, _, err := seal(ctx(t), k)
	wantErr(t, "seal", err, ErrKeyNotFound)
	works(t, other)
	check(t, tok.WaitReady(ctx(t)))
}

// TestCanaryDestroyed: the canary key is gone, but the token is well: it serves, and says what to do.
func TestCanaryDestroyed(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	manually(t, tok, func(s *session) error {
		handles, err := s.find(canaryTemplate(), 2)
		if err != nil || len(handles) != 1 {
			t.Fatalf("canaries: %v, %v", handles, err)
		}
		return s.p.DestroyObject(s.h, handles[0])
	})
	until(t, "it says so", func() bool { return tok.Status().State == StateDegraded })
	works(t, k)
	if _, err := tok.EnsureCanary(ctx(t)); err != nil {
		t.Fatal(err)
	}
	check(t, tok.WaitReady(ctx(t)))
}

func TestKeyIsCached(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := tok.Key(AES256, PurposeSeal, []byte("one"))
	if tok.Key(AES256, PurposeSeal, []byte("one")) != k {
		t.Error("two keys for one name")
	}
	if tok.Key(HMAC256, PurposeMAC, []byte("one")) == k {
		t.Error("one key for two names")
	}
	k.Release()
	if tok.Key(AES256, PurposeSeal, []byte("one")) == k {
		t.Error("a released key is still cached")
	}
}

// TestLoginLostWithTheSession: a fresh session without a login sees public objects only. On such a one Destroy would destroy the public half, and
// report success while the private half stays.
func TestLoginLostWithTheSession(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("pair"), Label: "pair"})
	check(t, err)
	manually(t, tok, func(s *session) error { return s.p.Logout(s.h) })
	w.fault.Fail(t, "C_GetSessionInfo", pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
	check(t, tok.Destroy(ctx(t), []byte("pair"), "pair"))
	manually(t, tok, func(s *session) error {
		left, err := findRaw(s, "pair")
		if len(left) != 0 {
			t.Errorf("%d objects left of a destroyed pair", len(left))
		}
		return err
	})
}

// TestAbsenceIsProven: SoftHSM lists nothing, without an error, when its folder has gone. That does not mean that keys are gone.
func TestAbsenceIsProven(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	aesKey(t, tok, "one")
	dir := tokenDir(t, tok)
	away := filepath.Join(w.dir, "away") // not beside it: SoftHSM takes every folder there for a token
	check(t, os.Rename(dir, away))
	wantErr(t, "destroy", tok.Destroy(ctx(t), []byte("one"), "label of one"), ErrUnavailable)
	_, err := tok.Objects(ctx(t))
	wantErr(t, "objects", err, ErrUnavailable)
	_, err = tok.Custody(ctx(t))
	wantErr(t, "custody", err, ErrUnavailable)
	until(t, "the supervisor knows", func() bool { return tok.Ready() != nil })
	check(t, os.Rename(away, dir))
	tok.Reload()
	check(t, tok.WaitReady(ctx(t)))
	check(t, tok.Destroy(ctx(t), []byte("one"), "label of one"))
}

// TestAbsenceWhileBusy: when the canary has lost its handle and cannot be looked for, nothing proves that the token shows its objects. That keys are
// not there is not believed until it can.
func TestAbsenceWhileBusy(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	dir, away := tokenDir(t, tok), filepath.Join(w.dir, "away")
	w.fault.Hang(t, "C_GenerateKey") // holds the lock around token objects
	made := make(chan error, 1)
	go func() {
		_, err := tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("one"), Label: "one"})
		made <- err
	}()
	until(t, "it is generating", func() bool { return w.fault.Hanging(t, "C_GenerateKey") == 1 })
	c := tok.state.Load().conn
	c.canary.Store(0) // as after CKR_KEY_HANDLE_INVALID
	check(t, os.Rename(dir, away))
	wantErr(t, "absence while nobody can look", c.believable(short(t, 50*time.Millisecond)), ErrUnavailable)
	check(t, os.Rename(away, dir))
	w.fault.Clear(t, "C_GenerateKey")
	check(t, <-made)
	check(t, c.believable(ctx(t)))
	check(t, tok.WaitReady(ctx(t)))
	_, _, err := seal(ctx(t), tok.Key(AES256, PurposeSeal, []byte("none")))
	wantErr(t, "seal with a key that is not there", err, ErrKeyNotFound)
}

// TestDestroyManyOfAName: success of Destroy says that no object of the name is left, so what it cannot destroy wholly it leaves alone.
func TestDestroyManyOfAName(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	for _, c := range []struct {
		n    int
		want error
	}{{maxDestroy, nil}, {maxDestroy + 1, ErrDuplicate}} {
		id := fmt.Sprintf("many %d", c.n)
		manually(t, tok, func(s *session) error {
			for range c.n {
				_, err := s.p.CreateObject(s.h, []*pkcs11.Attribute{
					pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
					pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE, []byte("x")),
					pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)), pkcs11.NewAttribute(pkcs11.CKA_LABEL, id),
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err := tok.Destroy(ctx(t), []byte(id), id); !errors.Is(err, c.want) {
			t.Errorf("%d objects: %v, want %v", c.n, err, c.want)
		}
		manually(t, tok, func(s *session) error {
			left, err := s.find([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id))}, maxObjects)
			if c.want == nil && len(left) != 0 || c.want != nil && len(left) != c.n {
				t.Errorf("%d objects: %d left", c.n, len(left))
			}
			return err
		})
	}
}

// TestObjectsThatAreNoKeys: data objects have neither key type nor CKA_ID, and are listed beside keys.
func TestObjectsThatAreNoKeys(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	aesKey(t, tok, "one")
	check(t, tok.manage(ctx(t), "test", func(s *session) error {
		_, err := s.p.CreateObject(s.h, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, "note"), pkcs11.NewAttribute(pkcs11.CKA_VALUE, []byte("text")),
		})
		return err
	}))
	objects, err := tok.Objects(ctx(t))
	check(t, err)
	var data, keys int
	for _, o := range objects {
		switch {
		case o.Class.String() == "data" && o.Label == "note" && len(o.ID) == 0 && o.KeyType == 0:
			data++
		case o.Class == ClassSecretKey && o.KeyType == pkcs11.CKK_AES && len(o.ID) > 0 && o.Label != "":
			keys++
		}
	}
	if len(objects) != 3 || data != 1 || keys != 2 { // with the canary
		t.Errorf("%d objects, of which %d data and %d keys: %+v", len(objects), data, keys, objects)
	}
	w.fault.Fail(t, "C_GetAttributeValue", pkcs11.CKR_ARGUMENTS_BAD, 1)
	if _, err := tok.Objects(ctx(t)); err == nil {
		t.Error("Objects succeeded though attributes could not be read")
	}
	w.fault.ClearAll()
}

// TestFindFails: a search for a handle that is not known any more fails, in each way. Its caller is told that the token is unavailable, never
// that there is no such key, and the next search finds it.
func TestFindFails(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	works(t, k)
	for _, call := range []string{"C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal"} {
		for _, rv := range []uint{
			pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED,
			pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
			pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_LOCKED,
		} {
			name := call + " " + CodeName(rv)
			c := tok.state.Load().conn
			h, _, err := c.index.get(k.object())
			check(t, err)
			c.copies.drop(k.object())
			c.index.drop(k.object(), h)
			w.fault.Fail(t, call, rv, 0)
			_, _, err = seal(short(t, time.Second), k)
			w.fault.Clear(t, call)
			if err == nil || errors.Is(err, ErrKeyNotFound) || errors.Is(err, ErrDuplicate) || errors.Is(err, ErrAuthentication) {
				t.Errorf("%s: %v", name, err)
			}
			until(t, name+" is over", func() bool {
				_, _, err := seal(ctx(t), k)
				if errors.Is(err, ErrKeyNotFound) {
					t.Fatalf("%s afterwards: %v", name, err)
				}
				return err == nil && tok.Ready() == nil
			})
		}
	}
	w.fault.Hang(t, "C_FindObjects")
	c := tok.state.Load().conn
	h, _, err := c.index.get(k.object())
	check(t, err)
	c.copies.drop(k.object())
	c.index.drop(k.object(), h)
	_, _, err = seal(short(t, 100*time.Millisecond), k)
	wantErr(t, "seal while a search hangs", err, context.DeadlineExceeded)
	w.fault.Clear(t, "C_FindObjects")
	until(t, "the search has come back", func() bool { _, _, err := seal(ctx(t), k); return err == nil })
}
