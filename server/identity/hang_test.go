package identity_test

import (
	"context"
	"errors"
	"testing"

	"github.com/keyhold/keyhold/server/identity"
)

// hang makes the store's writes wait for a turn that nobody gives until back is
// called. Each tells waiting that it waits.
func (w *keyWorld) hang() (waiting <-chan struct{}, back func()) {
	told, freed := make(chan struct{}), make(chan struct{})
	w.store.waitWith(func(ctx context.Context) error {
		told <- struct{}{}
		select {
		case <-freed:
			return nil
		case <-ctx.Done():
			return errors.Join(identity.ErrNotBegun, ctx.Err())
		}
	})
	return told, func() { w.store.waitWith(nil); close(freed) }
}

// changes are all methods that write, for a key.
func (w *keyWorld) changes(id string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"deactivate": func(ctx context.Context) error { return w.keys.SetActive(ctx, id, false) },
		"delete":     func(ctx context.Context) error { return w.keys.Delete(ctx, id) },
		"create": func(ctx context.Context) error {
			_, secret, err := w.keys.Create(ctx, w.p, identity.NewAccessKeyID(), 100)
			secret.Wipe()
			return err
		},
	}
}

// While the store hangs, changes obey their ctx, whether they wait for each other
// or for the store; what was not begun has no effect, and no key falls into doubt.
// What is in memory is answered.
func TestStoreHangs(t *testing.T) {
	w := newKeyWorld(t)
	a, b := w.create(), w.create()
	unharmed := func(what string) {
		t.Helper()
		if n := len(w.keys.List(w.p.ARN)); n != 2 {
			t.Errorf("%s: %d keys are listed, want 2", what, n)
		}
		if _, _, err := w.keys.LookUp(b.ID); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := w.keys.Record(b.ID); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}

	waiting, back := w.hang()
	for name, change := range w.changes(b.ID) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- change(ctx) }()
		<-waiting
		unharmed(name)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || !errors.Is(err, identity.ErrNotBegun) {
			t.Errorf("%s, waiting for the store: %v", name, err)
		}
		unharmed(name)
	}

	first := make(chan error)
	go func() { first <- w.keys.SetActive(t.Context(), a.ID, false) }()
	<-waiting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, change := range w.changes(b.ID) {
		if err := change(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, waiting for another change: %v", name, err)
		}
		unharmed(name)
	}

	back()
	if err := <-first; err != nil {
		t.Errorf("the change that could wait: %v", err)
	}
	if _, _, err := w.keys.LookUp(a.ID); !errors.Is(err, identity.ErrAccessKeyUnusable) {
		t.Errorf("a deactivated key: %v", err)
	}
	w.same("once the store is back")
	for _, change := range []string{"create", "deactivate", "delete"} {
		if err := w.changes(b.ID)[change](t.Context()); err != nil {
			t.Errorf("%s, once the store is back: %v", change, err)
		}
		w.same(change)
	}
}
