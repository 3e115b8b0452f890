package credentials_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
	"github.com/keyhold/keyhold/server/sigv4"
	"github.com/keyhold/keyhold/server/sigv4/sign"
)

// Who is accepted and who is not; what is wrong with a key is not told apart.
func TestCredentials(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice, bob := w.create("alice"), w.create("bob")
	w.accept(alice, "alice")
	w.accept(bob, "bob")

	wrong := alice
	wrong.Secret = bob.Secret
	w.refuse(wrong, sigv4.SignatureMismatch)
	unknown := alice
	unknown.AccessKeyID = identity.NewAccessKeyID()
	w.refuse(unknown, sigv4.UnknownAccessKey)
	session := alice
	session.SessionToken = "a token"
	w.refuse(session, sigv4.InvalidSessionToken)

	w.setActive(alice, false)
	w.refuse(alice, sigv4.UnknownAccessKey)
	w.refuse(wrong, sigv4.UnknownAccessKey)
	w.accept(bob, "bob")
	w.setActive(alice, true)
	w.accept(alice, "alice")
	w.setPrincipals("bob")
	w.refuse(alice, sigv4.UnknownAccessKey)
	w.setPrincipals("alice", "bob")
	w.accept(alice, "alice")
	if err := w.keys.Delete(t.Context(), alice.AccessKeyID); err != nil {
		t.Fatal(err)
	}
	w.refuse(alice, sigv4.UnknownAccessKey)

	w.start() // all of it was stored
	w.refuse(alice, sigv4.UnknownAccessKey)
	w.accept(bob, "bob")
	for _, secret := range []string{alice.Secret, bob.Secret} {
		if strings.Contains(w.logs.String(), secret) {
			t.Error("a log has a secret")
		}
	}
}

// The token is asked about once for each key, day, region and state of the key, also
// when all requests come at once, and not at all for what is cached. (A request that
// misses the cache just before a derivation ends begins another one.)
func TestDerivesOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice, bob := w.create("alice"), w.create("bob")
	seen := int64(0)
	check := func(what string, more int64, signers ...sign.Signer) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				if _, err := w.try(signers[i%len(signers)], false); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := w.home.opened.Load() - seen
		if got < more || got > 10*more {
			t.Errorf("%s: %d secrets were opened, want %d", what, got, more)
		}
		seen += got
	}
	check("at first", 1, alice)
	check("again", 0, alice)
	w.setActive(alice, true) // as it was
	check("activated, though it was active", 0, alice)
	check("another key", 1, alice, bob)
	there := alice
	there.Region = otherRegion
	check("another region", 1, alice, there)
	w.advance(24 * time.Hour)
	check("another day", 1, alice)
	w.setActive(alice, false)
	w.setActive(alice, true)
	check("activated again", 1, alice) // Forget took the old one
	if r, err := w.keys.Record(there.AccessKeyID); err != nil || r.LastUse != (identity.AccessKeyUse{At: w.clock(), Region: region, Service: "kms"}) {
		t.Errorf("last use %+v, %v", r, err)
	}
}

// While the token is down, what is cached goes on, and what must be derived is a
// fault of ours, never a wrong signature. It heals without a restart.
func TestTokenDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice, bob := w.create("alice"), w.create("bob")
	w.accept(alice, "alice")
	down := fmt.Errorf("%w: no token", kms.ErrStoreUnavailable)
	w.home.down.Store(&down)
	w.accept(alice, "alice")
	_, err := w.try(bob, false)
	var refusal *sigv4.Error
	if !errors.Is(err, kms.ErrStoreUnavailable) || errors.As(err, &refusal) {
		t.Errorf("with the token down: %v", err)
	}
	w.home.down.Store(nil)
	w.advance(time.Second)
	w.accept(bob, "bob")

	// The same with a token that is really closed.
	token, err := hsm.Open(shared.config, hsm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := token.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.home.Store = tokenstore.New(token)
	w.start()
	w.accept(alice, "alice")
	if err := token.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.accept(alice, "alice")
	if _, err := w.try(bob, false); err == nil || errors.As(err, &refusal) {
		t.Errorf("with the token closed: %v", err)
	}
	w.home.Store = tokenstore.New(shared.token)
	w.advance(time.Second)
	w.accept(bob, "bob")
}

// A stranger knows the id of an access key, not its secret. However they date their
// requests, the token opens the secret once for each signing key that there is.
func TestStrangersOpenOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.advance(-7 * time.Hour) // shortly after midnight, so that yesterday is good too
	stranger := w.create("alice")
	stranger.Secret = "not the secret"
	reasons := make(map[sigv4.Reason]int)
	for range 10 {
		for _, age := range []time.Duration{0, 10 * time.Minute, 24 * time.Hour, 3 * 24 * time.Hour, 6 * 24 * time.Hour} {
			r, body := w.presigned(stranger, age, 7*24*time.Hour)
			_, err := w.verifier.Verify(r, "kms", sigv4.Body(body))
			var refusal *sigv4.Error
			if !errors.As(err, &refusal) {
				t.Fatal(err)
			}
			reasons[refusal.Reason]++
		}
	}
	if got := w.home.opened.Load(); got != 2 || reasons[sigv4.SignatureMismatch] != 20 || reasons[sigv4.Expired] != 30 {
		t.Errorf("the secret was opened %d times, want once for each of two days; %v", got, reasons)
	}
}

// What fails, fails for a second for all who ask: the token is not asked again for
// each request while it is down, nor for a secret that does not open.
func TestFailuresAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice, bob := w.create("alice"), w.create("bob")
	there := alice
	there.Region = otherRegion
	down := fmt.Errorf("%w: no token", kms.ErrStoreUnavailable)
	w.home.down.Store(&down)
	opened := func(what string, want int64, signers ...sign.Signer) {
		t.Helper()
		before := w.home.opened.Load()
		for range 20 {
			for _, s := range signers {
				if _, err := w.try(s, false); !errors.Is(err, kms.ErrStoreUnavailable) {
					t.Fatalf("%s: %v", what, err)
				}
			}
		}
		if got := w.home.opened.Load() - before; got != want {
			t.Errorf("%s: the token was asked %d times, want %d", what, got, want)
		}
	}
	opened("at first", 1, alice, there)
	opened("another key", 1, alice, bob)
	w.advance(time.Second - time.Nanosecond)
	opened("within a second", 0, alice, there, bob)
	w.advance(time.Nanosecond)
	opened("a second later", 2, alice, there, bob)
	w.advance(-time.Hour)
	opened("with a clock that was set back", 2, alice, there, bob)
	w.home.down.Store(nil)
	w.setActive(alice, false)
	w.setActive(alice, true) // another state: nothing is known of it
	w.accept(alice, "alice")
	w.advance(time.Second)
	w.accept(bob, "bob")
}

// A request that is cancelled while it waits takes nobody along.
func TestCancelledWhileDeriving(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice := w.create("alice")
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	during := func() { cancel(); <-release }
	w.home.during.Store(&during)
	r, body := w.request(alice, false)
	if _, err := w.verifier.Verify(r.WithContext(ctx), "kms", sigv4.Body(body)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	other := make(chan error, 1)
	go func() {
		_, err := w.try(alice, false)
		other <- err
	}()
	close(release)
	if err := <-other; err != nil {
		t.Error(err)
	}
}

// What was sealed for one row does not serve another, nor what somebody wrote
// there, nor one's own key under another's name; and it does not look like a wrong
// signature.
func TestExchangedSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mallory, victim := w.create("bob"), w.create("alice")
	stored, err := w.db.AccessKey(t.Context(), mallory.AccessKeyID)
	if err != nil {
		t.Fatal(err)
	}
	for name, sealed := range map[string][]byte{"another row's": stored.SealedSecret, "made up": bytes.Repeat([]byte{1}, 73), "short": {1}} {
		if err := w.db.DeleteAccessKey(t.Context(), victim.AccessKeyID); err != nil {
			t.Fatal(err)
		}
		planted := &identity.AccessKeyRecord{ID: victim.AccessKeyID, Principal: arn("alice"), Active: true, Created: w.clock(), SealedSecret: sealed}
		if err := w.db.InsertAccessKey(t.Context(), planted); err != nil {
			t.Fatal(err)
		}
		w.start()
		forged := victim
		forged.Secret = mallory.Secret
		_, err := w.try(forged, false)
		var refusal *sigv4.Error
		if !errors.Is(err, kms.ErrNotAuthentic) && !errors.Is(err, kms.ErrKeyMissing) || errors.As(err, &refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.accept(mallory, "bob")

	if err := w.db.DeleteAccessKey(t.Context(), mallory.AccessKeyID); err != nil {
		t.Fatal(err)
	}
	stored.Principal, stored.Revision = arn("alice"), 0
	if err := w.db.InsertAccessKey(t.Context(), stored); err != nil {
		t.Fatal(err)
	}
	w.start()
	if p, err := w.try(mallory, false); !errors.Is(err, kms.ErrNotAuthentic) {
		t.Errorf("a key of bob that was made alice's: %v, %v", p, err)
	}
}

// Once a deactivation has returned, no request is accepted, however far it had
// come.
func TestDeactivationHoldsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice := w.create("alice")
	for round := range 20 {
		var answered atomic.Bool
		var accepted, late atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					r, body := w.request(alice, false)
					v, err := w.verifier.Verify(r, "kms", sigv4.Body(body))
					after := answered.Load()
					if err == nil {
						_, err = w.creds.Caller(v)
					}
					var refusal *sigv4.Error
					switch {
					case err == nil && after:
						late.Add(1)
					case err == nil:
						accepted.Add(1)
					case !errors.As(err, &refusal) || refusal.Reason != sigv4.UnknownAccessKey:
						t.Error(err)
					}
					if after {
						return
					}
				}
			})
		}
		for accepted.Load() < 20 {
			time.Sleep(100 * time.Microsecond) // poll: requests are coming through
		}
		if round%2 == 0 {
			w.setActive(alice, false)
		} else if err := w.keys.Delete(t.Context(), alice.AccessKeyID); err != nil {
			t.Fatal(err)
		}
		answered.Store(true)
		wg.Wait()
		if n := late.Load(); n > 0 {
			t.Fatalf("%d requests were accepted after the answer", n)
		}
		if round%2 == 0 {
			w.setActive(alice, true)
		} else {
			alice = w.create("alice")
		}
	}
}

// A request that was verified by something else is not one of these.
func TestForeignKey(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	r, body := w.request(w.create("alice"), false)
	v, err := w.verifier.Verify(r, "kms", sigv4.Body(body))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := other.creds.Caller(v); err == nil {
		t.Errorf("another installation's key is %v", p)
	}
	if p, err := w.creds.Caller(sigv4.Verified{}); err == nil {
		t.Errorf("no key is %v", p)
	}
}
