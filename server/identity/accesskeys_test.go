package identity_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// faultyStore is SQLite, with writes that fail on demand: before they have had
// their effect, or after.
type faultyStore struct {
	*sqlite.Store

	mu            sync.Mutex
	before, after map[string]error // by method
	// turn is what a write waits for at first; nil: for nothing.
	turn   func(context.Context) error
	writes []map[string]identity.AccessKeyUse
}

func (f *faultyStore) fail(before, after map[string]error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

func (f *faultyStore) waitWith(turn func(context.Context) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn = turn
}

// write is around for what waits for a turn.
func (f *faultyStore) write(ctx context.Context, method string, call func() error) error {
	f.mu.Lock()
	turn := f.turn
	f.mu.Unlock()
	if turn != nil {
		if err := turn(ctx); err != nil {
			return err
		}
	}
	return f.around(method, call)
}

func (f *faultyStore) around(method string, call func() error) error {
	f.mu.Lock()
	before, after := f.before[method], f.after[method]
	f.mu.Unlock()
	if before != nil {
		return before
	}
	if err := call(); err != nil {
		return err
	}
	return after
}

func (f *faultyStore) AccessKey(ctx context.Context, id string) (r *identity.AccessKeyRecord, err error) {
	err = f.around("read", func() error { r, err = f.Store.AccessKey(ctx, id); return err })
	return r, err
}

func (f *faultyStore) InsertAccessKey(ctx context.Context, r *identity.AccessKeyRecord) error {
	return f.write(ctx, "insert", func() error { return f.Store.InsertAccessKey(ctx, r) })
}

func (f *faultyStore) UpdateAccessKey(ctx context.Context, r *identity.AccessKeyRecord) error {
	return f.write(ctx, "update", func() error { return f.Store.UpdateAccessKey(ctx, r) })
}

func (f *faultyStore) DeleteAccessKey(ctx context.Context, id string) error {
	return f.write(ctx, "delete", func() error { return f.Store.DeleteAccessKey(ctx, id) })
}

func (f *faultyStore) NoteAccessKeyUses(ctx context.Context, uses map[string]identity.AccessKeyUse) error {
	return f.around("note", func() error {
		f.writes = append(f.writes, maps.Clone(uses))
		return f.Store.NoteAccessKeyUses(ctx, uses)
	})
}

// plainSealer seals nothing: what sealing is worth is tested where it is made.
type plainSealer struct{}

func (plainSealer) Seal(_ context.Context, row string, secret []byte) ([]byte, error) {
	return append([]byte(row+":"), secret...), nil
}

func (plainSealer) Open(_ context.Context, row string, sealed []byte) ([]byte, error) {
	secret, ok := bytes.CutPrefix(sealed, []byte(row+":"))
	if !ok {
		return nil, errors.New("not authentic")
	}
	return bytes.Clone(secret), nil
}

type keyWorld struct {
	t     *testing.T
	store *faultyStore
	keys  *identity.AccessKeys
	p     *identity.Principal
	logs  bytes.Buffer
	now   time.Time
	told  []string
}

func newKeyWorld(t *testing.T) *keyWorld {
	t.Helper()
	db, err := sqlite.Create(t.Context(), t.TempDir()+"/data", sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	w := &keyWorld{t: t, store: &faultyStore{Store: db}, now: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)}
	w.load()
	w.p = w.keys.Principal(arn("alice"))
	return w
}

func (w *keyWorld) load() {
	w.t.Helper()
	d, err := identity.NewDirectory([]identity.Binding{{Principal: arn("alice")}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.keys, err = identity.NewAccessKeys(w.t.Context(), identity.AccessKeysConfig{
		Store: w.store, Sealer: plainSealer{}, Principals: func() *identity.Directory { return d },
		Logger: slog.New(slog.NewTextHandler(&w.logs, nil)), Now: func() time.Time { return w.now },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.keys.Watch(func(id string) { w.told = append(w.told, id) })
}

func (w *keyWorld) create() *identity.AccessKeyRecord {
	w.t.Helper()
	r, secret, err := w.keys.Create(w.t.Context(), w.p, identity.NewAccessKeyID(), 100)
	if err != nil {
		w.t.Fatal(err)
	}
	secret.Wipe()
	return r
}

// same wants memory and store to agree on what is there and usable.
func (w *keyWorld) same(what string) {
	w.t.Helper()
	stored, err := w.store.Store.AccessKeys(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if list := w.keys.List(w.p.ARN); len(list) != len(stored) {
		w.t.Errorf("%s: %d in memory, %d stored", what, len(list), len(stored))
	}
	for _, r := range stored {
		if _, _, err := w.keys.LookUp(r.ID); (err == nil) != r.Active {
			w.t.Errorf("%s: stored active %v, looked up: %v", what, r.Active, err)
		}
	}
}

// Writes that fail, and writes that fail and were done: memory is what the store
// is, and the answer says what is so.
func TestAccessKeyWritesThatFail(t *testing.T) {
	t.Parallel()
	failure := errors.New("the disk is on fire")
	w := newKeyWorld(t)
	r := w.create()
	for _, c := range []struct {
		method string
		act    func() error
		undo   func() error
	}{
		{"update", func() error { return w.keys.SetActive(t.Context(), r.ID, false) }, func() error { return w.keys.SetActive(t.Context(), r.ID, true) }},
		{"delete", func() error { return w.keys.Delete(t.Context(), r.ID) }, func() error { r = w.create(); return nil }},
		{"insert", func() error {
			_, secret, err := w.keys.Create(t.Context(), w.p, identity.NewAccessKeyID(), 100)
			secret.Wipe()
			return err
		}, func() error { return nil }},
	} {
		w.store.fail(map[string]error{c.method: failure}, nil)
		if err := c.act(); !errors.Is(err, failure) {
			t.Errorf("%s failed: %v", c.method, err)
		}
		w.store.fail(nil, nil)
		w.same(c.method + " failed")

		w.store.fail(nil, map[string]error{c.method: failure})
		if err := c.act(); err != nil {
			t.Errorf("%s failed and was done: %v", c.method, err)
		}
		w.store.fail(nil, nil)
		w.same(c.method + " failed and was done")
		if err := c.undo(); err != nil {
			t.Errorf("%s, back: %v", c.method, err)
		}
		w.same(c.method + ", back")
	}
}

// While it is not known whether a key is active, it is not usable; and it is again
// once that was settled.
func TestAccessKeyInDoubt(t *testing.T) {
	t.Parallel()
	failure := errors.New("the disk is on fire")
	for _, persisted := range []bool{false, true} {
		w := newKeyWorld(t)
		r := w.create()
		faults := map[string]error{"update": failure}
		if persisted {
			w.store.fail(map[string]error{"read": failure}, faults)
		} else {
			faults["read"] = failure
			w.store.fail(faults, nil)
		}
		for _, active := range []bool{true, false} {
			if err := w.keys.SetActive(t.Context(), r.ID, active); !errors.Is(err, failure) {
				t.Errorf("SetActive(%v): %v", active, err)
			}
			if _, _, err := w.keys.LookUp(r.ID); !errors.Is(err, identity.ErrAccessKeyUnusable) {
				t.Errorf("a key in doubt is usable: %v", err)
			}
		}
		w.store.fail(nil, nil)
		for _, active := range []bool{true, false, true} {
			if err := w.keys.SetActive(t.Context(), r.ID, active); err != nil {
				t.Errorf("persisted %v, SetActive(%v): %v", persisted, active, err)
			}
			w.same("settled")
		}
		if len(w.told) == 0 {
			t.Error("nobody was told that the key is not usable")
		}
	}
}

// The last use is written at once the first time, then once an hour, and at the end;
// a failure to write is tried again.
func TestLastUse(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	a, b := w.create(), w.create()
	use := func(id, region string) {
		t.Helper()
		k, _, err := w.keys.LookUp(id)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := w.keys.Confirm(k, region, "kms"); err != nil || p != w.p {
			t.Fatalf("%v, %v", p, err)
		}
	}
	stored := func(id string, want identity.AccessKeyUse) {
		t.Helper()
		if r, err := w.store.Store.AccessKey(t.Context(), id); err != nil || r.LastUse != want {
			t.Errorf("stored %+v, %v, want %+v", r.LastUse, err, want)
		}
	}
	flushed := func(want int) {
		t.Helper()
		w.keys.FlushDue(t.Context())
		if len(w.store.writes) != want {
			t.Errorf("%d writes, want %d", len(w.store.writes), want)
		}
	}
	flushed(0)
	for range 1000 {
		use(a.ID, "us-east-1")
	}
	flushed(1)
	first := identity.AccessKeyUse{At: w.now, Region: "us-east-1", Service: "kms"}
	stored(a.ID, first)
	stored(b.ID, identity.AccessKeyUse{})
	w.now = w.now.Add(time.Hour - time.Second)
	use(a.ID, "eu-west-1")
	flushed(1)
	stored(a.ID, first)
	if r, err := w.keys.Record(a.ID); err != nil || r.LastUse.Region != "eu-west-1" || !r.LastUse.At.Equal(w.now) {
		t.Errorf("the record says %+v, %v", r.LastUse, err)
	}
	w.now = w.now.Add(time.Second)
	w.store.fail(map[string]error{"note": errors.New("no")}, nil)
	flushed(1)
	w.store.fail(nil, nil)
	flushed(2)
	use(b.ID, "us-east-1")
	use(a.ID, "us-east-1")
	w.keys.Flush(t.Context())
	if n := len(w.store.writes); n != 3 || len(w.store.writes[2]) != 2 {
		t.Errorf("at the end: %v", w.store.writes)
	}
	w.load()
	if r, err := w.keys.Record(b.ID); err != nil || !r.LastUse.At.Equal(w.now) {
		t.Errorf("after a restart %+v, %v", r, err)
	}
	w.keys.Flush(t.Context())
	if n := len(w.store.writes); n != 3 {
		t.Errorf("%d writes of what is known", n)
	}
}

// Has and Import, for development.
func TestImport(t *testing.T) {
	t.Parallel()
	w := newKeyWorld(t)
	secret := identity.Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	other := w.create()
	for i, c := range []struct {
		id, replaces string
		secret       identity.Secret
		keys         int
	}{
		{"AKIADEV", "", secret, 2}, {"AKIADEV", "", identity.Secret("changed"), 2}, {"test", "AKIADEV", secret, 2}, {"again", "AKIAUNKNOWN", secret, 3},
	} {
		if w.keys.Has(t.Context(), w.p, c.id, c.secret) {
			t.Errorf("%d is there before", i)
		}
		if err := w.keys.Import(t.Context(), w.p, c.id, c.secret, c.replaces); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		if !w.keys.Has(t.Context(), w.p, c.id, c.secret) || len(w.keys.List(w.p.ARN)) != c.keys {
			t.Errorf("%d: %v", i, w.keys.List(w.p.ARN))
		}
		w.same(fmt.Sprint("import ", i))
	}
	if _, _, err := w.keys.LookUp(other.ID); err != nil {
		t.Errorf("another key: %v", err)
	}
	for _, c := range []struct {
		id     string
		secret identity.Secret
	}{
		{"", secret},
		{"AKIA-1", secret},
		{strings.Repeat("a", 129), secret},
		{"a\n", secret},
		{"AKIA", nil},
		{"AKIA", identity.Secret(strings.Repeat("s", 257))},
		{"AKIA", identity.Secret("a b")},
		{"AKIA", identity.Secret("é")},
	} {
		if err := w.keys.Import(t.Context(), w.p, c.id, c.secret, ""); !errors.Is(err, identity.ErrInvalidAccessKey) {
			t.Errorf("%q with a secret of %d: %v", c.id, len(c.secret), err)
		}
	}
}

// Whatever prints a secret prints that it is one.
func TestSecretIsRedacted(t *testing.T) {
	t.Parallel()
	s := identity.NewSecret()
	clear := string(s)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "secret", s)
	b, err := json.Marshal(struct{ S identity.Secret }{s})
	if err != nil {
		t.Fatal(err)
	}
	verbs := []any{s, s, s, []identity.Secret{s}, s}
	for _, out := range []string{fmt.Sprint(verbs...), fmt.Sprintf("%s %x %q %v %#v", verbs...), log.String(), string(b)} {
		if strings.Contains(out, clear) || strings.Contains(out, fmt.Sprintf("%x", clear)) || !strings.Contains(out, "[secret]") {
			t.Errorf("printed as %q", strings.ReplaceAll(out, clear, "THE SECRET"))
		}
	}
	s.Wipe()
	if strings.Trim(string(s), "\x00") != "" {
		t.Error("not wiped")
	}
	seen := make(map[string]bool)
	for range 1000 {
		id, s := identity.NewAccessKeyID(), identity.NewSecret()
		if seen[id] || seen[string(s)] || identity.CheckAccessKeyID(id) != nil {
			t.Fatalf("%q twice, or malformed", id)
		}
		seen[id], seen[string(s)] = true, true
	}
}
