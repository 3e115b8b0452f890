package kms

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"testing"
)

// sampleBlob has an IV of 16 bytes and metadata, as an external key store's.
func sampleBlob(t testing.TB, iv, meta, ciphertext int) []byte {
	t.Helper()
	b, err := formatBlob("1234abcd-12ab-34cd-56ef-1234567890ab", Ref{1, 2, 3}, Sealed{
		IV: bytes.Repeat([]byte{4}, iv), Meta: bytes.Repeat([]byte{5}, meta), Ciphertext: bytes.Repeat([]byte{6}, ciphertext), Tag: bytes.Repeat([]byte{7}, 16),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFormatBlobLimits(t *testing.T) {
	t.Parallel()
	const id KeyID = "1234abcd-12ab-34cd-56ef-1234567890ab"
	most := maxBlobBytes - blobHeadBytes - 12 - 1 - 16
	for _, c := range []struct {
		id                        KeyID
		iv, meta, ciphertext, tag int
		ok                        bool
	}{
		{id, 12, 0, 1, 16, true},
		{id, 16, 20, 1, 16, true},
		{id, 12, 0, most, 16, true},
		{id, 11, 0, 1, 16, false},
		{id, 17, 0, 1, 16, false},
		{id, 0, 0, 1, 16, false},
		{id, 12, 21, 1, 16, false},
		{id, 12, 0, 0, 16, false},
		{id, 12, 0, most + 1, 16, false},
		{id, 12, 0, 1, 15, false},
		{id, 12, 0, 1, 17, false},
		{"", 12, 0, 1, 16, false},
		{KeyID(strings.ToUpper(string(id))), 12, 0, 1, 16, false},
		{id[:35], 12, 0, 1, 16, false},
		{"{" + id[:34] + "}", 12, 0, 1, 16, false},
		{KeyID(strings.ReplaceAll(string(id), "-", "") + "aaaa"), 12, 0, 1, 16, false},
		{"urn:uuid:" + id, 12, 0, 1, 16, false},
		{"mrk-1234abcd12ab34cd56ef1234567890ab", 12, 0, 1, 16, false},
	} {
		b, err := formatBlob(c.id, Ref{}, Sealed{IV: make([]byte, c.iv), Meta: make([]byte, c.meta), Ciphertext: make([]byte, c.ciphertext), Tag: make([]byte, c.tag)})
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if err == nil {
			if _, err := parseBlob(b); err != nil {
				t.Errorf("%+v: formatted, and does not parse", c)
			}
		}
	}
}

// Parsing never looks behind the end, and every cut that takes away the tag or
// more is refused.
func TestParseBlobTruncations(t *testing.T) {
	t.Parallel()
	b := sampleBlob(t, 16, 20, 5)
	for n := range b {
		p, err := parseBlob(slices.Clip(slices.Clone(b[:n])))
		if shortest := len(b) - 4; (err == nil) != (n >= shortest) {
			t.Errorf("%d of %d bytes: %+v, %v", n, len(b), p, err)
		}
	}
}

func FuzzParseBlob(f *testing.F) {
	seeds := readVectors(f)
	for _, v := range seeds.Vectors {
		f.Add([]byte(v.Blob))
	}
	for _, v := range seeds.Negative {
		f.Add([]byte(v.Blob))
	}
	f.Add(sampleBlob(f, 16, 20, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseBlob(b)
		if err != nil {
			if p != nil {
				t.Error("an error and a blob")
			}
			return
		}
		again, err := formatBlob(p.keyID, p.ref, p.Sealed)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("parse and format is no identity: %x, %v", again, err)
		}
	})
}

// canonical writes a context as docs/ciphertext-format.md says, by other means
// than the code under test.
func canonical(ec map[string]string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(ec)))
	for _, k := range slices.Sorted(maps.Keys(ec)) {
		for _, s := range []string{k, ec[k]} {
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
		}
	}
	return b
}

func TestContextHash(t *testing.T) {
	t.Parallel()
	if contextHash(nil) != contextHash(map[string]string{}) {
		t.Error("an absent context is not an empty one")
	}
	distinct := []map[string]string{
		nil,
		{"": ""},
		{"a": ""},
		{"": "a"},
		{"a": "bc"},
		{"ab": "c"},
		{"a": "b", "c": ""},
		{"a": "b", "": "c"},
		{"ab": "", "c": ""},
		{"a": "\x00\x00\x00\x01b"},
		{"é": "x"},
		{"e\u0301": "x"},
		{"A": "b"},
		{"a": "B"},
		{"a": "b"},
		{"\U0001F600": "a", "\uFFFD": "b"},
		{"\U0001F600": "b", "\uFFFD": "a"},
	}
	seen := map[[contextHashBytes]byte]int{}
	for i, ec := range distinct {
		h := contextHash(ec)
		if h != sha256.Sum256(canonical(ec)) {
			t.Errorf("%v: not the hash of the documented form", ec)
		}
		if j, ok := seen[h]; ok {
			t.Errorf("%v and %v have one hash", distinct[j], ec)
		}
		seen[h] = i
	}
}

// FuzzContextHash: two contexts have one hash just when they are equal.
func FuzzContextHash(f *testing.F) {
	f.Add("a", "bc", "", "", "ab", "c", "", "")
	f.Add("a", "b", "c", "d", "c", "d", "a", "b")
	f.Add("a", "\x00\x00\x00\x01b", "c", "d", "a", "b", "c", "d")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3, k4, v4 string) {
		a, b := map[string]string{k1: v1, k2: v2}, map[string]string{k3: v3, k4: v4}
		if (contextHash(a) == contextHash(b)) != maps.Equal(a, b) {
			t.Errorf("%q and %q", a, b)
		}
		if contextHash(a) != sha256.Sum256(canonical(a)) {
			t.Errorf("%q: not the documented form", a)
		}
	})
}

func FuzzParseKeyName(f *testing.F) {
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	for _, s := range []string{
		id, "alias/a", "arn:aws:kms:us-east-1:111122223333:key/" + id, "arn:aws:kms:us-east-1:444455556666:alias/x:y", "arn:aws:kms:us-east-1:111122223333:key/alias/a",
		"arn:aws:kms:eu-west-1:111122223333:key/" + id, "arn:aws-cn:kms:us-east-1:111122223333:key/" + id, "arn:", "", "alias/", strings.ToUpper(id), "mrk-1234", "key/" + id,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, wrong := parseKeyName(s, "111122223333", "us-east-1")
		if wrong != "" {
			if n != (keyName{}) || len(wrong) > 1100 {
				t.Errorf("%q: refused with %q and %+v", s, wrong, n)
			}
			return
		}
		// What was accepted is one of the four forms, and nothing is lost.
		var again string
		switch {
		case n.isARN && n.alias != "":
			again = aliasARN(n.region, n.account, n.alias)
		case n.isARN:
			again = keyARN(n.region, n.account, n.id)
		case n.alias != "":
			again = n.alias
		default:
			again = string(n.id)
		}
		if again != s || n.region != "us-east-1" || !n.account.Valid() || (n.alias == "") == (n.id == "") {
			t.Errorf("%q was understood as %+v", s, n)
		}
		if !n.isARN && n.account != "111122223333" {
			t.Errorf("%q belongs to %s", s, n.account)
		}
	})
}

func FuzzParseMarker(f *testing.F) {
	f.Add(formatMarker(keysMarker, "1234abcd-12ab-34cd-56ef-1234567890ab"))
	f.Add(formatMarker(aliasesMarker, "alias/a"))
	f.Add("")
	f.Add("a2V5czo=")
	f.Add("YWxpYXNlczp000")
	f.Add("a2V5cz\np4")
	f.Fuzz(func(t *testing.T, s string) {
		for _, kind := range []string{keysMarker, aliasesMarker} {
			last, err := parseMarker(&s, kind)
			if err != nil {
				continue
			}
			if again := formatMarker(kind, last); last == "" || again != s {
				t.Errorf("%q means %q, which is written %q", s, last, again)
			}
		}
	})
}

func TestMarkerOfAnotherList(t *testing.T) {
	t.Parallel()
	keys, aliases := formatMarker(keysMarker, "x"), formatMarker(aliasesMarker, "x")
	empty, padded := formatMarker(keysMarker, ""), base64.URLEncoding.EncodeToString([]byte(keysMarker+"xy"))
	for _, c := range []struct {
		marker, kind string
		ok           bool
	}{
		{keys, keysMarker, true},
		{aliases, aliasesMarker, true},
		{keys, aliasesMarker, false},
		{aliases, keysMarker, false},
		{empty, keysMarker, false},
		{"!", keysMarker, false},
		{padded, keysMarker, strings.TrimRight(padded, "=") == padded},
	} {
		if _, err := parseMarker(&c.marker, c.kind); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if last, err := parseMarker(nil, keysMarker); last != "" || err != nil {
		t.Errorf("no marker: %q, %v", last, err)
	}
}
