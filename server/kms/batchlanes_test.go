package kms_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// Each item is throttled, and those that are let others be.
func TestBatchThrottle(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Limits.DataPerSecond = 10 }))
	aes := w.newAESKey()
	for range 2 { // the rate is that of a second, not of a batch
		done, throttled := 0, 0
		for i, r := range w.batch(slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 25)...) {
			switch {
			case r.GetEncrypt() != nil:
				done++
			case r.GetError().GetException() == string(kms.CodeThrottling):
				throttled++
			default:
				t.Errorf("item %d: %v", i, r)
			}
		}
		if done != 10 || throttled != 15 {
			t.Errorf("%d done and %d throttled, want 10 and 15", done, throttled)
		}
		w.clock.add(time.Second)
	}
}

// A batch counts as one request under way, and as one more for each item while
// it is checked: a large batch keeps nobody out.
func TestBatchInFlight(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, narrowStore{fake}, withConfig(func(c *kms.Config) { c.Limits.InFlight = 6 })) // two lanes at most
	aes := w.newAESKey()
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			for i, r := range w.batch(slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 100)...) {
				if r.GetEncrypt() == nil {
					t.Errorf("item %d: %v", i, r)
				}
			}
		})
	}
	group.Wait()
	// All of it is over when the batch is: what was refused has left too.
	w.svc.Close()
	w.cfg.Limits.InFlight = 1
	w.start()
	for i, r := range w.batch(encryptItem(aes, "x"), encryptItem(aes, "x")) {
		if r.GetError().GetException() != string(kms.CodeThrottling) {
			t.Errorf("item %d where the batch is all that may be under way: %v", i, r)
		}
	}
	w.encrypt(aes, []byte("x"), nil)
}

// Items that were cancelled do not run; all of them are recorded.
func TestBatchCancelled(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	aes := w.newAESKey()
	reqs := slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 100)
	w.batch(reqs...)
	ctx, cancel := context.WithCancel(t.Context())
	var sealed atomic.Int64
	third := func(ctx context.Context, call string) error {
		if call == "Seal" && sealed.Add(1) == 3 {
			cancel()
		}
		return ctx.Err()
	}
	fake.before.Store(&third)
	events := w.eventsOf(func() {
		resp, err := tryIn[*keyholdv1.BatchResponse](ctx, w, alice(), batchOf(reqs...))
		if err != nil {
			t.Fatalf("the batch is refused: %s", describe(err))
		}
		done := 0
		for i, r := range resp.GetResults() {
			if r.GetEncrypt() != nil {
				done++
			} else if r.GetError().GetException() != string(kms.CodeInternal) || !r.GetError().GetTemporary() {
				t.Errorf("item %d: %v", i, r)
			}
		}
		// Those that were at the key store already come back or do not.
		if most := int64(3 + 8); sealed.Load() > most || done > int(most) {
			t.Errorf("%d items were done and %d begun after a cancellation at the third", done, sealed.Load())
		}
	})
	if len(events) != 100 {
		t.Errorf("%d events for 100 items", len(events))
	}
	begun := sealed.Load()
	if err := refuseIn(ctx, w, batchOf(reqs...), kms.CodeInternal); !err.Unavailable {
		t.Errorf("a batch of somebody who has gone: %s", describe(err))
	}
	if sealed.Load() != begun {
		t.Error("a batch of somebody who has gone was begun")
	}
}

func refuseIn(ctx context.Context, w *world, req proto.Message, want kms.Code) *kms.Error {
	w.t.Helper()
	_, err := tryIn[proto.Message](ctx, w, alice(), req)
	if err == nil || err.Code != want {
		w.t.Fatalf("%v, want %s", err, want)
	}
	return err
}

// narrowStore does four things at once.
type narrowStore struct{ *fakeStore }

func (narrowStore) Concurrency() int { return 4 }

// singleStore has one place for batches, so that their items are one after the other.
type singleStore struct{ *fakeStore }

func (singleStore) Concurrency() int { return 2 }

// Batches together use half of the key store; who comes with one request passes
// them by, and of two batches neither waits for the whole of the other.
func TestBatchFairShare(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, narrowStore{fake})
	aes, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	w.batch(encryptItem(aes, "x"))
	var inside, most atomic.Int64
	arrived, release := make(chan struct{}, 1000), make(chan struct{})
	gate := func(ctx context.Context, call string) error {
		if call != "Seal" {
			return nil
		}
		n := inside.Add(1)
		defer inside.Add(-1)
		for {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		arrived <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	fake.before.Store(&gate)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			for i, r := range w.batch(slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 20)...) {
				if r.GetEncrypt() == nil {
					t.Errorf("item %d: %v", i, r.GetError())
				}
			}
		})
	}
	for range 2 {
		<-arrived
	}
	do[proto.Message](w, &keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("m"), MacAlgorithm: macSHA256})
	// One that ends its time while others are inside returns at its end.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if resp, err := tryIn[*keyholdv1.BatchResponse](ctx, w, alice(), batchOf(encryptItem(aes, "x"))); err != nil || resp.GetResults()[0].GetError() == nil {
		t.Errorf("a batch whose time is over: %v, %v", resp, err)
	}
	close(release)
	group.Wait()
	if most.Load() != 2 {
		t.Errorf("%d items of batches were in the key store at once, want 2 of its 4 places", most.Load())
	}
}

// 64 callers with batches of every size at once: nothing is lost or mixed up.
func TestBatchesAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := []string{w.newAESKey(), w.newAESKey(), w.newAESKey()}
	var group sync.WaitGroup
	for g := range 64 {
		group.Go(func() {
			var reqs []proto.Message
			for i := range 1 + g%20 {
				reqs = append(reqs, encryptItem(keys[(g+i)%3], fmt.Sprintf("%d/%d", g, i)))
			}
			var opens []proto.Message
			for i, r := range w.batch(reqs...) {
				if r.GetEncrypt() == nil || !strings.HasSuffix(r.GetEncrypt().GetKeyId(), keys[(g+i)%3]) {
					t.Errorf("%d/%d: %v", g, i, r)
					return
				}
				opens = append(opens, &keyholdv1.DecryptRequest{CiphertextBlob: r.GetEncrypt().GetCiphertextBlob()})
			}
			for i, r := range w.batch(opens...) {
				if got := string(r.GetDecrypt().GetPlaintext()); got != fmt.Sprintf("%d/%d", g, i) {
					t.Errorf("%d/%d opens to %q: %v", g, i, got, r)
				}
			}
		})
	}
	group.Wait()
}

// Batches of every length around a lane's share, with refusals all over: each item
// has its own result, and is done once or not at all.
func TestBatchInPieces(t *testing.T) {
	t.Parallel()
	fake := &lendingStore{fakeStore: newFakeStore()}
	w := buildWorld(t, fake)
	aes := w.newAESKey()
	for _, n := range []int{1, 31, 32, 33, 63, 64, 65, 96, 97, 100} {
		for _, refused := range []int{1, 2, 3, n + 1} { // every how-manieth
			var reqs []proto.Message
			good := 0
			for i := range n {
				if (i+1)%refused == 0 {
					reqs = append(reqs, encryptItem(unknownID, "x"))
					continue
				}
				reqs = append(reqs, encryptItem(aes, fmt.Sprint(i)))
				good++
			}
			before := fake.count("Seal")
			results := w.batch(reqs...)
			if sealed := int(fake.count("Seal") - before); sealed != good {
				t.Errorf("%d items, %d of them good: %d were sealed", n, good, sealed)
			}
			for i, r := range results {
				if (i+1)%refused == 0 {
					if r.GetError().GetException() != string(kms.CodeNotFound) {
						t.Errorf("item %d of %d, which is refused: %v", i, n, r)
					}
				} else if got := w.decrypt(r.GetEncrypt().GetCiphertextBlob(), nil); string(got) != fmt.Sprint(i) {
					t.Errorf("item %d of %d opens to %q", i, n, got)
				}
			}
		}
	}
}

// What is refused does not wait for the key store.
func TestBatchOfRefusalsDoesNotWait(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, narrowStore{fake}) // two places for batches
	aes := w.newAESKey()
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	hold := func(_ context.Context, call string) error {
		if call == "Seal" {
			arrived <- struct{}{}
			<-release
		}
		return nil
	}
	fake.before.Store(&hold)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() { w.batch(slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 5)...) })
	}
	for range 2 {
		<-arrived
	}
	for i, r := range w.batch(slices.Repeat([]proto.Message{encryptItem(unknownID, "x")}, 100)...) {
		if r.GetError().GetException() != string(kms.CodeNotFound) {
			t.Errorf("item %d: %v", i, r)
		}
	}
	close(release)
	group.Wait()
}

// Once DisableKey is answered no item begins with the key, and what the one that had
// begun made the key store keep ready is dropped.
func TestBatchOfKeyThatIsDisabled(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, singleStore{fake})
	aes := w.newAESKey()
	var sealed, retired atomic.Int64
	hook := func(_ context.Context, call string) error {
		if call == "Seal" && sealed.Add(1) == 3 {
			do[proto.Message](w, &keyholdv1.DisableKeyRequest{KeyId: aes})
			retired.Store(fake.count("Retire"))
		}
		return nil
	}
	fake.before.Store(&hook)
	for i, r := range w.batch(slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 20)...) {
		if done := r.GetEncrypt() != nil; done != (i < 3) || !done && r.GetError().GetException() != string(kms.CodeDisabled) {
			t.Errorf("item %d: %v", i, r)
		}
	}
	if n := sealed.Load(); n != 3 {
		t.Errorf("%d items were sealed, the third of which met DisableKey", n)
	}
	if fake.count("Retire") == retired.Load() {
		t.Error("nothing is dropped after the last use")
	}
}

// Where calls are long a batch uses all its places.
func TestBatchOfLongCalls(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, fake) // sixteen at once, eight of them for batches
	aes := w.newAESKey()
	var inside, most atomic.Int64
	full := make(chan struct{})
	open := sync.OnceFunc(func() { close(full) })
	long := func(ctx context.Context, call string) error {
		if call != "Seal" {
			return nil
		}
		n := inside.Add(1)
		defer inside.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == 8 {
			open()
		}
		select {
		case <-full:
		case <-time.After(5 * time.Millisecond): // this is what takes long
		}
		return nil
	}
	fake.before.Store(&long)
	for i, r := range w.batch(slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 100)...) {
		if r.GetEncrypt() == nil {
			t.Errorf("item %d: %v", i, r.GetError())
		}
	}
	if most.Load() != 8 {
		t.Errorf("%d items were in the key store at once, want 8", most.Load())
	}
}
