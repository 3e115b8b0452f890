package kms_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

var errFault = errors.New("fault of the test")

// crashWorld has a fault in reach of every step.
func crashWorld(t *testing.T) (*world, *fakeStore, *faultyDB) {
	db := &faultyDB{}
	w, fake := newFakeWorld(t, func(w *world) { db.Store = w.db; w.cfg.Store = db })
	return w, fake, db
}

// Each step of a creation fails, or fails after it took effect, and what comes
// to clean up fails as well. Afterwards: an acknowledged key works after a
// restart; one that was not acknowledged is in no list; what is left over is
// reported, is exactly what records and store do not agree on, and goes by
// CleanUp, which touches nothing else.
func TestCreateKeyCrashes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		db        string // the failing call of the database
		ks        string // or of the key store
		persisted bool
		then      string // what fails too, of the clean-up
		thenDB    bool
		acked     bool
		objects   int // left in the key store beside the keys'
		orphans   []kms.OrphanKind
	}{
		{name: "intent", db: "InsertKey"},
		{name: "intent, persisted", db: "InsertKey", persisted: true, orphans: []kms.OrphanKind{kms.OrphanIntent}},
		{name: "generate", ks: "Generate"},
		{name: "generate, persisted", ks: "Generate", persisted: true, orphans: []kms.OrphanKind{kms.OrphanObject}, objects: 1},
		{name: "generate, and the intent stays", ks: "Generate", then: "DeleteKey", thenDB: true, orphans: []kms.OrphanKind{kms.OrphanIntent}},
		{name: "generate, persisted, and the intent stays", ks: "Generate", persisted: true, then: "DeleteKey", thenDB: true, orphans: []kms.OrphanKind{kms.OrphanIntent}, objects: 1},
		{name: "commit", db: "UpdateKey"},
		{name: "commit, persisted", db: "UpdateKey", persisted: true, acked: true},
		{name: "commit, and nothing can be read", db: "UpdateKey", then: "Key", thenDB: true, orphans: []kms.OrphanKind{kms.OrphanIntent}, objects: 1},
		{name: "commit, and the material stays", db: "UpdateKey", then: "Destroy", orphans: []kms.OrphanKind{kms.OrphanIntent}, objects: 1},
		{name: "commit, and the intent stays", db: "UpdateKey", then: "DeleteKey", thenDB: true, orphans: []kms.OrphanKind{kms.OrphanIntent}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, fake, db := crashWorld(t)
			old := w.newAESKey()
			blob := w.encrypt(old, []byte("kept"), nil)
			w.inject(fake, db, c.db, c.ks, c.then, c.persisted, c.thenDB)
			resp, err := try[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{})
			if (err == nil) != c.acked {
				t.Fatalf("answered %v, want success %v", err, c.acked)
			}
			if err != nil && err.Code != kms.CodeInternal {
				t.Errorf("answered %s", describe(err))
			}
			fake.heal()
			db.heal()
			w.checkCoherence()
			w.clock.add(time.Second)
			w.start()
			w.checkCoherence()
			keys := []string{old}
			if c.acked {
				id := resp.GetKeyMetadata().GetKeyId()
				keys = append(keys, id)
				w.decrypt(w.encrypt(id, []byte("x"), nil), nil)
			}
			if got, want := fake.size(), len(keys)+c.objects; got != want {
				t.Errorf("%d objects are in the store, want %d", got, want)
			}
			w.checkOrphans(c.orphans, keys)
			if fake.size() != len(keys) || string(w.decrypt(blob, nil)) != "kept" {
				t.Errorf("after the clean-up %d objects are left for %d keys", fake.size(), len(keys))
			}
		})
	}
}

// inject arms the faults of one case.
func (w *world) inject(fake *fakeStore, db *faultyDB, inDB, inStore, then string, persisted, thenDB bool) {
	dbFault := func(call string) error {
		if call == inDB && !persisted || thenDB && call == then {
			return errFault
		}
		return nil
	}
	dbAfter := func(call string) error {
		if call == inDB && persisted {
			return errFault
		}
		return nil
	}
	db.before.Store(&dbFault)
	db.after.Store(&dbAfter)
	ksFault := func(_ context.Context, call string) error {
		if call == inStore && !persisted || !thenDB && call == then {
			return errFault
		}
		return nil
	}
	ksAfter := func(call string) error {
		if call == inStore && persisted {
			return errFault
		}
		return nil
	}
	fake.before.Store(&ksFault)
	fake.after.Store(&ksAfter)
}

// checkOrphans reconciles, compares, cleans up and reconciles again.
func (w *world) checkOrphans(want []kms.OrphanKind, keys []string) {
	w.t.Helper()
	orphans, err := w.svc.Reconcile(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var kinds []kms.OrphanKind
	for _, o := range orphans {
		kinds = append(kinds, o.Kind)
		if slices.Contains(keys, string(o.KeyID)) {
			w.t.Errorf("a key that works is called an orphan: %+v", o)
		}
	}
	if !slices.Equal(kinds, want) {
		w.t.Fatalf("orphans %+v, want %v", orphans, want)
	}
	if !slices.EqualFunc(w.svc.Orphans(), orphans, func(a, b kms.Orphan) bool { return a.Label == b.Label && a.Kind == b.Kind }) {
		w.t.Error("Orphans says something else")
	}
	for _, o := range orphans {
		if err := w.svc.CleanUp(w.t.Context(), o); err != nil {
			w.t.Errorf("clean up %+v: %v", o, err)
		}
	}
	if rest, err := w.svc.Reconcile(w.t.Context()); err != nil || len(rest) != 0 {
		w.t.Errorf("after the clean-up: %+v, %v", rest, err)
	}
	var left []string
	left, _ = w.listKeys(nil)
	slices.Sort(keys)
	if !slices.Equal(left, keys) {
		w.t.Errorf("after the clean-up the keys are %v, want %v", left, keys)
	}
	snapshot, err := w.db.Snapshot(w.t.Context())
	if err != nil || len(snapshot.Keys) != len(keys) {
		w.t.Errorf("the store holds %d records for %d keys, %v", len(snapshot.Keys), len(keys), err)
	}
}

// Objects of others, keys in use and old reports are nothing to clean up.
func TestCleanUpIsCareful(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	id := w.newAESKey()
	stored, err := w.db.Key(t.Context(), kms.KeyID(id))
	if err != nil {
		t.Fatal(err)
	}
	locator := stored.Current().Locator
	fake.add([]byte("somebody's"), "a label of somebody")
	fake.add([]byte("no label"), "")
	fake.add([]byte("other installation"), "keyhold:ffffffff:"+id)
	fake.add([]byte("prefix"), "keyhold:"+w.db.Instance())
	fake.add([]byte("copy of the key's label"), locator.Label)
	fake.add([]byte("ours"), "keyhold:"+w.db.Instance()+":"+unknownID)
	orphans, err := w.svc.Reconcile(t.Context())
	if err != nil || len(orphans) != 2 {
		t.Fatalf("orphans %+v, %v", orphans, err)
	}
	for _, o := range []kms.Orphan{
		{Kind: kms.OrphanObject, Region: testRegion, KeyID: kms.KeyID(id), ObjectID: locator.ID, Label: locator.Label},
		{Kind: kms.OrphanIntent, Region: testRegion, KeyID: kms.KeyID(id), ObjectID: locator.ID, Label: locator.Label},
		{Kind: kms.OrphanRecord, Region: testRegion, KeyID: kms.KeyID(id), ObjectID: locator.ID, Label: locator.Label},
		{Kind: kms.OrphanObject, Region: "nowhere", ObjectID: []byte("ours"), Label: "keyhold:" + w.db.Instance() + ":" + unknownID},
		{Kind: "something", Region: testRegion, ObjectID: []byte("ours")},
	} {
		if err := w.svc.CleanUp(t.Context(), o); err == nil {
			t.Errorf("cleaned up %+v", o)
		}
	}
	w.decrypt(w.encrypt(id, []byte("x"), nil), nil)
	for _, o := range orphans {
		if err := w.svc.CleanUp(t.Context(), o); err != nil {
			t.Errorf("clean up %+v: %v", o, err)
		}
		if err := w.svc.CleanUp(t.Context(), o); err != nil {
			t.Errorf("clean up %+v again: %v", o, err)
		}
	}
	if fake.size() != 5 {
		t.Errorf("%d objects are left, want the key and 4 of others", fake.size())
	}
	events := w.events()
	last := events[len(events)-1]
	if last.EventName != "CleanUpOrphan" || last.AdditionalEventData["phase"] != "outcome" || last.UserIdentity["invokedBy"] != "keyhold" || last.EventType != "AwsServiceEvent" {
		t.Errorf("the clean-up is recorded as %+v", last)
	}
}

// A client that goes away does not leave half a key.
func TestCreateKeyWhileTheCallerGoes(t *testing.T) {
	t.Parallel()
	w, fake, _ := crashWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	after := func(call string) error {
		if call == "Generate" {
			cancel()
		}
		return nil
	}
	fake.after.Store(&after)
	resp, err := tryIn[*keyholdv1.CreateKeyResponse](ctx, w, alice(), &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(describe(err))
	}
	w.decrypt(w.encrypt(resp.GetKeyMetadata().GetKeyId(), []byte("x"), nil), nil)
	// Who has gone before it began gets nothing done.
	_, err = tryIn[*keyholdv1.CreateKeyResponse](ctx, w, alice(), &keyholdv1.CreateKeyRequest{})
	if err == nil || !err.Unavailable {
		t.Errorf("a cancelled request answers %v", err)
	}
	w.checkCoherence()
	if fake.size() != 1 {
		t.Errorf("%d objects in the store", fake.size())
	}
}

// A write of a key's record that fails, before or after its effect, leaves
// memory and store in agreement, and the next one goes through.
func TestChangeFaults(t *testing.T) {
	t.Parallel()
	for _, persisted := range []bool{false, true} {
		for _, req := range []func(id string) proto.Message{
			func(id string) proto.Message { return &keyholdv1.DisableKeyRequest{KeyId: id} },
			func(id string) proto.Message { return &keyholdv1.EnableKeyRequest{KeyId: id} },
			func(id string) proto.Message {
				return &keyholdv1.UpdateKeyDescriptionRequest{KeyId: id, Description: ptr("new")}
			},
			func(id string) proto.Message { return &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id} },
		} {
			w, _, db := crashWorld(t)
			id := w.newAESKey()
			db.fail("UpdateKey", 1, persisted, errFault)
			e := refuse(w, req(id), kms.CodeInternal)
			if e.Message != "The request was rejected because an internal exception occurred. The request can be retried." {
				t.Errorf("the refusal tells %q", e.Message)
			}
			w.checkCoherence()
			_, err := try[proto.Message](w, req(id))
			if err != nil && (!persisted || err.Code != kms.CodeInvalidState) {
				t.Errorf("%s again: %s", operationOf(req(id)), describe(err))
			}
			w.checkCoherence()
			w.start()
			w.checkCoherence()
		}
	}
}

// What a creation left behind that failed is no object without record for this
// process either; and the records of finished keys are not read again.
func TestReconcileAfterFailedCreation(t *testing.T) {
	t.Parallel()
	for _, then := range []struct {
		call string
		inDB bool
	}{{"Key", true}, {"Destroy", false}, {"DeleteKey", true}} {
		w, fake, db := crashWorld(t)
		w.newAESKey()
		read := db.count("Snapshot")
		w.inject(fake, db, "UpdateKey", "", then.call, false, then.inDB)
		refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeInternal)
		fake.heal()
		db.heal()
		if orphans, err := w.svc.Reconcile(t.Context()); err != nil || len(orphans) != 0 {
			t.Errorf("%s failed: orphans %+v, %v", then.call, orphans, err)
		}
		if n := db.count("Snapshot") - read; n != 0 {
			t.Errorf("all records were read %d times", n)
		}
		w.clock.add(time.Second)
		w.start()
		if orphans, err := w.svc.Reconcile(t.Context()); err != nil || len(orphans) != 1 || orphans[0].Kind != kms.OrphanIntent {
			t.Errorf("%s failed: after a restart orphans %+v, %v", then.call, orphans, err)
		}
	}
}

// reconcileBesideCreation begins to make a key, and reconciles once that is held: it
// wants no orphans. The creation's end is sent to done.
func (w *world) reconcileBesideCreation(held <-chan struct{}) (done <-chan error) {
	w.t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := w.svc.Do(w.t.Context(), alice(), "CreateKey", &keyholdv1.CreateKeyRequest{})
		ended <- err
	}()
	<-held
	if orphans, err := w.svc.Reconcile(w.t.Context()); err != nil || len(orphans) != 0 {
		w.t.Errorf("orphans %+v, %v", orphans, err)
	}
	return ended
}

// A key whose record is complete in the store, and not known to memory yet.
func TestReconcileBesideACommit(t *testing.T) {
	t.Parallel()
	w, _, db := crashWorld(t)
	held, release := make(chan struct{}), make(chan struct{})
	after := func(call string) error {
		if call == "UpdateKey" {
			close(held)
			<-release
		}
		return nil
	}
	db.after.Store(&after)
	done := w.reconcileBesideCreation(held)
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if orphans, err := w.svc.Reconcile(t.Context()); err != nil || len(orphans) != 0 {
		t.Errorf("afterwards: orphans %+v, %v", orphans, err)
	}
}

// Reconciliation beside creations takes none of them for an orphan.
func TestReconcileBesideCreations(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	held, release := make(chan struct{}), make(chan struct{})
	before := func(_ context.Context, call string) error {
		if call == "Generate" {
			close(held)
			<-release
		}
		return nil
	}
	fake.before.Store(&before)
	done := w.reconcileBesideCreation(held)
	if ids, _ := w.listKeys(nil); len(ids) != 0 {
		t.Errorf("a key that is not finished is listed: %v", ids)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if orphans, err := w.svc.Reconcile(t.Context()); err != nil || len(orphans) != 0 {
		t.Errorf("orphans %+v, %v", orphans, err)
	}
}
