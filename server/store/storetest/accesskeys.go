package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/identity"
)

// TestAccessKeys runs every promise of identity.AccessKeyStore. newStore returns
// an empty store of its own for each call, and lets t clean it up.
func TestAccessKeys(t *testing.T, newStore func(t *testing.T) identity.AccessKeyStore) {
	t.Helper()
	for _, p := range slices.Concat(accessKeyPromises(), accessKeyChanges(), accessKeyRefusals()) {
		t.Run(p.name, func(t *testing.T) { p.test(t, newStore(t)) })
	}
}

type accessKeyPromise struct {
	name string
	test func(t *testing.T, s identity.AccessKeyStore)
}

func newAccessKey(n int) *identity.AccessKeyRecord {
	return &identity.AccessKeyRecord{
		ID: fmt.Sprintf("AKIATEST%012d", n), Principal: "arn:aws:iam::111122223333:user/team/alice", Active: true,
		Created: moment(n), SealedSecret: []byte{1, 2, 0, 3, byte(n)},
	}
}

func insertAccessKey(t *testing.T, s identity.AccessKeyStore, r *identity.AccessKeyRecord) *identity.AccessKeyRecord {
	t.Helper()
	if err := s.InsertAccessKey(t.Context(), r); err != nil {
		t.Fatalf("InsertAccessKey: %v", err)
	}
	return r
}

// wantAccessKeys compares the records of a store with those given, in the order of
// ids, by both ways to read them.
func wantAccessKeys(t *testing.T, s identity.AccessKeyStore, want ...*identity.AccessKeyRecord) {
	t.Helper()
	got, err := s.AccessKeys(t.Context())
	if err != nil {
		t.Fatalf("AccessKeys: %v", err)
	}
	slices.SortFunc(want, func(a, b *identity.AccessKeyRecord) int { return strings.Compare(a.ID, b.ID) })
	if g, w := showAccessKeys(got), showAccessKeys(want); g != w {
		t.Errorf("access keys:\n%s\nwant:\n%s", g, w)
	}
	for _, w := range want {
		g, err := s.AccessKey(t.Context(), w.ID)
		if err != nil {
			t.Errorf("AccessKey: %v", err)
			continue
		}
		if g, w := showAccessKeys([]*identity.AccessKeyRecord{g}), showAccessKeys([]*identity.AccessKeyRecord{w}); g != w {
			t.Errorf("AccessKey:\n%s\nwant:\n%s", g, w)
		}
	}
}

func showAccessKeys(keys []*identity.AccessKeyRecord) string {
	out := make([]identity.AccessKeyRecord, 0, len(keys))
	for _, k := range keys {
		c := *k
		c.Created, c.LastUse.At = c.Created.UTC(), c.LastUse.At.UTC()
		out = append(out, c)
	}
	return show(out)
}

func accessKeyPromises() []accessKeyPromise {
	return []accessKeyPromise{
		{"a new store has none", func(t *testing.T, s identity.AccessKeyStore) {
			wantAccessKeys(t, s)
			_, err := s.AccessKey(t.Context(), "AKIANONE")
			wantErr(t, "AccessKey", err, identity.ErrNoAccessKey)
		}},
		{"comes back, at revision 1", func(t *testing.T, s identity.AccessKeyStore) {
			a, b := insertAccessKey(t, s, newAccessKey(2)), newAccessKey(1)
			b.Active, b.Principal = false, "arn:aws:iam::444455556666:root"
			b.ID = strings.Repeat("x", 128)
			b.LastUse = identity.AccessKeyUse{At: moment(5), Region: "us-east-1", Service: "kms"}
			insertAccessKey(t, s, b)
			if a.Revision != 1 {
				t.Errorf("Revision = %d", a.Revision)
			}
			wantAccessKeys(t, s, a, b)
		}},
	}
}

func accessKeyChanges() []accessKeyPromise {
	return []accessKeyPromise{
		{"an update replaces Active, nothing else", func(t *testing.T, s identity.AccessKeyStore) {
			a := insertAccessKey(t, s, newAccessKey(1))
			c := *a
			c.Active, c.SealedSecret, c.Principal, c.Created = false, []byte("other"), "arn:aws:iam::111122223333:root", moment(9)
			if err := s.UpdateAccessKey(t.Context(), &c); err != nil {
				t.Fatal(err)
			}
			a.Active, a.Revision = false, 2
			if c.Revision != 2 {
				t.Errorf("Revision = %d", c.Revision)
			}
			wantAccessKeys(t, s, a)
		}},
		{"a use is no new revision, and those of keys that are gone are left out", func(t *testing.T, s identity.AccessKeyStore) {
			a, b := insertAccessKey(t, s, newAccessKey(1)), insertAccessKey(t, s, newAccessKey(2))
			use := identity.AccessKeyUse{At: moment(7), Region: "eu-west-1", Service: "sts"}
			if err := s.NoteAccessKeyUses(t.Context(), map[string]identity.AccessKeyUse{a.ID: use, "AKIAGONE": use}); err != nil {
				t.Fatal(err)
			}
			a.LastUse = use
			wantAccessKeys(t, s, a, b)
			if err := s.NoteAccessKeyUses(t.Context(), nil); err != nil {
				t.Errorf("no uses: %v", err)
			}
		}},
		{"delete takes one away, at any revision", func(t *testing.T, s identity.AccessKeyStore) {
			a, b := insertAccessKey(t, s, newAccessKey(1)), insertAccessKey(t, s, newAccessKey(2))
			if err := s.DeleteAccessKey(t.Context(), a.ID); err != nil {
				t.Fatal(err)
			}
			wantErr(t, "again", s.DeleteAccessKey(t.Context(), a.ID), identity.ErrNoAccessKey)
			wantAccessKeys(t, s, b)
			insertAccessKey(t, s, newAccessKey(1)) // its id is free
		}},
		{"of 64 updates at one revision exactly one wins", func(t *testing.T, s identity.AccessKeyStore) {
			a := insertAccessKey(t, s, newAccessKey(1))
			errs := make(chan error, 64)
			var wg sync.WaitGroup
			for range cap(errs) {
				wg.Go(func() {
					c := *a
					c.Active = false
					errs <- s.UpdateAccessKey(t.Context(), &c)
				})
			}
			wg.Wait()
			close(errs)
			won := 0
			for err := range errs {
				if err == nil {
					won++
					continue
				}
				wantErr(t, "UpdateAccessKey", err, identity.ErrAccessKeyChanged)
			}
			if won != 1 {
				t.Errorf("%d won", won)
			}
		}},
	}
}

func accessKeyRefusals() []accessKeyPromise {
	return []accessKeyPromise{
		{"ErrAccessKeyExists where the id is taken", func(t *testing.T, s identity.AccessKeyStore) {
			a, twin := insertAccessKey(t, s, newAccessKey(1)), newAccessKey(1)
			twin.Principal = "arn:aws:iam::444455556666:root"
			wantErr(t, "InsertAccessKey", s.InsertAccessKey(t.Context(), twin), identity.ErrAccessKeyExists)
			wantAccessKeys(t, s, a)
		}},
		{"ErrAccessKeyChanged and ErrNoAccessKey, without effect", func(t *testing.T, s identity.AccessKeyStore) {
			a := insertAccessKey(t, s, newAccessKey(1))
			for _, revision := range []int64{0, 2} {
				c := *a
				c.Active, c.Revision = false, revision
				wantErr(t, "UpdateAccessKey", s.UpdateAccessKey(t.Context(), &c), identity.ErrAccessKeyChanged)
				if c.Revision != revision {
					t.Errorf("revision of a record that was not stored: %d", c.Revision)
				}
			}
			wantErr(t, "UpdateAccessKey", s.UpdateAccessKey(t.Context(), newAccessKey(9)), identity.ErrNoAccessKey)
			wantAccessKeys(t, s, a)
		}},
		{"records that break their documentation are refused", func(t *testing.T, s identity.AccessKeyStore) {
			for name, spoil := range map[string]func(r *identity.AccessKeyRecord){
				"no id":             func(r *identity.AccessKeyRecord) { r.ID = "" },
				"an id of 129":      func(r *identity.AccessKeyRecord) { r.ID = strings.Repeat("A", 129) },
				"an id with a line": func(r *identity.AccessKeyRecord) { r.ID = "AKIA\n" },
				"no principal":      func(r *identity.AccessKeyRecord) { r.Principal = "" },
				"not a principal":   func(r *identity.AccessKeyRecord) { r.Principal = "arn:aws:iam::1:root" },
				"no secret":         func(r *identity.AccessKeyRecord) { r.SealedSecret = nil },
				"no creation":       func(r *identity.AccessKeyRecord) { r.Created = time.Time{} },
				"a revision":        func(r *identity.AccessKeyRecord) { r.Revision = 1 },
				"a use at no time":  func(r *identity.AccessKeyRecord) { r.LastUse.Region = "us-east-1" },
			} {
				r := newAccessKey(1)
				spoil(r)
				if err := s.InsertAccessKey(t.Context(), r); err == nil {
					t.Errorf("%s: no error", name)
				}
			}
			if err := s.NoteAccessKeyUses(t.Context(), map[string]identity.AccessKeyUse{"AKIA": {Region: "us-east-1"}}); err == nil {
				t.Error("a use at no time: no error")
			}
			wantAccessKeys(t, s)
		}},
		{"a ctx that has ended stops every method", func(t *testing.T, s identity.AccessKeyStore) {
			a := insertAccessKey(t, s, newAccessKey(1))
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for name, call := range map[string]func() error{
				"AccessKeys":        func() error { _, err := s.AccessKeys(ctx); return err },
				"AccessKey":         func() error { _, err := s.AccessKey(ctx, a.ID); return err },
				"InsertAccessKey":   func() error { return s.InsertAccessKey(ctx, newAccessKey(2)) },
				"UpdateAccessKey":   func() error { c := *a; return s.UpdateAccessKey(ctx, &c) },
				"DeleteAccessKey":   func() error { return s.DeleteAccessKey(ctx, a.ID) },
				"NoteAccessKeyUses": func() error { return s.NoteAccessKeyUses(ctx, map[string]identity.AccessKeyUse{a.ID: {At: moment(1)}}) },
			} {
				err := call()
				wantErr(t, name, err, context.Canceled)
				switch name {
				case "InsertAccessKey", "UpdateAccessKey", "DeleteAccessKey", "NoteAccessKeyUses":
					wantErr(t, name, err, identity.ErrNotBegun)
				}
			}
			wantAccessKeys(t, s, a)
		}},
	}
}
