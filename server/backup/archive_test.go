package backup

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server/audit"
)

// FuzzArchive: no archive makes the reader panic, or accept another manifest than
// its grammar allows.
func FuzzArchive(f *testing.F) {
	// Workers begin here again and again: no real parts.
	s := &set{content: map[string][]byte{"store/keyhold.db": []byte("db"), "audit/head": []byte("head"), "config/x": []byte("x")}}
	anchor := audit.Anchor{}.String()
	s.manifest = Manifest{Format: formatName, Version: formatVersion, Created: nowUTC(), Journal: JournalFacts{First: anchor, AtStore: anchor, End: anchor}}
	s.files()
	a := s.archive(f, nil)
	if _, err := openArchive(bytes.NewReader(a), ""); err != nil {
		f.Fatal(err)
	}
	f.Add(a)
	f.Add(s.archiveOf(f, []byte(`{"format":"keyhold-backup","version":1}`), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := openArchive(bytes.NewReader(b), "")
		if err != nil {
			return
		}
		for _, file := range r.manifest.Files {
			if !filepath.IsLocal(file.Name) || strings.Contains(file.Name, "..") {
				t.Errorf("accepted the name %q", file.Name)
			}
		}
	})
}

// FuzzManifest: a manifest that is accepted says the same when it is written again.
func FuzzManifest(f *testing.F) {
	anchor := audit.Anchor{}.String()
	m := Manifest{
		Format: formatName, Version: formatVersion, Created: nowUTC(), Journal: JournalFacts{First: anchor, AtStore: anchor, End: anchor},
		Tokens: []TokenFacts{{Name: "a", Folder: "00000000-0000-0000-0000-000000000000"}},
	}
	for _, name := range []string{"store/keyhold.db", "audit/head", "tokens/00000000-0000-0000-0000-000000000000/token.object"} {
		m.Files = append(m.Files, File{Name: name, Size: 1, SHA256: strings.Repeat("0", 64)})
	}
	b, err := m.encode()
	must(f, err)
	if _, err := parseManifest(b); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if !filepath.IsLocal(file.Name) || strings.Contains(file.Name, "..") || file.Size < 0 {
				t.Errorf("accepted %+v", file)
			}
		}
		again, err := m.encode()
		must(t, err)
		if _, err := parseManifest(again); err != nil {
			t.Errorf("written again it is refused: %v", err)
		}
	})
}
