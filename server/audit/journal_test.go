package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	opts := small()
	var commits []Commit
	opts.Observer = func(c Commit) { commits = append(commits, c) }
	j := open(t, dir, opts)
	var want [][]byte
	appendAll := func(class Class, d Durability, payloads ...[]byte) {
		t.Helper()
		seq, err := j.Append(t.Context(), class, d, payloads...)
		if err != nil || seq != uint64(len(want)) {
			t.Fatalf("seq %d, %v; want seq %d", seq, err, len(want))
		}
		want = append(want, payloads...)
	}
	appendAll(Normal, Synced, []byte("a"))
	appendAll(Protected, DefaultDurability, []byte("bb"), []byte{0}, bytes.Repeat([]byte("x"), 5000))
	appendAll(Normal, Written, []byte("ccc"))
	appendAll(Normal, Written, []byte("dddd"))
	closeJournal(t, j, false)
	if len(commits) != 5 || commits[1].Records != 3 || !commits[1].Synced || commits[2].Synced || !commits[4].Synced || commits[4].Records != 0 {
		t.Errorf("observed %+v", commits)
	}

	j = open(t, dir, opts)
	if got := j.Durable().Count; got != uint64(len(want)) {
		t.Errorf("Durable after reopening: %d records", got)
	}
	appendAll(Normal, Synced, []byte("eeeee"))
	last := j.Durable()
	closeJournal(t, j, false)

	var prev Hash
	i := 0
	for rec, err := range Read(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(rec.Payload, want[i]) || rec.Seq != uint64(i) || rec.Kind != KindEvent || rec.Protected != (i >= 1 && i <= 3) {
			t.Errorf("record %d: %+v", i, rec)
		}
		if i > 0 && rec.Chain != chain(&prev, &rec.Leaf) {
			t.Errorf("record %d: chain", i)
		}
		prev = rec.Chain
		i++
	}
	rep := mustVerify(t, dir)
	if i != len(want) || rep.Records != uint64(len(want)) || rep.Last != last || rep.Live || rep.Notes != 0 || rep.Segments != 1 {
		t.Errorf("%d records, report %+v", i, rep)
	}
	for rec, err := range Read(dir, 4) {
		if err != nil || rec.Seq != 4 {
			t.Errorf("Read from 4 gave %d, %v", rec.Seq, err)
		}
		break
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, small())
	add(t, j, 0, 20, 2000) // past half: there is a spare too
	eventually(t, "spare", func() bool { _, err := os.Stat(filepath.Join(dir, spareName)); return err == nil })
	closeJournal(t, j, false)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", e.Name(), info.Mode(), err)
		}
	}
}

// TestFirstSegmentIsLeftEarly: most of the segment that a new journal begins with
// was never written, and syncing there costs more.
func TestFirstSegmentIsLeftEarly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	opts := small()
	opts.SegmentBytes, opts.MaxRecordBytes = 16*eagerZeroBytes, 256<<10
	j := open(t, dir, opts)
	const size = 100 << 10
	n := 0
	segments := func() int {
		firsts, err := listSegments(osFS{}, dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(firsts)
	}
	for ; segments() == 1; n++ {
		if n*size > 12*eagerZeroBytes {
			t.Fatalf("still in the first segment after %d bytes", n*size)
		}
		add(t, j, n, 1, size)
		if n*size > eagerZeroBytes { // it is on its way
			eventually(t, "the next segment is prepared", func() bool { return j.Status().SpareReady || segments() > 1 })
		}
	}
	if n*size < eagerZeroBytes {
		t.Errorf("left after %d bytes, although %d were written", n*size, eagerZeroBytes)
	}
	// The next one is used to its end.
	for ; n*size < 14*eagerZeroBytes; n++ {
		add(t, j, n, 1, size)
	}
	if got := segments(); got != 2 {
		t.Errorf("%d segments, want 2", got)
	}
	closeJournal(t, j, false)
	if info, err := os.Stat(filepath.Join(dir, segmentName(0))); err != nil || info.Size() > 12*eagerZeroBytes {
		t.Errorf("the segment that was left was not trimmed: %v, %v", info, err)
	}
	read := 0
	for rec, err := range Read(dir, 0) {
		if err != nil || !bytes.Equal(rec.Payload, payload(read, size)) {
			t.Fatalf("record %d: %v", read, err)
		}
		read++
	}
	if read != n {
		t.Errorf("%d records, want %d", read, n)
	}
}

func TestLimits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	opts := small()
	opts.MaxRecordBytes = 1000
	opts.MaxBatch = 100
	j := open(t, dir, opts)
	room := opts.SegmentBytes - segmentHeaderBytes - opts.SegmentBytes/16
	// 99 records of 1000 bytes do not fit in a segment; the largest call is less.
	full := make([][]byte, 0, 100)
	left := room
	for left >= int64(recordSize(1000)) {
		full = append(full, payload(0, 1000))
		left -= int64(recordSize(1000))
	}
	full = append(full, payload(0, int(left)-recordHeaderBytes-recordTrailerBytes))
	over := append(slices.Clone(full[:len(full)-1]), payload(0, len(full[len(full)-1])+1))
	hundred := slices.Repeat([][]byte{payload(0, 10)}, 100)
	for _, tc := range []struct {
		name     string
		payloads [][]byte
		ok       bool
	}{
		{"no payload", nil, false},
		{"empty payload", [][]byte{{}}, false},
		{"empty among others", [][]byte{{1}, {}}, false},
		{"one byte", [][]byte{{1}}, true},
		{"largest record", [][]byte{payload(0, 1000)}, true},
		{"record too large", [][]byte{payload(0, 1001)}, false},
		{"most records", hundred, true},
		{"too many records", append(slices.Clone(hundred), []byte{1}), false},
		{"fills a segment", full, true},
		{"more than a segment", over, false},
		{"again", [][]byte{{1}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := j.Append(t.Context(), Normal, Synced, tc.payloads...)
			if tc.ok != (err == nil) || (!tc.ok && !errors.Is(err, ErrRecordSize)) {
				t.Errorf("got %v", err)
			}
		})
	}
	closeJournal(t, j, false)
	mustVerify(t, dir)
}

func TestOptionLimits(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts Options
		ok   bool
	}{
		{"zero", Options{}, true},
		{"smallest segment", Options{SegmentBytes: minSegmentBytes}, true},
		{"too small", Options{SegmentBytes: minSegmentBytes - 4096}, false},
		{"not a multiple", Options{SegmentBytes: minSegmentBytes + 1}, false},
		{"half reserve", Options{SegmentBytes: 1 << 20, ReserveBytes: 1 << 19}, true},
		{"over half reserve", Options{SegmentBytes: 1 << 20, ReserveBytes: 1<<19 + 1}, false},
		{"negative reserve", Options{ReserveBytes: -1}, false},
		{"largest record", Options{MaxRecordBytes: maxPayloadBytes}, true},
		{"too large record", Options{MaxRecordBytes: maxPayloadBytes + 1}, false},
		{"record beyond segment", Options{SegmentBytes: minSegmentBytes, MaxRecordBytes: minSegmentBytes}, false},
		{"negative batch", Options{MaxBatch: -1}, false},
		{"unknown durability", Options{Durability: 9}, false},
		{"negative interval", Options{RetryInterval: -1}, false},
	} {
		if _, err := tc.opts.withDefaults(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// Whoever waits together shares one sync.
func TestGroupCommit(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)

	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	fsys.set(func(op, path string) error {
		if op == "sync" {
			once.Do(func() { close(entered); <-release })
		}
		return nil
	})
	before := fsys.counted("sync")
	var wg sync.WaitGroup
	appendOne := func(i int) {
		wg.Go(func() {
			if _, err := j.Append(context.Background(), Normal, Synced, payload(i, 0)); err != nil {
				t.Errorf("Append: %v", err)
			}
		})
	}
	appendOne(0)
	<-entered
	const waiting = 50
	for i := range waiting {
		appendOne(i + 1)
	}
	eventually(t, "all in queue", func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(j.queue) == waiting
	})
	close(release)
	wg.Wait()
	if got := fsys.counted("sync") - before; got != 2 {
		t.Errorf("%d syncs for 1+%d appends, want 2", got, waiting)
	}
	closeJournal(t, j, false)
	if rep := mustVerify(t, dir); rep.Records != waiting+1 {
		t.Errorf("%d records", rep.Records)
	}
}

// A Written record does not wait for the disk, and gets there in time.
func TestWritten(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	opts.SyncInterval = 20 * time.Millisecond
	opts.Durability = Written
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)
	before := fsys.counted("sync")
	hold := make(chan struct{})
	fsys.set(func(op, path string) error {
		if op == "sync" {
			<-hold
		}
		return nil
	})
	if _, err := j.Append(t.Context(), Normal, DefaultDurability, payload(0, 0)); err != nil {
		t.Fatal(err)
	}
	if got := j.Durable().Count; got != 0 {
		t.Errorf("durable %d before any sync", got)
	}
	if fsys.counted("sync") != before && j.Durable().Count != 0 {
		t.Error("synced")
	}
	close(hold)
	eventually(t, "sync within the interval", func() bool { return j.Durable().Count == 1 })
	closeJournal(t, j, false)
	mustVerify(t, dir)
}

func TestConcurrentAppends(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	opts := small() // rotates many times
	j := open(t, dir, opts)
	const workers, each = 16, 60
	var mu sync.Mutex
	seen := map[uint64]string{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				d := Synced
				if i%3 == 0 {
					d = Written
				}
				ps := [][]byte{payload(w*1000+i, 300), payload(w*1000+i, 0)}
				seq, err := j.Append(context.Background(), Class(i%2), d, ps...)
				if err != nil {
					t.Errorf("Append: %v", err)
					return
				}
				mu.Lock()
				seen[seq], seen[seq+1] = string(ps[0]), string(ps[1])
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	closeJournal(t, j, false)
	rep := mustVerify(t, dir)
	if len(seen) != 2*workers*each || rep.Records != uint64(len(seen)) || rep.Segments < 3 {
		t.Fatalf("%d answers, report %+v", len(seen), rep)
	}
	for rec, err := range Read(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if seen[rec.Seq] != string(rec.Payload) {
			t.Fatalf("record %d is not what was appended", rec.Seq)
		}
	}
}

// A call whose context ends while it waits leaves no record; one that was taken
// reports what became of it.
func TestWithdraw(t *testing.T) {
	fsys := newFaultFS()
	opts := small()
	opts.fs = fsys
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, opts)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	fsys.set(func(op, path string) error {
		if op == "sync" {
			once.Do(func() { close(entered); <-release })
		}
		return nil
	})
	type result struct {
		seq uint64
		err error
	}
	run := func(ctx context.Context, p string) chan result {
		c := make(chan result, 1)
		go func() {
			seq, err := j.Append(ctx, Normal, Synced, []byte(p))
			c <- result{seq, err}
		}()
		return c
	}
	queued := func(n int) {
		eventually(t, "queued", func() bool {
			j.mu.Lock()
			defer j.mu.Unlock()
			return len(j.queue) == n
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	taken := run(ctx, "taken")
	<-entered
	gone := run(ctx, "gone")
	queued(1)
	stays := run(t.Context(), "stays")
	queued(2)
	cancel()
	if r := <-gone; !errors.Is(r.err, context.Canceled) {
		t.Errorf("withdrawn: %+v", r)
	}
	close(release)
	if r := <-taken; r.err != nil || r.seq != 0 {
		t.Errorf("taken: %+v", r)
	}
	if r := <-stays; r.err != nil || r.seq != 1 {
		t.Errorf("stays: %+v", r)
	}
	if _, err := j.Append(ctx, Normal, Synced, []byte("late")); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	closeJournal(t, j, false)
	if got := events(t, dir); !slices.Equal(got, []string{"taken", "stays"}) {
		t.Errorf("journal holds %q", got)
	}
}

// Close lets what waits through, and what comes later not.
func TestCloseWhileAppending(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	j := open(t, dir, small())
	var acked atomic.Int64
	var wg sync.WaitGroup
	start := make(chan struct{}, 8)
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				_, err := j.Append(context.Background(), Normal, Durability(1+w%2), payload(i, 200))
				if err != nil {
					if !errors.Is(err, ErrClosed) || !errors.Is(err, ErrUnavailable) {
						t.Errorf("Append: %v", err)
					}
					return
				}
				acked.Add(1)
				select {
				case start <- struct{}{}:
				default:
				}
			}
		})
	}
	<-start
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() {
			if err := j.Close(context.Background()); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	closers.Wait()
	wg.Wait()
	if err := j.Healthy(); !errors.Is(err, ErrClosed) {
		t.Errorf("Healthy after Close: %v", err)
	}
	if rep := mustVerify(t, dir); rep.Records != uint64(acked.Load()) {
		t.Errorf("%d records, %d acknowledged", rep.Records, acked.Load())
	}
}

func TestOpenRefusals(t *testing.T) {
	dir := t.TempDir()
	j := open(t, filepath.Join(dir, "audit"), small())
	noCreate := small()
	noCreate.Create = false
	asFile := filepath.Join(dir, "file")
	writeFile(t, asFile, []byte("x"))
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, dir string
		opts      Options
		want      error
	}{
		{"second writer", filepath.Join(dir, "audit"), small(), ErrLocked},
		{"no directory", filepath.Join(dir, "none"), noCreate, ErrNoJournal},
		{"empty directory", empty, noCreate, ErrNoJournal},
		{"a file", asFile, small(), nil},
		{"bad options", empty, Options{SegmentBytes: 1}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := Open(tc.dir, tc.opts); err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	for _, d := range []string{empty, filepath.Join(dir, "none")} {
		if _, err := Verify(d, VerifyOptions{}); err == nil {
			t.Errorf("Verify %s: no error", d)
		}
	}
	closeJournal(t, j, false)
	open(t, filepath.Join(dir, "audit"), noCreate) // the lock is gone with its holder
}

func TestAnchorText(t *testing.T) {
	a := Anchor{Count: 17, Hash: Hash{1, 2, 255}}
	if got, err := ParseAnchor(a.String()); err != nil || got != a {
		t.Errorf("got %v, %v", got, err)
	}
	for _, s := range []string{"", "1", "1:", "x:" + a.Hash.String(), "-1:" + a.Hash.String(), a.String() + "00", "1:" + fmt.Sprint(a.Hash)[:63] + "g"} {
		if _, err := ParseAnchor(s); err == nil {
			t.Errorf("accepted %q", s)
		}
	}
}
