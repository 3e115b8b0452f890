package client_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keyhold/keyhold/client"
)

// TestCoalescerWaitsAlone: while a call waits for its next attempt, nothing is
// under way that others would wait for.
func TestCoalescerWaitsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		down := failure(codes.Unavailable, "")
		w.singleError = func(text string) error {
			if text == "a" && time.Since(w.begun) < time.Second {
				return down
			}
			return nil
		}
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{BaseDelay: time.Second, Jitter: func() float64 { return 1 }})
		w.begun = time.Now()
		w.goAll()
		a := start(t.Context(), c, "a")
		wantSealed(t, "b", start(t.Context(), c, "b"))
		if a.returned() || time.Since(w.begun) != 0 {
			t.Error("b waited for a's next attempt")
		}
		wantSealed(t, "a", a)
		wantRequests(t, w, "a", "b", "a")
		c.Close()
	})
}

// TestCoalescerAttempts: MaxAttempts is how often a call is sent in all, alone
// or not.
func TestCoalescerAttempts(t *testing.T) {
	for _, attempts := range []int{1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			w.batchError = failure(codes.Unavailable, "")
			w.singleError = func(string) error { return w.batchError }
			c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{MaxAttempts: attempts})
			calls := []*calling{start(t.Context(), c, "a"), start(t.Context(), c, "b"), start(t.Context(), c, "d")}
			wantRequests(t, w, "a")
			w.goAll()
			for _, k := range calls {
				<-k.done
				if !errors.Is(k.err, w.batchError) {
					t.Errorf("%v, want the error of the last attempt", k.err)
				}
			}
			c.Close()
			all := strings.Join(w.requests(), " ")
			for _, text := range []string{"a", "b", "d"} {
				if n := strings.Count(all, text); n != attempts {
					t.Errorf("%s was sent %d times, want %d: %s", text, n, attempts, all)
				}
			}
		})
	}
}

// TestCoalescerRetryInfo: calls of a batch that failed wait as long as the
// server asks for, as those that were alone do.
func TestCoalescerRetryInfo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		asks := failure(codes.Unavailable, "", &errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
		w.batchError, w.singleError = asks, func(string) error { return asks }
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{MaxAttempts: 2})
		begun := time.Now()
		calls := []*calling{start(t.Context(), c, "a"), start(t.Context(), c, "b"), start(t.Context(), c, "d")}
		w.goAll()
		for _, k := range calls {
			<-k.done
		}
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("it took %v, want 3 s", took)
		}
		c.Close()
	})
}

// TestCoalescerAttemptTimeout: a batch that hangs is given up like a call.
func TestCoalescerAttemptTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{AttemptTimeout: 5 * time.Second})
		a, b, d := start(t.Context(), c, "a"), start(t.Context(), c, "b"), start(t.Context(), c, "d")
		time.Sleep(time.Second) // a stalls
		wantRequests(t, w, "a", "[b d]")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if w.cancelled != 2 {
			t.Errorf("%d requests were given up, want 2", w.cancelled)
		}
		w.goAll()
		for text, k := range map[string]*calling{"a": a, "b": b, "d": d} {
			wantSealed(t, text, k)
		}
		c.Close()
	})
}

// TestCoalescerHooks: they see the attempts of single calls as those of calls
// without a Coalescer, and a batch as a call of its own.
func TestCoalescerHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.batchError = failure(codes.Unavailable, "")
		left := 2
		w.singleError = func(string) error {
			if left--; left >= 0 {
				return w.batchError
			}
			return nil
		}
		var mu sync.Mutex
		var got []client.Attempt
		c, err := client.NewCoalescerOver(w, client.Config{
			Timeout: time.Minute, Retry: client.Retry{Jitter: func() float64 { return 1 }, MaxAttempts: 3},
			Hooks: client.Hooks{After: func(_ context.Context, a client.Attempt) {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, client.Attempt{Method: a.Method[strings.LastIndex(a.Method, "/")+1:], Number: a.Number, Last: a.Last, RetryIn: a.RetryIn, Code: a.Code})
			}},
		}, client.CoalescerConfig{MaxInFlight: 1})
		if err != nil {
			t.Fatal(err)
		}
		a := start(t.Context(), c, "a")
		w.go1()
		w.go1()
		w.go1()
		wantSealed(t, "a", a)
		start(t.Context(), c, "b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // no time for another attempt
		defer cancel()
		start(ctx, c, "d")
		start(ctx, c, "e")
		w.goAll()
		c.Close()
		want := []client.Attempt{
			{Method: "Encrypt", Number: 1, Code: codes.Unavailable, RetryIn: 50 * time.Millisecond},
			{Method: "Encrypt", Number: 2, Code: codes.Unavailable, RetryIn: 100 * time.Millisecond},
			{Method: "Encrypt", Number: 3, Last: true},
			{Method: "Encrypt", Number: 1, Last: true},
			{Method: "Batch", Number: 1, Code: codes.Unavailable, Last: true},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
	})
}

// TestCoalescerOwnTimeout: a call without a deadline has the client's, in a
// batch that goes on for longer too.
func TestCoalescerOwnTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		a := start(t.Context(), c, "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		b, d := start(t.Context(), c, "b"), start(ctx, c, "d")
		time.Sleep(30*time.Second - 1)
		synctest.Wait()
		if a.returned() || b.returned() {
			t.Error("a call returned before its time")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		for _, k := range []*calling{a, b} {
			if !k.returned() || status.Code(k.err) != codes.DeadlineExceeded {
				t.Errorf("returned %t, %v, want DEADLINE_EXCEEDED", k.returned(), k.err)
			}
		}
		w.goAll()
		wantSealed(t, "d", d)
		c.Close()
	})
}
