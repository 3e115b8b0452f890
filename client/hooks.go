package client

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
)

// Hooks are called around each attempt of each call, for traces, metrics and
// logs. They never see a message, so nothing secret. They are called by the
// goroutine that makes the call, concurrently for concurrent calls, and the
// call waits for them.
type Hooks struct {
	// Before is called before an attempt is sent, with Method and Number set. The
	// context that it returns is the attempt's: a span can travel in it, to
	// gRPC's stats handler too. It must be ctx or made from it. Optional.
	Before func(ctx context.Context, a Attempt) context.Context

	// After is called when an attempt has ended, with the context that Before
	// returned. Optional.
	After func(ctx context.Context, a Attempt)
}

// Attempt is one try of a call.
type Attempt struct {
	// Method is gRPC's full name, such as
	// "/keyhold.v1.CryptographyService/Encrypt".
	Method string

	// Number counts the attempts of the call, from 1.
	Number int

	// Code is how it ended.
	Code codes.Code

	// Exception is the name of the AWS exception. Empty without one.
	Exception string

	// RequestID is the id of the attempt in the server's audit log; each attempt
	// has its own. Empty if the server did not answer.
	RequestID string

	// Duration is how long it took.
	Duration time.Duration

	// Last says that no other attempt follows. Where it is false, one follows
	// unless the call's context ends during the wait.
	Last bool

	// RetryIn is the wait before the next attempt.
	RetryIn time.Duration
}

// withoutMessages keeps the messages, which hold plaintexts, from a stats
// handler: gRPC would show them.
type withoutMessages struct{ stats.Handler }

// HandleRPC is stats.Handler's.
func (h withoutMessages) HandleRPC(ctx context.Context, s stats.RPCStats) {
	switch p := s.(type) {
	case *stats.InPayload:
		bare := *p
		bare.Payload = nil
		s = &bare
	case *stats.OutPayload:
		bare := *p
		bare.Payload = nil
		s = &bare
	}
	h.Handler.HandleRPC(ctx, s)
}
