package kms_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

const day = 24 * time.Hour

// pass lets time go by without a jump: the tick goes with it. What is due is
// done at the end.
func (w *world) pass(d time.Duration) {
	w.clock.add(d)
	if err := w.db.Tick(w.t.Context(), w.clock.Now()); err != nil {
		w.t.Fatal(err)
	}
	w.svc.Maintain(w.t.Context())
}

// schedule puts a key on its way out.
func (w *world) schedule(id string, days int32) {
	w.t.Helper()
	do[proto.Message](w, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id, PendingWindowInDays: &days})
}

// gone checks that nothing is left of a key, but for what others have.
func (w *world) gone(id string, blob []byte) {
	w.t.Helper()
	refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: id}, kms.CodeNotFound)
	refuse(w, &keyholdv1.CancelKeyDeletionRequest{KeyId: id}, kms.CodeNotFound)
	refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, kms.CodeAccessDenied)
	if _, err := w.db.Key(w.t.Context(), kms.KeyID(id)); !errors.Is(err, kms.ErrNotFound) {
		w.t.Errorf("the store answers %v", err)
	}
	if orphans, err := w.svc.Reconcile(w.t.Context()); err != nil || len(orphans) != 0 {
		w.t.Errorf("orphans %+v, %v", orphans, err)
	}
	w.checkCoherence()
}

// On SoftHSM: a key that is due goes from token and store, with its aliases,
// and not a moment before.
func TestDeletion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, kept := w.newAESKey(), w.newAESKey()
	w.createAlias("alias/goes", id)
	w.createAlias("alias/stays", kept)
	blob, keptBlob := w.encrypt(id, []byte("x"), nil), w.encrypt(kept, []byte("x"), nil)
	for range 5 { // a hot key has a copy in a session
		w.decrypt(blob, nil)
	}
	w.svc.Maintain(t.Context())
	w.schedule(id, 7)
	w.pass(7*day - time.Second)
	if m := w.metadata(id); m.GetKeyState() != pending {
		t.Fatalf("before its time the key is %s", m.GetKeyState())
	}
	events := w.eventsOf(func() { w.pass(time.Second) })
	w.gone(id, blob)
	refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: "alias/goes"}, kms.CodeNotFound)
	w.createAlias("alias/goes", kept)
	if string(w.decrypt(keptBlob, nil)) != "x" {
		t.Error("the other key is gone too")
	}
	if len(events) != 2 {
		t.Fatalf("the deletion left %d events", len(events))
	}
	for i, phase := range []string{"intent", "outcome"} {
		e := events[i]
		if e.EventName != "DeleteKey" || e.AdditionalEventData["phase"] != phase || e.EventType != "AwsServiceEvent" || e.UserIdentity["type"] != "AWSService" ||
			e.UserIdentity["invokedBy"] != "keyhold" || len(e.Resources) != 1 || e.Resources[0]["ARN"] != arnOfTest+"key/"+id || e.ErrorCode != "" || e.RecipientAccountID != testAccount {
			t.Errorf("event %d is %s", i, e.raw)
		}
	}
	w.start()
	refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: id}, kms.CodeNotFound)
}

// Each step of a deletion fails, or fails after it took effect, then there is
// a restart or there is none: in the end the key is gone and nothing else.
func TestDeletionCrashes(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		for _, persisted := range []bool{false, true} {
			for _, step := range []string{"UpdateKey", "Destroy", "DeleteKey"} {
				w, fake, db := crashWorld(t)
				id, kept := w.newAESKey(), w.newAESKey()
				w.createAlias("alias/goes", id)
				blob := w.encrypt(id, []byte("x"), nil)
				w.svc.Maintain(t.Context())
				w.schedule(id, 7)
				w.pass(7*day - time.Minute)
				if step == "Destroy" {
					w.inject(fake, db, "", step, "", persisted, true)
				} else {
					w.inject(fake, db, step, "", "", persisted, true)
				}
				w.pass(time.Minute)
				begun := step != "UpdateKey" || persisted
				over := step == "DeleteKey" && persisted // nothing was left to do
				_, err := try[proto.Message](w, &keyholdv1.CancelKeyDeletionRequest{KeyId: id})
				switch {
				case over && (err == nil || err.Code != kms.CodeNotFound):
					t.Errorf("a key that is gone was cancelled: %v", err)
				case over:
				case begun && (err == nil || err.Code != kms.CodeInvalidState && err.Code != kms.CodeInternal):
					t.Errorf("%s persisted=%v: a deletion that has begun was cancelled: %v", step, persisted, err)
				case !begun && (err == nil || err.Code != kms.CodeInternal):
					t.Errorf("%s: with the store failing, cancelling answers %v", step, err)
				}
				fake.heal()
				db.heal()
				w.checkCoherence()
				if restart {
					w.start()
					w.checkCoherence()
				}
				if !over {
					refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, kms.CodeInvalidState)
				}
				w.pass(time.Minute)
				w.gone(id, blob)
				if fake.size() != 1 || w.metadata(kept).GetKeyState() != enabled {
					t.Errorf("%d objects are left", fake.size())
				}
				if !over && !strings.Contains(w.logs.String(), "was not deleted, it will be tried again") {
					t.Error("the failure was not logged")
				}
			}
		}
	}
}

// Cancelling races with the deletion: one of them wins wholly.
func TestCancelRaces(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	w.svc.Maintain(t.Context())
	var ids []string
	blobs := make(map[string][]byte)
	for range 40 {
		id := w.newAESKey()
		ids = append(ids, id)
		blobs[id] = w.encrypt(id, []byte("x"), nil)
		w.schedule(id, 7)
	}
	w.pass(7*day - time.Minute)
	w.clock.add(time.Minute)
	cancelled := make([]bool, len(ids))
	var wg sync.WaitGroup
	start := make(chan struct{})
	wg.Go(func() { <-start; w.svc.Maintain(t.Context()) })
	for i, id := range ids {
		wg.Go(func() {
			<-start
			_, err := try[proto.Message](w, &keyholdv1.CancelKeyDeletionRequest{KeyId: id})
			cancelled[i] = err == nil
			if err != nil && err.Code != kms.CodeNotFound && err.Code != kms.CodeInvalidState {
				t.Error(describe(err))
			}
		})
	}
	close(start)
	wg.Wait()
	saved := 0
	for i, id := range ids {
		if cancelled[i] {
			saved++
			do[proto.Message](w, &keyholdv1.EnableKeyRequest{KeyId: id})
			w.decrypt(blobs[id], nil)
		} else {
			refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: id}, kms.CodeNotFound)
		}
	}
	if fake.size() != saved {
		t.Errorf("%d keys were saved and %d objects are left", saved, fake.size())
	}
	w.checkCoherence()
}

// A deletion cannot be begun when its intent cannot be recorded.
func TestDeletionNeedsTheLog(t *testing.T) {
	t.Parallel()
	journal := &faultyJournal{}
	w, fake := newFakeWorld(t, func(w *world) { journal.Journal = w.journal; w.cfg.Journal = journal })
	id := w.newAESKey()
	w.svc.Maintain(t.Context())
	w.schedule(id, 7)
	w.pass(7*day - time.Minute)
	journal.failing(func([]byte) error { return errFault })
	w.pass(time.Minute)
	if fake.size() != 1 || fake.count("Destroy") != 0 {
		t.Error("the key was destroyed without a record")
	}
	journal.failing(nil)
	if m := w.metadata(id); m.GetKeyState() != pending {
		t.Errorf("the key is %s", m.GetKeyState())
	}
	do[proto.Message](w, &keyholdv1.CancelKeyDeletionRequest{KeyId: id}) // not begun: it can be cancelled
}

// A clock that jumps holds deletions until somebody confirms it, over
// restarts; nothing else is held.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		jump time.Duration
		held bool
	}{
		"an hour on":             {time.Hour, false},
		"an hour and a bit on":   {time.Hour + time.Millisecond, true},
		"a year on":              {365 * day, true},
		"an hour back":           {-time.Hour, false},
		"more than an hour back": {-time.Hour - time.Millisecond, true},
		"forty years back":       {-40 * 365 * day, true},
	} {
		t.Run(name, func(t *testing.T) {
			confirmed := false
			w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.ClockConfirmed = func() bool { return confirmed } }))
			due, later := w.newAESKey(), w.newAESKey()
			w.svc.Maintain(t.Context())
			w.schedule(due, 7)
			w.schedule(later, 7)
			w.pass(7*day - time.Minute)
			w.clock.add(c.jump)
			w.svc.Maintain(t.Context())
			if w.svc.ClockHeld() != c.held {
				t.Fatalf("held: %v, want %v", w.svc.ClockHeld(), c.held)
			}
			if !c.held {
				return
			}
			for range 2 {
				if fake.size() != 2 {
					t.Fatal("a key was deleted by a clock in doubt")
				}
				w.encrypt(w.newAESKey(), []byte("x"), nil) // all else goes on
				for _, id := range mustList(w)[2:] {
					w.forget(fake, id)
				}
				w.start()
				w.svc.Maintain(t.Context())
				if !w.svc.ClockHeld() {
					t.Fatal("a restart made the clock trusted")
				}
			}
			do[proto.Message](w, &keyholdv1.CancelKeyDeletionRequest{KeyId: later})
			confirmed = true
			w.svc.Maintain(t.Context())
			if w.svc.ClockHeld() {
				t.Error("confirmed, and still held")
			}
			want := 2
			if c.jump > 0 {
				want = 1 // the other one is due by the confirmed clock
			}
			if fake.size() != want {
				t.Errorf("%d keys are left, want %d", fake.size(), want)
			}
			confirmed = false
			w.clock.add(time.Minute)
			w.svc.Maintain(t.Context())
			if w.svc.ClockHeld() {
				t.Error("one confirmation did not settle it")
			}
			if n := strings.Count(w.logs.String(), "deletions are held until it is confirmed"); n != 3 {
				t.Errorf("said %d times, want once a start", n)
			}
		})
	}
}

// mustList lists keys, the oldest ones of the test first.
func mustList(w *world) []string {
	snapshot, err := w.db.Snapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var old, fresh []string
	for _, r := range snapshot.Keys {
		if r.State == pending {
			old = append(old, string(r.ID))
		} else {
			fresh = append(fresh, string(r.ID))
		}
	}
	return append(old, fresh...)
}

// forget removes a key past the service, so that the test counts its own.
func (w *world) forget(fake *fakeStore, id string) {
	r, err := w.db.Key(w.t.Context(), kms.KeyID(id))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := fake.Destroy(w.t.Context(), r.Current().Locator); err != nil {
		w.t.Fatal(err)
	}
	if err := w.db.DeleteKey(w.t.Context(), r.ID, r.Revision); err != nil {
		w.t.Fatal(err)
	}
}

// The clock cannot be judged without the last tick, so nothing is deleted.
func TestClockUnreadable(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"LastTick", "Tick"} {
		db := &tickDB{}
		w, fake := newFakeWorld(t, func(w *world) { db.Store = w.db; w.cfg.Store = db })
		id := w.newAESKey()
		w.svc.Maintain(t.Context())
		w.schedule(id, 7)
		w.pass(7*day - time.Minute)
		db.failing = call
		w.pass(time.Minute)
		if fake.size() != 1 {
			t.Errorf("%s fails, and a key is deleted", call)
		}
		db.failing = ""
		w.svc.Maintain(t.Context())
		if fake.size() != 0 {
			t.Errorf("%s works again, and the key stays", call)
		}
	}
}

// tickDB fails to read or to store the tick.
type tickDB struct {
	kms.Store
	failing string
}

func (d *tickDB) LastTick(ctx context.Context) (time.Time, error) {
	if d.failing == "LastTick" {
		return time.Time{}, errFault
	}
	return d.Store.LastTick(ctx)
}

func (d *tickDB) Tick(ctx context.Context, now time.Time) error {
	if d.failing == "Tick" {
		return errFault
	}
	return d.Store.Tick(ctx, now)
}

// Run reconciles, deletes what is due, and returns at the end of its context.
func TestRun(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.MaintenanceInterval = time.Millisecond }))
	fake.add([]byte("left over"), "keyhold:"+w.db.Instance()+":"+unknownID)
	down := errors.New("the token sleeps")
	fake.failing("Health", down)
	id := w.newAESKey()
	w.svc.Maintain(t.Context())
	w.schedule(id, 7)
	w.pass(7*day - time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.svc.Run(ctx); close(done) }()
	w.clock.add(time.Minute)
	rounds := fake.count("Health")
	eventually(t, "three rounds", func() bool { return fake.count("Health") > rounds+6 })
	if len(w.svc.Orphans()) != 0 || fake.size() != 2 {
		t.Error("something was done with a store that sleeps")
	}
	fake.heal()
	eventually(t, "the deletion of the key", func() bool { return fake.size() == 1 })
	eventually(t, "the reconciliation", func() bool { return len(w.svc.Orphans()) == 1 })
	eventually(t, "the log of it", func() bool { return strings.Contains(w.logs.String(), "orphan found") })
	cancel()
	<-done
	if fake.size() != 1 {
		t.Error("the orphan was deleted by itself")
	}
}
