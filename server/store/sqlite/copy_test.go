package sqlite

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// TestCopy copies a database while it is written: each copy is whole, as of one
// moment, and a store of its own.
func TestCopy(t *testing.T) {
	s := newStore(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		// Ticks and nothing else tell that the moment moves on.
		for i := 0; ctx.Err() == nil; i++ {
			if err := s.Tick(ctx, time.Unix(int64(i+1), 0)); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	defer wg.Wait()
	defer stop()
	var last time.Time
	for range 10 {
		before, err := s.LastTick(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		// As another process does it.
		r, err := OpenReadOnly(t.Context(), dirOf(s), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.CopyTo(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if err := r.CopyTo(t.Context(), dir); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("over a copy: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, FileName)); err != nil || info.Mode().Perm() != fileMode {
			t.Fatalf("%v, %v", info, err)
		}
		c, err := Open(t.Context(), dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Check(t.Context()); err != nil {
			t.Error(err)
		}
		got, err := c.LastTick(t.Context())
		if err != nil || got.Before(before) || c.Instance() != s.Instance() {
			t.Errorf("tick %s, %v, instance %s; before the copy it was %s of %s", got, err, c.Instance(), before, s.Instance())
		}
		if got.After(last) {
			last = got
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if last.Unix() < 2 {
		t.Error("nothing was written meanwhile: the test showed nothing")
	}
}

// TestCopyHoldsAll compares all records, and that seal counts come along.
func TestCopyHoldsAll(t *testing.T) {
	s := newStore(t)
	r := testKey(0)
	must(t, s.InsertKey(t.Context(), r))
	must(t, s.InsertAlias(t.Context(), &kms.AliasRecord{Account: r.Account, Region: r.Region, Name: "alias/a", KeyID: r.ID, Created: r.Created, Updated: r.Created}))
	if _, _, err := s.LeaseSeals(t.Context(), r.Versions[0].Ref, 77, 1<<32); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	must(t, s.CopyTo(t.Context(), dir))
	c, err := OpenReadOnly(t.Context(), dir, Options{})
	must(t, err)
	defer c.Close()
	want, err := s.Snapshot(t.Context())
	must(t, err)
	got, err := c.Snapshot(t.Context())
	must(t, err)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if n, err := c.SealCount(t.Context(), r.Versions[0].Ref); err != nil || n != 77 {
		t.Errorf("seal count %d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := t.TempDir()
	must(t, os.Chmod(other, 0o700))
	if err := s.CopyTo(ctx, other); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(other); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestRaiseSeals: counts go up, for versions without one too, never down, and
// not beyond the limit.
func TestRaiseSeals(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 3)
	refs := []kms.Ref{testKey(0).Versions[0].Ref, testKey(1).Versions[0].Ref, testKey(2).Versions[0].Ref}
	lease := func(ref kms.Ref, n, limit uint64) {
		t.Helper()
		if _, _, err := s.LeaseSeals(t.Context(), ref, n, limit); err != nil {
			t.Fatal(err)
		}
	}
	lease(refs[1], 90, 100)
	lease(refs[2], 1000, 1000)
	rsa := testKey(3)
	rsa.Spec, rsa.Versions[0].Locator.Spec = keyholdv1.KeySpec_KEY_SPEC_RSA_2048, keyholdv1.KeySpec_KEY_SPEC_RSA_2048
	must(t, s.InsertKey(t.Context(), rsa))
	for range 2 {
		if n, err := s.RaiseSeals(t.Context(), 40, 100); err != nil || n != 3 {
			t.Fatalf("%d versions, %v", n, err)
		}
	}
	for i, want := range []uint64{80, 100, 1000} {
		if got, err := s.SealCount(t.Context(), refs[i]); err != nil || got != want {
			t.Errorf("version %d: count %d, %v, want %d", i, got, err, want)
		}
	}
	if n, err := s.RaiseSeals(t.Context(), 1<<63, 1<<63); err != nil || n != 3 {
		t.Errorf("%d versions, %v", n, err)
	}
	if got, err := s.SealCount(t.Context(), rsa.Versions[0].Ref); err != nil || got != 0 {
		t.Errorf("an RSA key: %d, %v", got, err)
	}
}
