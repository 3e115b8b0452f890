package backup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/audit"
)

// TestInterruptedAndReplaced: an operator may have put their own, newer files in the
// places of an interrupted restore, before they run it again as the daemon's error
// tells them. These are not taken back: nothing is deleted, and the way out is said.
func TestInterruptedAndReplaced(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	dir := t.TempDir()
	cfg := target(t, dir)
	if moved, finished := interrupt(t, cfg, a, 6); moved != 2 || finished {
		t.Fatalf("%d moves, finished: %v; want head and a segment", moved, finished)
	}
	// Their own log goes back to its place. Its files may get the numbers of the
	// inodes that these had.
	for _, name := range []string{audit.HeadName, "journal-*.khj"} {
		names, err := filepath.Glob(filepath.Join(cfg.Audit.Dir, name))
		must(t, err)
		for _, path := range names {
			must(t, os.Remove(path))
		}
	}
	end := survivor(t, s, cfg.Audit.Dir, audit.Event{EventName: "DisableKey"})
	before := tree(t, dir)
	for range 2 { // nor is it taken back the next time
		_, err := restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal = true })
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("got %v", err)
		}
		if after := tree(t, dir); !slices.Equal(after, before) {
			t.Errorf("left %q of %q", after, before)
		}
		if err := server.CheckRestored(cfg); !errors.Is(err, server.ErrRestoreUnfinished) {
			t.Errorf("got %v", err)
		}
	}
	// What the error tells: away, again, and back.
	away := filepath.Join(t.TempDir(), "audit")
	must(t, os.Rename(cfg.Audit.Dir, away))
	if _, err := restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal = true }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a log: %v", err)
	}
	must(t, os.Rename(away, cfg.Audit.Dir))
	_, err := restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal = true })
	must(t, err)
	must(t, server.CheckRestored(cfg))
	if _, err := audit.Verify(cfg.Audit.Dir, audit.VerifyOptions{From: &end}); err != nil {
		t.Error(err)
	}
}

// TestIdentity: what a rename and a login leave alone, and what another token, or
// other keys in it, do not.
func TestIdentity(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "stage", "token"), filepath.Join(dir, "token")
	must(t, os.MkdirAll(from, 0o700))
	write := func(path, content string) { must(t, os.WriteFile(path, []byte(content), 0o600)) }
	write(filepath.Join(from, "token.object"), "x")
	write(filepath.Join(from, "1.object"), "x")
	want, err := identify(from)
	must(t, err)
	check := func(what string, same bool) {
		t.Helper()
		if got, err := identify(to); err != nil || (got == want) != same {
			t.Errorf("%s: %+v, %v; was %+v", what, got, err, want)
		}
	}
	must(t, os.Rename(from, to))
	check("moved", true)
	write(filepath.Join(to, "token.object"), "another count of tries")
	write(filepath.Join(to, "token.lock"), "")
	write(filepath.Join(to, "generation"), "2")
	check("logged in to", true)
	write(filepath.Join(to, "2.object"), "x")
	check("with a new key", false)
	must(t, os.Remove(filepath.Join(to, "2.object")))
	check("as it was", true)
	write(filepath.Join(to, "1.object"), "xy")
	check("with a changed key", false)
	must(t, os.Rename(to, from))
	must(t, os.CopyFS(to, os.DirFS(from)))
	check("copied", false)
}

// TestUndoSyncs: where the moves went is on the disk again as it was before the plan
// is gone, which a power failure would need.
func TestUndoSyncs(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	cfg := target(t, t.TempDir())
	cfg.Audit.Dir = filepath.Join(t.TempDir(), "journal")
	if moved, finished := interrupt(t, cfg, s.archive(t, nil), 8); moved != 4 || finished {
		t.Fatalf("%d moves, finished: %v; want head, two segments and the store", moved, finished)
	}
	tg := &targets{data: cfg.DataDir}
	synced := make(map[string]bool)
	tg.sync = func(dir string) error {
		plan, err := exists(filepath.Join(tg.stage(tg.data), planName))
		must(t, err)
		segments, err := filepath.Glob(filepath.Join(dir, "*.khj"))
		must(t, err)
		store, err := exists(filepath.Join(dir, "keyhold.db"))
		must(t, err)
		synced[dir] = synced[dir] || plan && !store && len(segments) == 0
		return syncDir(dir)
	}
	must(t, tg.takeBack(true))
	for _, dir := range []string{cfg.DataDir, cfg.Audit.Dir} {
		if !synced[dir] {
			t.Errorf("%s was not synced between the last move and the end of the plan", dir)
		}
	}
}

// TestForeignStage: others may be at work in a folder of tokens, or of logs, that
// several installations share. What they have staged stays.
func TestForeignStage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	prepared := func(name string) *targets {
		cfg := target(t, filepath.Join(dir, name))
		must(t, os.MkdirAll(filepath.Dir(cfg.DataDir), 0o700))
		cfg.Audit.Dir = filepath.Join(dir, "audit")
		tg, err := claim(cfg, false)
		must(t, err)
		tg.tokens = filepath.Join(dir, "tokens")
		must(t, tg.prepare())
		return tg
	}
	first := prepared("first")
	var staged []string
	for _, folder := range []string{first.tokens, first.audit} {
		path := filepath.Join(first.stage(folder), "staged")
		must(t, os.WriteFile(path, nil, 0o600))
		staged = append(staged, path)
	}
	must(t, prepared("second").undo())
	for _, path := range staged {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("another restore's stage: %v", err)
		}
	}
	must(t, first.undo())
	if left := tree(t, dir); len(left) != 2 {
		t.Errorf("left %q", left)
	}
}

// TestKilledAtTheEnd: a restore that was killed after it took its mark away has left
// stages. The next one removes them, once the installation has been moved away.
func TestKilledAtTheEnd(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	cfg := target(t, t.TempDir())
	cfg.Audit.Dir = filepath.Join(t.TempDir(), "journal")
	if moved, finished := interrupt(t, cfg, a, 8); moved != 4 || finished {
		t.Fatalf("%d moves, finished: %v; want all", moved, finished)
	}
	must(t, os.Remove(server.RestoreMark(cfg)))
	must(t, os.Remove(filepath.Join(cfg.DataDir, "keyhold.db")))
	names, err := filepath.Glob(filepath.Join(cfg.Audit.Dir, "[^.]*"))
	must(t, err)
	for _, path := range names {
		must(t, os.Remove(path))
	}
	_, err = restore(t, cfg, a, nil)
	must(t, err)
	wantRestored(t, s, cfg, DefaultSealedSince)
	if left := tree(t, cfg.Audit.Dir); len(left) < 2 || strings.Contains(strings.Join(left, " "), stageName) {
		t.Errorf("left %q", left)
	}
}

// TestLinkedAudit: a log on a disk of its own may be behind a link.
func TestLinkedAudit(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archive(t, nil)
	linked := func() (cfg *server.Config, disk string) {
		cfg, disk = target(t, t.TempDir()), t.TempDir()
		must(t, os.Mkdir(cfg.DataDir, 0o700))
		must(t, os.Symlink(disk, cfg.Audit.Dir))
		return cfg, disk
	}
	cfg, disk := linked()
	_, err := restore(t, cfg, a, nil)
	must(t, err)
	wantRestored(t, s, cfg, DefaultSealedSince)
	if left := tree(t, disk); !slices.Contains(left, audit.HeadName) {
		t.Errorf("on the log's disk is %q", left)
	}
	cfg, disk = linked()
	survivor(t, s, disk)
	if _, err := restore(t, cfg, a, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a log: %v", err)
	}
	_, err = restore(t, cfg, a, func(o *RestoreOptions) { o.KeepJournal = true })
	must(t, err)
	must(t, server.CheckRestored(cfg))
	// Not behind the name that is configured: it is something else.
	cfg, disk = linked()
	cfg.Audit.Dir = filepath.Join(t.TempDir(), "journal")
	if _, err := restore(t, cfg, a, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("with a link to %s: %v", disk, err)
	}
}
