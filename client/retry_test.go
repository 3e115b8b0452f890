package client_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// failure is a status as the server makes it.
func failure(code codes.Code, exception string, more ...protoadapt.MessageV1) error {
	st := status.New(code, "told you")
	details := more
	if exception != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: exception, Domain: client.ErrorDomain, Metadata: map[string]string{"request_id": "r-err"}})
	}
	if len(details) > 0 {
		var err error
		if st, err = st.WithDetails(details...); err != nil {
			panic(err)
		}
	}
	return st.Err()
}

// failing answers every method of the API with what next says.
type failing struct {
	addr string
	mu   sync.Mutex
	// answers are given one after the other; after the last there is success.
	answers []error
	calls   int
}

func (f *failing) next() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if len(f.answers) == 0 {
		return nil
	}
	err := f.answers[0]
	f.answers = f.answers[1:]
	return err
}

// count is how many calls there were.
func (f *failing) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// errSilent stands for a server that does not answer at all.
var errSilent = errors.New("silent")

// serveFailing starts a server whose calls fail with the answers.
func serveFailing(t *testing.T, p *pki, answers ...error) *failing {
	t.Helper()
	f := &failing{answers: answers}
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = lis.Addr().String()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.serverTLS(t))), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := grpc.SetHeader(ctx, metadata.Pairs("keyhold-request-id", "r-ok")); err != nil {
				return nil, err
			}
			switch err := f.next(); {
			case errors.Is(err, errSilent):
				<-ctx.Done()
				return nil, ctx.Err()
			case err != nil:
				return nil, err
			}
			return handle(ctx, req)
		}))
	keyholdv1.RegisterCryptographyServiceServer(s, &server{answer: func(context.Context) error { return nil }})
	keyholdv1.RegisterKeyManagementServiceServer(s, succeeding{})
	grpc_health_v1.RegisterHealthServer(s, healthy{})
	run(t, s, lis)
	return f
}

func run(t *testing.T, s *grpc.Server, lis net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

type succeeding struct {
	keyholdv1.UnimplementedKeyManagementServiceServer
}

func (succeeding) CreateKey(context.Context, *keyholdv1.CreateKeyRequest) (*keyholdv1.CreateKeyResponse, error) {
	return &keyholdv1.CreateKeyResponse{}, nil
}

func (succeeding) DescribeKey(context.Context, *keyholdv1.DescribeKeyRequest) (*keyholdv1.DescribeKeyResponse, error) {
	return &keyholdv1.DescribeKeyResponse{}, nil
}

type healthy struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (healthy) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// dialTest connects to addr; calls wait for nothing unless change says so.
func dialTest(t *testing.T, p *pki, addr string, change func(*client.Config)) *client.Client {
	t.Helper()
	cfg := config(t, p, addr)
	cfg.Retry.Sleep = func(context.Context, time.Duration) error { return nil }
	if change != nil {
		change(&cfg)
	}
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func random(ctx context.Context, c *client.Client) error {
	_, err := c.Crypto.GenerateRandom(ctx, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(1)})
	return err
}

func create(ctx context.Context, c *client.Client) error {
	_, err := c.Keys.CreateKey(ctx, &keyholdv1.CreateKeyRequest{})
	return err
}

func describe(ctx context.Context, c *client.Client) error {
	_, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{})
	return err
}

func check(ctx context.Context, c *client.Client) error {
	_, err := c.Health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

// TestRetried: which failures of which calls are tried again.
func TestRetried(t *testing.T) {
	p := newPKI(t)
	for _, tt := range []struct {
		name  string
		call  func(context.Context, *client.Client) error
		err   error
		again bool
	}{
		{"data plane, connection", random, failure(codes.Unavailable, ""), true},
		{"data plane, token down", random, failure(codes.Unavailable, "KeyUnavailableException"), true},
		{"data plane, throttled", random, failure(codes.ResourceExhausted, "ThrottlingException"), true},
		{"data plane, limit", random, failure(codes.ResourceExhausted, "LimitExceededException"), false},
		{"data plane, exhausted without a reason", random, failure(codes.ResourceExhausted, ""), false},
		{"data plane, time ran out", random, failure(codes.DeadlineExceeded, "DependencyTimeoutException"), false},
		{"data plane, internal", random, failure(codes.Internal, "KMSInternalException"), false},
		{"data plane, internal that asks for it", random, failure(codes.Internal, "", &errdetails.RetryInfo{RetryDelay: durationpb.New(1)}), false},
		{"data plane, refused", random, failure(codes.PermissionDenied, "AccessDeniedException"), false},
		{"reading, connection", describe, failure(codes.Unavailable, ""), true},
		{"change, connection", create, failure(codes.Unavailable, ""), false},
		{"change, token down", create, failure(codes.Unavailable, "KMSInternalException"), false},
		{"change, throttled", create, failure(codes.ResourceExhausted, "ThrottlingException"), true},
		{"change, limit", create, failure(codes.ResourceExhausted, "LimitExceededException"), false},
		{"health, connection", check, failure(codes.Unavailable, ""), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serveFailing(t, p, tt.err)
			err := tt.call(t.Context(), dialTest(t, p, f.addr, nil))
			if tt.again && (err != nil || f.count() != 2) {
				t.Errorf("%v after %d calls, want success at the second", err, f.count())
			}
			if !tt.again && (status.Code(err) != status.Code(tt.err) || f.count() != 1) {
				t.Errorf("%v after %d calls, want the first one's error", err, f.count())
			}
		})
	}
}

func TestRetryWaits(t *testing.T) {
	p := newPKI(t)
	down := failure(codes.Unavailable, "")
	asks := func(d time.Duration) error {
		return failure(codes.Unavailable, "", &errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	}
	for _, tt := range []struct {
		name    string
		retry   client.Retry
		answers []error
		want    []time.Duration
		code    codes.Code
	}{
		{
			"defaults, at their longest",
			client.Retry{},
			[]error{down, down, down, down, down},
			[]time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond},
			codes.Unavailable,
		},
		{
			"up to the longest",
			client.Retry{MaxAttempts: 7, BaseDelay: 300 * time.Millisecond},
			[]error{down, down, down, down, down, down},
			[]time.Duration{300 * time.Millisecond, 600 * time.Millisecond, 1200 * time.Millisecond, 2 * time.Second, 2 * time.Second, 2 * time.Second},
			codes.OK,
		},
		{
			"longest below the base",
			client.Retry{BaseDelay: time.Second, MaxDelay: time.Millisecond},
			[]error{down},
			[]time.Duration{time.Millisecond},
			codes.OK,
		},
		{
			"jitter",
			client.Retry{Jitter: func() float64 { return 0.25 }},
			[]error{down, down},
			[]time.Duration{12500 * time.Microsecond, 25 * time.Millisecond},
			codes.OK,
		},
		{
			"the server asks for more",
			client.Retry{},
			[]error{asks(3 * time.Second), asks(time.Millisecond), asks(-time.Second)},
			[]time.Duration{3 * time.Second, 100 * time.Millisecond, 200 * time.Millisecond},
			codes.OK,
		},
		{"never", client.Retry{MaxAttempts: 1}, []error{down}, nil, codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serveFailing(t, p, tt.answers...)
			var got []time.Duration
			err := random(t.Context(), dialTest(t, p, f.addr, func(cfg *client.Config) {
				cfg.Retry = tt.retry
				if cfg.Retry.Jitter == nil {
					cfg.Retry.Jitter = func() float64 { return 1 }
				}
				cfg.Retry.Sleep = func(_ context.Context, d time.Duration) error {
					got = append(got, d)
					return nil
				}
			}))
			if status.Code(err) != tt.code {
				t.Errorf("%v, want %v", err, tt.code)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("waits (-want +got):\n%s", diff)
			}
			if f.count() != len(tt.want)+1 {
				t.Errorf("%d calls, want %d", f.count(), len(tt.want)+1)
			}
		})
	}
}

// TestRetryJitter: without a source of its own, waits are spread over the
// whole range.
func TestRetryJitter(t *testing.T) {
	p := newPKI(t)
	down := make([]error, 60)
	for i := range down {
		down[i] = failure(codes.Unavailable, "")
	}
	f := serveFailing(t, p, down...)
	var low, high int
	err := random(t.Context(), dialTest(t, p, f.addr, func(cfg *client.Config) {
		cfg.Retry.MaxAttempts, cfg.Retry.BaseDelay, cfg.Retry.MaxDelay = 100, time.Second, time.Second
		cfg.Retry.Sleep = func(_ context.Context, d time.Duration) error {
			switch {
			case d < 0 || d > time.Second:
				t.Errorf("a wait of %v", d)
			case d < time.Second/2:
				low++
			default:
				high++
			}
			return nil
		}
	}))
	if err != nil || low < 10 || high < 10 {
		t.Errorf("%v; %d short waits, %d long ones", err, low, high)
	}
}

// TestRetryDeadline: a wait that would not end in time is not begun, and one
// that is cancelled ends.
func TestRetryDeadline(t *testing.T) {
	p := newPKI(t)
	now := time.Now()
	for _, tt := range []struct {
		name  string
		left  time.Duration
		calls int
	}{{"just enough", time.Minute + 1, 2}, {"not enough", time.Minute, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			f := serveFailing(t, p, failure(codes.Unavailable, ""))
			c := dialTest(t, p, f.addr, func(cfg *client.Config) {
				cfg.Retry.BaseDelay, cfg.Retry.MaxDelay = time.Minute, time.Minute
				cfg.Retry.Jitter, cfg.Retry.Now = func() float64 { return 1 }, func() time.Time { return now }
			})
			ctx, cancel := context.WithDeadline(t.Context(), now.Add(tt.left))
			defer cancel()
			if err := random(ctx, c); (err == nil) != (tt.calls == 2) || f.count() != tt.calls {
				t.Errorf("%v after %d calls, want %d", err, f.count(), tt.calls)
			}
		})
	}
	t.Run("cancelled while it waits", func(t *testing.T) {
		f := serveFailing(t, p, failure(codes.Unavailable, ""))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := dialTest(t, p, f.addr, func(cfg *client.Config) {
			cfg.Timeout = 24 * time.Hour
			cfg.Retry = client.Retry{BaseDelay: time.Hour, MaxDelay: time.Hour, Jitter: func() float64 { return 1 }}
			cfg.Hooks.After = func(context.Context, client.Attempt) { cancel() }
		})
		// The context has ended when the wait would begin: nothing is waited for.
		if err := random(ctx, c); status.Code(err) != codes.Canceled || f.count() != 1 {
			t.Errorf("%v after %d calls, want CANCELED after one", err, f.count())
		}
	})
}

// TestRetryAttemptTimeout: an attempt that hangs does not take the others'
// time; a change is not sent twice for that.
func TestRetryAttemptTimeout(t *testing.T) {
	p := newPKI(t)
	set := func(cfg *client.Config) { cfg.Retry.AttemptTimeout = time.Second }
	f := serveFailing(t, p, errSilent)
	if err := random(t.Context(), dialTest(t, p, f.addr, set)); err != nil || f.count() != 2 {
		t.Errorf("%v after %d calls, want success at the second", err, f.count())
	}
	f = serveFailing(t, p, errSilent)
	if err := create(t.Context(), dialTest(t, p, f.addr, set)); status.Code(err) != codes.DeadlineExceeded || f.count() != 1 {
		t.Errorf("%v after %d calls, want DEADLINE_EXCEEDED after one", err, f.count())
	}
}

// TestRetryConnects: a call survives a server that starts while it waits.
func TestRetryConnects(t *testing.T) {
	p := newPKI(t)
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	lis.Close()
	start := sync.OnceFunc(func() {
		lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		s := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.serverTLS(t))))
		keyholdv1.RegisterCryptographyServiceServer(s, &server{answer: func(context.Context) error { return nil }})
		run(t, s, lis)
	})
	err = random(t.Context(), dialTest(t, p, addr, func(cfg *client.Config) {
		cfg.Retry = client.Retry{MaxAttempts: 100, BaseDelay: 10 * time.Millisecond, MaxDelay: 50 * time.Millisecond}
		cfg.Hooks.After = func(_ context.Context, a client.Attempt) {
			if a.Code != codes.OK {
				start()
			}
		}
	}))
	if err != nil {
		t.Error(err)
	}
}

func TestDialRefusesRetry(t *testing.T) {
	p := newPKI(t)
	for _, r := range []client.Retry{
		{MaxAttempts: -1}, {MaxAttempts: 101}, {BaseDelay: -1}, {MaxDelay: -1}, {AttemptTimeout: -1},
	} {
		cfg := config(t, p, "127.0.0.1:1")
		cfg.Retry = r
		if c, err := client.Dial(cfg); err == nil {
			c.Close()
			t.Errorf("Dial takes %+v", r)
		}
	}
	cfg := config(t, p, "127.0.0.1:1")
	cfg.Retry.MaxAttempts = 100
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
