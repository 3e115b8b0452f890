package storetest

import (
	"io"
	"testing"

	"github.com/keyhold/keyhold/server/kms"
)

// TestDurable runs the promises that show only when a store is closed and
// opened again. open makes the store that dir names where there is none, else
// opens it; what it returns is an io.Closer too. It does not close it by
// itself.
func TestDurable(t *testing.T, open func(t *testing.T, dir string) kms.Store) {
	t.Helper()
	for _, p := range []struct {
		name string
		test func(t *testing.T, d *reopener)
	}{
		{"the instance stays", func(t *testing.T, d *reopener) {
			before := d.s.Instance()
			if after := d.reopen(t).Instance(); after != before {
				t.Errorf("Instance = %q, before %q", after, before)
			}
		}},
		{"all records stay", allStays},
		{"what was deleted stays deleted", deletedStays},
		{"revisions go on", func(t *testing.T, d *reopener) {
			r := insertKey(t, d.s, newKey(t))
			stale := r.Clone()
			if err := d.s.UpdateKey(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			s := d.reopen(t)
			wantErr(t, "UpdateKey", s.UpdateKey(t.Context(), stale), kms.ErrConflict)
			if err := s.UpdateKey(t.Context(), r); err != nil || r.Revision != 3 {
				t.Errorf("UpdateKey = %v, revision %d", err, r.Revision)
			}
		}},
		{"no seal is leased again", func(t *testing.T, d *reopener) {
			ref := insertKey(t, d.s, newKey(t)).Versions[0].Ref
			lease(t, d.s, ref, 60, 100)
			d.reopen(t)
			wantSeals(t, d.s, ref, 60)
			if start, granted := lease(t, d.s, ref, 60, 100); start != 60 || granted != 40 {
				t.Errorf("LeaseSeals = %d, %d, want 60, 40", start, granted)
			}
		}},
		{"the tick stays", func(t *testing.T, d *reopener) {
			if err := d.s.Tick(t.Context(), moment(9)); err != nil {
				t.Fatal(err)
			}
			if got, err := d.reopen(t).LastTick(t.Context()); err != nil || !got.Equal(moment(9)) {
				t.Errorf("LastTick = %v, %v", got, err)
			}
		}},
	} {
		t.Run(p.name, func(t *testing.T) {
			d := &reopener{dir: t.TempDir(), open: open}
			d.s = open(t, d.dir)
			t.Cleanup(func() { d.close(t) })
			p.test(t, d)
		})
	}
}

// reopener is a store that can be closed and opened.
type reopener struct {
	dir  string
	open func(t *testing.T, dir string) kms.Store
	s    kms.Store
}

func (d *reopener) close(t *testing.T) {
	t.Helper()
	c, ok := d.s.(io.Closer)
	if !ok {
		t.Fatalf("%T is no io.Closer", d.s)
	}
	if err := c.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func (d *reopener) reopen(t *testing.T) kms.Store {
	t.Helper()
	d.close(t)
	d.s = d.open(t, d.dir)
	return d.s
}

func allStays(t *testing.T, d *reopener) {
	var keys []*kms.KeyRecord
	var aliases []*kms.AliasRecord
	for i := range 20 {
		r := newKey(t)
		if i%3 == 1 {
			pending(r)
		}
		for range i % 4 {
			r.Versions = append(r.Versions, newVersion(t))
		}
		keys = append(keys, insertKey(t, d.s, r))
		aliases = append(aliases, insertAlias(t, d.s, newAlias("alias/"+string(r.ID), r.ID)))
		if i%2 == 0 {
			r.Description = "changed"
			r.Tags = r.Tags[1:]
			if err := d.s.UpdateKey(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		d.reopen(t)
		wantKeys(t, d.s, keys...)
		wantAliases(t, d.s, aliases...)
	}
}

func deletedStays(t *testing.T, d *reopener) {
	r, kept := insertKey(t, d.s, newKey(t)), insertKey(t, d.s, newKey(t))
	insertAlias(t, d.s, newAlias("alias/a", r.ID))
	b := insertAlias(t, d.s, newAlias("alias/b", kept.ID))
	c := insertAlias(t, d.s, newAlias("alias/c", kept.ID))
	lease(t, d.s, r.Versions[0].Ref, 1, 10)
	if err := d.s.DeleteKey(t.Context(), r.ID, r.Revision); err != nil {
		t.Fatal(err)
	}
	if err := d.s.DeleteAlias(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	d.reopen(t)
	wantKeys(t, d.s, kept)
	wantAliases(t, d.s, b)
	_, err := d.s.SealCount(t.Context(), r.Versions[0].Ref)
	wantErr(t, "SealCount", err, kms.ErrNotFound)
}
