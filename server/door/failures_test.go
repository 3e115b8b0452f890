package door

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stopped is a clock that goes when it is told to.
type stopped struct{ at time.Time }

func (c *stopped) now() time.Time          { return c.at }
func (c *stopped) advance(d time.Duration) { c.at = c.at.Add(d) }

func newStopped() *stopped { return &stopped{time.Unix(1_800_000_000, 0)} }

// wantTold wants n failures in a row from an address to be told why, and the next
// one not to be.
func wantTold(t *testing.T, f *Failures, address string, n int) {
	t.Helper()
	for i := range n {
		if !f.Tell(address) {
			t.Fatalf("%s: failure %d of %d is not told why", address, i+1, n)
		}
	}
	if f.Tell(address) {
		t.Fatalf("%s: %d failures are told why", address, n+1)
	}
}

// TestFailureDefaults: what the zero value says.
func TestFailureDefaults(t *testing.T) {
	t.Parallel()
	clock := newStopped()
	f := NewFailures(FailureLimits{Now: clock.now})
	wantTold(t, f, "192.0.2.0", failureBurst)
	clock.advance(time.Second)
	wantTold(t, f, "192.0.2.0", failuresPerSecond)
	clock.advance(time.Hour)
	for i := range allFailureBurst / failureBurst {
		for range failureBurst {
			if !f.Tell(fmt.Sprintf("192.0.2.%d", i)) {
				t.Fatal("ten sources take more than there is for all")
			}
		}
	}
	wantTold(t, f, "192.0.2.100", 0)
	clock.advance(time.Second)
	wantTold(t, f, "192.0.2.100", failureBurst)
	wantTold(t, f, "192.0.2.101", allFailuresPerSecond-failureBurst)
	if !NewFailures(FailureLimits{}).Tell("192.0.2.1") {
		t.Error("without a clock nobody is told why")
	}
}

// TestFailureSources: what shares a limit, and what does not.
func TestFailureSources(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"::ffff:192.0.2.1", "::ffff:192.0.2.2", false},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
		{"::1", "127.0.0.1", false},
		{"", "@", true},
		{"", "0.0.0.0", false},
		{"", "::", false},
	} {
		f := NewFailures(FailureLimits{Burst: 2, Now: newStopped().now})
		wantTold(t, f, tt.a, 2)
		if f.Tell(tt.b) == tt.same {
			t.Errorf("%q and %q: one source: %t, want %t", tt.a, tt.b, !tt.same, tt.same)
		}
	}
}

// TestFailuresForget: n sources are remembered, and of n+1 the one that failed longest
// ago is not, whether it was told why or not.
func TestFailuresForget(t *testing.T) {
	t.Parallel()
	const sources = 4
	f := NewFailures(FailureLimits{Burst: 1, Sources: sources, Now: newStopped().now})
	address := func(i int) string { return fmt.Sprintf("192.0.2.%d", i) }
	for i := range sources {
		wantTold(t, f, address(i), 1)
	}
	wantTold(t, f, address(0), 0) // all are remembered; this makes 1 the oldest
	wantTold(t, f, address(sources), 1)
	for _, i := range []int{0, 2, 3, sources} {
		wantTold(t, f, address(i), 0)
	}
	wantTold(t, f, address(1), 1)
	for i := range 10_000 {
		f.Tell(fmt.Sprintf("10.%d.%d.1", i>>8, i&0xff))
		if n := f.recent.Len(); n > sources || n != len(f.sources) {
			t.Fatalf("%d sources are in the list, %d in the table", n, len(f.sources))
		}
	}
}

// TestFailuresOfAll: many sources have together what all may have, remembered or
// not, and one that has had its share takes nothing of it.
func TestFailuresOfAll(t *testing.T) {
	t.Parallel()
	clock := newStopped()
	f := NewFailures(FailureLimits{PerSecond: 1, Burst: 2, AllPerSecond: 3, AllBurst: 6, Sources: 2, Now: clock.now})
	for range 100 {
		f.Tell("192.0.2.1")
	}
	told := 0
	for i := range 1000 {
		if f.Tell(fmt.Sprintf("2001:db8:0:%x::1", i)) {
			told++
		}
	}
	if told != 4 {
		t.Errorf("%d are told why, want 4: the first source took 2 of 6", told)
	}
	clock.advance(time.Second)
	for i, want := range []bool{true, true, true, false} {
		if got := f.Tell(fmt.Sprintf("198.51.100.%d", i)); got != want {
			t.Errorf("failure %d, a second later: %t", i+1, got)
		}
	}
}

// TestFailuresAtOnce: 64 sources and one that all share, at once.
func TestFailuresAtOnce(t *testing.T) {
	t.Parallel()
	f := NewFailures(FailureLimits{Burst: 10, AllBurst: 500, Sources: 16, Now: newStopped().now})
	var told atomic.Int64
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 100 {
				for _, address := range []string{"192.0.2.1", fmt.Sprintf("198.51.100.%d", i)} {
					if f.Tell(address) {
						told.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := told.Load(); n != 500 {
		t.Errorf("%d are told why, want 500", n)
	}
}
