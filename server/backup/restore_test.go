package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

func TestRestore(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	cfg := target(t, t.TempDir())
	r, err := restore(t, cfg, a, nil)
	must(t, err)
	wantRestored(t, s, cfg, DefaultSealedSince)
	if r.End != s.end || r.Now.Count != records+1 || r.Versions != 1 || r.Spent != 0 {
		t.Errorf("%+v", r)
	}
	if len(r.Pending) != 1 || r.Recorded != 2 || len(r.Unsure) != 2 || r.Unsure[0].Name != "CreateKey18" || r.Unsure[1].Resource != "arn:19" {
		t.Errorf("pending %v, unsure %+v of %d", r.Pending, r.Unsure, r.Recorded)
	}
	// The event tells of the restore.
	var last string
	for rec, err := range audit.Read(cfg.Audit.Dir, records) {
		must(t, err)
		last = string(rec.Payload)
	}
	for _, want := range []string{`"RestoreBackup"`, s.end.String(), r.SHA256, `"accessKeysDeactivated":"2"`} {
		if !strings.Contains(last, want) {
			t.Errorf("the event %s lacks %s", last, want)
		}
	}
	// Nobody who was shut out since may sign.
	wantAccessKeys(t, cfg)
	if len(r.AccessKeys) != 2 || r.AccessKeys[0].ID != "AKIA1" || r.AccessKeys[1].ID != "AKIA3" {
		t.Errorf("access keys that were active: %+v", r.AccessKeys)
	}
	// It is not restored over.
	before := tree(t, cfg.DataDir)
	if _, err := restore(t, cfg, a, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an installation: %v", err)
	}
	if after := tree(t, cfg.DataDir); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("left %q of %q", after, before)
	}

	// A journal on another disk, in an empty folder that is there.
	cfg = target(t, t.TempDir())
	cfg.Audit.Dir = filepath.Join(t.TempDir(), "journal")
	must(t, os.Mkdir(cfg.Audit.Dir, 0o700))
	must(t, os.Mkdir(cfg.DataDir, 0o700))
	spent := uint64(1 << 32)
	r, err = restore(t, cfg, a, func(o *RestoreOptions) {
		o.SealedSince, o.Since, o.Manifest, o.KeepAccessKeys = &spent, &s.end, r.SHA256, true
	})
	must(t, err)
	wantAccessKeys(t, cfg, "AKIA1", "AKIA3")
	if r.Spent != 1 {
		t.Errorf("%+v", r)
	}
	wantRestored(t, s, cfg, spent)
}

// What is wanted and is not the case is refused, and nothing is left.
func TestRestoreRefusals(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	other := audit.Anchor{Count: 3}
	newer := audit.Anchor{Count: records + 1, Hash: s.end.Hash}
	for name, change := range map[string]func(*RestoreOptions){
		"another manifest": func(o *RestoreOptions) { o.Manifest = strings.Repeat("0", 64) },
		"another journal":  func(o *RestoreOptions) { o.Since = &other },
		"a newer journal":  func(o *RestoreOptions) { o.Since = &newer },
	} {
		cfg := target(t, t.TempDir())
		if _, err := restore(t, cfg, a, change); err == nil {
			t.Errorf("%s: restored", name)
		}
		wantNothing(t, cfg)
	}
	t.Run("parents are not made", func(t *testing.T) {
		cfg := target(t, filepath.Join(t.TempDir(), "missing"))
		if _, err := restore(t, cfg, a, nil); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	for _, path := range []string{"data/keyhold.db", "data/x", "data/audit/journal-00000000000000000000.khj", "data/audit/x"} {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, path), nil, 0o600))
		before := strings.Join(tree(t, dir), " ")
		if _, err := restore(t, target(t, dir), a, nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s is there: %v", path, err)
		}
		if after := strings.Join(tree(t, dir), " "); after != before {
			t.Errorf("%s was there: left %q of %q", path, after, before)
		}
	}
	t.Run("while another one is at work", func(t *testing.T) {
		cfg := target(t, t.TempDir())
		first, err := claim(cfg, false)
		must(t, err)
		if _, err := restore(t, cfg, a, nil); err == nil || !strings.Contains(err.Error(), "at work") {
			t.Errorf("got %v", err)
		}
		must(t, first.undo())
		wantNothing(t, cfg)
	})
	t.Run("cancelled", func(t *testing.T) {
		cfg := target(t, t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Restore(ctx, RestoreOptions{Config: cfg, In: bytes.NewReader(a), SkipTokens: true}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		wantNothing(t, cfg)
	})
}

// TestRestoreSchemas: the store of a newer program is refused, with its name.
func TestRestoreSchemas(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	db := s.content[storeFolder+sqlite.FileName]
	db[63] = 99 // user_version, sqlite.org/fileformat.html, 1.3
	s.files()
	cfg := target(t, t.TempDir())
	if _, err := restore(t, cfg, s.archive(t, nil), nil); !errors.Is(err, sqlite.ErrNewerSchema) {
		t.Errorf("got %v", err)
	}
	wantNothing(t, cfg)
}

// TestTampered changes single bits all over an archive: it is refused and leaves
// nothing, or it was a bit that means nothing.
func TestTampered(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	refused, harmless := 0, 0
	// Every byte of the first blocks' headers, and a sample of the rest.
	for i := 0; i < len(a); i += 1 + min(i/512, 1)*(307+i%37) {
		b := bytes.Clone(a)
		b[i] ^= 1 << (i % 8)
		cfg := target(t, t.TempDir())
		if _, err := restore(t, cfg, b, nil); err != nil {
			refused++
			wantNothing(t, cfg)
			continue
		}
		harmless++
		wantRestored(t, s, cfg, DefaultSealedSince)
	}
	t.Logf("of %d changes %d were refused; %d were in padding or unused fields of tar headers", refused+harmless, refused, harmless)
	if refused < 100 {
		t.Error("too few were refused: the test showed nothing")
	}
}

// TestTruncated cuts an archive at every block.
func TestTruncated(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	content := len(a) - 1024 // two blocks of zeros end a tar file, and hold nothing
	for n := 0; n < content; n += 512 * (1 + n/(16<<10)) {
		cfg := target(t, t.TempDir())
		if _, err := restore(t, cfg, a[:n], nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d of %d bytes: %v", n, len(a), err)
		}
		wantNothing(t, cfg)
	}
}

// TestTricks: archives that were made to do harm, with a manifest that fits.
func TestTricks(t *testing.T) {
	t.Parallel()
	sized := func(name string) func(*set) {
		return func(s *set) { s.content[name] = []byte("x"); s.files() }
	}
	for name, trick := range map[string]struct {
		set     func(*set)
		entries func([]tarEntry) []tarEntry
	}{
		"absolute name":       {set: sized("/etc/passwd")},
		"parent":              {set: sized("store/../../x")},
		"parent within":       {set: sized("tokens/../audit/head")},
		"hidden":              {set: sized("config/.profile")},
		"backslash":           {set: sized(`config\x`)},
		"another database":    {set: sized("store/keyhold.db-wal")},
		"token without facts": {set: sized("tokens/00000000-0000-0000-0000-000000000000/token.object")},
		"too large":           {set: func(s *set) { s.content["config/x"] = make([]byte, maxConfigFileBytes+1); s.files() }},
		"twice in the manifest": {set: func(s *set) {
			s.manifest.Files = append(s.manifest.Files, s.manifest.Files[0])
		}},
		"negative size": {set: func(s *set) { s.manifest.Files[0].Size = -1 }, entries: func(e []tarEntry) []tarEntry { return e[:2] }},
		"no store":      {set: func(s *set) { delete(s.content, storeFolder+sqlite.FileName); s.files() }},
		"no journal":    {set: func(s *set) { delete(s.content, auditFolder+audit.HeadName); s.files() }},
		"another end":   {set: func(s *set) { s.manifest.Journal.End = audit.Anchor{Count: 1}.String() }},
		"another store": {set: func(s *set) { s.manifest.Store.Instance = "00000000" }},

		"symbolic link": {entries: func(e []tarEntry) []tarEntry {
			e[2].Typeflag, e[2].Linkname, e[2].Size, e[2].content = tar.TypeSymlink, "/etc/passwd", 0, nil
			return e
		}},
		"hard link": {entries: func(e []tarEntry) []tarEntry {
			e[2].Typeflag, e[2].Linkname, e[2].Size, e[2].content = tar.TypeLink, "manifest.json", 0, nil
			return e
		}},
		"folder": {entries: func(e []tarEntry) []tarEntry {
			return append([]tarEntry{e[0], e[1], {Header: tar.Header{Typeflag: tar.TypeDir, Name: "audit/", Mode: 0o777}}}, e[2:]...)
		}},
		"device": {entries: func(e []tarEntry) []tarEntry {
			e[2].Typeflag, e[2].Size, e[2].content = tar.TypeChar, 0, nil
			return e
		}},
		"twice":         {entries: func(e []tarEntry) []tarEntry { return append(e, e[len(e)-1]) }},
		"one more":      {entries: func(e []tarEntry) []tarEntry { return append(e, regular("../../x", []byte("x"))) }},
		"another order": {entries: func(e []tarEntry) []tarEntry { e[2], e[3] = e[3], e[2]; return e }},
		"longer": {entries: func(e []tarEntry) []tarEntry {
			e[2] = regular(e[2].Name, append(bytes.Clone(e[2].content), 0))
			return e
		}},
		"manifest last":   {entries: func(e []tarEntry) []tarEntry { return append(e[2:], e[0], e[1]) }},
		"no sum":          {entries: func(e []tarEntry) []tarEntry { return append(e[:1], e[2:]...) }},
		"sum of another":  {entries: func(e []tarEntry) []tarEntry { e[1] = regular(sumName, sumLine([]byte("x"))); return e }},
		"nothing":         {entries: func([]tarEntry) []tarEntry { return nil }},
		"another content": {entries: func(e []tarEntry) []tarEntry { e[2].content = bytes.Repeat([]byte("y"), len(e[2].content)); return e }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSet(t)
			if trick.set != nil {
				trick.set(s)
			}
			cfg := target(t, t.TempDir())
			if _, err := restore(t, cfg, s.archive(t, trick.entries), nil); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v", err)
			}
			wantNothing(t, cfg)
		})
	}
	s := newSet(t)
	for name, manifest := range map[string]string{
		"unknown field": `{"format": "keyhold-backup", "version": 1, "more": 1}`,
		"another kind":  `{"format": "tar", "version": 1}`,
		"no JSON":       `keyhold`,
		"empty":         ``,
	} {
		cfg := target(t, t.TempDir())
		if _, err := restore(t, cfg, s.archiveOf(t, []byte(manifest), nil), nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("manifest, %s: %v", name, err)
		}
		wantNothing(t, cfg)
	}
	newer := []byte(`{"format": "keyhold-backup", "version": 2, "program": "keyholdd 9", "more": 1}`)
	if _, err := restore(t, target(t, t.TempDir()), s.archiveOf(t, newer, nil), nil); !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), "keyholdd 9") {
		t.Errorf("a newer format: %v", err)
	}
	garbage := append(s.archive(t, nil), "garbage"...)
	if _, err := restore(t, target(t, t.TempDir()), garbage, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("garbage after the end: %v", err)
	}
}

// TestInterrupted stops a restore after each of its steps, as a kill does. The
// daemon does not start on what is left, and the next restore is a whole one.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	var steps int
	for step := 0; ; step++ {
		cfg := target(t, t.TempDir())
		moved, finished := interrupt(t, cfg, a, step)
		if finished {
			steps = step
			break
		}
		if err := server.CheckRestored(cfg); !errors.Is(err, server.ErrRestoreUnfinished) {
			t.Errorf("step %d, %d moves: %v", step, moved, err)
		}
		if _, err := server.Initialise(t.Context(), cfg, server.Options{}); !errors.Is(err, server.ErrRestoreUnfinished) {
			t.Errorf("init after step %d: %v", step, err)
		}
		_, err := restore(t, cfg, a, nil)
		must(t, err)
		wantRestored(t, s, cfg, DefaultSealedSince)
		// And so it is taken back alone, where the next attempt fails.
		cfg = target(t, t.TempDir())
		interrupt(t, cfg, a, step)
		if _, err := restore(t, cfg, a[:1000], nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
		// The folder itself was there before the second attempt.
		if left := tree(t, filepath.Dir(cfg.DataDir)); len(left) != 1 {
			t.Errorf("step %d: left %q", step, left)
		}
	}
	if steps < 6 {
		t.Errorf("%d steps: the test showed too little", steps)
	}
}

// interrupt does the first steps of a restore. It gives the lock back, as the
// death of a process does.
func interrupt(t *testing.T, cfg *server.Config, archive []byte, steps int) (moved int, finished bool) {
	t.Helper()
	tg, err := claim(cfg, false)
	must(t, err)
	defer tg.mark.Close()
	if steps == 0 {
		return 0, false
	}
	r := &restorer{o: RestoreOptions{Config: cfg, In: bytes.NewReader(archive), SkipTokens: true, Now: nowUTC}, t: tg, out: &Restored{}}
	if steps == 1 {
		must(t, os.Mkdir(tg.stage(tg.data), 0o700))
		return 0, false
	}
	if steps == 2 {
		must(t, tg.prepare())
		return 0, false
	}
	moves, err := r.ready(t.Context())
	must(t, err)
	if steps == 3 {
		return 0, false
	}
	must(t, tg.planMoves(moves))
	moved = steps - 4
	if moved > len(moves) {
		return moved, true
	}
	for _, m := range moves[:moved] {
		must(t, os.Rename(m.From, m.To))
	}
	return moved, false
}

// TestFinishedAndKilled: what a finished restore leaves when it is killed takes
// nothing back later, when the installation has long been in use.
func TestFinishedAndKilled(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	cfg := target(t, t.TempDir())
	tg, err := claim(cfg, false)
	must(t, err)
	r := &restorer{o: RestoreOptions{Config: cfg, In: bytes.NewReader(a), SkipTokens: true, Now: nowUTC}, t: tg, out: &Restored{}}
	moves, err := r.ready(t.Context())
	must(t, err)
	must(t, tg.commit(moves))
	must(t, tg.unmark())
	must(t, server.CheckRestored(cfg))
	before := tree(t, cfg.DataDir)
	if _, err := restore(t, cfg, a, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
	if after := tree(t, cfg.DataDir); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("left %q of %q", after, before)
	}
}
