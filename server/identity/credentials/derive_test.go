package credentials

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/sigv4"
)

// What was derived is wiped once all have it who waited, and also where they do not
// wait any more.
func TestDerivedKeysAreWiped(t *testing.T) {
	t.Parallel()
	const all = 8
	want := sigv4.SigningKey{1, 31: 1}
	f := flight{generation: 1, scope: sigv4.Scope{Day: "20310506"}}
	for _, cancelled := range []int{0, 3, all} {
		d := newDerivations(time.Now)
		release := make(chan struct{})
		derive := func(_ context.Context, out *sigv4.SigningKey) error {
			<-release
			*out = want
			return nil
		}
		impatient, cancel := context.WithCancel(t.Context())
		var gone, patient sync.WaitGroup
		for range cancelled {
			gone.Go(func() {
				if got, err := d.do(impatient, f, derive); !errors.Is(err, context.Canceled) || got != (sigv4.SigningKey{}) {
					t.Errorf("cancelled: %v", err)
				}
			})
		}
		for range all - cancelled {
			patient.Go(func() {
				if got, err := d.do(t.Context(), f, derive); err != nil || got != want {
					t.Errorf("it derived something else, or %v", err)
				}
			})
		}
		var one *derivation
		for deadline := time.Now().Add(30 * time.Second); one == nil; time.Sleep(time.Millisecond) {
			d.mu.Lock()
			if u := d.underWay[f]; u != nil && u.waiting == all {
				one = u
			}
			d.mu.Unlock()
			if time.Now().After(deadline) {
				t.Fatal("not all of them wait for one derivation")
			}
		}
		cancel()
		gone.Wait()
		close(release)
		patient.Wait()
		<-one.done
		d.mu.Lock()
		if one.key != (sigv4.SigningKey{}) || len(d.underWay) != 0 {
			t.Errorf("%d of %d cancelled: the key is still there", cancelled, all)
		}
		d.mu.Unlock()
	}
}

// Failures are bounded, and none of them lasts for what has another state.
func TestFailuresAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	d := newDerivations(func() time.Time { return now })
	down := errors.New("down")
	fail := func(generation uint64) {
		t.Helper()
		if _, err := d.do(t.Context(), flight{generation: generation}, func(context.Context, *sigv4.SigningKey) error { return down }); !errors.Is(err, down) {
			t.Fatal(err)
		}
	}
	for g := range uint64(maxFailures) {
		fail(g)
	}
	now = now.Add(failureAge)
	fail(maxFailures)
	if len(d.failed) != 1 {
		t.Errorf("%d failures are kept, of which one is fresh", len(d.failed))
	}
	for g := range uint64(maxFailures) {
		fail(g)
		if len(d.failed) > maxFailures {
			t.Fatalf("%d failures are kept", len(d.failed))
		}
	}
}
