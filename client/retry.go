package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Defaults and limits of Retry.
const (
	DefaultMaxAttempts = 4
	DefaultBaseDelay   = 50 * time.Millisecond
	DefaultMaxDelay    = 2 * time.Second

	maxMaxAttempts = 100
)

// throttlingException is the one answer after which the server certainly has
// done nothing, and which may be another one a moment later.
const throttlingException = "ThrottlingException"

// requestIDHeader is the response metadata with the request's id.
const requestIDHeader = "keyhold-request-id"

// Retry says how a call is tried again whose failure may pass:
//
//   - after ThrottlingException, any call: the server did nothing;
//   - after UNAVAILABLE, calls that change nothing (read_only in the proto,
//     which all of the data plane are). What a control-plane change did before
//     the connection broke is unknown, so that is for the caller to find out.
//
// Nothing else is tried again: not DEADLINE_EXCEEDED, not INTERNAL, and not
// LimitExceededException, which waiting does not help. Calls of the health
// service are not either: their caller wants to know how it is now.
//
// Before attempt n+1 the call waits for a random time between zero and
// BaseDelay·2ⁿ⁻¹, at most MaxDelay ("full jitter"), and at least as long as the
// server asks for by a google.rpc.RetryInfo. A wait that would not end before
// the call's deadline is not begun: the last error is returned at once.
type Retry struct {
	// MaxAttempts is how often a call is sent in all. Optional:
	// DefaultMaxAttempts. 1 means that nothing is tried again; at most 100.
	MaxAttempts int

	// BaseDelay bounds the wait before the second attempt. Optional:
	// DefaultBaseDelay.
	BaseDelay time.Duration

	// MaxDelay bounds each wait. Optional: DefaultMaxDelay.
	MaxDelay time.Duration

	// AttemptTimeout is the share of the call's time that one attempt may have.
	// One that takes longer is given up, and counts as UNAVAILABLE. It is for
	// networks that lose connections silently. Optional: without it an attempt
	// may take all that is left.
	AttemptTimeout time.Duration

	// Jitter returns a number in [0, 1), evenly distributed. It may be called
	// concurrently. Optional: crypto/rand. For tests.
	Jitter func() float64

	// Sleep waits for d, or returns ctx's error as soon as ctx has ended. It
	// may be called concurrently. Optional: a timer. For tests.
	Sleep func(ctx context.Context, d time.Duration) error

	// Now is the clock that durations and deadlines are measured with.
	// Optional: time.Now. For tests.
	Now func() time.Time
}

// withDefaults returns r complete, or what is wrong with it.
func (r Retry) withDefaults() (Retry, error) {
	if r.MaxAttempts < 0 || r.MaxAttempts > maxMaxAttempts {
		return r, fmt.Errorf("retry: %d attempts; 1 to %d are possible", r.MaxAttempts, maxMaxAttempts)
	}
	if r.BaseDelay < 0 || r.MaxDelay < 0 || r.AttemptTimeout < 0 {
		return r, fmt.Errorf("retry: a duration is negative (base delay %v, most %v, attempt %v)", r.BaseDelay, r.MaxDelay, r.AttemptTimeout)
	}
	if r.MaxAttempts == 0 {
		r.MaxAttempts = DefaultMaxAttempts
	}
	if r.BaseDelay == 0 {
		r.BaseDelay = DefaultBaseDelay
	}
	if r.MaxDelay == 0 {
		r.MaxDelay = DefaultMaxDelay
	}
	if r.Jitter == nil {
		r.Jitter = jitter
	}
	if r.Sleep == nil {
		r.Sleep = sleep
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	return r, nil
}

func jitter() float64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return float64(binary.LittleEndian.Uint64(b[:])>>11) / (1 << 53)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// delay is how long to wait after attempt n, from 1, that failed with e.
func (r Retry) delay(n int, e *Error) time.Duration {
	most := r.BaseDelay
	for range n - 1 {
		if most >= r.MaxDelay/2 {
			most = r.MaxDelay
			break
		}
		most *= 2
	}
	return max(time.Duration(r.Jitter()*float64(min(most, r.MaxDelay))), e.RetryAfter)
}

// readOnlyMethods maps the full names of the API's methods to whether they
// change nothing that outlives the call.
func readOnlyMethods() map[string]bool {
	all := map[string]bool{}
	api := keyholdv1.File_keyhold_v1_options_proto.Package()
	protoregistry.GlobalFiles.RangeFilesByPackage(api, func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				op, _ := proto.GetExtension(m.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
				all["/"+string(s.FullName())+"/"+string(m.Name())] = op.GetReadOnly()
			}
		}
		return true
	})
	return all
}

// again tells whether a call whose attempt n, from 1, failed with err is to be
// sent again, and how long to wait before that. late is attempt's. A deadline of
// zero is none.
func (r Retry) again(n int, err error, readOnly, late bool, deadline time.Time) (wait time.Duration, again bool) {
	e, failed := ErrorFrom(err)
	if !failed || n >= r.MaxAttempts {
		return 0, false
	}
	if e.Exception != throttlingException && (!readOnly || e.Status != codes.Unavailable && !late) {
		return 0, false
	}
	wait = r.delay(n, e)
	return wait, deadline.IsZero() || wait < deadline.Sub(r.Now())
}

// oneAttempt is a call option with which retrying sends a call once and leaves
// what follows to the caller, a Coalescer: during a wait nothing must be under
// way that keeps others waiting.
type oneAttempt struct {
	grpc.EmptyCallOption

	// number is which attempt of its call this is, from 1. Zero: of no call alone,
	// but a batch; whether and when its items are sent again is another question
	// for each.
	number int

	// What came of it, for the caller: late is attempt's, again and wait are
	// Retry.again's.
	late, again bool
	wait        time.Duration
}

// retrying tries calls again as cfg.Retry says, and tells cfg.Hooks.
func retrying(cfg Config) grpc.UnaryClientInterceptor {
	methods := readOnlyMethods()
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		readOnly, ours := methods[method]
		first, once := 1, oneAttemptOf(opts)
		if once != nil {
			first = max(1, once.number)
		}
		for n := first; ; n++ {
			a := Attempt{Method: method, Number: n, Last: true}
			own := ctx // the attempt's
			if cfg.Hooks.Before != nil {
				own = cfg.Hooks.Before(ctx, a)
			}
			late, err := cfg.attempt(own, &a, func(ctx context.Context, more ...grpc.CallOption) error {
				return invoke(ctx, method, req, reply, cc, append(opts[:len(opts):len(opts)], more...)...)
			})
			if err != nil && ours && ctx.Err() == nil && (once == nil || once.number > 0) {
				deadline, _ := ctx.Deadline()
				if wait, again := cfg.Retry.again(n, err, readOnly, late, deadline); again {
					a.Last, a.RetryIn = false, wait
				}
			}
			if cfg.Hooks.After != nil {
				cfg.Hooks.After(own, a)
			}
			if once != nil {
				once.late, once.again, once.wait = late, !a.Last, a.RetryIn
				return err
			}
			if a.Last {
				return err
			}
			if err := cfg.Retry.Sleep(ctx, a.RetryIn); err != nil {
				return status.FromContextError(err).Err()
			}
		}
	}
}

func oneAttemptOf(opts []grpc.CallOption) *oneAttempt {
	for _, o := range opts {
		if once, ok := o.(*oneAttempt); ok {
			return once
		}
	}
	return nil
}

// attempt sends the call once and fills a. late says that it ran out of its
// share of the time, not out of the call's.
func (cfg Config) attempt(ctx context.Context, a *Attempt, send func(context.Context, ...grpc.CallOption) error) (late bool, err error) {
	share := ctx
	if cfg.Retry.AttemptTimeout > 0 {
		var cancel context.CancelFunc
		share, cancel = context.WithTimeout(ctx, cfg.Retry.AttemptTimeout)
		defer cancel()
	}
	var header metadata.MD
	var opts []grpc.CallOption
	if cfg.Hooks.After != nil {
		opts = append(opts, grpc.Header(&header))
	}
	begun := cfg.Retry.Now()
	err = send(share, opts...)
	a.Duration, a.Code = cfg.Retry.Now().Sub(begun), status.Code(err)
	if e, ok := ErrorFrom(err); ok {
		a.Exception, a.RequestID = e.Exception, e.RequestID
	}
	if id := header.Get(requestIDHeader); len(id) > 0 && a.RequestID == "" {
		a.RequestID = id[0]
	}
	// The server's timer for the share may fire a little before ours.
	spent := share.Err() != nil || cfg.Retry.AttemptTimeout > 0 && a.Duration >= cfg.Retry.AttemptTimeout-cfg.Retry.AttemptTimeout/8
	return a.Code == codes.DeadlineExceeded && spent && ctx.Err() == nil, err
}
