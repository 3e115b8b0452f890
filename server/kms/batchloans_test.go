package kms_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// lendingStore lends as a token does: its caller leaves when its time is over, and
// what runs goes on.
type lendingStore struct {
	*fakeStore
	lent atomic.Int64
	runs sync.WaitGroup // what runs under a loan
}

// onLoan is in the contexts of what runs under a loan.
type onLoan struct{}

func (s *lendingStore) Lend(ctx context.Context, run func(ctx context.Context)) bool {
	s.lent.Add(1)
	done := make(chan struct{})
	s.runs.Go(func() { defer close(done); run(context.WithValue(ctx, onLoan{}, true)) })
	select {
	case <-done:
	case <-ctx.Done():
	}
	return true
}

// An item that hangs is answered when the time is over, with the others that were
// done. When it comes back nobody is disturbed, and what it held is free.
func TestBatchHangs(t *testing.T) {
	t.Parallel()
	fake := &lendingStore{fakeStore: newFakeStore()}
	w := buildWorld(t, fake, withConfig(func(c *kms.Config) { c.Limits.InFlight = 60 }))
	aes, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	reqs := slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 20) // in one lane
	w.batch(reqs...)
	if fake.lent.Load() == 0 {
		t.Error("nothing was lent")
	}
	hang := make(chan struct{})
	var macs atomic.Int64
	hook := func(ctx context.Context, call string) error {
		if call == "MAC" && macs.Add(1) == 1 {
			<-hang // whatever ctx says
		}
		return ctx.Err()
	}
	fake.before.Store(&hook)
	// A VerifyMac compares with its request after the key store has answered: by
	// then the request is somebody else's.
	verify := &keyholdv1.VerifyMacRequest{KeyId: mac, Message: []byte("m"), Mac: []byte("no"), MacAlgorithm: macSHA256}
	reqs[3] = verify
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	batch := batchOf(reqs...)
	events := w.eventsOf(func() {
		resp, err := tryIn[*keyholdv1.BatchResponse](ctx, w, alice(), batch)
		if err != nil {
			t.Fatalf("the batch is refused: %s", describe(err))
		}
		if ctx.Err() != nil {
			t.Error("the answer came when nobody could hear it any more")
		}
		for i, r := range resp.GetResults() {
			if e := r.GetError(); i == 3 && (e.GetException() != string(kms.CodeInternal) || !e.GetTemporary()) {
				t.Errorf("the item that hangs: %v", r)
			} else if e != nil && i != 3 {
				t.Errorf("item %d: %v", i, r)
			}
		}
	})
	if len(events) != len(reqs) {
		t.Errorf("%d events for %d items", len(events), len(reqs))
	}
	// What it may have done is on the record, with its key.
	arn := w.metadata(mac).GetArn()
	if i := slices.IndexFunc(events, func(e event) bool { return e.EventName == "VerifyMac" }); i < 0 || len(events[i].Resources) != 1 || events[i].Resources[0]["ARN"] != arn {
		t.Errorf("the item that hangs is not recorded with %s: %+v", arn, events)
	}
	kms.Wipe(batch) // as a door does
	close(hang)
	fake.heal()
	eventually(t, "all places are free", func() bool {
		for _, r := range w.batch(slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 60)...) {
			if r.GetEncrypt() == nil {
				return false
			}
		}
		return true
	})
}

// An item that cannot be done under a loan is done after it, once, and so are the
// rest.
func TestBatchAfterALoan(t *testing.T) {
	t.Parallel()
	fake := &lendingStore{fakeStore: newFakeStore()}
	w := buildWorld(t, fake)
	aes, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	var refused, done atomic.Int64
	hook := func(ctx context.Context, call string) error {
		switch {
		case call != "MAC":
		case ctx.Value(onLoan{}) != nil:
			refused.Add(1)
			return fmt.Errorf("lost: %w", kms.ErrLoanOver)
		default:
			done.Add(1)
		}
		return nil
	}
	fake.before.Store(&hook)
	reqs := slices.Repeat([]proto.Message{encryptItem(aes, "x")}, 20) // in one lane
	for _, i := range []int{0, 7, 19} {
		reqs[i] = &keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("m"), MacAlgorithm: macSHA256}
	}
	events := w.eventsOf(func() {
		for i, r := range w.batch(reqs...) {
			if r.GetError() != nil {
				t.Errorf("item %d: %v", i, r.GetError())
			}
		}
	})
	if refused.Load() != 3 || done.Load() != 3 || len(events) != len(reqs) {
		t.Errorf("of 3 MACs %d were refused under a loan and %d done after it; %d events for %d items", refused.Load(), done.Load(), len(events), len(reqs))
	}
}

// lendingKeeper lends, and remembers the secrets that it returned.
type lendingKeeper struct {
	*keepingStore
	lending lendingStore
}

func (s *lendingKeeper) Lend(ctx context.Context, run func(ctx context.Context)) bool {
	return s.lending.Lend(ctx, run)
}

// A plaintext that comes when its item has been answered is wiped.
func TestLateSecretsAreWiped(t *testing.T) {
	t.Parallel()
	fake := &lendingKeeper{keepingStore: &keepingStore{fakeStore: newFakeStore()}}
	w := buildWorld(t, fake)
	blob := w.encrypt(w.newAESKey(), []byte("attack at dawn"), nil)
	hang := make(chan struct{})
	hook := func(_ context.Context, call string) error {
		if call == "Open" {
			<-hang
		}
		return nil
	}
	fake.before.Store(&hook)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	resp, err := tryIn[*keyholdv1.BatchResponse](ctx, w, alice(), batchOf(&keyholdv1.DecryptRequest{CiphertextBlob: blob}))
	if err != nil {
		t.Fatalf("the batch is refused: %s", describe(err))
	}
	if e := resp.GetResults()[0].GetError(); !e.GetTimedOut() {
		t.Errorf("the item that hangs: %v", e)
	}
	close(hang)
	fake.lending.runs.Wait()
	if len(fake.given) != 1 || len(fake.given[0]) == 0 {
		t.Fatalf("%d secrets were given", len(fake.given))
	}
	if !wiped(fake.given[0]) {
		t.Errorf("%q is still in memory", fake.given[0])
	}
}
