package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server/kms"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func insertKeyPromises() []promise {
	return slices.Concat(roundTrips(), newRecordPromises(), readKeyPromises())
}

func newRecordPromises() []promise {
	return []promise{
		{"the revision is 1 afterwards", func(t *testing.T, s kms.Store) {
			if r := insertKey(t, s, newKey(t)); r.Revision != 1 {
				t.Errorf("Revision = %d", r.Revision)
			}
		}},
		{"a record with a revision is no new one", func(t *testing.T, s kms.Store) {
			r := newKey(t)
			r.Revision = 1
			if err := s.InsertKey(t.Context(), r); err == nil || r.Revision != 1 {
				t.Errorf("InsertKey = %v, revision %d", err, r.Revision)
			}
			wantKeys(t, s)
		}},
		{"ErrExists where the id is taken", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			twin := newKey(t)
			twin.ID = r.ID
			twin.Description = "twin"
			wantErr(t, "InsertKey", s.InsertKey(t.Context(), twin), kms.ErrExists)
			if twin.Revision != 0 {
				t.Errorf("revision of a record that was not stored: %d", twin.Revision)
			}
			wantKeys(t, s, r)
		}},
		{"ErrExists where the ref of a version is taken", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			thief := newKey(t)
			thief.Versions = append(thief.Versions, newVersion(t))
			thief.Versions[1].Ref = r.Versions[0].Ref
			wantErr(t, "InsertKey", s.InsertKey(t.Context(), thief), kms.ErrExists)
			wantKeys(t, s, r)
			// Nothing of it is left: with a ref of its own it goes in.
			thief.Versions[1].Ref = newRef(t)
			insertKey(t, s, thief)
			wantKeys(t, s, r, thief)
		}},
		{"one ref twice in one record is refused", func(t *testing.T, s kms.Store) {
			r := newKey(t)
			r.Versions = append(r.Versions, r.Versions[0])
			if err := s.InsertKey(t.Context(), r); err == nil {
				t.Error("InsertKey = nil")
			}
			wantKeys(t, s)
		}},
		{"records that break their documentation are refused", func(t *testing.T, s kms.Store) {
			for name, spoil := range spoilers() {
				r := newKey(t)
				spoil(r)
				wantRefused(t, "InsertKey: "+name, s.InsertKey(t.Context(), r))
			}
			wantKeys(t, s)
		}},
	}
}

func readKeyPromises() []promise {
	return []promise{
		{"the store shares nothing with its callers", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			want := r.Clone()
			scribble(r)
			wantKeys(t, s, want)
			got, err := s.Key(t.Context(), want.ID)
			if err != nil {
				t.Fatal(err)
			}
			scribble(got)
			scribble(snapshot(t, s).Keys[0])
			wantKeys(t, s, want)
		}},
		{"ErrNotFound for a key that was never there", func(t *testing.T, s kms.Store) {
			insertKey(t, s, newKey(t))
			_, err := s.Key(t.Context(), newID(t))
			wantErr(t, "Key", err, kms.ErrNotFound)
			_, err = s.Key(t.Context(), "")
			wantErr(t, "Key of no id", err, kms.ErrNotFound)
		}},
	}
}

// scribble changes all that r refers to.
func scribble(r *kms.KeyRecord) {
	r.Description = "scribbled"
	r.Tags[0].Value = "scribbled"
	r.Versions[0].Locator.ID[0] ^= 0xff
	r.Versions[0].Locator.Label = "scribbled"
}

// wantRefused wants an error, but none that says how the store stands.
func wantRefused(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || errors.Is(err, kms.ErrExists) || errors.Is(err, kms.ErrNotFound) || errors.Is(err, kms.ErrConflict) {
		t.Errorf("%s: error %v, want a refusal of the record", what, err)
	}
}

// spoilers each break one sentence of kms.KeyRecord.
func spoilers() map[string]func(r *kms.KeyRecord) {
	return map[string]func(r *kms.KeyRecord){
		"no id":                  func(r *kms.KeyRecord) { r.ID = "" },
		"no account":             func(r *kms.KeyRecord) { r.Account = "" },
		"account of 11 digits":   func(r *kms.KeyRecord) { r.Account = "11112222333" },
		"account of 13 digits":   func(r *kms.KeyRecord) { r.Account = "1111222233334" },
		"no region":              func(r *kms.KeyRecord) { r.Region = "" },
		"no spec":                func(r *kms.KeyRecord) { r.Spec = 0 },
		"unknown spec":           func(r *kms.KeyRecord) { r.Spec = 9999 },
		"no usage":               func(r *kms.KeyRecord) { r.Usage = 0 },
		"unknown usage":          func(r *kms.KeyRecord) { r.Usage = -1 },
		"no state":               func(r *kms.KeyRecord) { r.State = 0 },
		"unknown state":          func(r *kms.KeyRecord) { r.State = 9999 },
		"state unavailable":      func(r *kms.KeyRecord) { r.State = keyholdv1.KeyState_KEY_STATE_UNAVAILABLE },
		"enabled, no version":    func(r *kms.KeyRecord) { r.Versions = nil },
		"deletion date, enabled": func(r *kms.KeyRecord) { r.DeletionDate = moment(9) },
		"window, enabled":        func(r *kms.KeyRecord) { r.PendingWindowDays = 7 },
		"destroying, enabled":    func(r *kms.KeyRecord) { r.Destroying = true },
		"pending, no date":       func(r *kms.KeyRecord) { pending(r).DeletionDate = kms.KeyRecord{}.DeletionDate },
		"pending, no window":     func(r *kms.KeyRecord) { pending(r).PendingWindowDays = 0 },
		"one tag twice":          func(r *kms.KeyRecord) { r.Tags[1].Key = r.Tags[0].Key },
		"no locator spec":        func(r *kms.KeyRecord) { r.Versions[0].Locator.Spec = 0 },
		"unknown locator usage":  func(r *kms.KeyRecord) { r.Versions[0].Locator.Usage = 9999 },
		"no custody":             func(r *kms.KeyRecord) { r.Versions[0].Custody = 0 },
		"unknown custody":        func(r *kms.KeyRecord) { r.Versions[0].Custody = 9999 },
	}
}

// roundTrips: what is stored comes back.
func roundTrips() []promise {
	records := map[string]func(t *testing.T, r *kms.KeyRecord){
		"plain":                      func(*testing.T, *kms.KeyRecord) {},
		"disabled":                   func(_ *testing.T, r *kms.KeyRecord) { r.State = keyholdv1.KeyState_KEY_STATE_DISABLED },
		"pending deletion":           func(_ *testing.T, r *kms.KeyRecord) { pending(r) },
		"being destroyed":            func(_ *testing.T, r *kms.KeyRecord) { pending(r).Destroying = true },
		"intent without versions":    func(_ *testing.T, r *kms.KeyRecord) { creating(r).Versions = nil },
		"intent of unproven custody": func(_ *testing.T, r *kms.KeyRecord) { creating(r).Versions[0].Custody = 0 },
		"no description, no tags":    func(_ *testing.T, r *kms.KeyRecord) { r.Description, r.Tags = "", nil },
		"a key store of its own":     func(_ *testing.T, r *kms.KeyRecord) { r.KeyStore = "cks-0123456789abcdef0" },
		"a public key":               func(_ *testing.T, r *kms.KeyRecord) { r.Versions[0].PublicKey = []byte{0x30, 0, 0xff} },
		"an empty locator":           func(_ *testing.T, r *kms.KeyRecord) { r.Versions[0].Locator.ID = nil; r.Versions[0].Locator.Label = "" },
		"binary locator": func(_ *testing.T, r *kms.KeyRecord) {
			r.Versions[0].Locator.ID = []byte{0, 1, 0, 255, '\'', 0}
		},
		"hostile text": func(_ *testing.T, r *kms.KeyRecord) {
			r.Description = "'; DROP TABLE keys; -- \x00 %s ? $1 \\ \"\u202e🔑"
			r.Tags = []kms.Tag{{Key: "a'b", Value: ""}, {Key: "A'B", Value: "\x00"}, {Key: "12345", Value: "0x10"}}
		},
		"the order of tags": func(_ *testing.T, r *kms.KeyRecord) {
			r.Tags = []kms.Tag{{Key: "z", Value: "1"}, {Key: "a", Value: "2"}, {Key: "m", Value: "3"}}
		},
		"AWS's largest record": func(t *testing.T, r *kms.KeyRecord) {
			r.Description = strings.Repeat("\U0001F511", 8192)
			r.Tags = nil
			for i := range 50 {
				r.Tags = append(r.Tags, kms.Tag{Key: fmt.Sprintf("%03d%s", i, strings.Repeat("é", 125)), Value: strings.Repeat("ü", 256)})
			}
			for range 100 {
				r.Versions = append(r.Versions, newVersion(t))
			}
		},
	}
	promises := []promise{{"all specs and usages come back", func(t *testing.T, s kms.Store) {
		var want []*kms.KeyRecord
		for spec := range keyholdv1.KeySpec_name {
			for usage := range keyholdv1.KeyUsageType_name {
				if spec == 0 || usage == 0 {
					continue
				}
				r := newKey(t)
				r.Spec, r.Usage = keyholdv1.KeySpec(spec), keyholdv1.KeyUsageType(usage)
				r.Versions[0].Locator.Spec, r.Versions[0].Locator.Usage = r.Spec, r.Usage
				want = append(want, insertKey(t, s, r))
			}
		}
		wantKeys(t, s, want...)
	}}}
	for name, change := range records {
		promises = append(promises, promise{"comes back: " + name, func(t *testing.T, s kms.Store) {
			r := newKey(t)
			change(t, r)
			insertKey(t, s, r)
			wantKeys(t, s, r)
		}})
	}
	return promises
}

func creating(r *kms.KeyRecord) *kms.KeyRecord {
	r.State = keyholdv1.KeyState_KEY_STATE_CREATING
	return r
}

func updateKeyPromises() []promise {
	return slices.Concat(swapPromises(), keptPromises())
}

// swapPromises: an update happens as a whole, or not at all.
func swapPromises() []promise {
	return []promise{
		{"the record, its tags and versions are replaced", func(t *testing.T, s kms.Store) {
			other := insertKey(t, s, newKey(t))
			r := insertKey(t, s, newKey(t))
			r = pending(r.Clone())
			r.KeyStore = "cks-1"
			r.Description = "new"
			r.Tags = []kms.Tag{{Key: "env", Value: "test"}, {Key: "fresh", Value: "1"}}
			r.Versions = append(r.Versions, newVersion(t), newVersion(t))
			r.Versions[0].Locator.Label = "moved"
			r.Destroying = true
			if err := s.UpdateKey(t.Context(), r); err != nil {
				t.Fatalf("UpdateKey: %v", err)
			}
			if r.Revision != 2 {
				t.Errorf("Revision = %d, want 2", r.Revision)
			}
			wantKeys(t, s, r, other)

			r = r.Clone()
			r.State, r.DeletionDate, r.PendingWindowDays, r.Destroying = other.State, other.DeletionDate, 0, false
			r.Tags = nil
			r.Versions = r.Versions[1:]
			if err := s.UpdateKey(t.Context(), r); err != nil {
				t.Fatalf("UpdateKey: %v", err)
			}
			if r.Revision != 3 {
				t.Errorf("Revision = %d, want 3", r.Revision)
			}
			wantKeys(t, s, r, other)
		}},
		{"ErrConflict where it is not at the revision, without effect", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			if err := s.UpdateKey(t.Context(), r); err != nil {
				t.Fatalf("UpdateKey: %v", err)
			}
			for _, revision := range []int64{-1, 0, r.Revision - 1, r.Revision + 1} {
				stale := r.Clone()
				stale.Revision, stale.Description, stale.Tags = revision, "stale", nil
				stale.Versions = append(stale.Versions, newVersion(t))
				wantErr(t, "UpdateKey", s.UpdateKey(t.Context(), stale), kms.ErrConflict)
				if stale.Revision != revision {
					t.Errorf("revision of a record that was not stored: %d, was %d", stale.Revision, revision)
				}
			}
			wantKeys(t, s, r)
		}},
		{"ErrNotFound where there is none", func(t *testing.T, s kms.Store) {
			r := newKey(t)
			r.Revision = 1
			wantErr(t, "UpdateKey", s.UpdateKey(t.Context(), r), kms.ErrNotFound)
			wantKeys(t, s)
		}},
		{"ErrExists where another key has the ref", func(t *testing.T, s kms.Store) {
			owner, thief := insertKey(t, s, newKey(t)), insertKey(t, s, newKey(t))
			bad := thief.Clone()
			bad.Tags = nil
			bad.Versions = append(bad.Versions, owner.Versions[0])
			wantErr(t, "UpdateKey", s.UpdateKey(t.Context(), bad), kms.ErrExists)
			wantKeys(t, s, owner, thief)
		}},
	}
}

// keptPromises: what an update leaves as it was.
func keptPromises() []promise {
	return []promise{
		{"aliases and seal counts stay", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			a := insertAlias(t, s, newAlias("alias/a", r.ID))
			first := r.Versions[0].Ref
			lease(t, s, first, 5, 100)
			r = r.Clone()
			r.Versions = append(r.Versions, newVersion(t))
			if err := s.UpdateKey(t.Context(), r); err != nil {
				t.Fatalf("UpdateKey: %v", err)
			}
			wantAliases(t, s, a)
			wantSeals(t, s, first, 5)
			wantSeals(t, s, r.Versions[1].Ref, 0)
		}},
		{"a version that goes and comes back keeps its seal count", func(t *testing.T, s kms.Store) {
			r := newKey(t)
			r.Versions = append(r.Versions, newVersion(t))
			insertKey(t, s, r)
			ref := r.Versions[0].Ref
			lease(t, s, ref, 7, 10)
			less := r.Clone()
			less.Versions = less.Versions[1:]
			if err := s.UpdateKey(t.Context(), less); err != nil {
				t.Fatalf("UpdateKey: %v", err)
			}
			r.Revision = less.Revision
			if err := s.UpdateKey(t.Context(), r); err != nil {
				t.Fatalf("UpdateKey: %v", err)
			}
			if start, granted := lease(t, s, ref, 7, 10); start != 7 || granted != 3 {
				t.Errorf("LeaseSeals = %d, %d, want 7, 3", start, granted)
			}
		}},
		{"records that break their documentation are refused", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			for name, spoil := range spoilers() {
				bad := r.Clone()
				spoil(bad)
				wantRefused(t, "UpdateKey: "+name, s.UpdateKey(t.Context(), bad))
			}
			wantKeys(t, s, r)
		}},
	}
}

func deleteKeyPromises() []promise {
	return []promise{
		{"record, tags, versions, seal counts and aliases go, all else stays", func(t *testing.T, s kms.Store) {
			r, other := insertKey(t, s, newKey(t)), insertKey(t, s, newKey(t))
			insertAlias(t, s, newAlias("alias/a", r.ID))
			insertAlias(t, s, newAlias("alias/b", r.ID))
			kept := insertAlias(t, s, newAlias("alias/c", other.ID))
			ref, otherRef := r.Versions[0].Ref, other.Versions[0].Ref
			lease(t, s, ref, 5, 100)
			lease(t, s, otherRef, 6, 100)
			if err := s.DeleteKey(t.Context(), r.ID, r.Revision); err != nil {
				t.Fatalf("DeleteKey: %v", err)
			}
			wantKeys(t, s, other)
			wantAliases(t, s, kept)
			wantSeals(t, s, otherRef, 6)
			_, err := s.Key(t.Context(), r.ID)
			wantErr(t, "Key", err, kms.ErrNotFound)
			_, err = s.SealCount(t.Context(), ref)
			wantErr(t, "SealCount", err, kms.ErrNotFound)

			// Its names are free, and nothing of it comes back with them.
			again := newKey(t)
			again.ID, again.Versions, again.Tags = r.ID, r.Versions, nil
			insertKey(t, s, again)
			insertAlias(t, s, newAlias("alias/a", again.ID))
			wantKeys(t, s, other, again)
			wantSeals(t, s, ref, 0)
		}},
		{"ErrConflict where it is not at the revision, without effect", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			a := insertAlias(t, s, newAlias("alias/a", r.ID))
			for _, revision := range []int64{-1, 0, 2} {
				wantErr(t, "DeleteKey", s.DeleteKey(t.Context(), r.ID, revision), kms.ErrConflict)
			}
			wantKeys(t, s, r)
			wantAliases(t, s, a)
		}},
		{"ErrNotFound where there is none", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			wantErr(t, "DeleteKey", s.DeleteKey(t.Context(), newID(t), 1), kms.ErrNotFound)
			if err := s.DeleteKey(t.Context(), r.ID, 1); err != nil {
				t.Fatalf("DeleteKey: %v", err)
			}
			wantErr(t, "DeleteKey, again", s.DeleteKey(t.Context(), r.ID, 1), kms.ErrNotFound)
		}},
	}
}
