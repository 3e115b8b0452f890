package backup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server/audit"
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
