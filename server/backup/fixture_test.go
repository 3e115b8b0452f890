package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/audit"
	credentials "github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// set is a backup as its parts: a real store and a real journal of an
// installation whose tokens are backed up elsewhere. Backups with tokens, made by
// the program, are tested in cmd/keyholdd.
type set struct {
	manifest Manifest
	content  map[string][]byte
	end      audit.Anchor
	ref      kms.Ref
}

const records = 40

func nowUTC() time.Time { return time.Now().UTC() }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSet(t testing.TB) *set {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	store, err := sqlite.Create(t.Context(), dir, sqlite.Options{})
	must(t, err)
	s := &set{content: make(map[string][]byte), ref: kms.Ref{1, 2, 3}}
	now := time.Now().UTC().Truncate(time.Second)
	must(t, store.InsertKey(t.Context(), &kms.KeyRecord{
		ID: "00000000-0000-4000-8000-000000000001", Account: "111122223333", Region: "us-east-1", Spec: keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
		Usage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT, State: keyholdv1.KeyState_KEY_STATE_PENDING_DELETION, Created: now,
		DeletionDate: now.AddDate(0, 0, 7), PendingWindowDays: 7,
		Versions: []kms.KeyVersion{{
			MaterialID: kms.KeyMaterialID(strings.Repeat("ab", 32)), Ref: s.ref, Custody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED, Created: now,
			Locator: kms.Locator{ID: s.ref[:], Label: "keyhold:x", Spec: keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT, Usage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT},
		}},
	}))
	for id, active := range map[string]bool{"AKIA1": true, "AKIA2": false, "AKIA3": true} {
		must(t, store.InsertAccessKey(t.Context(), &credentials.AccessKeyRecord{
			ID: id, Principal: "arn:aws:iam::111122223333:root", Active: active, Created: now, SealedSecret: []byte("sealed " + id),
		}))
	}
	must(t, store.Close())
	journal, err := audit.Open(filepath.Join(dir, "audit"), audit.Options{Create: true, SegmentBytes: 256 << 10})
	must(t, err)
	for i := range records {
		phase := []audit.Phase{audit.PhaseIntent, audit.PhaseOutcome}[i%2]
		e := audit.Event{EventTime: now, EventName: fmt.Sprintf("CreateKey%d", i/2), Phase: phase, EventID: fmt.Sprint(i), Resources: []audit.Resource{{ARN: fmt.Sprintf("arn:%d", i/2)}}}
		_, err := journal.Append(t.Context(), audit.Normal, audit.Synced, e.AppendJSON(nil))
		must(t, err)
	}
	must(t, journal.Close(context.WithoutCancel(t.Context())))
	span, err := audit.Settle(t.Context(), filepath.Join(dir, "audit"))
	must(t, err)
	s.end = span.End
	for _, p := range span.Segments {
		b, err := os.ReadFile(filepath.Join(dir, "audit", p.Name))
		must(t, err)
		s.content[auditFolder+p.Name] = b[:p.Size]
	}
	s.content[auditFolder+audit.HeadName] = span.Head
	s.content[configFolder+"keyholdd.yaml"] = []byte("data_dir: /var/lib/keyhold\n")
	if s.content[storeFolder+sqlite.FileName], err = os.ReadFile(filepath.Join(dir, sqlite.FileName)); err != nil {
		t.Fatal(err)
	}
	s.manifest = Manifest{
		Format: formatName, Version: formatVersion, Program: "test", Created: now,
		Store: StoreFacts{Instance: store.Instance(), Schema: store.Schema(), Keys: 1},
		// The store is of before the last two changes.
		Journal: JournalFacts{ID: span.Journal, First: span.First.String(), AtStore: audit.Anchor{Count: records - 4}.String(), End: span.End.String()},
		Tokens:  []TokenFacts{{Name: "prod", Label: "prod", Serial: "1", Keys: 1}}, Elsewhere: []string{},
	}
	s.files()
	return s
}

// files fills in the manifest's files.
func (s *set) files() {
	s.manifest.Files = nil
	for _, name := range slices.Sorted(maps.Keys(s.content)) {
		sum := sha256.Sum256(s.content[name])
		s.manifest.Files = append(s.manifest.Files, File{Name: name, Size: int64(len(s.content[name])), SHA256: hex.EncodeToString(sum[:])})
	}
}

// archive writes the set, with entries changed as told.
func (s *set) archive(t testing.TB, change func([]tarEntry) []tarEntry) []byte {
	t.Helper()
	manifest, err := json.MarshalIndent(s.manifest, "", " ")
	must(t, err)
	return s.archiveOf(t, append(manifest, '\n'), change)
}

// tarEntry is one entry of an archive.
type tarEntry struct {
	tar.Header
	content []byte
}

func regular(name string, content []byte) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o600}, content}
}

func (s *set) archiveOf(t testing.TB, manifest []byte, change func([]tarEntry) []tarEntry) []byte {
	t.Helper()
	entries := []tarEntry{regular(manifestName, manifest), regular(sumName, sumLine(manifest))}
	for _, f := range s.manifest.Files {
		entries = append(entries, regular(f.Name, s.content[f.Name]))
	}
	if change != nil {
		entries = change(entries)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		must(t, w.WriteHeader(&e.Header))
		_, err := w.Write(e.content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// target is an installation's configuration, with nothing there yet.
func target(t testing.TB, dir string) *server.Config {
	t.Helper()
	return &server.Config{
		DataDir: filepath.Join(dir, "data"), Audit: server.AuditConfig{Dir: filepath.Join(dir, "data", "audit"), SegmentBytes: 256 << 10},
		Regions: []server.RegionConfig{{Name: "us-east-1", Token: "prod"}}, Tokens: []server.TokenConfig{{Name: "prod"}},
	}
}

func restore(t testing.TB, cfg *server.Config, archive []byte, change func(*RestoreOptions)) (*Restored, error) {
	t.Helper()
	o := RestoreOptions{Config: cfg, In: bytes.NewReader(archive), SkipTokens: true, Program: "test"}
	if change != nil {
		change(&o)
	}
	return Restore(t.Context(), o)
}

// tree lists what is below dir.
func tree(t testing.TB, dir string) (names []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	return names
}

// wantRestored wants the set in place, whole, and nothing else.
func wantRestored(t testing.TB, s *set, cfg *server.Config, seals uint64) {
	t.Helper()
	for _, name := range tree(t, filepath.Dir(cfg.DataDir)) {
		if strings.Contains(name, stageName) || strings.Contains(name, "unfinished") {
			t.Errorf("left %s", name)
		}
	}
	must(t, server.CheckRestored(cfg))
	store, err := sqlite.Open(t.Context(), cfg.DataDir, sqlite.Options{})
	must(t, err)
	defer store.Close()
	must(t, store.Check(t.Context()))
	if n, err := store.SealCount(t.Context(), s.ref); err != nil || n != seals {
		t.Errorf("seal count %d, %v, want %d", n, err, seals)
	}
	if tick, err := store.LastTick(t.Context()); err != nil || time.Since(tick) < 23*time.Hour || tick.IsZero() {
		t.Errorf("the tick %s, %v, holds no deletion", tick, err)
	}
	report, err := audit.Verify(cfg.Audit.Dir, audit.VerifyOptions{From: &s.end})
	if err != nil || report.Last.Count != records+1 {
		t.Errorf("the journal: %+v, %v", report, err)
	}
}

// wantAccessKeys wants these access keys of the set to be active, and all of them to
// be there.
func wantAccessKeys(t testing.TB, cfg *server.Config, active ...string) {
	t.Helper()
	store, err := sqlite.OpenReadOnly(t.Context(), cfg.DataDir, sqlite.Options{})
	must(t, err)
	defer store.Close()
	all, err := store.AccessKeys(t.Context())
	must(t, err)
	if len(all) != 3 {
		t.Errorf("%d access keys", len(all))
	}
	for _, k := range all {
		if k.Active != slices.Contains(active, k.ID) || string(k.SealedSecret) != "sealed "+k.ID {
			t.Errorf("access key %+v; want active: %q", k, active)
		}
	}
}

// wantNothing wants the target as it was.
func wantNothing(t testing.TB, cfg *server.Config) {
	t.Helper()
	if left := tree(t, filepath.Dir(cfg.DataDir)); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}
