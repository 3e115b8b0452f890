package kms

import (
	"context"
	"time"
)

// Timing says where the time of one request went. Key stores add to it; one
// request's calls do not overlap, so it needs no lock.
type Timing struct {
	// Queue is the wait for a place in the key store.
	Queue time.Duration
	// Token is the work in the key store.
	Token time.Duration
	// Audit is the wait for durable audit records.
	Audit time.Duration
}

type timingKey struct{}

func withTiming(ctx context.Context, t *Timing) context.Context {
	return context.WithValue(ctx, timingKey{}, t)
}

// TimingFrom returns the Timing of the request that ctx belongs to, or nil.
func TimingFrom(ctx context.Context) *Timing {
	t, _ := ctx.Value(timingKey{}).(*Timing)
	return t
}

// Observer is told of every finished request. It must be quick.
type Observer interface {
	// Operation: code is empty for success.
	Operation(name string, code Code, total time.Duration, t Timing)
}
