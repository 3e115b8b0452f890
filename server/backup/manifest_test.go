package backup

import (
	"encoding/json"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// TestManifestMemory: lists of elements that take many times the memory of their text
// are left early. Not parallel: it measures the process.
func TestManifestMemory(t *testing.T) {
	const size = 4 << 20 // 1/64 of what is allowed
	for list, element := range map[string]string{"files": "{}", "tokens": "{}", "elsewhere": `""`, "destroyed": `""`} {
		b := []byte(`{"format":"keyhold-backup","version":1,"` + list + `":[` + strings.Repeat(element+",", size/3) + element + `]}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := parseManifest(b)
		runtime.ReadMemStats(&after)
		// What was allocated in all, and so more than was ever in use.
		allocated := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %v; %d KiB allocated in all", list, err, allocated>>10)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), list+": ") {
			t.Errorf("%s: %v", list, err)
		}
		if allocated > 16*size {
			t.Errorf("%s: %d MiB allocated for %d MiB of manifest", list, allocated>>20, len(b)>>20)
		}
	}
}

// A list of as many elements as allowed is read, one of more is not, nor a wrong one.
func TestManifestLists(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		`[]`: 0, `null`: 0, `["a","b"]`: 2, `["a","b","c"]`: 3,
		`["a","b","c","d"]`: -1, `["a","wrong"]`: -1, `{}`: -1, `"a"`: -1, `["a"`: -1, `["a",1]`: -1,
	} {
		var list []string
		err := decodeList(json.NewDecoder(strings.NewReader(text)), &list, 3, func(s string) error {
			if s == "wrong" {
				return errors.New(s)
			}
			return nil
		})
		if (err == nil) != (want >= 0) || err == nil && len(list) != want {
			t.Errorf("%s: %q, %v", text, list, err)
		}
	}
}

// A manifest that is not the one that was asked for is not looked into.
func TestManifestWanted(t *testing.T) {
	t.Parallel()
	s := newSet(t)
	a := s.archiveOf(t, []byte("no manifest"), nil)
	cfg := target(t, t.TempDir())
	_, err := restore(t, cfg, a, func(o *RestoreOptions) { o.Manifest = strings.Repeat("0", 64) })
	if err == nil || !strings.Contains(err.Error(), "another backup") {
		t.Errorf("got %v", err)
	}
	wantNothing(t, cfg)
}

// TestDestroyedMeanwhile: a key whose deletion was carried out while a backup was made
// is named in the manifest, and a restore does not miss it; any other it does.
func TestDestroyedMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSet(t) // its key is pending deletion
	cfg := target(t, t.TempDir())
	_, err := restore(t, cfg, s.archive(t, nil), nil)
	must(t, err)
	m := &maker{o: Options{Config: cfg, SkipTokens: true, Now: nowUTC}, stage: t.TempDir()}
	must(t, m.store(t.Context()))
	must(t, m.checkTokens(t.Context()))
	if len(m.keys) != 1 || len(m.manifest.Destroyed) > 0 {
		t.Fatalf("keys %v, destroyed %q before any was", m.keys, m.manifest.Destroyed)
	}
	k := m.keys[0].Clone()
	for _, done := range []func(*sqlite.Store) error{
		func(store *sqlite.Store) error { k.Destroying = true; return store.UpdateKey(t.Context(), k) },
		func(store *sqlite.Store) error { return store.DeleteKey(t.Context(), k.ID, k.Revision) },
	} {
		inStore(t, cfg, done)
		m.manifest.Destroyed = nil
		must(t, m.checkTokens(t.Context()))
		if !slices.Equal(m.manifest.Destroyed, []string{string(k.ID)}) {
			t.Errorf("destroyed %q, want %s", m.manifest.Destroyed, k.ID)
		}
	}
	// The manifest brings it to the restore.
	s.manifest.Destroyed = m.manifest.Destroyed
	b, err := s.manifest.encode()
	must(t, err)
	read, err := parseManifest(b)
	must(t, err)
	r := &restorer{m: read, out: &Restored{Orphans: []kms.Orphan{{Kind: kms.OrphanRecord, KeyID: k.ID}}}}
	must(t, r.missing())
	other := kms.KeyID("00000000-0000-4000-8000-000000000002")
	r.out.Orphans = append(r.out.Orphans, kms.Orphan{Kind: kms.OrphanRecord, KeyID: other})
	if err := r.missing(); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), string(other)) || strings.Contains(err.Error(), string(k.ID)) {
		t.Errorf("got %v, want %s alone to be missing", err, other)
	}
}

func inStore(t *testing.T, cfg *server.Config, do func(*sqlite.Store) error) {
	t.Helper()
	store, err := sqlite.Open(t.Context(), cfg.DataDir, sqlite.Options{})
	must(t, err)
	must(t, do(store))
	must(t, store.Close())
}
