package client_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"

	"github.com/keyhold/keyhold/client"
)

func TestHooks(t *testing.T) {
	p := newPKI(t)
	f := serveFailing(t, p, failure(codes.ResourceExhausted, "ThrottlingException"), failure(codes.Unavailable, ""))
	type span struct{}
	var before, after []client.Attempt
	clock := time.Now()
	c := dialTest(t, p, f.addr, func(cfg *client.Config) {
		cfg.Retry.Jitter = func() float64 { return 1 }
		cfg.Retry.Now = func() time.Time {
			clock = clock.Add(time.Millisecond)
			return clock
		}
		cfg.Hooks = client.Hooks{
			Before: func(ctx context.Context, a client.Attempt) context.Context {
				before = append(before, a)
				return context.WithValue(ctx, span{}, a.Number)
			},
			After: func(ctx context.Context, a client.Attempt) {
				after = append(after, a)
				if n, _ := ctx.Value(span{}).(int); n != a.Number {
					t.Errorf("After has the context of attempt %d, want %d", n, a.Number)
				}
			},
		}
	})
	if err := random(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	const method = "/keyhold.v1.CryptographyService/GenerateRandom"
	want := []client.Attempt{
		{Method: method, Number: 1, Code: codes.ResourceExhausted, Exception: "ThrottlingException", RequestID: "r-err", RetryIn: 50 * time.Millisecond},
		{Method: method, Number: 2, Code: codes.Unavailable, RequestID: "r-ok", RetryIn: 100 * time.Millisecond},
		{Method: method, Number: 3, Code: codes.OK, RequestID: "r-ok", Last: true},
	}
	for i := range want {
		want[i].Duration = time.Millisecond
	}
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("after (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, before, cmpopts.IgnoreFields(client.Attempt{}, "Code", "Exception", "RequestID", "Duration", "RetryIn", "Last")); diff != "" {
		t.Errorf("before (-want +got):\n%s", diff)
	}
}

// handler counts what gRPC tells it, and looks for messages.
type handler struct {
	stats.Handler
	mu       sync.Mutex
	payloads int
	messages []any
}

func (*handler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (*handler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (*handler) HandleConn(context.Context, stats.ConnStats) {}

func (h *handler) HandleRPC(_ context.Context, s stats.RPCStats) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var payload any
	switch s := s.(type) {
	case *stats.InPayload:
		payload = s.Payload
	case *stats.OutPayload:
		payload = s.Payload
	default:
		return
	}
	h.payloads++
	if payload != nil {
		h.messages = append(h.messages, payload)
	}
}

func TestStatsHandler(t *testing.T) {
	p := newPKI(t)
	h := &handler{}
	f := serveFailing(t, p)
	if err := random(t.Context(), dialTest(t, p, f.addr, func(cfg *client.Config) { cfg.StatsHandler = h })); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.payloads != 2 || len(h.messages) != 0 {
		t.Errorf("%d payloads with messages %v, want two without", h.payloads, h.messages)
	}
}
