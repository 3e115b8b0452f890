package storetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/keyhold/keyhold/server/kms"
)

// writers is how many goroutines meet on one record.
const writers = 64

func concurrencyPromises() []promise {
	return []promise{
		{"of 64 swaps at one revision exactly one wins", func(t *testing.T, s kms.Store) {
			r := insertKey(t, s, newKey(t))
			for range 5 {
				before := r.Revision
				won, lost := swapAtOnce(t, s, r)
				if len(won) != 1 || lost != writers-1 {
					t.Fatalf("revision %d: %d won, %d got ErrConflict", before, len(won), lost)
				}
				r = won[0]
				if r.Revision != before+1 {
					t.Errorf("Revision = %d after %d", r.Revision, before)
				}
				wantKeys(t, s, r)
			}
		}},
		{"64 writers that try again get through, one a revision", retryingWriters},
		{"of 64 inserts of one name exactly one wins", oneInsertWins},
		{"of 64 deletes exactly one wins", oneDeleteWins},
		{"no seal is leased twice", disjointLeases},
		{"a snapshot shows writes in their order, and none by half", consistentSnapshots},
		{"a snapshot has the key of every alias", wholeSnapshots},
		{"what a write returned is seen by the next read", readsFollowWrites},
	}
}

func oneInsertWins(t *testing.T, s kms.Store) {
	r := insertKey(t, s, newKey(t))
	var mu sync.Mutex
	won := 0
	all(t, func(int) error {
		err := s.InsertAlias(t.Context(), newAlias("alias/a", r.ID))
		if errors.Is(err, kms.ErrExists) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		won++
		return err
	})
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

func oneDeleteWins(t *testing.T, s kms.Store) {
	r := insertKey(t, s, newKey(t))
	var mu sync.Mutex
	won := 0
	all(t, func(int) error {
		err := s.DeleteKey(t.Context(), r.ID, r.Revision)
		if errors.Is(err, kms.ErrNotFound) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		won++
		return err
	})
	if won != 1 {
		t.Errorf("%d won", won)
	}
	wantKeys(t, s)
}

func readsFollowWrites(t *testing.T, s kms.Store) {
	all(t, func(i int) error {
		r := newKey(t)
		r.Description = strconv.Itoa(i)
		if err := s.InsertKey(t.Context(), r); err != nil {
			return err
		}
		for gen := range 3 {
			r.Description = fmt.Sprint(i, " ", gen)
			if err := s.UpdateKey(t.Context(), r); err != nil {
				return err
			}
			got, err := s.Key(t.Context(), r.ID)
			if err != nil {
				return err
			}
			if got.Description != r.Description || got.Revision != r.Revision {
				return fmt.Errorf("read %q at %d after %q at %d", got.Description, got.Revision, r.Description, r.Revision)
			}
		}
		return nil
	})
}

// all runs fn in 64 goroutines that start together.
func all(t *testing.T, fn func(i int) error) {
	t.Helper()
	start := make(chan struct{})
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			<-start
			errs[i] = fn(i)
		})
	}
	close(start)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// swapAtOnce lets 64 goroutines update r at its revision. It returns those
// records that were stored, and how many met a conflict.
func swapAtOnce(t *testing.T, s kms.Store, r *kms.KeyRecord) (won []*kms.KeyRecord, lost int) {
	t.Helper()
	var mu sync.Mutex
	all(t, func(i int) error {
		mine := r.Clone()
		mine.Description = fmt.Sprintf("writer %d", i)
		mine.Tags = []kms.Tag{{Key: "writer", Value: strconv.Itoa(i)}}
		err := s.UpdateKey(t.Context(), mine)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			won = append(won, mine)
		case errors.Is(err, kms.ErrConflict):
			lost++
		default:
			return err
		}
		return nil
	})
	return won, lost
}

// retryingWriters: a counter in a record loses no increment.
func retryingWriters(t *testing.T, s kms.Store) {
	r := newKey(t)
	r.Description = "0"
	insertKey(t, s, r)
	all(t, func(int) error {
		for {
			mine, err := s.Key(t.Context(), r.ID)
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(mine.Description)
			if err != nil {
				return err
			}
			mine.Description = strconv.Itoa(n + 1)
			if err := s.UpdateKey(t.Context(), mine); !errors.Is(err, kms.ErrConflict) {
				return err
			}
		}
	})
	got, err := s.Key(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Description != strconv.Itoa(writers) || got.Revision != writers+1 {
		t.Errorf("count %s at revision %d, want %d at %d", got.Description, got.Revision, writers, writers+1)
	}
}

// disjointLeases: the leases of 64 goroutines cover the range without overlap.
func disjointLeases(t *testing.T, s kms.Store) {
	const limit = 500
	ref := insertKey(t, s, newKey(t)).Versions[0].Ref
	type span struct{ start, granted uint64 }
	var mu sync.Mutex
	var spans []span
	all(t, func(i int) error {
		for range 2 {
			start, granted, err := s.LeaseSeals(t.Context(), ref, uint64(i%13), limit)
			if err != nil {
				return err
			}
			if granted > 0 {
				mu.Lock()
				spans = append(spans, span{start, granted})
				mu.Unlock()
			}
		}
		return nil
	})
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Compare(a.start, b.start)
	})
	end := uint64(0)
	for _, sp := range spans {
		if sp.start != end {
			t.Fatalf("lease from %d where %d was the end; all: %v", sp.start, end, spans)
		}
		end += sp.granted
	}
	if end != limit {
		t.Errorf("leases end at %d, want %d", end, limit)
	}
	wantSeals(t, s, ref, limit)
}

// beside runs write again and again while check reads some 30 snapshots.
func beside(t *testing.T, s kms.Store, write func(ctx context.Context, round int) error, check func(snap *kms.Snapshot)) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		var err error
		for round := 1; err == nil && ctx.Err() == nil; round++ {
			if err = write(ctx, round); round == 1 {
				close(started)
			}
		}
		if ctx.Err() != nil {
			err = nil
		}
		done <- err
	}()
	<-started
	for range 30 {
		check(snapshot(t, s))
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// generation makes r the nth of a series, recognisable by all its parts.
func generation(r *kms.KeyRecord, n int) {
	r.Description = strconv.Itoa(n)
	r.Tags = nil
	for i := range n%5 + 1 {
		r.Tags = append(r.Tags, kms.Tag{Key: strconv.Itoa(i), Value: strconv.Itoa(n)})
	}
	for i := range r.Versions {
		r.Versions[i].Locator.Label = strconv.Itoa(n)
	}
}

// generationOf returns the n of generation, or an error where parts of several
// are mixed.
func generationOf(r *kms.KeyRecord) (int, error) {
	n, err := strconv.Atoi(r.Description)
	if err != nil {
		return 0, err
	}
	want := r.Clone()
	generation(want, n)
	if g, w := showKeys([]*kms.KeyRecord{r}), showKeys([]*kms.KeyRecord{want}); g != w {
		return 0, fmt.Errorf("record of several generations: %s", g)
	}
	return n, nil
}

// consistentSnapshots: one record is always written before the other.
func consistentSnapshots(t *testing.T, s kms.Store) {
	first, second := newKey(t), newKey(t)
	for range 3 {
		first.Versions = append(first.Versions, newVersion(t))
	}
	generation(first, 0)
	generation(second, 0)
	insertKey(t, s, first)
	insertKey(t, s, second)
	firstID := first.ID
	beside(t, s, func(ctx context.Context, round int) error {
		generation(first, round)
		generation(second, round)
		if err := s.UpdateKey(ctx, first); err != nil {
			return err
		}
		return s.UpdateKey(ctx, second)
	}, func(snap *kms.Snapshot) {
		var a, b int
		for _, r := range snap.Keys {
			n, err := generationOf(r)
			if err != nil {
				t.Fatal(err)
			}
			if r.ID == firstID {
				a = n
			} else {
				b = n
			}
		}
		if len(snap.Keys) != 2 || a < b || a > b+1 {
			t.Fatalf("%d keys, generations %d and %d", len(snap.Keys), a, b)
		}
	})
}

// wholeSnapshots: keys come before their aliases, and take them along.
func wholeSnapshots(t *testing.T, s kms.Store) {
	beside(t, s, func(ctx context.Context, round int) error {
		r := newKey(t)
		if err := s.InsertKey(ctx, r); err != nil {
			return err
		}
		for i := range 2 {
			if err := s.InsertAlias(ctx, newAlias(fmt.Sprintf("alias/%d/%d", round, i), r.ID)); err != nil {
				return err
			}
		}
		return s.DeleteKey(ctx, r.ID, r.Revision)
	}, func(snap *kms.Snapshot) {
		there := map[kms.KeyID]bool{}
		for _, r := range snap.Keys {
			there[r.ID] = true
		}
		var orphans []string
		for _, a := range snap.Aliases {
			if !there[a.KeyID] {
				orphans = append(orphans, a.Name)
			}
		}
		if len(orphans) > 0 {
			t.Fatalf("aliases without their keys: %s", strings.Join(orphans, ", "))
		}
	})
}
