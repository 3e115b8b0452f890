package audit

import (
	"bytes"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

const formatDoc = "../../docs/audit-format.md"

// docHex returns the bytes of the named hex dump in the format's specification.
func docHex(t *testing.T, doc, name string) []byte {
	t.Helper()
	_, rest, ok := strings.Cut(doc, "<!-- example: "+name+" -->\n```\n")
	dump, _, ok2 := strings.Cut(rest, "```")
	if !ok || !ok2 {
		t.Fatalf("%s has no example %q", formatDoc, name)
	}
	// A line is an offset, hex bytes and, after two spaces and a bar, a comment.
	var out []byte
	for line := range strings.Lines(dump) {
		line, _, _ = strings.Cut(line, "|")
		_, line, _ = strings.Cut(line, ":")
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatalf("%s: example %q: %v", formatDoc, name, err)
		}
		out = append(out, b...)
	}
	return out
}

// The worked example of docs/audit-format.md is what the code writes and reads.
func TestFormatExample(t *testing.T) {
	raw, err := os.ReadFile(formatDoc)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	id := journalID([]byte("0123456789abcdef"))
	start := Anchor{Hash: genesis(id)}
	created := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	h := segmentHeader{id: id, start: start, created: created}
	header := h.encode()
	rec0, h0 := appendRecord(nil, recordHeader{kind: KindEvent, nanos: created.UnixNano()}, []byte(`{"eventName":"Encrypt"}`), &start.Hash)
	rec1, h1 := appendRecord(nil, recordHeader{kind: KindEvent, flags: flagProtected, seq: 1, nanos: created.UnixNano(), floor: 1},
		[]byte(`{"eventName":"DisableKey"}`), &h0)
	head := appendHead(nil, id, Anchor{Count: 2, Hash: h1})
	for name, want := range map[string][]byte{
		"segment header": header[:segmentHeaderUsed], "record 0": rec0, "record 1": rec1, "head": head,
	} {
		if got := docHex(t, doc, name); !bytes.Equal(got, want) {
			t.Errorf("%s: the document has\n%swant\n%s", name, hex.Dump(got), hex.Dump(want))
		}
	}
	var r Record
	if _, err := parseRecord(rec1, &r); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]Hash{"genesis": start.Hash, "h(0)": h0, "h(1)": h1, "leaf(1)": r.Leaf} {
		if !regexp.MustCompile(regexp.QuoteMeta(name) + ` += ` + v.String()).MatchString(doc) {
			t.Errorf("the document lacks %s = %v", name, v)
		}
	}
}
