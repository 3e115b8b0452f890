package client_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// TestCoalescerErrors: an item's error is its own, and no other item's.
func TestCoalescerErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.itemError = func(text string) *keyholdv1.BatchError {
			if text != "bad" {
				return nil
			}
			return &keyholdv1.BatchError{
				Exception: "ValidationException", GrpcStatus: int32(codes.InvalidArgument), Message: "it is bad",
				Violations: []*keyholdv1.BatchFieldViolation{{Field: "plaintext", Description: "bad"}},
			}
		}
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "a")
		bad, good := start(t.Context(), c, "bad"), start(t.Context(), c, "good")
		w.goAll()
		wantSealed(t, "good", good)
		<-bad.done
		e, ok := client.ErrorFrom(bad.err)
		if !ok || e.Status != codes.InvalidArgument || e.Exception != "ValidationException" || e.Message != "it is bad" || e.RequestID != "r-batch" {
			t.Errorf("%+v", e)
		}
		if diff := cmp.Diff([]client.FieldViolation{{Field: "plaintext", Description: "bad"}}, e.Violations); diff != "" {
			t.Errorf("violations (-want +got):\n%s", diff)
		}
		c.Close()
	})
}

// TestCoalescerBrokenAnswers: a batch that is not answered as it must be.
func TestCoalescerBrokenAnswers(t *testing.T) {
	for name, edit := range map[string]func(*keyholdv1.BatchResponse){
		"one result too few": func(r *keyholdv1.BatchResponse) { r.Results = r.Results[:1] },
		"one too many":       func(r *keyholdv1.BatchResponse) { r.Results = append(r.Results, r.Results[0]) },
		"an empty result":    func(r *keyholdv1.BatchResponse) { r.Results[0], r.Results[1] = &keyholdv1.BatchResult{}, nil },
		"another kind": func(r *keyholdv1.BatchResponse) {
			for _, r := range r.GetResults() {
				r.Result = &keyholdv1.BatchResult_Decrypt{Decrypt: &keyholdv1.DecryptResponse{}}
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			w.edit = edit
			c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
			start(t.Context(), c, "a")
			calls := []*calling{start(t.Context(), c, "b"), start(t.Context(), c, "d")}
			w.goAll()
			for _, k := range calls {
				<-k.done
				if status.Code(k.err) != codes.Internal || k.resp != nil {
					t.Errorf("%s: %v, %v, want INTERNAL", name, k.resp, k.err)
				}
			}
			c.Close()
		})
	}
}

// TestCoalescerRetries: items are tried again like single calls.
func TestCoalescerRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		throttled := &keyholdv1.BatchError{Exception: "ThrottlingException", GrpcStatus: int32(codes.ResourceExhausted), Message: "slow down"}
		failures := map[string]int{"once": 1, "no time": 1}
		w.itemError = func(text string) *keyholdv1.BatchError {
			failures[text]--
			if failures[text] >= 0 {
				return throttled
			}
			return nil
		}
		var waits []time.Duration
		var mu sync.Mutex
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{
			Jitter: func() float64 { return 1 },
			Sleep: func(_ context.Context, d time.Duration) error {
				mu.Lock()
				defer mu.Unlock()
				waits = append(waits, d)
				return nil
			},
		})
		start(t.Context(), c, "a")
		once, good := start(t.Context(), c, "once"), start(t.Context(), c, "good")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		late := start(ctx, c, "no time")
		w.goAll()
		<-late.done
		if e, ok := client.ErrorFrom(late.err); !ok || e.Exception != "ThrottlingException" {
			t.Errorf("without the time to wait: %v, want ThrottlingException", late.err)
		}
		wantSealed(t, "once", once)
		wantSealed(t, "good", good)
		if diff := cmp.Diff([]time.Duration{50 * time.Millisecond}, waits); diff != "" {
			t.Errorf("waits (-want +got):\n%s", diff)
		}
		c.Close()
	})
}
