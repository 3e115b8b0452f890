// Package storetest holds what kms.Store promises as tests, for every
// implementation and every fake of it.
//
// Test runs the promises on stores that live as long as a test. TestDurable
// runs those that need a store to be closed and opened again. CrashWriter and
// CrashLog are the two halves of a test that kills a process in the middle of
// its writes; the implementation's own test starts and kills it.
//
// The suite holds an implementation to one more thing than the interface: it
// refuses records that break what kms.KeyRecord documents, so that a fault is
// met when it is made and not at the next start.
package storetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/kms"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

const (
	account      kms.AccountID = "111122223333"
	otherAccount kms.AccountID = "444455556666"
	region       kms.Region    = "eu-central-1"
	otherRegion  kms.Region    = "us-east-1"
)

// Test runs every promise of kms.Store. newStore returns an empty store of its
// own for each call, and lets t clean it up.
func Test(t *testing.T, newStore func(t *testing.T) kms.Store) {
	t.Helper()
	for _, group := range []struct {
		name  string
		tests []promise
	}{
		{"Instance", instancePromises()},
		{"InsertKey", insertKeyPromises()},
		{"UpdateKey", updateKeyPromises()},
		{"DeleteKey", deleteKeyPromises()},
		{"Alias", aliasPromises()},
		{"Seals", sealPromises()},
		{"Tick", tickPromises()},
		{"Context", contextPromises()},
		{"Concurrency", concurrencyPromises()},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, p := range group.tests {
				t.Run(p.name, func(t *testing.T) { p.test(t, newStore(t)) })
			}
		})
	}
}

// promise is one sentence of the contract.
type promise struct {
	name string
	test func(t *testing.T, s kms.Store)
}

// moment is a time in the precision that all stores keep.
func moment(second int) time.Time {
	return time.Date(2031, 2, 3, 4, 5, second, 678_901_000, time.UTC)
}

// newID returns a random key id in the form of a UUID.
func newID(t *testing.T) kms.KeyID {
	t.Helper()
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, 5.4
	return kms.KeyID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

func newRef(t *testing.T) kms.Ref {
	t.Helper()
	var ref kms.Ref
	if _, err := rand.Read(ref[:]); err != nil {
		t.Fatal(err)
	}
	return ref
}

func newVersion(t *testing.T) kms.KeyVersion {
	t.Helper()
	ref := newRef(t)
	return kms.KeyVersion{
		MaterialID: kms.KeyMaterialID(strings.Repeat(hex.EncodeToString(ref[:]), 2)),
		Ref:        ref,
		Locator: kms.Locator{
			ID:    ref[:],
			Label: "keyhold/0123abcd/" + ref.String(),
			Spec:  keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
			Usage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT,
		},
		Custody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED,
		Created: moment(2),
	}
}

// newKey returns a record that is not stored.
func newKey(t *testing.T) *kms.KeyRecord {
	t.Helper()
	return &kms.KeyRecord{
		ID:          newID(t),
		Account:     account,
		Region:      region,
		Spec:        keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
		Usage:       keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT,
		State:       keyholdv1.KeyState_KEY_STATE_ENABLED,
		Description: "payments",
		Tags:        []kms.Tag{{Key: "team", Value: "billing"}, {Key: "env", Value: "prod"}},
		Created:     moment(1),
		Versions:    []kms.KeyVersion{newVersion(t)},
	}
}

// pending makes r a record of a key that waits for its deletion.
func pending(r *kms.KeyRecord) *kms.KeyRecord {
	r.State = keyholdv1.KeyState_KEY_STATE_PENDING_DELETION
	r.DeletionDate = moment(30)
	r.PendingWindowDays = 7
	return r
}

func newAlias(name string, id kms.KeyID) *kms.AliasRecord {
	return &kms.AliasRecord{Account: account, Region: region, Name: name, KeyID: id, Created: moment(3), Updated: moment(4)}
}

// insertKey stores r, which must work.
func insertKey(t *testing.T, s kms.Store, r *kms.KeyRecord) *kms.KeyRecord {
	t.Helper()
	if err := s.InsertKey(t.Context(), r); err != nil {
		t.Fatalf("InsertKey: %v", err)
	}
	return r
}

func insertAlias(t *testing.T, s kms.Store, a *kms.AliasRecord) *kms.AliasRecord {
	t.Helper()
	if err := s.InsertAlias(t.Context(), a); err != nil {
		t.Fatalf("InsertAlias: %v", err)
	}
	return a
}

func snapshot(t *testing.T, s kms.Store) *kms.Snapshot {
	t.Helper()
	snap, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return snap
}

// lease leases n, which must work, and returns what LeaseSeals returns.
func lease(t *testing.T, s kms.Store, ref kms.Ref, n, limit uint64) (start, granted uint64) {
	t.Helper()
	start, granted, err := s.LeaseSeals(t.Context(), ref, n, limit)
	if err != nil {
		t.Fatalf("LeaseSeals(%d, limit %d): %v", n, limit, err)
	}
	return start, granted
}

func wantSeals(t *testing.T, s kms.Store, ref kms.Ref, want uint64) {
	t.Helper()
	got, err := s.SealCount(t.Context(), ref)
	if err != nil {
		t.Fatalf("SealCount: %v", err)
	}
	if got != want {
		t.Errorf("SealCount = %d, want %d", got, want)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
	}
}

// wantKeys compares the keys of a store, in any order, with those given. It
// looks at both ways to read them.
func wantKeys(t *testing.T, s kms.Store, want ...*kms.KeyRecord) {
	t.Helper()
	got := snapshot(t, s).Keys
	if g, w := showKeys(got), showKeys(want); g != w {
		t.Errorf("keys of the snapshot:\n%s\nwant:\n%s", g, w)
	}
	for _, w := range want {
		g, err := s.Key(t.Context(), w.ID)
		if err != nil {
			t.Errorf("Key: %v", err)
			continue
		}
		if g, w := showKeys([]*kms.KeyRecord{g}), showKeys([]*kms.KeyRecord{w}); g != w {
			t.Errorf("Key:\n%s\nwant:\n%s", g, w)
		}
	}
}

func wantAliases(t *testing.T, s kms.Store, want ...*kms.AliasRecord) {
	t.Helper()
	if g, w := showAliases(snapshot(t, s).Aliases), showAliases(want); g != w {
		t.Errorf("aliases of the snapshot:\n%s\nwant:\n%s", g, w)
	}
}

// showKeys writes records so that equal ones look equal: ordered by id, nil
// and empty slices alike, times in UTC.
func showKeys(keys []*kms.KeyRecord) string {
	keys = slices.SortedFunc(slices.Values(keys), func(a, b *kms.KeyRecord) int {
		return strings.Compare(string(a.ID), string(b.ID))
	})
	for i, k := range keys {
		k = k.Clone()
		k.Created, k.DeletionDate = k.Created.UTC(), k.DeletionDate.UTC()
		if len(k.Tags) == 0 {
			k.Tags = nil
		}
		for j := range k.Versions {
			v := &k.Versions[j]
			v.Created = v.Created.UTC()
			if len(v.Locator.ID) == 0 {
				v.Locator.ID = nil
			}
		}
		keys[i] = k
	}
	return show(keys)
}

func showAliases(aliases []*kms.AliasRecord) string {
	aliases = slices.SortedFunc(slices.Values(aliases), func(a, b *kms.AliasRecord) int {
		return strings.Compare(fmt.Sprint(a.Account, "\x00", a.Region, "\x00", a.Name), fmt.Sprint(b.Account, "\x00", b.Region, "\x00", b.Name))
	})
	for i, a := range aliases {
		c := *a
		c.Created, c.Updated = c.Created.UTC(), c.Updated.UTC()
		aliases[i] = &c
	}
	return show(aliases)
}

func show(v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func instancePromises() []promise {
	return []promise{
		{"eight lower-case hexadecimal digits, always the same", func(t *testing.T, s kms.Store) {
			got := s.Instance()
			if b, err := hex.DecodeString(got); err != nil || len(b) != 4 || got != strings.ToLower(got) {
				t.Errorf("Instance = %q", got)
			}
			if again := s.Instance(); again != got {
				t.Errorf("Instance = %q, then %q", got, again)
			}
		}},
		{"a new store is empty", func(t *testing.T, s kms.Store) {
			snap := snapshot(t, s)
			if len(snap.Keys) != 0 || len(snap.Aliases) != 0 {
				t.Errorf("Snapshot = %s", show(snap))
			}
		}},
	}
}

func tickPromises() []promise {
	last := func(t *testing.T, s kms.Store) time.Time {
		t.Helper()
		got, err := s.LastTick(t.Context())
		if err != nil {
			t.Fatalf("LastTick: %v", err)
		}
		return got
	}
	return []promise{
		{"the zero time before the first", func(t *testing.T, s kms.Store) {
			if got := last(t, s); !got.IsZero() {
				t.Errorf("LastTick = %v", got)
			}
		}},
		{"the last one stored, also when the clock went back", func(t *testing.T, s kms.Store) {
			for _, now := range []time.Time{
				moment(1), moment(5), moment(2),
				time.Date(1969, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
				time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
				moment(7).In(time.FixedZone("", 5*3600)),
			} {
				if err := s.Tick(t.Context(), now); err != nil {
					t.Fatalf("Tick: %v", err)
				}
				if got := last(t, s); !got.Equal(now) {
					t.Errorf("LastTick = %v, want %v", got, now)
				}
			}
		}},
		{"kept to the microsecond at least", func(t *testing.T, s kms.Store) {
			now := moment(1).Add(999 * time.Nanosecond)
			if err := s.Tick(t.Context(), now); err != nil {
				t.Fatalf("Tick: %v", err)
			}
			if got := last(t, s); now.Sub(got) < 0 || now.Sub(got) >= time.Microsecond {
				t.Errorf("LastTick = %v, want %v, or what is left of it in microseconds", got, now)
			}
		}},
	}
}

// contextPromises: a ctx that has ended stops every method, without effect, and
// writes say that it is without.
func contextPromises() []promise {
	return []promise{{"a ctx that has ended stops every method", func(t *testing.T, s kms.Store) {
		r := insertKey(t, s, newKey(t))
		a := insertAlias(t, s, newAlias("alias/a", r.ID))
		ref := r.Versions[0].Ref
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for name, call := range map[string]func() error{
			"Snapshot":    func() error { _, err := s.Snapshot(ctx); return err },
			"Key":         func() error { _, err := s.Key(ctx, r.ID); return err },
			"InsertKey":   func() error { return s.InsertKey(ctx, newKey(t)) },
			"UpdateKey":   func() error { return s.UpdateKey(ctx, r.Clone()) },
			"DeleteKey":   func() error { return s.DeleteKey(ctx, r.ID, r.Revision) },
			"InsertAlias": func() error { return s.InsertAlias(ctx, newAlias("alias/b", r.ID)) },
			"UpdateAlias": func() error { c := *a; return s.UpdateAlias(ctx, &c) },
			"DeleteAlias": func() error { return s.DeleteAlias(ctx, a) },
			"LeaseSeals":  func() error { _, _, err := s.LeaseSeals(ctx, ref, 1, 10); return err },
			"SealCount":   func() error { _, err := s.SealCount(ctx, ref); return err },
			"Tick":        func() error { return s.Tick(ctx, moment(1)) },
			"LastTick":    func() error { _, err := s.LastTick(ctx); return err },
		} {
			err := call()
			wantErr(t, name, err, context.Canceled)
			switch name {
			case "InsertKey", "UpdateKey", "DeleteKey", "InsertAlias", "UpdateAlias", "DeleteAlias", "Tick":
				wantErr(t, name, err, kms.ErrNotBegun)
			}
		}
		wantKeys(t, s, r)
		wantAliases(t, s, a)
		wantSeals(t, s, ref, 0)
		if got, err := s.LastTick(t.Context()); err != nil || !got.IsZero() {
			t.Errorf("LastTick = %v, %v", got, err)
		}
	}}}
}
