package hsm

import (
	"context"
	"time"
)

// Observer is told what happens in a token, for metrics. Methods are called from many goroutines at once, some of them on the path of every
// call: they must return within microseconds, must not block and must not call back into the token. label is the token's name from
// its configuration.
type Observer interface {
	// Call reports one use of a session: the operation's name, the PKCS#11 code that it ended with ("CKR_OK" where it went well, "" where the
	// error is none of the library's), how long it waited for a session, and how long it held it.
	Call(label, call, code string, queued, held time.Duration)
	// Evicted reports that a session was closed because of an error, with the code that caused it.
	Evicted(label, code string)
	// Stuck reports by how much the number of calls that hang in the library changed: +1 or -1.
	Stuck(label string, change int)
	// State reports a change of state; reason is empty when the token is ready.
	State(label string, s State, reason string)
	// Initialized reports that the module was initialised again in order to heal this token; err tells when that failed.
	Initialized(label string, err error)
}

// noObserver is used where no observer is given.
type noObserver struct{}

func (noObserver) Call(string, string, string, time.Duration, time.Duration) {}
func (noObserver) Evicted(string, string)                                    {}
func (noObserver) Stuck(string, int)                                         {}
func (noObserver) State(string, State, string)                               {}
func (noObserver) Initialized(string, error)                                 {}

// Timing adds up where the calls under one context spent their time. It must not be read while a call under that context is running, nor be
// shared by contexts whose calls run at the same time.
type Timing struct {
	Queue time.Duration // waiting for a session
	Token time.Duration // holding one
}

type timingKey struct{}

// WithTiming returns a context under which calls add their times to t.
func WithTiming(ctx context.Context, t *Timing) context.Context {
	return context.WithValue(ctx, timingKey{}, t)
}

// timingOf returns the Timing of ctx, or nil.
func timingOf(ctx context.Context) *Timing {
	t, _ := ctx.Value(timingKey{}).(*Timing)
	return t
}
