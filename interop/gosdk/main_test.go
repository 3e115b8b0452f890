// Package gosdk_test calls every operation through the typed client of
// aws-sdk-go-v2, against a real daemon.
package gosdk_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"

	"github.com/keyhold/keyhold/interop/daemon"
)

var running *daemon.Daemon

func TestMain(m *testing.M) {
	os.Exit(daemon.Main(m, func(d *daemon.Daemon) error {
		running = d
		return nil
	}))
}

// awsConfig is what the SDK makes of the environment of dev.env.
func awsConfig(t *testing.T) aws.Config {
	t.Helper()
	settings := running.Env()
	for _, s := range settings {
		for i := range s {
			if s[i] == '=' {
				t.Setenv(s[:i], s[i+1:])
				break
			}
		}
	}
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// outcomes are what operations answered: "" for success, or the error code.
type outcomes struct {
	mu sync.Mutex
	by map[string]map[string]bool
}

func (o *outcomes) note(operation, code string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.by[operation] == nil {
		o.by[operation] = map[string]bool{}
	}
	o.by[operation][code] = true
}

func (o *outcomes) saw(operation, code string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.by[operation][code]
}

// watch makes a client note each outcome.
func (o *outcomes) watch(stack *middleware.Stack) error {
	return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("outcomes",
		func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
			out, md, err := next.HandleInitialize(ctx, in)
			o.note(awsmiddleware.GetOperationName(ctx), codeOf(err))
			return out, md, err
		}), middleware.After)
}

// codeOf is the code of the service's exception, "" without an error.
func codeOf(err error) string {
	var e smithy.APIError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.ErrorCode()
	}
	return err.Error()
}

// tester is a typed client, and fails the test on what must not happen.
type tester struct {
	*testing.T
	*kms.Client
	outcomes *outcomes
}

func newTester(t *testing.T) *tester {
	o := &outcomes{by: map[string]map[string]bool{}}
	c := kms.NewFromConfig(awsConfig(t), func(opts *kms.Options) {
		opts.APIOptions = append(opts.APIOptions, o.watch)
		opts.Retryer = aws.NopRetryer{}
	})
	return &tester{t, c, o}
}

// sub runs a subtest with the same client.
func (t *tester) sub(name string, f func(*tester)) {
	t.Run(name, func(s *testing.T) { f(&tester{s, t.Client, t.outcomes}) })
}

// must returns what an operation answered.
func must[T any](t *tester) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// key makes a key.
func (t *tester) key(spec types.KeySpec, usage types.KeyUsageType) string {
	t.Helper()
	out, err := t.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage})
	if err != nil {
		t.Fatal(err)
	}
	return *out.KeyMetadata.KeyId
}

// wantAs fails unless the error is the SDK's type E.
func wantAs[E error](t *tester, err error) {
	t.Helper()
	var e E
	if !errors.As(err, &e) {
		t.Errorf("got %T %v; want %T", err, err, e)
	}
}
