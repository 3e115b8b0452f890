package storetest

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server/kms"
)

func aliasPromises() []promise {
	return slices.Concat(insertAliasPromises(), changeAliasPromises())
}

func insertAliasPromises() []promise {
	return []promise{
		{"comes back, at revision 1", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			a := insertAlias(t, s, newAlias("alias/"+strings.Repeat("x", 250), r.ID))
			b := insertAlias(t, s, newAlias("alias/it's/b_-é", r.ID))
			if a.Revision != 1 {
				t.Errorf("Revision = %d", a.Revision)
			}
			wantAliases(t, s, a, b)
		}},
		{"a record with a revision is no new one", func(t *testing.T, s kms.Store) {
			a := newAlias("alias/a", insertKey(t, s, newKey(t)).ID)
			a.Revision = 1
			if err := s.InsertAlias(t.Context(), a); err == nil {
				t.Error("InsertAlias = nil")
			}
			wantAliases(t, s)
		}},
		{"ErrExists where the name is taken in account and region", func(t *testing.T, s kms.Store) {
			r, other := insertKey(t, s, newKey(t)), insertKey(t, s, newKey(t))
			a := insertAlias(t, s, newAlias("alias/a", r.ID))
			twin := newAlias("alias/a", other.ID)
			wantErr(t, "InsertAlias", s.InsertAlias(t.Context(), twin), kms.ErrExists)
			if twin.Revision != 0 {
				t.Errorf("revision of a record that was not stored: %d", twin.Revision)
			}
			wantAliases(t, s, a)
		}},
		{"one name in two accounts, two regions, two cases", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			a, b, c, d := newAlias("alias/a", r.ID), newAlias("alias/a", r.ID), newAlias("alias/a", r.ID), newAlias("alias/A", r.ID)
			b.Account, c.Region = otherAccount, otherRegion
			wantAliases(t, s, insertAlias(t, s, a), insertAlias(t, s, b), insertAlias(t, s, c), insertAlias(t, s, d))
		}},
		{"ErrNotFound where the key does not exist", func(t *testing.T, s kms.Store) {
			wantErr(t, "InsertAlias", s.InsertAlias(t.Context(), newAlias("alias/a", newID(t))), kms.ErrNotFound)
			wantAliases(t, s)
		}},
		{"records that break their documentation are refused", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			for name, spoil := range map[string]func(a *kms.AliasRecord){
				"no name":    func(a *kms.AliasRecord) { a.Name = "" },
				"no account": func(a *kms.AliasRecord) { a.Account = "" },
				"no region":  func(a *kms.AliasRecord) { a.Region = "" },
				"no key":     func(a *kms.AliasRecord) { a.KeyID = "" },
			} {
				a := newAlias("alias/a", r.ID)
				spoil(a)
				wantRefused(t, "InsertAlias: "+name, s.InsertAlias(t.Context(), a))
			}
			wantAliases(t, s)
		}},
	}
}

func changeAliasPromises() []promise {
	return []promise{
		{"update replaces key and time, nothing else", func(t *testing.T, s kms.Store) {
			r, other := insertKey(t, s, newKey(t)), insertKey(t, s, newKey(t))
			a := insertAlias(t, s, newAlias("alias/a", r.ID))
			b := insertAlias(t, s, newAlias("alias/b", r.ID))
			c := *a
			c.KeyID, c.Updated, c.Created = other.ID, moment(20), moment(21)
			if err := s.UpdateAlias(t.Context(), &c); err != nil {
				t.Fatalf("UpdateAlias: %v", err)
			}
			if c.Revision != 2 {
				t.Errorf("Revision = %d, want 2", c.Revision)
			}
			c.Created = a.Created
			wantAliases(t, s, &c, b)
			// The old key takes only its own along.
			if err := s.DeleteKey(t.Context(), r.ID, r.Revision); err != nil {
				t.Fatalf("DeleteKey: %v", err)
			}
			wantAliases(t, s, &c)
		}},
		{"update: ErrConflict and ErrNotFound, without effect", func(t *testing.T, s kms.Store) {
			r, other := insertKey(t, s, newKey(t)), insertKey(t, s, newKey(t))
			a := insertAlias(t, s, newAlias("alias/a", r.ID))
			for _, revision := range []int64{0, 2} {
				c := *a
				c.Revision, c.KeyID = revision, other.ID
				wantErr(t, "UpdateAlias", s.UpdateAlias(t.Context(), &c), kms.ErrConflict)
				if c.Revision != revision {
					t.Errorf("revision of a record that was not stored: %d, was %d", c.Revision, revision)
				}
			}
			c := *a
			c.KeyID = newID(t)
			wantErr(t, "UpdateAlias to no key", s.UpdateAlias(t.Context(), &c), kms.ErrNotFound)
			c = *a
			c.Name = "alias/b"
			wantErr(t, "UpdateAlias of none", s.UpdateAlias(t.Context(), &c), kms.ErrNotFound)
			c = *a
			c.Region = otherRegion
			wantErr(t, "UpdateAlias elsewhere", s.UpdateAlias(t.Context(), &c), kms.ErrNotFound)
			wantAliases(t, s, a)
		}},
		{"delete: ErrConflict and ErrNotFound, without effect", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			a, b := insertAlias(t, s, newAlias("alias/a", r.ID)), insertAlias(t, s, newAlias("alias/b", r.ID))
			c := *a
			c.Revision = 2
			wantErr(t, "DeleteAlias", s.DeleteAlias(t.Context(), &c), kms.ErrConflict)
			c = *a
			c.Account = otherAccount
			wantErr(t, "DeleteAlias elsewhere", s.DeleteAlias(t.Context(), &c), kms.ErrNotFound)
			wantAliases(t, s, a, b)
			if err := s.DeleteAlias(t.Context(), a); err != nil {
				t.Fatalf("DeleteAlias: %v", err)
			}
			wantErr(t, "DeleteAlias, again", s.DeleteAlias(t.Context(), a), kms.ErrNotFound)
			wantAliases(t, s, b)
			wantKeys(t, s, r)
		}},
	}
}

func sealPromises() []promise {
	const limit = 1 << 32 // NIST SP 800-38D, 8.3
	type step struct{ n, limit, start, granted uint64 }
	table := []struct {
		name  string
		steps []step
	}{
		{"each lease starts where the one before ended", []step{{10, limit, 0, 10}, {1, limit, 10, 1}, {5, limit, 11, 5}}},
		{"none asked, none given", []step{{0, limit, 0, 0}, {3, limit, 0, 3}, {0, limit, 3, 0}}},
		{"the limit is reached exactly", []step{{limit - 1, limit, 0, limit - 1}, {1, limit, limit - 1, 1}, {1, limit, limit, 0}}},
		{"at the limit, what is left is given", []step{{limit - 3, limit, 0, limit - 3}, {4, limit, limit - 3, 3}, {1, limit, limit, 0}}},
		{"one more than the limit at once", []step{{limit + 1, limit, 0, limit}, {1, limit, limit, 0}}},
		{"a lower limit later gives nothing and takes nothing", []step{{10, limit, 0, 10}, {1, 10, 10, 0}, {1, 5, 10, 0}, {1, 11, 10, 1}}},
		{"no limit allowed", []step{{1, 0, 0, 0}}},
		{"sums do not overflow", []step{{5, math.MaxUint64, 0, 5}, {math.MaxUint64, limit, 5, limit - 5}, {math.MaxUint64, limit, limit, 0}}},
	}
	var promises []promise
	for _, row := range table {
		promises = append(promises, promise{row.name, func(t *testing.T, s kms.Store) {
			ref := insertKey(t, s, newKey(t)).Versions[0].Ref
			for i, step := range row.steps {
				start, granted := lease(t, s, ref, step.n, step.limit)
				if start != step.start || granted != step.granted {
					t.Errorf("step %d: LeaseSeals(%d, %d) = %d, %d, want %d, %d", i, step.n, step.limit, start, granted, step.start, step.granted)
				}
				wantSeals(t, s, ref, step.start+step.granted)
			}
		}})
	}
	return append(promises, []promise{
		{"every version has its own count", func(t *testing.T, s kms.Store) {
			r := newKey(t)
			r.Versions = append(r.Versions, newVersion(t))
			insertKey(t, s, r)
			lease(t, s, r.Versions[0].Ref, 4, limit)
			wantSeals(t, s, r.Versions[0].Ref, 4)
			wantSeals(t, s, r.Versions[1].Ref, 0)
		}},
		{"leasing is no write of the record", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			lease(t, s, r.Versions[0].Ref, 4, limit)
			wantKeys(t, s, r)
		}},
		{"ErrNotFound where no key has the version", func(t *testing.T, s kms.Store) {
			insertKey(t, s, newKey(t))
			_, _, err := s.LeaseSeals(t.Context(), newRef(t), 1, limit)
			wantErr(t, "LeaseSeals", err, kms.ErrNotFound)
			_, err = s.SealCount(t.Context(), newRef(t))
			wantErr(t, "SealCount", err, kms.ErrNotFound)
		}},
	}...)
}
