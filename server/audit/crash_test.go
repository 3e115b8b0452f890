package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// torn is a journal whose last commit was under way when the power went: acked
// records before it were acknowledged, the rest was not.
type torn struct {
	acked   int
	all     []string // payloads
	segment []byte
	head    []byte // as it was before the last commit
	name    string
	offsets []int64 // of the records
	end     int64   // of the last
}

// newTorn appends acked records one by one and then a commit of open records.
func newTorn(t *testing.T, acked, open_ int) *torn {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, small())
	add(t, j, 0, acked, 40)
	closeJournal(t, j, false)
	img := &torn{acked: acked, head: readFile(t, filepath.Join(dir, headName))}
	j = open(t, dir, small())
	var payloads [][]byte
	for i := range open_ {
		payloads = append(payloads, payload(acked+i, 30+i))
	}
	if _, err := j.Append(t.Context(), Normal, Synced, payloads...); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j, false)
	for rec, err := range Read(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		img.offsets = append(img.offsets, rec.Offset)
		img.end = rec.Offset + int64(recordSize(len(rec.Payload)))
	}
	img.all = events(t, dir)
	img.name = filepath.Base(segmentsOf(t, dir)[0])
	img.segment = readFile(t, filepath.Join(dir, img.name))
	return img
}

// restore writes the image with the segment changed.
func (img *torn) restore(t *testing.T, dir string, change func([]byte) []byte) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, headName), img.head)
	writeFile(t, filepath.Join(dir, img.name), change(slices.Clone(img.segment)))
}

// Wherever the last commit breaks off, whatever part of it reached the disk: Open
// goes on, keeps all that was acknowledged, and what it keeps is a prefix.
func TestTornTail(t *testing.T) {
	img := newTorn(t, 3, 3)
	dir := filepath.Join(memoryDir(t), "audit")
	start := img.offsets[img.acked]
	damages := []struct {
		name   string
		step   int64
		damage func(b []byte, off int64) []byte
	}{
		{"truncated", 1, func(b []byte, off int64) []byte { return b[:off] }},
		{"zero from here", 3, func(b []byte, off int64) []byte { clear(b[off:]); return b }},
		{"garbage from here", 7, func(b []byte, off int64) []byte {
			for i := off; i < img.end; i++ {
				b[i] ^= 0x5a
			}
			return b
		}},
		{"zero up to here", 7, func(b []byte, off int64) []byte { clear(b[start:off]); return b }},
		{"bit flipped", 1, func(b []byte, off int64) []byte { b[off] ^= 0x10; return b }},
	}
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			for off := start; off < img.end; off += d.step {
				img.restore(t, dir, func(b []byte) []byte { return d.damage(b, off) })
				img.check(t, dir, fmt.Sprintf("%s at %d", d.name, off))
			}
		})
	}
}

func (img *torn) check(t *testing.T, dir, what string) {
	t.Helper()
	opts := small()
	opts.Create = false
	j, err := Open(dir, opts)
	if errors.Is(err, ErrDamaged) && paddingOnly(err) {
		return
	}
	if err != nil {
		t.Fatalf("%s: Open: %v", what, err)
	}
	if _, err := j.Append(t.Context(), Normal, Synced, []byte("after")); err != nil {
		t.Fatalf("%s: Append: %v", what, err)
	}
	closeJournal(t, j, false)
	got := events(t, dir)
	kept := len(got) - 1
	if kept < img.acked || kept > len(img.all) || !slices.Equal(got[:kept], img.all[:kept]) || got[kept] != "after" {
		t.Fatalf("%s: journal holds %q", what, got)
	}
	rep, err := Verify(dir, VerifyOptions{})
	if err != nil {
		t.Fatalf("%s: Verify: %v", what, err)
	}
	if rep.Notes > 1 || int(rep.Records) != kept+1+int(rep.Notes) {
		t.Fatalf("%s: %+v", what, rep)
	}
}

// paddingOnly tells a fault in the zeros that fill up a record whose checksum is
// right. No crash makes them anything else, so that is refused.
func paddingOnly(err error) bool {
	var f *Fault
	return errors.As(err, &f) && f.Kind == FaultRecord && f.Detail == errBadFields.Error()
}

// A torn tail leaves a note that says what was cut off.
func TestTornTailNote(t *testing.T) {
	img := newTorn(t, 2, 3)
	dir := filepath.Join(t.TempDir(), "audit")
	cut := img.offsets[3]
	img.restore(t, dir, func(b []byte) []byte { b[cut+50] ^= 1; return b })
	_, err := Verify(dir, VerifyOptions{})
	wantFault(t, err, FaultTornTail)
	closeJournal(t, open(t, dir, small()), false)
	var notes []map[string]any
	for rec, err := range Read(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if rec.Kind == KindNote {
			notes = append(notes, decode(t, rec.Payload))
		}
	}
	if len(notes) != 1 || notes[0]["eventName"] != noteTornTail || notes[0]["eventType"] != TypeService {
		t.Fatalf("notes %v", notes)
	}
	facts := notes[0]["additionalEventData"].(map[string]any)
	if facts["segment"] != img.name || facts["offset"] != fmt.Sprint(cut) || facts["bytes"] != fmt.Sprint(img.end-cut) {
		t.Errorf("facts %v, end %d", facts, img.end)
	}
	// The next start finds nothing to mend.
	closeJournal(t, open(t, dir, small()), false)
	if rep := mustVerify(t, dir); rep.Notes != 1 || rep.Records != 4 {
		t.Errorf("%+v", rep)
	}
}

// The note needs room; at the very end of a segment it goes into a new one.
func TestTornTailAtSegmentEnd(t *testing.T) {
	img := newTorn(t, 3, 3)
	dir := filepath.Join(t.TempDir(), "audit")
	img.restore(t, dir, func(b []byte) []byte { return b[:img.end-1] })
	closeJournal(t, open(t, dir, small()), false)
	rep := mustVerify(t, dir)
	if rep.Segments != 2 || rep.Notes != 1 || rep.Records != 6 {
		t.Errorf("%+v", rep)
	}
}

// What was acknowledged is never taken for a torn tail.
func TestAcknowledgedDamageRefused(t *testing.T) {
	img := newTorn(t, 3, 3)
	dir := filepath.Join(memoryDir(t), "audit")
	refuse := func(t *testing.T, what string) {
		t.Helper()
		before := readFile(t, filepath.Join(dir, img.name))
		_, err := Open(dir, small())
		var fault *Fault
		if !errors.Is(err, ErrDamaged) || !errors.As(err, &fault) {
			t.Fatalf("%s: Open: %v", what, err)
		}
		if !slices.Equal(before, readFile(t, filepath.Join(dir, img.name))) {
			t.Fatalf("%s: Open changed the segment", what)
		}
		if _, err := Verify(dir, VerifyOptions{}); !errors.As(err, &fault) || fault.Kind == FaultTornTail {
			t.Fatalf("%s: Verify: %v", what, err)
		}
	}
	for _, headThere := range []bool{true, false} {
		t.Run(fmt.Sprintf("head=%t", headThere), func(t *testing.T) {
			last := img.offsets[img.acked]
			for off := int64(segmentHeaderBytes); off < last; off++ {
				img.restore(t, dir, func(b []byte) []byte { b[off] ^= 1; return b })
				if !headThere { // then the records beyond prove it
					if err := os.Remove(filepath.Join(dir, headName)); err != nil {
						t.Fatal(err)
					}
				}
				refuse(t, fmt.Sprintf("bit flipped at %d", off))
			}
		})
	}
	for off := img.offsets[0]; off < img.offsets[img.acked]; off++ {
		img.restore(t, dir, func(b []byte) []byte { return b[:off] })
		refuse(t, fmt.Sprintf("truncated at %d", off))
	}
	img.restore(t, dir, func(b []byte) []byte { return b })
	if err := os.Remove(filepath.Join(dir, img.name)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, small())
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("segment removed: %v", err)
	}
}

// A missing or damaged head file does not stop the journal, but is noted.
func TestHeadLost(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(path string) error
		fault  FaultKind
	}{
		{"missing", os.Remove, FaultHead},
		{"empty", func(p string) error { return os.Truncate(p, 0) }, FaultHead},
		{"short", func(p string) error { return os.Truncate(p, headBytes-1) }, FaultHead},
		{"flipped", func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			b[40] ^= 1
			return os.WriteFile(p, b, 0o600)
		}, FaultHead},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "audit")
			j := open(t, dir, small())
			add(t, j, 0, 3, 0)
			closeJournal(t, j, false)
			if err := tc.damage(filepath.Join(dir, headName)); err != nil {
				t.Fatal(err)
			}
			_, err := Verify(dir, VerifyOptions{})
			wantFault(t, err, tc.fault)
			closeJournal(t, open(t, dir, small()), false)
			if rep := mustVerify(t, dir); rep.Notes != 1 || rep.Records != 4 {
				t.Errorf("%+v", rep)
			}
		})
	}
}

// A journal that was being created when the power went is created again.
func TestCrashInCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	for _, op := range []string{"rename", "syncdir", "sync", "allocate", "open"} {
		fail := errors.New("crash")
		fsys.set(func(o, path string) error {
			if o == op {
				return fail
			}
			return nil
		})
		if _, err := Open(dir, opts); !errors.Is(err, fail) {
			t.Fatalf("%s: %v", op, err)
		}
		if segs := segmentsOf(t, dir); len(segs) != 0 {
			t.Fatalf("%s left %v", op, segs)
		}
	}
	fsys.set(nil)
	add(t, open(t, dir, opts), 0, 1, 0)
}

// Written records that were not synced may be lost with the power, in any pattern;
// those below the last sync may not.
func TestPowerLossWritten(t *testing.T) {
	for _, tc := range []struct {
		name   string
		synced int // records before this one were synced
		damage int // this record did not reach the disk
		ok     bool
	}{
		{"nothing synced, first lost", 0, 0, true},
		{"nothing synced, middle lost", 0, 3, true},
		{"first lost after the sync", 2, 2, true},
		{"middle lost after the sync", 2, 4, true},
		{"lost before the sync", 2, 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "audit")
			opts := small()
			opts.SyncInterval = time.Hour
			j := open(t, dir, opts)
			var offsets []int64
			for i := range 6 {
				d := Written
				if i == tc.synced-1 {
					d = Synced
				}
				offsets = append(offsets, int64(segmentHeaderBytes+i*recordSize(50)))
				if _, err := j.Append(t.Context(), Normal, d, payload(i, 50)); err != nil {
					t.Fatal(err)
				}
			}
			lost := copyDir(t, dir)
			path := segmentsOf(t, lost)[0]
			b := readFile(t, path)
			clear(b[offsets[tc.damage]:][:recordSize(50)])
			writeFile(t, path, b)
			j, err := Open(lost, small())
			if !tc.ok {
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("Open: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			closeJournal(t, j, false)
			if got := events(t, lost); len(got) != tc.damage {
				t.Errorf("kept %q", got)
			}
			mustVerify(t, lost)
		})
	}
}

// A process was killed when it had renamed a segment and not yet synced the directory:
// the next one does that before it writes there, or a loss of power took the name back,
// with all that was acknowledged since.
func TestKilledBeforeNameWasSynced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	j := open(t, dir, opts)
	unsynced := func(op, _ string) error {
		if op == "syncdir" {
			return errInjected
		}
		return nil
	}
	fsys.set(unsynced)
	acked := 0
	for ; acked < 1000; acked++ {
		if _, err := j.Append(t.Context(), Normal, Synced, payload(acked, 4000)); errors.Is(err, errInjected) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	closeJournal(t, j, true)
	all := segmentsOf(t, dir)
	if len(all) != 2 {
		t.Fatalf("segments %v", all)
	}
	last, head := all[1], filepath.Join(dir, headName)

	lastWas, headWas := readFile(t, last), readFile(t, head)
	if j, err := Open(dir, opts); !errors.Is(err, errInjected) {
		t.Errorf("Open, while the directory cannot be synced: %v", err)
		closeJournal(t, j, false)
	}
	if !slices.Equal(readFile(t, last), lastWas) || !slices.Equal(readFile(t, head), headWas) {
		t.Error("something was written before the directory was synced")
	}

	var synced atomic.Bool
	fsys.set(nil)
	fsys.setAfter(func(op, path string) error {
		if op == "syncdir" && path == dir {
			synced.Store(true)
		}
		if op == "write" && !synced.Load() {
			t.Errorf("%s was written before the directory was synced", path)
		}
		return nil
	})
	j = open(t, dir, opts)
	if _, err := j.Append(t.Context(), Normal, Synced, []byte("last")); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j, false)
	fsys.setAfter(nil)
	if !synced.Load() { // the power fails
		if err := os.Rename(last, filepath.Join(dir, spareName)); err != nil {
			t.Fatal(err)
		}
	}
	closeJournal(t, open(t, dir, small()), false)
	if got := events(t, dir); len(got) != acked+1 || got[acked] != "last" {
		t.Errorf("%d of %d acknowledged records are there, the last is %q", len(got), acked+1, got[len(got)-1])
	}
	mustVerify(t, dir)
}
