package kms

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// TestFindOrphans compares one object or record, alone in the world, with
// what was read before and after it.
func TestFindOrphans(t *testing.T) {
	const (
		instance, region      = "0a1b2c3d", Region("us-east-1")
		creating, enabled     = keyholdv1.KeyState_KEY_STATE_CREATING, keyholdv1.KeyState_KEY_STATE_ENABLED
		disabled, pendingGone = keyholdv1.KeyState_KEY_STATE_DISABLED, keyholdv1.KeyState_KEY_STATE_PENDING_DELETION
	)
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	label := objectLabel(instance, "k")
	record := func(state keyholdv1.KeyState, change ...func(*KeyRecord)) []*KeyRecord {
		r := &KeyRecord{
			ID: "k", Region: region, State: state, Created: begun.Add(-time.Second),
			Versions: []KeyVersion{{Locator: Locator{ID: []byte("id"), Label: label}}},
		}
		for _, f := range change {
			f(r)
		}
		return []*KeyRecord{r}
	}
	lateRecord := func(r *KeyRecord) { r.Created = begun }
	destroying := func(r *KeyRecord) { r.Destroying = true }
	elsewhere := func(r *KeyRecord) { r.Region = "eu-west-1" }
	otherStore := func(r *KeyRecord) { r.KeyStore = "cks-1" }
	secret := []StoredObject{{ID: []byte("id"), Label: label}}
	pair := []StoredObject{{ID: []byte("id"), Label: label, Public: true}, {ID: []byte("id"), Label: label}}
	public := pair[:1]

	for _, c := range []struct {
		name          string
		before, after []*KeyRecord
		objects       []StoredObject
		want          []OrphanKind
	}{
		{name: "nothing"},
		{name: "a key", before: record(enabled), objects: secret, after: record(enabled)},
		{name: "a key pair", before: record(enabled), objects: pair, after: record(enabled)},
		{name: "object alone", objects: secret, want: []OrphanKind{OrphanObject}},
		{name: "objects of a pair alone", objects: pair, want: []OrphanKind{OrphanObject}},
		{name: "record alone", before: record(enabled), after: record(disabled), want: []OrphanKind{OrphanRecord}},
		{name: "record with the public half", before: record(enabled), objects: public, after: record(enabled), want: []OrphanKind{OrphanRecord}},
		{name: "made meanwhile, before its object was seen", after: record(enabled)},
		{name: "made meanwhile, its object was seen", objects: secret, after: record(enabled)},
		{name: "finished meanwhile", before: record(creating), after: record(enabled)},
		{name: "deleted meanwhile, its object was seen", before: record(pendingGone, destroying), objects: secret},
		{name: "being destroyed", before: record(pendingGone, destroying), after: record(pendingGone, destroying)},
		{name: "pending deletion without object", before: record(pendingGone), after: record(pendingGone), want: []OrphanKind{OrphanRecord}},
		{name: "intent without object", before: record(creating), after: record(creating), want: []OrphanKind{OrphanIntent}},
		{name: "intent with object", before: record(creating), objects: secret, after: record(creating), want: []OrphanKind{OrphanIntent}},
		{name: "intent under way", before: record(creating, lateRecord), objects: secret, after: record(creating, lateRecord)},
		{name: "a shared token: another region's key", before: record(enabled, elsewhere), objects: secret, after: record(enabled, elsewhere)},
		{name: "another region's record without object", before: record(enabled, elsewhere), after: record(enabled, elsewhere)},
		{name: "another key store's record", before: record(enabled, otherStore), after: record(enabled, otherStore)},
		{name: "another installation's object", objects: []StoredObject{{ID: []byte("id"), Label: objectLabel("ffffffff", "k")}}},
		{name: "somebody else's object", objects: []StoredObject{{ID: []byte("id"), Label: "tls"}}},
		{name: "the record's id under another label", before: record(enabled), objects: []StoredObject{{ID: []byte("id"), Label: "tls"}}, after: record(enabled), want: []OrphanKind{OrphanRecord}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []OrphanKind
			for _, o := range FindOrphans(Comparison{Instance: instance, Region: region, Before: c.before, Objects: c.objects, After: c.after, Begun: begun}) {
				got = append(got, o.Kind)
				if o.KeyID != "k" || string(o.ObjectID) != "id" || o.Label != label || o.Region != region {
					t.Errorf("orphan %+v is not the key k", o)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("orphans (-want +got):\n%s", d)
			}
		})
	}
}

// TestSharedTokenOrphansOnce reports an object once, however many regions
// share its token.
func TestSharedTokenOrphansOnce(t *testing.T) {
	o := Orphan{Kind: OrphanObject, ObjectID: []byte("id"), Label: "l"}
	r := Orphan{Kind: OrphanRecord, ObjectID: []byte("id"), Label: "l"}
	if got := uniqueObjects([]Orphan{o, r, o, r}); len(got) != 3 {
		t.Errorf("%d orphans, want the object once and both records", len(got))
	}
}
