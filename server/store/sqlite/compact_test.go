package sqlite

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyhold/keyhold/server/kms"
)

// Records that are loaded together share memory, and nothing else: more than a chunk of
// them, with texts of all lengths, are what was written, and what is appended to one is
// not in another.
func TestLoadManyRecords(t *testing.T) {
	s := newStore(t)
	written := &kms.Snapshot{}
	for i := range 3*chunkRecords + 1 {
		r := testKey(i)
		r.Description = strings.Repeat(string(rune('a'+i%26)), i*11) // beyond chunkBytes/8
		a := testAlias(r, "alias/"+string(r.ID))
		written.Keys, written.Aliases = append(written.Keys, r), append(written.Aliases, a)
	}
	must(t, s.InsertAll(t.Context(), written))
	got, err := s.Snapshot(t.Context())
	must(t, err)
	if d := cmp.Diff(written, got); d != "" {
		t.Fatal(d)
	}
	for _, r := range got.Keys {
		r.Versions = append(r.Versions, kms.KeyVersion{MaterialID: "another"})
	}
	for i, r := range got.Keys {
		if d := cmp.Diff(written.Keys[i].Versions, r.Versions[:1]); d != "" || len(r.Versions) != 2 {
			t.Errorf("key %d, when versions were appended to all: %s", i, d)
		}
	}
}

func TestCompactString(t *testing.T) {
	for _, many := range []bool{false, true} {
		c := compact{many: many}
		var want, got []string
		for _, n := range []int{0, 1, chunkBytes/8 - 1, chunkBytes / 8, chunkBytes/8 + 1, chunkBytes, 36} {
			for i := range 20 { // so that chunks end within a string, and at its end
				s := strings.Repeat(string(rune('a'+i)), n)
				want, got = append(want, s), append(got, c.string(s))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("many: %t: strings are not what they were", many)
		}
	}
}
