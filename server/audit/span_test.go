package audit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// copySpan writes what a span says to a new folder, as a backup does.
func copySpan(t *testing.T, dir string, s Span) string {
	t.Helper()
	to := t.TempDir()
	for _, p := range s.Segments {
		writeFile(t, filepath.Join(to, p.Name), readFile(t, filepath.Join(dir, p.Name))[:p.Size])
	}
	writeFile(t, filepath.Join(to, HeadName), s.Head)
	return to
}

// A copy that is made while clients append is a whole journal, holds all that was
// answered before, and a journal that can go on.
func TestSettleBesideWriter(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, small())
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answered atomic.Uint64
	for i := range 4 {
		durability := []Durability{Synced, Written}[i%2]
		wg.Go(func() {
			for ctx.Err() == nil {
				seq, err := j.Append(ctx, Normal, durability, payload(i, 900))
				for err == nil {
					old := answered.Load()
					if seq+1 <= old || answered.CompareAndSwap(old, seq+1) {
						break
					}
				}
			}
		})
	}
	segments := 0
	for range 20 {
		before := answered.Load()
		wait, cancel := context.WithTimeout(t.Context(), testTimeout)
		s, err := Settle(wait, dir)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if s.End.Count < before || !s.Live {
			t.Fatalf("ends with %d records, live %t; %d were answered before", s.End.Count, s.Live, before)
		}
		segments = max(segments, len(s.Segments))
		copied := copySpan(t, dir, s)
		if rep := mustVerify(t, copied); rep.Last != s.End || rep.Journal != s.Journal || rep.Notes != 0 {
			t.Fatalf("the copy: %+v, want the end %s", rep, s.End)
		}
		// It goes on as a journal of its own, and the fork shows.
		opts := small()
		opts.Create = false
		fork := open(t, copied, opts)
		if seq, err := fork.Append(t.Context(), Normal, Synced, []byte(`{"fork":true}`)); err != nil || seq != s.End.Count {
			t.Fatalf("append to the copy: %d, %v", seq, err)
		}
		closeJournal(t, fork, false)
		if _, err := Verify(copied, VerifyOptions{From: &s.End}); err != nil {
			t.Error(err)
		}
		if newer := j.Durable(); newer.Count > s.End.Count {
			_, err := Verify(copied, VerifyOptions{From: &newer})
			wantFault(t, err, FaultAnchor, FaultMissingEnd)
		}
	}
	stop()
	wg.Wait()
	if segments < 2 {
		t.Errorf("%d segments: the test showed no more than one", segments)
	}
}

// Without a writer, what a crash left unfinished is left out; damage is not.
func TestSettleWithoutWriter(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	if _, err := Settle(t.Context(), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	j := open(t, dir, small())
	s, err := Settle(t.Context(), dir)
	if err != nil || s.End.Count != 0 || len(s.Segments) != 1 || s.Segments[0].Size != segmentHeaderBytes {
		t.Errorf("an empty journal: %+v, %v", s, err)
	}
	add(t, j, 0, 5, 300)
	closeJournal(t, j, false)
	if s, err = Settle(t.Context(), dir); err != nil || s.End.Count != 5 || s.Live {
		t.Fatalf("%+v, %v", s, err)
	}
	mustVerify(t, copySpan(t, dir, s))

	torn := copyDir(t, dir)
	segment := filepath.Join(torn, s.Segments[0].Name)
	b := readFile(t, segment)
	copy(b[s.Segments[0].Size:], recordMagic[:])
	writeFile(t, segment, b)
	if got, err := Settle(t.Context(), torn); err != nil || got.End != s.End {
		t.Errorf("a torn tail: %+v, %v", got, err)
	}

	lost := copyDir(t, dir)
	b = readFile(t, filepath.Join(lost, s.Segments[0].Name))
	clear(b[s.Segments[0].Size-1200 : s.Segments[0].Size])
	writeFile(t, filepath.Join(lost, s.Segments[0].Name), b)
	_, err = Settle(t.Context(), lost)
	wantFault(t, err, FaultRecord)
}

// A writer that does not come on is not waited for without end.
func TestSettleHangingWriter(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	opts := small()
	opts.SyncInterval = time.Hour
	j := open(t, dir, opts)
	if _, err := j.Append(t.Context(), Normal, Written, payload(0, 100)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Settle(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
