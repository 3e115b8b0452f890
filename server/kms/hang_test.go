package kms_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// stallingDB is SQLite on a disk that hangs on demand: one write is under way, and
// the others wait for its turn as long as their ctx lets them.
type stallingDB struct {
	*sqlite.Store
	turn chan struct{}
	// begun is told of each write that begins while the disk hangs.
	begun chan struct{}
	hung  atomic.Pointer[chan struct{}] // to the end of it

	mu           sync.Mutex
	descriptions []string // of UpdateKey, in the order of the writes
}

// hang makes it hang until back is called.
func (d *stallingDB) hang() (back func()) {
	end := make(chan struct{})
	d.hung.Store(&end)
	return func() { d.hung.Store(nil); close(end) }
}

func (d *stallingDB) write(ctx context.Context, f func(context.Context) error) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return errors.Join(kms.ErrNotBegun, identity.ErrNotBegun, ctx.Err())
	}
	if end := d.hung.Load(); end != nil {
		d.begun <- struct{}{}
		<-*end
	}
	return f(context.WithoutCancel(ctx))
}

func (d *stallingDB) InsertKey(ctx context.Context, r *kms.KeyRecord) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.InsertKey(ctx, r) })
}

func (d *stallingDB) UpdateKey(ctx context.Context, r *kms.KeyRecord) error {
	return d.write(ctx, func(ctx context.Context) error {
		d.mu.Lock()
		d.descriptions = append(d.descriptions, r.Description)
		d.mu.Unlock()
		return d.Store.UpdateKey(ctx, r)
	})
}

func (d *stallingDB) DeleteKey(ctx context.Context, id kms.KeyID, revision int64) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.DeleteKey(ctx, id, revision) })
}

func (d *stallingDB) InsertAlias(ctx context.Context, a *kms.AliasRecord) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.InsertAlias(ctx, a) })
}

func (d *stallingDB) UpdateAlias(ctx context.Context, a *kms.AliasRecord) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.UpdateAlias(ctx, a) })
}

func (d *stallingDB) DeleteAlias(ctx context.Context, a *kms.AliasRecord) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.DeleteAlias(ctx, a) })
}

func (d *stallingDB) InsertAccessKey(ctx context.Context, r *identity.AccessKeyRecord) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.InsertAccessKey(ctx, r) })
}

func (d *stallingDB) UpdateAccessKey(ctx context.Context, r *identity.AccessKeyRecord) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.UpdateAccessKey(ctx, r) })
}

func (d *stallingDB) DeleteAccessKey(ctx context.Context, id string) error {
	return d.write(ctx, func(ctx context.Context) error { return d.Store.DeleteAccessKey(ctx, id) })
}

// intentJournal counts the intents that are on the record: each is of a request
// that goes for the store next.
type intentJournal struct {
	kms.Journal
	intents atomic.Int64
}

func (j *intentJournal) Append(ctx context.Context, class audit.Class, d audit.Durability, payloads ...[]byte) (uint64, error) {
	seq, err := j.Journal.Append(ctx, class, d, payloads...)
	for _, p := range payloads {
		if err == nil && bytes.Contains(p, []byte(`"phase":"intent"`)) {
			j.intents.Add(1)
		}
	}
	return seq, err
}

// hangWorld is a world whose database hangs on demand, for at most so many
// requests at a time.
func hangWorld(t testing.TB, inFlight int) (*world, *stallingDB, *intentJournal) {
	db := &stallingDB{turn: make(chan struct{}, 1), begun: make(chan struct{})}
	journal := &intentJournal{}
	w, _ := newKeyWorld(t, func(w *world) {
		db.Store, journal.Journal = w.db, w.cfg.Journal
		w.cfg.Store, w.cfg.Journal, w.cfg.AccessKeys = db, journal, w.loadAccessKeysFrom(db)
		w.cfg.Limits.InFlight, w.cfg.Limits.AccessKeysPerPrincipal = inFlight, 3
	})
	return w, db, journal
}

// begin makes a request in the background.
func (w *world) begin(ctx context.Context, req proto.Message) <-chan *kms.Error {
	done := make(chan *kms.Error, 1)
	go func() {
		_, err := tryIn[proto.Message](ctx, w, alice(), req)
		done <- err
	}()
	return done
}

// answer waits for what a request of begin was answered.
func answer(t testing.TB, req proto.Message, done <-chan *kms.Error) *kms.Error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("%s(%s) does not return", operationOf(req), brief(req))
		return nil
	}
}

// While the database hangs, whoever wants to change something leaves when its time
// is over, and gives its place to others: uses of keys go on, and so does what memory
// can answer. What was not begun is not done, what was begun is, and all is on the
// record.
func TestStoreHangs(t *testing.T) {
	t.Parallel()
	const rounds = 3
	w, db, journal := hangWorld(t, 24)
	busy, used, going := w.newAESKey(), w.newAESKey(), w.newAESKey()
	w.createAlias("alias/moved", busy)
	w.createAlias("alias/gone", busy)
	access := w.createAccessKey().GetAccessKeyId()
	blob := w.encrypt(used, []byte("x"), nil)
	changes := []proto.Message{
		&keyholdv1.EnableKeyRequest{KeyId: busy},
		&keyholdv1.TagResourceRequest{KeyId: busy, Tags: []*keyholdv1.Tag{{TagKey: "a", TagValue: ptr("b")}}},
		&keyholdv1.UpdateKeyDescriptionRequest{KeyId: used, Description: ptr("other")},
		&keyholdv1.UntagResourceRequest{KeyId: used, TagKeys: []string{"a"}},
		&keyholdv1.ScheduleKeyDeletionRequest{KeyId: going},
		&keyholdv1.CreateAliasRequest{AliasName: "alias/new", TargetKeyId: used},
		&keyholdv1.UpdateAliasRequest{AliasName: "alias/moved", TargetKeyId: used},
		&keyholdv1.DeleteAliasRequest{AliasName: "alias/gone"},
		&keyholdv1.CreateKeyRequest{},
		&keyholdv1.CreateAccessKeyRequest{},
		&keyholdv1.UpdateAccessKeyRequest{AccessKeyId: access, Status: keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_INACTIVE},
		&keyholdv1.DeleteAccessKeyRequest{AccessKeyId: access},
	}

	events := len(w.events())
	back := db.hang()
	disable := &keyholdv1.DisableKeyRequest{KeyId: busy}
	first := w.begin(t.Context(), disable)
	<-db.begun
	for range rounds { // together more than may be under way
		ctx, cancel := context.WithCancel(t.Context())
		want := journal.intents.Load() + int64(len(changes))
		var answers []<-chan *kms.Error
		for _, req := range changes {
			answers = append(answers, w.begin(ctx, req))
		}
		eventually(t, "all changes are on the record", func() bool { return journal.intents.Load() == want })
		if string(w.decrypt(w.encrypt(used, []byte("y"), nil), nil)) != "y" || string(w.decrypt(blob, nil)) != "x" {
			t.Error("it does not decrypt")
		}
		if n := len(w.accessKeys()); n != 1 {
			t.Errorf("%d access keys are listed, want 1", n)
		}
		if state := w.metadata(busy).GetKeyState(); state != enabled {
			t.Errorf("the key is %s before the store says so", state)
		}
		cancel()
		for i, req := range changes {
			if err := answer(t, req, answers[i]); err == nil || !err.Unavailable || !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want that it was cancelled", operationOf(req), err)
			}
		}
	}
	back()
	if err := answer(t, disable, first); err != nil {
		t.Errorf("the change that was begun: %s", describe(err))
	}
	if state := w.metadata(busy).GetKeyState(); state != disabled {
		t.Errorf("the key is %s", state)
	}
	w.checkCoherence()
	phases := make(map[string]int)
	for _, e := range w.events()[events:] {
		if phase := e.AdditionalEventData["phase"]; phase != "" {
			phases[fmt.Sprint(e.EventName, " ", phase, " ", e.ErrorCode)]++
		}
	}
	for _, req := range changes {
		name := operationOf(req)
		if in, out := phases[name+" intent "], phases[name+" outcome KMSInternalException"]+phases[name+" outcome DependencyTimeoutException"]; in != rounds || out != rounds {
			t.Errorf("%s: %d intents and %d failures, want %d of each", name, in, out, rounds)
		}
	}
	if phases["DisableKey intent "] != 1 || phases["DisableKey outcome "] != 1 {
		t.Errorf("what was begun is not on the record: %v", phases)
	}
	for _, req := range changes { // nothing of it was done, and all of it can be
		do[proto.Message](w, req)
	}
	w.checkCoherence()
}

// A change that the store has begun is done and known, though its caller has gone.
func TestBegunChangeIsFinished(t *testing.T) {
	t.Parallel()
	w, db, _ := hangWorld(t, 24)
	key, other := w.newAESKey(), w.newAESKey()
	access := w.createAccessKey().GetAccessKeyId()
	for _, req := range []proto.Message{
		&keyholdv1.DisableKeyRequest{KeyId: key},
		&keyholdv1.CreateAliasRequest{AliasName: "alias/a", TargetKeyId: key},
		&keyholdv1.UpdateAliasRequest{AliasName: "alias/a", TargetKeyId: other},
		&keyholdv1.DeleteAliasRequest{AliasName: "alias/a"},
		&keyholdv1.CreateAccessKeyRequest{},
		&keyholdv1.UpdateAccessKeyRequest{AccessKeyId: access, Status: keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_INACTIVE},
		&keyholdv1.DeleteAccessKeyRequest{AccessKeyId: access},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		back := db.hang()
		done := w.begin(ctx, req)
		<-db.begun
		cancel()
		back()
		if err := answer(t, req, done); err != nil {
			t.Errorf("%s: %s", operationOf(req), describe(err))
		}
		w.checkCoherence()
		stored, err := w.db.AccessKeys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(w.accessKeys()); n != len(stored) {
			t.Errorf("%s: %d access keys in memory, %d stored", operationOf(req), n, len(stored))
		}
	}
}

// Changes of a key that wait together reach memory in the order of the store, and
// those that left leave no gap.
func TestOrderOfChanges(t *testing.T) {
	t.Parallel()
	const each = 10
	w, db, journal := hangWorld(t, 100)
	key := w.newAESKey()
	before, err := w.db.Key(t.Context(), kms.KeyID(key))
	if err != nil {
		t.Fatal(err)
	}
	change := func(to string) proto.Message {
		return &keyholdv1.UpdateKeyDescriptionRequest{KeyId: key, Description: &to}
	}
	db.descriptions = nil
	back := db.hang()
	first := w.begin(t.Context(), change("first"))
	<-db.begun
	ctx, cancel := context.WithCancel(t.Context())
	want := journal.intents.Load() + 2*each
	var staying, leaving []<-chan *kms.Error
	for i := range each {
		staying = append(staying, w.begin(t.Context(), change(fmt.Sprint("stays ", i))))
		leaving = append(leaving, w.begin(ctx, change(fmt.Sprint("leaves ", i))))
	}
	eventually(t, "all changes are on the record", func() bool { return journal.intents.Load() == want })
	cancel()
	for _, done := range leaving {
		if err := answer(t, change("leaves"), done); err == nil {
			t.Error("a change was done that was not begun")
		}
	}
	back()
	for _, done := range append(staying, first) {
		if err := answer(t, change("stays"), done); err != nil {
			t.Error(describe(err))
		}
	}
	stored, err := w.db.Key(t.Context(), kms.KeyID(key))
	if err != nil {
		t.Fatal(err)
	}
	if got := stored.Revision - before.Revision; got != each+1 || len(db.descriptions) != each+1 || db.descriptions[0] != "first" {
		t.Errorf("%d changes were written, want %d, the first one first: %q", got, each+1, db.descriptions)
	}
	last := db.descriptions[len(db.descriptions)-1]
	if inMemory := w.metadata(key).GetDescription(); inMemory != last || stored.Description != last {
		t.Errorf("written last: %q, stored: %q, in memory: %q", last, stored.Description, inMemory)
	}
	slices.Sort(db.descriptions)
	if n := len(slices.Compact(db.descriptions)); n != each+1 {
		t.Errorf("%d different changes, want %d", n, each+1)
	}
	w.checkCoherence()
}
