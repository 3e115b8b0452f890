package sqlite

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server/kms"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// pageBytes is SQLite's default page size.
const pageBytes = 4096

// putImage makes image the database of dir, as a backup that is restored.
func putImage(t testing.TB, dir string, image []byte) {
	t.Helper()
	for _, suffix := range companions() {
		if err := os.Remove(filepath.Join(dir, fileName+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, fileName), image, fileMode))
}

// TestTruncated cuts the database at each page, and within.
func TestTruncated(t *testing.T) {
	dir := made(t, 30)
	whole := read(t, filepath.Join(dir, fileName))
	for end := 0; end < len(whole); end += pageBytes / 2 {
		putImage(t, dir, whole[:end])
		wantDamaged(t, dir, fmt.Sprintf("cut at %d of %d", end, len(whole)))
	}
	putImage(t, dir, whole)
	wantN(t, mustOpen(t, dir), 30)
}

// TestPagesOverwritten spoils one page after another.
func TestPagesOverwritten(t *testing.T) {
	dir := made(t, 30)
	whole := read(t, filepath.Join(dir, fileName))
	for _, filler := range []byte{0x00, 0xff} {
		for start := 0; start < len(whole); start += pageBytes {
			image := bytes.Clone(whole)
			copy(image[start:], bytes.Repeat([]byte{filler}, pageBytes))
			putImage(t, dir, image)
			wantDamaged(t, dir, fmt.Sprintf("page at %d filled with %#x", start, filler))
		}
	}
}

// wantDamaged wants both ways to open, or the check, to find the damage, and
// the file to be left as it is.
func wantDamaged(t *testing.T, dir, what string) {
	t.Helper()
	path := filepath.Join(dir, fileName)
	before := read(t, path)
	s, err := Open(t.Context(), dir, Options{})
	if err == nil {
		s.Close()
		t.Errorf("%s: opened", what)
		return
	}
	wantRemedy(t, err, ErrDamaged)
	if !bytes.Equal(before, read(t, path)) {
		t.Errorf("%s: the file was changed", what)
	}
	r, err := OpenReadOnly(t.Context(), dir, Options{})
	if err == nil {
		err = errors.Join(r.Check(t.Context()), r.Close())
	}
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("%s: read-only: %v", what, err)
	}
}

// TestRecordsRefused: what this version would have to guess, it refuses.
func TestRecordsRefused(t *testing.T) {
	for name, row := range map[string]struct{ change, text string }{
		"unknown spec":          {"UPDATE keys SET spec = 'KEY_SPEC_ML_KEM'", `spec: "KEY_SPEC_ML_KEM" is not known`},
		"unknown usage":         {"UPDATE keys SET usage = 'KEY_USAGE_TYPE_ALL'", "usage: "},
		"unknown state":         {"UPDATE keys SET state = 'ENABLED'", "state: "},
		"state never stored":    {"UPDATE keys SET state = 'KEY_STATE_UNAVAILABLE'", "never stored"},
		"unspecified":           {"UPDATE keys SET state = 'KEY_STATE_UNSPECIFIED'", "never stored"},
		"unknown custody":       {"UPDATE key_versions SET custody = 'KEY_CUSTODY_TYPE_HEARSAY'", "custody: "},
		"unknown locator spec":  {"UPDATE key_versions SET locator_spec = ''", "locator spec: "},
		"unknown locator usage": {"UPDATE key_versions SET locator_usage = 'x'", "locator usage: "},
		"no versions":           {"DELETE FROM key_versions", "without a version"},
		"pending without date":  {"UPDATE keys SET state = 'KEY_STATE_PENDING_DELETION'", "without deletion date"},
		"date without pending":  {"UPDATE keys SET deletion_us = 1", "with a deletion date"},
		"account":               {"UPDATE keys SET account = 'root'", "12 digits"},
		"orphaned tag":          {"PRAGMA foreign_keys = OFF; UPDATE tags SET key_id = 'x'", "that is not there"},
		"orphaned version":      {"PRAGMA foreign_keys = OFF; UPDATE key_versions SET key_id = 'x'", "that is not there"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			insertN(t, s, 1)
			if _, err := s.writer.ExecContext(t.Context(), row.change); err != nil {
				t.Fatal(err)
			}
			_, err := s.Snapshot(t.Context())
			if err == nil || !strings.Contains(err.Error(), row.text) {
				t.Errorf("Snapshot: %v, want %q", err, row.text)
			}
			if err := s.Check(t.Context()); err == nil {
				t.Error("Check = nil")
			}
			if _, err := s.Key(t.Context(), testKey(0).ID); err == nil && !strings.HasPrefix(name, "orphaned tag") {
				t.Error("Key = nil")
			}
		})
	}
}

// TestSchemaRefuses: the tables hold what else would be guessed.
func TestSchemaRefuses(t *testing.T) {
	s := newStore(t)
	insertN(t, s, 1)
	for name, change := range map[string]string{
		"text as a number":     "UPDATE keys SET created_us = 'yesterday'",
		"a ref in capitals":    "UPDATE key_versions SET ref = upper(ref)",
		"a short ref":          "UPDATE key_versions SET ref = substr(ref, 2)",
		"revision zero":        "UPDATE keys SET revision = 0",
		"destroying by half":   "UPDATE keys SET destroying = 2",
		"null":                 "UPDATE keys SET description = NULL",
		"negative seal count":  "INSERT INTO seal_counts SELECT ref, key_id, -1 FROM key_versions",
		"seals of no key":      "INSERT INTO seal_counts SELECT ref, 'x', 1 FROM key_versions",
		"two installations":    "INSERT INTO installation VALUES (2, '00000000', 0, NULL)",
		"instance in capitals": "UPDATE installation SET instance = 'ABCDEF01'",
		"two positions":        "INSERT INTO key_versions SELECT replace(ref, 'e', 'f'), key_id, position, material_id, locator_id, locator_label, locator_spec, locator_usage, custody, created_us, public_key FROM key_versions",
	} {
		if _, err := s.writer.ExecContext(t.Context(), change); err == nil {
			t.Errorf("%s went in", name)
		}
	}
	must(t, s.Check(t.Context()))
}

// TestNoInstance: the row is gone.
func TestNoInstance(t *testing.T) {
	dir := made(t, 1)
	s := mustOpen(t, dir)
	if _, err := s.writer.ExecContext(t.Context(), "DELETE FROM installation"); err != nil {
		t.Fatal(err)
	}
	if err := s.Tick(t.Context(), fromMicros(1)); !errors.Is(err, ErrDamaged) {
		t.Errorf("Tick: %v", err)
	}
	if _, err := s.LastTick(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("LastTick: %v", err)
	}
	must(t, s.Close())
	_, err := Open(t.Context(), dir, Options{})
	wantRemedy(t, err, ErrDamaged)
}

// TestLimits: each limit is kept, one more is refused.
func TestLimits(t *testing.T) {
	tags := func(n int) (tags []kms.Tag) {
		for i := range n {
			tags = append(tags, kms.Tag{Key: fmt.Sprint(i)})
		}
		return tags
	}
	versions := func(n int) (versions []kms.KeyVersion) {
		for i := range n {
			v := testKey(0).Versions[0]
			binary.BigEndian.PutUint32(v.Ref[8:], uint32(i))
			versions = append(versions, v)
		}
		return versions
	}
	text := func(n int) string { return strings.Repeat("x", n) }
	for _, row := range []struct {
		name  string
		limit int
		set   func(r *kms.KeyRecord, n int)
	}{
		{"id", maxTextBytes, func(r *kms.KeyRecord, n int) { r.ID = kms.KeyID(text(n)) }},
		{"region", maxTextBytes, func(r *kms.KeyRecord, n int) { r.Region = kms.Region(text(n)) }},
		{"key store", maxTextBytes, func(r *kms.KeyRecord, n int) { r.KeyStore = text(n) }},
		{"description", maxTextBytes, func(r *kms.KeyRecord, n int) { r.Description = text(n) }},
		{"tag key", maxTextBytes, func(r *kms.KeyRecord, n int) { r.Tags[0].Key = text(n) }},
		{"tag value", maxTextBytes, func(r *kms.KeyRecord, n int) { r.Tags[0].Value = text(n) }},
		{"tags", maxTags, func(r *kms.KeyRecord, n int) { r.Tags = tags(n) }},
		{"versions", maxVersions, func(r *kms.KeyRecord, n int) { r.Versions = versions(n) }},
		{"material id", maxTextBytes, func(r *kms.KeyRecord, n int) { r.Versions[0].MaterialID = kms.KeyMaterialID(text(n)) }},
		{"locator id", maxLocatorIDBytes, func(r *kms.KeyRecord, n int) { r.Versions[0].Locator.ID = make([]byte, n) }},
		{"locator label", maxTextBytes, func(r *kms.KeyRecord, n int) { r.Versions[0].Locator.Label = text(n) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStore(t)
			over := testKey(0)
			row.set(over, row.limit+1)
			if err := s.InsertKey(t.Context(), over); err == nil || !strings.Contains(err.Error(), "at most") {
				t.Errorf("limit + 1: %v", err)
			}
			at := testKey(1)
			row.set(at, row.limit)
			if err := s.InsertKey(t.Context(), at); err != nil {
				t.Errorf("limit: %v", err)
			}
			if got, err := s.Key(t.Context(), at.ID); err != nil || len(got.Versions) != len(at.Versions) || len(got.Tags) != len(at.Tags) {
				t.Errorf("Key: %v", err)
			}
		})
	}
	t.Run("alias name", func(t *testing.T) {
		s := newStore(t)
		insertN(t, s, 1)
		for n, fine := range map[int]bool{maxTextBytes: true, maxTextBytes + 1: false} {
			err := s.InsertAlias(t.Context(), &kms.AliasRecord{Account: "111122223333", Region: "r", Name: text(n), KeyID: testKey(0).ID})
			if fine != (err == nil) {
				t.Errorf("name of %d bytes: %v", n, err)
			}
		}
	})
}

// TestEnumNames: every value of the enums that are stored has a name that
// leads back to it.
func TestEnumNames(t *testing.T) {
	roundTrip := func(names map[int32]string, values map[string]int32) {
		for v := range names {
			name, err := enumName(names, v)
			if err != nil {
				t.Error(err)
			}
			if back, err := enumValue[int32](values, name); err != nil || back != v {
				t.Errorf("%d is stored as %q, which is read as %d, %v", v, name, back, err)
			}
		}
		for _, v := range []int32{-1, 9999} {
			if name, err := enumName(names, v); err == nil {
				t.Errorf("%d is stored as %q", v, name)
			}
		}
		for _, name := range []string{"", "0", "1", "KEY_SPEC", "key_spec_rsa_2048", "ENABLED"} {
			if v, err := enumValue[int32](values, name); err == nil {
				t.Errorf("%q is read as %d", name, v)
			}
		}
	}
	roundTrip(keyholdv1.KeySpec_name, keyholdv1.KeySpec_value)
	roundTrip(keyholdv1.KeyUsageType_name, keyholdv1.KeyUsageType_value)
	roundTrip(keyholdv1.KeyState_name, keyholdv1.KeyState_value)
	roundTrip(keyholdv1.KeyCustodyType_name, keyholdv1.KeyCustodyType_value)
}

// FuzzParseRef: what is accepted is what Ref.String writes.
func FuzzParseRef(f *testing.F) {
	f.Add("000102030405060708090a0b0c0d0e0f")
	f.Add("000102030405060708090A0B0C0D0E0F")
	f.Add("")
	f.Add("000102030405060708090a0b0c0d0e0f00")
	f.Add("0001020304050607 8090a0b0c0d0e0f")
	f.Fuzz(func(t *testing.T, s string) {
		if ref, err := parseRef(s); err == nil && ref.String() != strings.ToLower(s) {
			t.Errorf("parseRef(%q) = %s", s, ref)
		}
	})
}

// FuzzDatabase opens files that someone tampered with. Whatever they are, the
// answer is an error or records that keep to their documentation.
func FuzzDatabase(f *testing.F) {
	dir := made(f, 5)
	whole := read(f, filepath.Join(dir, fileName))
	f.Add(uint32(0), []byte("SQLite format 4"))
	f.Add(uint32(18), []byte{1, 1})              // journal mode
	f.Add(uint32(28), []byte{0, 0, 0, 1})        // size in pages
	f.Add(uint32(60), []byte{0, 0, 0, 9})        // user_version
	f.Add(uint32(68), []byte("HDYK"))            // application_id
	f.Add(uint32(100), []byte{0x0a})             // kind of the first page
	f.Add(uint32(pageBytes), []byte{0x05, 0xff}) // and of another
	for _, text := range []string{"KEY_STATE_ENABLED", "KEY_SPEC_", "111122223333", "CREATE TABLE keys", "keyhold/0123abcd"} {
		f.Add(uint32(bytes.Index(whole, []byte(text))), []byte("\xffX"))
	}
	f.Fuzz(func(t *testing.T, offset uint32, patch []byte) {
		image := bytes.Clone(whole)
		copy(image[int(offset)%len(image):], patch)
		putImage(t, dir, image)
		s, err := Open(t.Context(), dir, Options{})
		if err != nil {
			return
		}
		defer s.Close()
		if snap, err := s.Snapshot(t.Context()); err == nil {
			for _, k := range snap.Keys {
				if err := checkKey(k); err != nil {
					t.Errorf("read without complaint: %v", err)
				}
			}
		}
		_ = s.Check(context.WithoutCancel(t.Context()))
	})
}
