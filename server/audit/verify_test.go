package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// closed returns the directory of a closed journal of several segments.
func closed(t *testing.T, records int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, small())
	add(t, j, 0, records, 4000)
	closeJournal(t, j, false)
	os.Remove(filepath.Join(dir, spareName))
	return dir
}

// A bit flipped anywhere, in any file that makes up the journal, is found.
func TestVerifyFindsEveryFlip(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "audit")
	j := open(t, dir, small())
	add(t, j, 0, 15, 4000) // nearly a segment
	add(t, j, 15, 6, 40)   // some of these go into the next
	closeJournal(t, j, false)
	os.Remove(filepath.Join(dir, spareName))
	paths := append(segmentsOf(t, dir), filepath.Join(dir, headName))
	if len(paths) != 3 {
		t.Fatal(paths)
	}
	mustVerify(t, dir)
	for _, path := range paths {
		b := readFile(t, path)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		for off, step := 0, 1; off < len(b); off += step {
			// Every byte of headers and of the first record, samples of the rest.
			if off > 8192 && filepath.Base(path) != headName {
				step = 97
			}
			flip := []byte{b[off] ^ 1<<(off%8)}
			if _, err := f.WriteAt(flip, int64(off)); err != nil {
				t.Fatal(err)
			}
			var fault *Fault
			if _, err := Verify(dir, VerifyOptions{}); !errors.As(err, &fault) {
				t.Fatalf("%s: flip at %d: %v", filepath.Base(path), off, err)
			}
			if _, err := f.WriteAt(b[off:off+1], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	mustVerify(t, dir)
}

func TestVerifySegments(t *testing.T) {
	orig := closed(t, 60)
	segs := segmentsOf(t, orig)
	if len(segs) < 4 {
		t.Fatalf("%d segments", len(segs))
	}
	name := func(i int) string { return filepath.Base(segs[i]) }
	other := closed(t, 60)
	for _, tc := range []struct {
		name   string
		break_ func(t *testing.T, dir string) error
		want   []FaultKind
		opens  bool // Open, which reads the end only, takes it
	}{
		{"first deleted", func(t *testing.T, dir string) error { return os.Remove(filepath.Join(dir, name(0))) }, []FaultKind{FaultMissingStart}, true},
		{"middle deleted", func(t *testing.T, dir string) error { return os.Remove(filepath.Join(dir, name(1))) }, []FaultKind{FaultSegmentGap}, true},
		{"last deleted", func(t *testing.T, dir string) error { return os.Remove(filepath.Join(dir, name(len(segs)-1))) }, []FaultKind{FaultMissingEnd}, false},
		{"all deleted", func(t *testing.T, dir string) error {
			for i := range segs {
				os.Remove(filepath.Join(dir, name(i)))
			}
			return nil
		}, []FaultKind{FaultMissingEnd}, false},
		{"swapped", func(t *testing.T, dir string) error {
			a, b := filepath.Join(dir, name(1)), filepath.Join(dir, name(2))
			return errors.Join(os.Rename(a, a+"x"), os.Rename(b, a), os.Rename(a+"x", b))
		}, []FaultKind{FaultSegmentName}, true},
		{"middle truncated in a record", func(t *testing.T, dir string) error {
			return os.Truncate(filepath.Join(dir, name(1)), 20000)
		}, []FaultKind{FaultRecord, FaultTrailingData}, true},
		{"middle truncated at a record", func(t *testing.T, dir string) error {
			return os.Truncate(filepath.Join(dir, name(1)), int64(segmentHeaderBytes+2*recordSize(4000)))
		}, []FaultKind{FaultSegmentGap}, true},
		{"middle truncated in its header", func(t *testing.T, dir string) error {
			return os.Truncate(filepath.Join(dir, name(1)), 100)
		}, []FaultKind{FaultSegmentHeader}, true},
		{"middle extended", func(t *testing.T, dir string) error {
			return appendFile(filepath.Join(dir, name(1)), []byte("\x00\x00more"))
		}, []FaultKind{FaultTrailingData}, true},
		{"last truncated at a record", func(t *testing.T, dir string) error {
			return os.Truncate(filepath.Join(dir, name(len(segs)-1)), int64(segmentHeaderBytes+recordSize(4000)))
		}, []FaultKind{FaultMissingEnd}, false},
		{"last emptied", func(t *testing.T, dir string) error {
			return os.Truncate(filepath.Join(dir, name(len(segs)-1)), 0)
		}, []FaultKind{FaultSegmentHeader}, false},
		{"another journal's segment", func(t *testing.T, dir string) error {
			return os.Rename(filepath.Join(copyDir(t, other), name(1)), filepath.Join(dir, name(1)))
		}, []FaultKind{FaultSegmentHeader}, true},
		{"another journal's last segment", func(t *testing.T, dir string) error {
			return os.Rename(filepath.Join(copyDir(t, other), name(len(segs)-1)), filepath.Join(dir, name(len(segs)-1)))
		}, []FaultKind{FaultSegmentHeader}, false},
		{"another journal's head", func(t *testing.T, dir string) error {
			return os.Rename(filepath.Join(copyDir(t, other), headName), filepath.Join(dir, headName))
		}, []FaultKind{FaultSegmentHeader}, false},
		{"a segment twice", func(t *testing.T, dir string) error {
			b := readFile(t, filepath.Join(dir, name(1)))
			return os.WriteFile(filepath.Join(dir, segmentName(5)), b, 0o600)
		}, []FaultKind{FaultSegmentName}, true},
		{"a stranger with our suffix", func(t *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "journal-5.khj"), nil, 0o600)
		}, []FaultKind{FaultSegmentName}, false},
		{"records swapped", func(t *testing.T, dir string) error {
			path, n := filepath.Join(dir, name(1)), recordSize(4000)
			b := readFile(t, path)
			a := slices.Clone(b[segmentHeaderBytes:][:n])
			copy(b[segmentHeaderBytes:], b[segmentHeaderBytes+n:][:n])
			copy(b[segmentHeaderBytes+n:], a)
			return os.WriteFile(path, b, 0o600)
		}, []FaultKind{FaultSequence}, true},
		{"record forged with right checksum", func(t *testing.T, dir string) error {
			path := filepath.Join(dir, name(1))
			b := readFile(t, path)
			h, err := parseSegmentHeader(b)
			if err != nil {
				return err
			}
			rec, _ := appendRecord(nil, recordHeader{kind: KindEvent, seq: h.start.Count}, payload(999, 4000), &h.start.Hash)
			copy(b[segmentHeaderBytes:], rec)
			return os.WriteFile(path, b, 0o600)
		}, []FaultKind{FaultChain}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := copyDir(t, orig)
			if err := tc.break_(t, dir); err != nil {
				t.Fatal(err)
			}
			_, err := Verify(dir, VerifyOptions{})
			wantFault(t, err, tc.want...)
			j, err := Open(dir, small())
			if err == nil {
				closeJournal(t, j, false)
			}
			if tc.opens != (err == nil) || (err != nil && !errors.Is(err, ErrDamaged)) {
				t.Errorf("Open: %v", err)
			}
		})
	}
}

func appendFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// An anchor kept elsewhere shows even a journal that was rewritten as a whole, and
// stands in for segments that were archived.
func TestVerifyFrom(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, small())
	anchors := []Anchor{j.Durable()}
	for i := range 40 {
		add(t, j, i, 1, 4000)
		anchors = append(anchors, j.Durable())
	}
	closeJournal(t, j, false)
	total := mustVerify(t, dir)
	for i, a := range anchors {
		rep, err := Verify(dir, VerifyOptions{From: &a})
		if err != nil || rep.Last != total.Last || rep.First.Count != 0 || rep.Records != total.Records {
			t.Fatalf("from %d: %+v, %v", i, rep, err)
		}
		wrong := a
		wrong.Hash[7] ^= 1
		_, err = Verify(dir, VerifyOptions{From: &wrong})
		wantFault(t, err, FaultAnchor)
	}
	beyond := Anchor{Count: 41, Hash: anchors[40].Hash}
	_, err := Verify(dir, VerifyOptions{From: &beyond})
	wantFault(t, err, FaultMissingEnd)

	// What is before the anchor is looked at, in each segment that is there.
	segs := segmentsOf(t, dir)
	flip := func() {
		t.Helper()
		f, err := os.OpenFile(segs[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], segmentHeaderBytes+1000); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], segmentHeaderBytes+1000); err != nil {
			t.Fatal(err)
		}
	}
	flip()
	_, err = Verify(dir, VerifyOptions{From: &anchors[40]})
	wantFault(t, err, FaultRecord)
	flip()

	// Archive the first segment.
	second, _ := parseSegmentName(filepath.Base(segs[1]))
	if err := os.Remove(segs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(dir, VerifyOptions{AllowMissingStart: true}); err != nil {
		t.Errorf("missing start allowed: %v", err)
	}
	if rep, err := Verify(dir, VerifyOptions{From: &anchors[second]}); err != nil || rep.First != anchors[second] {
		t.Errorf("from the archive's end: %+v, %v", rep, err)
	}
	_, err = Verify(dir, VerifyOptions{From: &anchors[second-1]})
	wantFault(t, err, FaultMissingStart)
	for _, err := range Read(dir, second-1) {
		wantFault(t, err, FaultMissingStart)
	}
	n := 0
	for _, err := range Read(dir, second) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 40-int(second) {
		t.Errorf("%d records after the archive", n)
	}
}

// Verify and Read work beside the writer, also while a commit is half written.
func TestVerifyLive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, small())
	add(t, j, 0, 5, 100)
	rep := mustVerify(t, dir)
	if !rep.Live || rep.Records != 5 || rep.Unproven != 0 {
		t.Errorf("%+v", rep)
	}
	f, err := os.OpenFile(segmentsOf(t, dir)[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("\xffKHR half"), j.w.durableOff); err != nil {
		t.Fatal(err)
	}
	if rep = mustVerify(t, dir); rep.Unproven != 9 || rep.Records != 5 {
		t.Errorf("%+v", rep)
	}
	if got := events(t, dir); len(got) != 5 {
		t.Errorf("read %q", got)
	}
	add(t, j, 5, 1, 100)
	closeJournal(t, j, false)
	if rep = mustVerify(t, dir); rep.Records != 6 || rep.Live {
		t.Errorf("%+v", rep)
	}
}

// Read stops at damage with the fault, after the records before it.
func TestReadDamaged(t *testing.T) {
	dir := closed(t, 10)
	path := segmentsOf(t, dir)[0]
	b := readFile(t, path)
	b[segmentHeaderBytes+4*recordSize(4000)+100] ^= 1
	writeFile(t, path, b)
	var got int
	var last error
	for _, err := range Read(dir, 0) {
		if last = err; err == nil {
			got++
		}
	}
	wantFault(t, last, FaultRecord)
	if got != 4 || !strings.Contains(last.Error(), fmt.Sprintf("offset %d, record 4", segmentHeaderBytes+4*recordSize(4000))) {
		t.Errorf("%d records, %v", got, last)
	}
}

// A parsed record formats to the bytes it came from.
func FuzzParseRecord(f *testing.F) {
	rec, _ := appendRecord(nil, recordHeader{kind: KindEvent, seq: 7, nanos: 8, floor: 3}, []byte(`{"a":1}`), &Hash{1})
	f.Add(rec)
	note, _ := appendRecord(nil, recordHeader{kind: KindNote, flags: flagProtected}, []byte("x"), &Hash{})
	f.Add(append(note, rec...))
	f.Add(rec[:len(rec)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Record
		size, err := parseRecord(b, &r)
		if err != nil {
			return
		}
		if size > len(b) || size%recordAlign != 0 || len(r.Payload) == 0 {
			t.Fatalf("size %d of %d, payload %d", size, len(b), len(r.Payload))
		}
		h := recordHeader{kind: r.Kind, seq: r.Seq, nanos: r.Time.UnixNano(), floor: r.floor}
		if r.Protected {
			h.flags = flagProtected
		}
		again, _ := appendRecord(nil, h, r.Payload, &Hash{})
		// The chain value and the checksum over it depend on what came before.
		end := recordHeaderBytes + len(r.Payload)
		if !bytes.Equal(again[:end], b[:end]) {
			t.Fatalf("parsed %x\nformats to %x", b[:end], again[:end])
		}
	})
}

// Nothing in a segment file makes the reader fail otherwise than with a fault.
func FuzzSegment(f *testing.F) {
	h := segmentHeader{start: Anchor{Hash: genesis(journalID{})}}
	seg := h.encode()
	at := h.start
	for i := range 3 {
		seg, at.Hash = appendRecord(seg, recordHeader{kind: KindEvent, seq: at.Count}, payload(i, 20), &at.Hash)
		at.Count++
	}
	f.Add(seg, []byte{})
	f.Add(seg, make([]byte, 100))
	f.Add(seg[:len(seg)-100], []byte("\xffKHR\x00\x00\x00\x01"))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		data := append(slices.Clone(a), b...)
		s, err := newSegmentReader("fuzz", bytes.NewReader(data), int64(len(data)))
		for err == nil {
			var rec *Record
			if rec, err = s.next(); rec == nil {
				break
			}
		}
		var fault *Fault
		if err != nil && !errors.As(err, &fault) {
			t.Fatalf("not a fault: %v", err)
		}
		if err == nil {
			tail, err := s.readTail()
			if err != nil || (!tail.clean && (tail.end <= s.off || tail.end > int64(len(data))+recordAlign)) {
				t.Fatalf("tail %+v, %v", tail, err)
			}
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add(appendHead(nil, journalID{1}, Anchor{Count: 2, Hash: Hash{3}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, at, err := parseHead(b)
		if err == nil && !bytes.Equal(appendHead(nil, id, at), b) {
			t.Fatalf("%x parses but formats to something else", b)
		}
	})
}

// staleFS serves the last segment as it was when the reader began for as long as
// the reader has not gone beyond its first window, and as it is now after that: what
// a verifier sees that is put aside by the scheduler while the writer goes on.
type staleFS struct {
	osFS
	old map[string][]byte
}

func (s *staleFS) OpenFile(path string, flag int, perm fs.FileMode) (file, error) {
	f, err := s.osFS.OpenFile(path, flag, perm)
	if err != nil || s.old[filepath.Base(path)] == nil {
		return f, err
	}
	return &staleFile{file: f, old: s.old[filepath.Base(path)]}, nil
}

type staleFile struct {
	file
	old   []byte
	reads int
}

func (f *staleFile) ReadAt(p []byte, off int64) (int, error) {
	if f.reads++; f.reads == 1 {
		return copy(p, f.old[off:]), nil
	}
	return f.file.ReadAt(p, off)
}

// A writer that goes on faster than the verifier reads is not damage.
func TestVerifyOvertaken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	opts := small()
	opts.SegmentBytes = 8 << 20
	j := open(t, dir, opts)
	add(t, j, 0, 10, 1000)
	closeJournal(t, j, false) // when it is opened again it stays in its first segment
	j = open(t, dir, opts)
	name := segmentName(0)
	old := map[string][]byte{name: readFile(t, filepath.Join(dir, name)), headName: readFile(t, filepath.Join(dir, headName))}
	add(t, j, 10, 2*windowBytes/1000, 1000)
	rep, err := verify(&staleFS{old: old}, dir, VerifyOptions{})
	if err != nil || !rep.Live || rep.Last != j.Durable() {
		t.Errorf("%+v, %v, want all up to %s", rep, err, j.Durable())
	}
	n := uint64(0)
	_, end, err := readSegment(&staleFS{old: old}, dir, 0, 0, Anchor{}, true, func(Record, error) bool { n++; return true })
	if err != nil || end != j.Durable() || n != end.Count {
		t.Errorf("Read: %d records up to %s, %v", n, end, err)
	}
}
