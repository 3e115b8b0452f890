package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// OrphanKind says what is left over.
type OrphanKind string

// The kinds of orphans.
const (
	// OrphanIntent is a creation that was not finished: a record, perhaps
	// with an object. Nobody was told that the key exists.
	OrphanIntent OrphanKind = "unfinished creation"
	// OrphanObject is an object with this installation's label and no record.
	OrphanObject OrphanKind = "object without record"
	// OrphanRecord is a key whose object is not in its key store.
	OrphanRecord OrphanKind = "record without object"
)

// Orphan is something that records and key store do not agree on.
type Orphan struct {
	Kind   OrphanKind
	Region Region
	// KeyID is empty where the label does not tell it.
	KeyID KeyID
	// ObjectID is the CKA_ID, Label the CKA_LABEL.
	ObjectID []byte
	Label    string

	account  AccountID
	revision int64
}

type orphanReport struct {
	mu   sync.Mutex
	list []Orphan
}

// Orphans returns what the last reconciliation found.
func (s *Service) Orphans() []Orphan {
	s.orphans.mu.Lock()
	defer s.orphans.mu.Unlock()
	return slices.Clone(s.orphans.list)
}

// tryReconcile reconciles if every key store can be read now, and logs what
// was not known before. compared is false where it has to be tried again;
// whole is false while keys miss their material, which may come back.
func (s *Service) tryReconcile(ctx context.Context) (compared, whole bool) {
	for _, ks := range s.regions {
		if ks.Health() != nil {
			return false, false
		}
	}
	known := s.Orphans()
	orphans, err := s.Reconcile(ctx)
	if err != nil {
		s.log.WarnContext(ctx, "records and key stores not compared, it will be tried again", "err", err)
		return false, false
	}
	whole = true
	for _, o := range orphans {
		whole = whole && o.Kind != OrphanRecord
		if slices.ContainsFunc(known, o.same) {
			continue
		}
		s.log.WarnContext(ctx, "orphan found", "kind", o.Kind, "key", o.KeyID, "label", o.Label, "object_id", fmt.Sprintf("%x", o.ObjectID), "hint", "`keyholdd orphans --config FILE` lists and cleans up, with the daemon stopped")
	}
	return true, whole
}

// same reports whether both are the same orphan.
func (o Orphan) same(p Orphan) bool {
	return o.Kind == p.Kind && o.Region == p.Region && o.Label == p.Label && bytes.Equal(o.ObjectID, p.ObjectID)
}

// Reconcile compares records with what the key stores hold. It marks keys
// whose material is missing as unavailable, reports orphans on either side,
// and deletes nothing. The records are those in memory: what the store holds
// changes by this process alone, and reading 100,000 again takes as much memory
// as they have already.
func (s *Service) Reconcile(ctx context.Context) ([]Orphan, error) {
	var orphans []Orphan
	for region, ks := range s.regions {
		gen, ok := ks.(Generator)
		if !ok {
			continue
		}
		before, err := s.allRecords(ctx)
		if err != nil {
			return nil, err
		}
		objects, err := gen.Inventory(ctx)
		if err != nil {
			return nil, fmt.Errorf("inventory of %s: %w", region, err)
		}
		after, err := s.allRecords(ctx)
		if err != nil {
			return nil, err
		}
		// Creations of this process may still be under way.
		found := FindOrphans(Comparison{
			Instance: s.store.Instance(), Region: region, Before: before, Objects: objects, After: after, Begun: s.started.Truncate(recordTime),
		})
		s.markMissing(region, found, after)
		orphans = append(orphans, found...)
	}
	orphans = uniqueObjects(orphans)
	s.orphans.mu.Lock()
	s.orphans.list = orphans
	s.orphans.mu.Unlock()
	return slices.Clone(orphans), nil
}

// allRecords returns the records of all keys, those in CREATING as the store holds
// them. Unfinished ones come first: who is finished meanwhile is there twice, in
// the order of its states, and never missed.
func (s *Service) allRecords(ctx context.Context) ([]*KeyRecord, error) {
	var records []*KeyRecord
	for _, id := range s.keys.unfinished() {
		switch r, err := s.store.Key(ctx, id); {
		case err == nil:
			records = append(records, r)
		case !errors.Is(err, ErrNotFound):
			return nil, fmt.Errorf("read records: %w", err)
		}
	}
	s.keys.each(func(e *entry) { records = append(records, e.rec.Load()) })
	return records, nil
}

// markMissing makes keys unavailable whose material is not there, and others
// available again.
func (s *Service) markMissing(region Region, orphans []Orphan, records []*KeyRecord) {
	missing := make(map[KeyID]bool)
	for _, o := range orphans {
		if o.Kind == OrphanRecord {
			missing[o.KeyID] = true
		}
	}
	for _, r := range records {
		if r.Region != region || r.KeyStore != "" {
			continue
		}
		if e := s.keys.key(r.ID); e != nil {
			e.missing.Store(missing[r.ID])
		}
	}
}

// uniqueObjects drops what was found twice: a token that several regions
// share is looked at once for each.
func uniqueObjects(orphans []Orphan) []Orphan {
	seen := make(map[place]bool)
	return slices.DeleteFunc(orphans, func(o Orphan) bool {
		if o.Kind != OrphanObject {
			return false
		}
		p := place{string(o.ObjectID), o.Label}
		twice := seen[p]
		seen[p] = true
		return twice
	})
}

// place is where an object is.
type place struct{ id, label string }

// Comparison is what FindOrphans compares: the objects of one region's default
// key store with records that were read before and after them. Keys may be
// made and deleted meanwhile, by this process or another: what only one of
// the two readings shows is no orphan.
type Comparison struct {
	Instance      string // of the store that the records are from
	Region        Region
	Before, After []*KeyRecord // of all regions
	Objects       []StoredObject
	// Begun: a creation that began later may still be under way.
	Begun time.Time
}

// FindOrphans returns what objects and records do not agree on, in the order
// of labels. It is pure.
func FindOrphans(c Comparison) []Orphan {
	all, present, known := make(map[place]bool), make(map[place]bool), make(map[place]bool)
	for _, o := range c.Objects {
		p := place{string(o.ID), o.Label}
		all[p] = true
		// A public key without its private half is no key.
		present[p] = present[p] || !o.Public
	}
	// Objects of other regions' keys are known too: regions may share a token.
	earlier := make(map[KeyID]keyholdv1.KeyState)
	for _, r := range c.Before {
		earlier[r.ID] = r.State
		for _, v := range r.Versions {
			known[place{string(v.Locator.ID), v.Locator.Label}] = true
		}
	}
	var orphans []Orphan
	for _, r := range c.After {
		before, old := earlier[r.ID]
		for _, v := range r.Versions {
			p := place{string(v.Locator.ID), v.Locator.Label}
			known[p] = true
			if r.Region != c.Region || r.KeyStore != "" {
				continue
			}
			o := Orphan{Region: r.Region, KeyID: r.ID, ObjectID: v.Locator.ID, Label: v.Locator.Label, account: r.Account, revision: r.Revision}
			switch {
			case r.State == keyholdv1.KeyState_KEY_STATE_CREATING:
				if r.Created.Before(c.Begun) {
					o.Kind = OrphanIntent
					orphans = append(orphans, o)
				}
			case r.Destroying || present[p] || !old || before == keyholdv1.KeyState_KEY_STATE_CREATING:
			default:
				o.Kind = OrphanRecord
				orphans = append(orphans, o)
			}
		}
	}
	mine := LabelPrefix + c.Instance + ":"
	for p := range all {
		id, ok := strings.CutPrefix(p.label, mine)
		if ok && !known[p] {
			orphans = append(orphans, Orphan{Kind: OrphanObject, Region: c.Region, KeyID: KeyID(id), ObjectID: []byte(p.id), Label: p.label})
		}
	}
	slices.SortFunc(orphans, func(a, b Orphan) int { return strings.Compare(a.Label, b.Label) })
	return orphans
}

// CleanUp removes an orphan: the object of an OrphanObject, object and record
// of an OrphanIntent. Records without objects are keys that somebody may
// still miss; they go by ScheduleKeyDeletion.
func (s *Service) CleanUp(ctx context.Context, o Orphan) error {
	gen, ok := s.regions[o.Region].(Generator)
	if !ok || (o.Kind != OrphanObject && o.Kind != OrphanIntent) {
		return fmt.Errorf("%s %s is not cleaned up this way; schedule the key's deletion", o.Kind, o.KeyID)
	}
	if err := s.stillOrphan(ctx, o); err != nil {
		return err
	}
	account := o.account
	if account == "" {
		account = "000000000000" // an object's label does not tell its account
	}
	arn := keyARN(o.Region, account, o.KeyID)
	if err := s.recordOwn(ctx, "CleanUpOrphan", arn, account, o.Region, audit.PhaseIntent, nil); err != nil {
		return fmt.Errorf("%w: %w", errNoRecord, err)
	}
	err := gen.Destroy(ctx, Locator{ID: o.ObjectID, Label: o.Label})
	if errors.Is(err, ErrKeyMissing) {
		err = nil
	}
	if err == nil && o.Kind == OrphanIntent {
		err = s.store.DeleteKey(ctx, o.KeyID, o.revision)
	}
	return errors.Join(err, s.recordOwn(context.WithoutCancel(ctx), "CleanUpOrphan", arn, account, o.Region, audit.PhaseOutcome, err))
}

// stillOrphan looks again before something is destroyed for good: a report may
// be old, and what no record knew then a record may know now.
func (s *Service) stillOrphan(ctx context.Context, o Orphan) error {
	snapshot, err := s.store.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, r := range snapshot.Keys {
		unfinished := o.Kind == OrphanIntent && r.ID == o.KeyID && r.State == keyholdv1.KeyState_KEY_STATE_CREATING && r.Revision == o.revision
		for _, v := range r.Versions {
			if !unfinished && string(v.Locator.ID) == string(o.ObjectID) && v.Locator.Label == o.Label {
				return fmt.Errorf("%s %s: key %s uses the object now; list the orphans again", o.Kind, o.KeyID, r.ARN())
			}
		}
	}
	return nil
}
