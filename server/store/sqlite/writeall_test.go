package sqlite

import (
	"errors"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/keyhold/keyhold/server/kms"
)

func testAlias(r *kms.KeyRecord, name string) *kms.AliasRecord {
	return &kms.AliasRecord{Account: r.Account, Region: r.Region, Name: name, KeyID: r.ID, Created: r.Created, Updated: r.Created}
}

func TestInsertAll(t *testing.T) {
	s := newStore(t)
	a, b := testKey(0), testKey(1)
	all := &kms.Snapshot{Keys: []*kms.KeyRecord{a, b}, Aliases: []*kms.AliasRecord{testAlias(a, "alias/a"), testAlias(b, "alias/b")}}
	must(t, s.InsertAll(t.Context(), all))
	if a.Revision != 1 || b.Revision != 1 || all.Aliases[1].Revision != 1 {
		t.Errorf("revisions %d, %d and %d", a.Revision, b.Revision, all.Aliases[1].Revision)
	}
	got, err := s.Snapshot(t.Context())
	must(t, err)
	if d := cmp.Diff(all, got); d != "" {
		t.Error(d)
	}
	must(t, s.InsertAll(t.Context(), &kms.Snapshot{}))

	// The records are as good as those that were written one by one.
	b.Description = "changed"
	must(t, s.UpdateKey(t.Context(), b))
}

// All or nothing: what is wrong with one record keeps the others out too.
func TestInsertAllRefuses(t *testing.T) {
	there := testKey(0)
	for name, tc := range map[string]struct {
		spoil func(all *kms.Snapshot)
		want  error
	}{
		"a key that is there":      {func(all *kms.Snapshot) { all.Keys[1].ID = there.ID }, kms.ErrExists},
		"an alias that is there":   {func(all *kms.Snapshot) { all.Aliases[1].Name = "alias/there" }, kms.ErrExists},
		"an alias of no key":       {func(all *kms.Snapshot) { all.Aliases[1].KeyID = testKey(9).ID }, kms.ErrNotFound},
		"a key that was written":   {func(all *kms.Snapshot) { all.Keys[1].Revision = 1 }, nil},
		"an alias that was":        {func(all *kms.Snapshot) { all.Aliases[1].Revision = 1 }, nil},
		"a key without an account": {func(all *kms.Snapshot) { all.Keys[1].Account = "" }, nil},
		"an alias without a name":  {func(all *kms.Snapshot) { all.Aliases[1].Name = "" }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			must(t, s.InsertKey(t.Context(), there.Clone()))
			must(t, s.InsertAlias(t.Context(), testAlias(there, "alias/there")))
			before, err := s.Snapshot(t.Context())
			must(t, err)
			a, b := testKey(1), testKey(2)
			all := &kms.Snapshot{Keys: []*kms.KeyRecord{a, b}, Aliases: []*kms.AliasRecord{testAlias(a, "alias/a"), testAlias(b, "alias/b")}}
			tc.spoil(all)
			if err := s.InsertAll(t.Context(), all); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("InsertAll: %v, want %v", err, tc.want)
			}
			if a.Revision != 0 {
				t.Errorf("revision %d of a key that was not written", a.Revision)
			}
			after, err := s.Snapshot(t.Context())
			must(t, err)
			if d := cmp.Diff(before, after); d != "" {
				t.Error(d)
			}
		})
	}
}

// What many records have alike is in memory once.
func TestLoadSharesStrings(t *testing.T) {
	s := newStore(t)
	a, b := testKey(0), testKey(1)
	a.Tags, b.Tags = []kms.Tag{{Key: "team", Value: "a"}}, []kms.Tag{{Key: "team", Value: "b"}}
	must(t, s.InsertAll(t.Context(), &kms.Snapshot{Keys: []*kms.KeyRecord{a, b}, Aliases: []*kms.AliasRecord{testAlias(b, "alias/b")}}))
	got, err := s.Snapshot(t.Context())
	must(t, err)
	for what, pair := range map[string][2]string{
		"account":          {string(got.Keys[0].Account), string(got.Keys[1].Account)},
		"region":           {string(got.Keys[0].Region), string(got.Keys[1].Region)},
		"tag key":          {got.Keys[0].Tags[0].Key, got.Keys[1].Tags[0].Key},
		"an alias's":       {string(got.Keys[0].Account), string(got.Aliases[0].Account)},
		"an alias's other": {string(got.Keys[0].Region), string(got.Aliases[0].Region)},
	} {
		if pair[0] == "" || unsafe.StringData(pair[0]) != unsafe.StringData(pair[1]) {
			t.Errorf("%s: %q and %q are two strings in memory", what, pair[0], pair[1])
		}
	}
}
