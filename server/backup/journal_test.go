package backup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// survivor puts the journal of a set in place, with more records.
func survivor(t *testing.T, s *set, dir string, more ...audit.Event) (end audit.Anchor) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	for name, content := range s.content {
		if file, ok := strings.CutPrefix(name, auditFolder); ok {
			must(t, os.WriteFile(filepath.Join(dir, file), content, 0o600))
		}
	}
	j, err := audit.Open(dir, audit.Options{SegmentBytes: 256 << 10})
	must(t, err)
	for _, e := range more {
		_, err := j.Append(t.Context(), audit.Normal, audit.Synced, e.AppendJSON(nil))
		must(t, err)
	}
	end = j.Durable()
	must(t, j.Close(context.WithoutCancel(t.Context())))
	return end
}

// TestKeepJournal: a journal that was not lost goes on, and tells what the store
// does not know.
func TestKeepJournal(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	for _, place := range []string{"data/audit", "journal"} {
		dir := t.TempDir()
		cfg := target(t, dir)
		cfg.Audit.Dir = filepath.Join(dir, place)
		end := survivor(t, s, cfg.Audit.Dir,
			audit.Event{EventName: "DisableKey", Phase: audit.PhaseIntent}, audit.Event{EventName: "DisableKey", Phase: audit.PhaseOutcome, Resources: []audit.Resource{{ARN: "arn:x"}}},
			audit.Event{EventName: "EnableKey", Phase: audit.PhaseOutcome, ErrorCode: "KMSInternalException"}, audit.Event{EventName: "Encrypt"},
			audit.Event{EventName: "CreateKey", Phase: audit.PhaseOutcome, Resources: []audit.Resource{{ARN: "arn:new"}}},
			audit.Event{EventName: "DeleteAccessKey", Phase: audit.PhaseOutcome, Additional: []audit.Member{{Key: "accessKeyId", Value: "AKIA1"}, {Key: "principalArn", Value: "arn:root"}}},
			audit.Event{
				EventName: "ImportAccessKey", Phase: audit.PhaseOutcome, Resources: []audit.Resource{{ARN: "arn:root"}},
				Additional: []audit.Member{{Key: "accessKeyId", Value: "AKIA2"}, {Key: "principalArn", Value: "arn:root"}},
			},
			// This one is in the store.
			audit.Event{EventName: "CreateKey", Phase: audit.PhaseOutcome, Resources: []audit.Resource{{ARN: "arn:aws:kms:us-east-1:111122223333:key/00000000-0000-4000-8000-000000000001"}}},
		)
		// A crash may have left an unfinished commit.
		names, err := filepath.Glob(filepath.Join(cfg.Audit.Dir, "*.khj"))
		must(t, err)
		last := names[len(names)-1]
		b, err := os.ReadFile(last)
		must(t, err)
		copy(b[len(bytes.TrimRight(b, "\x00"))+64:], "\xffKHR torn")
		must(t, os.WriteFile(last, b, 0o600))

		if _, err := restore(t, cfg, a, nil); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("%s, not kept: %v", place, err)
		}
		r, err := restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal = true })
		must(t, err)
		if r.End.Count < end.Count || r.Recorded != 6 || r.Unsure[2].Name != "DisableKey" || r.Unsure[3].Resource != "arn:new" || r.Unsure[4].Resource != "AKIA1 of arn:root" || r.Unsure[5].Resource != "AKIA2 of arn:root" {
			t.Errorf("%s: %+v, want what was recorded up to %s", place, r, end)
		}
		wantSealed := r.End.Count - (records - 4) + lostRecords
		if r.SealedSince != wantSealed {
			t.Errorf("%s: %d seals counted, want %d", place, r.SealedSince, wantSealed)
		}
		for _, at := range []audit.Anchor{s.end, end, r.Now} {
			if _, err := audit.Verify(cfg.Audit.Dir, audit.VerifyOptions{From: &at}); err != nil {
				t.Errorf("%s: %v", place, err)
			}
		}
	}
}

// A journal that does not go on from the backup's is not kept.
func TestKeepJournalRefusals(t *testing.T) {
	t.Parallel()
	s, other := newSet(t), newSet(t)
	a := s.archive(t, nil)
	keep := func(o *RestoreOptions) { o.KeepJournal = true }
	refused := func(what string, prepare func(dir string), want string) {
		t.Helper()
		cfg := target(t, t.TempDir())
		must(t, os.Mkdir(cfg.DataDir, 0o700))
		prepare(cfg.Audit.Dir)
		before := strings.Join(tree(t, cfg.DataDir), " ")
		if _, err := restore(t, cfg, a, keep); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
		if after := strings.Join(tree(t, cfg.DataDir), " "); after != before {
			t.Errorf("%s: left %q of %q", what, after, before)
		}
	}
	refused("there is none", func(string) {}, "no such file")
	refused("another log", func(dir string) { survivor(t, other, dir) }, "another log")
	refused("a shorter log", func(dir string) {
		must(t, os.MkdirAll(dir, 0o700))
		j, err := audit.Open(dir, audit.Options{Create: true, SegmentBytes: 256 << 10})
		must(t, err)
		must(t, j.Close(context.WithoutCancel(t.Context())))
	}, "fewer than")
	refused("a log in use", func(dir string) {
		survivor(t, s, dir)
		j, err := audit.Open(dir, audit.Options{SegmentBytes: 256 << 10})
		must(t, err)
		t.Cleanup(func() { must(t, j.Close(context.WithoutCancel(t.Context()))) })
	}, "in use")
}

// loseStore removes the database of an installation.
func loseStore(t *testing.T, cfg *server.Config) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(cfg.DataDir, sqlite.FileName+"*"))
	must(t, err)
	for _, path := range names {
		must(t, os.Remove(path))
	}
}

// sealCount returns how often the set's key has encrypted.
func sealCount(t *testing.T, s *set, cfg *server.Config) uint64 {
	t.Helper()
	store, err := sqlite.Open(t.Context(), cfg.DataDir, sqlite.Options{})
	must(t, err)
	defer store.Close()
	n, err := store.SealCount(t.Context(), s.ref)
	must(t, err)
	return n
}

// TestKeepJournalOfRestored: a journal that goes on from an earlier restore of the same
// backup has no records of what that one counted in advance, for the branch that was
// lost then. It is counted again: the store is older than that restore.
func TestKeepJournalOfRestored(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	keep := func(o *RestoreOptions) { o.KeepJournal = true }
	for name, first := range map[string]uint64{"default": DefaultSealedSince, "said": 5, "all": maxSeals, "more than all": 1 << 63} {
		cfg := target(t, t.TempDir())
		_, err := restore(t, cfg, a, func(o *RestoreOptions) {
			if first != DefaultSealedSince {
				o.SealedSince = &first
			}
		})
		must(t, err)
		// A client's text in an event is not the event.
		j, err := audit.Open(cfg.Audit.Dir, audit.Options{SegmentBytes: 256 << 10})
		must(t, err)
		fake := audit.Event{EventName: "CreateAlias", UserAgent: restoreName, Additional: []audit.Member{{Key: "sealsUnrecorded", Value: "1000000000"}}}
		_, err = j.Append(t.Context(), audit.Normal, audit.Synced, fake.AppendJSON(nil))
		must(t, err)
		must(t, j.Close(context.WithoutCancel(t.Context())))
		// Each restore that keeps the journal adds what it cannot know, and no more.
		for round := range uint64(3) {
			loseStore(t, cfg)
			r, err := restore(t, cfg, a, keep)
			must(t, err)
			want := min(min(first, maxSeals)+(r.End.Count-(records-4))+(round+1)*lostRecords, maxSeals)
			if n := sealCount(t, s, cfg); n != want || r.SealedSince != want {
				t.Errorf("%s, round %d: %d seals, counted %d, want %d", name, round, n, r.SealedSince, want)
			}
		}
	}
}

// longLog adds records to the journal in dir until it has several segments, and
// returns their paths.
func longLog(t *testing.T, dir string, create bool) (segments []string) {
	t.Helper()
	j, err := audit.Open(dir, audit.Options{Create: create, SegmentBytes: 256 << 10})
	must(t, err)
	pad := []byte(`{"eventName":"Encrypt","pad":"` + strings.Repeat("u", 60<<10) + `"}`)
	for range 12 {
		_, err := j.Append(t.Context(), audit.Normal, audit.Synced, pad)
		must(t, err)
	}
	must(t, j.Close(context.WithoutCancel(t.Context())))
	segments, err = filepath.Glob(filepath.Join(dir, "journal-*.khj"))
	must(t, err)
	if len(segments) < 3 {
		t.Fatalf("%d segments", len(segments))
	}
	return segments
}

// TestKeepJournalWithoutHead: without its head file nothing says where a journal ended,
// and its length bounds no seals: segments may be gone with it.
func TestKeepJournalWithoutHead(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	for name, damage := range map[string]func(head string) error{
		"missing": os.Remove,
		"damaged": func(head string) error { return os.WriteFile(head, []byte("KH"), 0o600) },
	} {
		name := "head " + name
		cfg := target(t, t.TempDir())
		must(t, os.Mkdir(cfg.DataDir, 0o700))
		survivor(t, s, cfg.Audit.Dir)
		segments := longLog(t, cfg.Audit.Dir, false)
		must(t, os.Remove(segments[len(segments)-1]))
		must(t, damage(filepath.Join(cfg.Audit.Dir, audit.HeadName)))
		before := strings.Join(tree(t, cfg.DataDir), " ")
		_, err := restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal = true })
		if err == nil || !strings.Contains(err.Error(), "--sealed-since, 268435456") {
			t.Errorf("%s: %v", name, err)
		}
		if after := strings.Join(tree(t, cfg.DataDir), " "); after != before {
			t.Errorf("%s: left %q of %q", name, after, before)
		}
		// With a word of the operator, which the next restore does not forget, nor that
		// a head was lost.
		seals := uint64(1000)
		_, err = restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal, o.SealedSince = true, &seals })
		must(t, err)
		loseStore(t, cfg)
		r, err := restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal = true })
		must(t, err)
		want := r.End.Count - (records - 4) + lostRecords + seals + DefaultSealedSince
		if n := sealCount(t, s, cfg); n != want {
			t.Errorf("%s: %d seals, want %d", name, n, want)
		}
	}
}

// longSet is a set whose journal has several segments.
func longSet(t *testing.T) *set {
	t.Helper()
	s := newSet(t)
	dir := filepath.Join(t.TempDir(), "long")
	longLog(t, dir, true)
	span, err := audit.Settle(t.Context(), dir)
	must(t, err)
	for name := range s.content {
		if strings.HasPrefix(name, auditFolder) {
			delete(s.content, name)
		}
	}
	for _, p := range span.Segments {
		b, err := os.ReadFile(filepath.Join(dir, p.Name))
		must(t, err)
		s.content[auditFolder+p.Name] = b[:p.Size]
	}
	s.content[auditFolder+audit.HeadName] = span.Head
	s.end = span.End
	s.manifest.Journal = JournalFacts{ID: span.Journal, First: span.First.String(), AtStore: span.End.String(), End: span.End.String()}
	s.files()
	return s
}

// TestSince: the journal must hold the point, and be whole before it too.
func TestSince(t *testing.T) {
	t.Parallel()
	s := longSet(t)
	first, err := audit.ParseAnchor(s.manifest.Journal.First)
	must(t, err)
	wrong := first
	wrong.Hash[0] ^= 1
	a := s.archive(t, nil)
	whole := &set{content: maps.Clone(s.content)}
	const oldest = auditFolder + "journal-00000000000000000000.khj"
	s.content[oldest] = bytes.ReplaceAll(s.content[oldest], []byte("Encrypt"), []byte("Nothing"))
	s.files()
	rewritten := s.archive(t, nil)
	for name, c := range map[string]struct {
		archive []byte
		since   *audit.Anchor
		fine    bool
	}{
		"whole":                   {a, nil, true},
		"whole, from its end":     {a, &s.end, true},
		"whole, from its start":   {a, &first, true},
		"whole, of another":       {a, &wrong, false},
		"rewritten":               {rewritten, nil, false},
		"rewritten, from its end": {rewritten, &s.end, false},
	} {
		var fault *audit.Fault
		cfg := target(t, t.TempDir())
		_, err := restore(t, cfg, c.archive, func(o *RestoreOptions) { o.Since = c.since })
		if c.fine && err != nil || !c.fine && !errors.As(err, &fault) {
			t.Errorf("%s: %v", name, err)
		}
		if !c.fine {
			wantNothing(t, cfg)
		}
	}
	// And one that is kept.
	for name, since := range map[string]*audit.Anchor{"its start": &first, "of another": &wrong} {
		cfg := target(t, t.TempDir())
		must(t, os.Mkdir(cfg.DataDir, 0o700))
		survivor(t, whole, cfg.Audit.Dir)
		_, err := restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal, o.Since = true, since })
		if (err == nil) != (since == &first) {
			t.Errorf("kept, %s: %v", name, err)
		}
	}
}
