package kms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
	"github.com/keyhold/keyhold/server/store/sqlite"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// Who calls, and where.
const (
	testAccount    = "111122223333"
	foreignAccount = "444455556666"
	testRegion     = "us-east-1"
	otherRegion    = "eu-west-1"
)

// The one token of this test binary. Making and probing one costs seconds;
// each world has an installation id of its own, so that worlds do not see
// each other's objects as theirs. Made by the first test that needs it.
//
//nolint:gochecknoglobals // one per process, as SoftHSM itself
var shared struct {
	once  sync.Once
	dir   string
	token *hsm.Token
	err   error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.token != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if err := shared.token.Close(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "close token:", err)
			code = 1
		}
		cancel()
	}
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// sharedToken returns the token, ready.
func sharedToken(t testing.TB) *hsm.Token {
	t.Helper()
	library := hsmtest.Library(t)
	shared.once.Do(func() { shared.err = openShared(library) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.token
}

func openShared(library string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if shared.dir, err = os.MkdirTemp("", "keyhold-kms-test"); err != nil {
		return err
	}
	made, err := softhsmconfig.Init(ctx, softhsmconfig.Options{Dir: shared.dir, Label: "kms-test", Module: library})
	if err != nil {
		return err
	}
	if err := made.Use(); err != nil {
		return err
	}
	shared.token, err = hsm.Open(hsm.Config{Module: made.Module, TokenLabel: made.Label, PIN: hsm.PINFile(made.PINFile)}, hsm.Options{})
	if err != nil {
		return err
	}
	if _, err := shared.token.EnsureCanary(ctx); err != nil {
		return err
	}
	return shared.token.WaitReady(ctx)
}

// world is one installation: store, journal, key store and the service over
// them.
type world struct {
	t       testing.TB
	dir     string
	cfg     kms.Config
	svc     *kms.Service
	db      *sqlite.Store
	journal *audit.Journal
	logs    *logBuffer
	clock   *testClock

	// sealKey is made by withSealKey; principals are who has access keys.
	sealKey    *kms.SealKey
	principals *atomic.Pointer[identity.Directory]
}

// newWorld makes a world over SoftHSM. The options change the configuration
// before the service is made.
func newWorld(t testing.TB, options ...func(*world)) *world {
	t.Helper()
	return buildWorld(t, tokenstore.New(sharedToken(t)), options...)
}

// newFakeWorld is newWorld over a key store in memory.
func newFakeWorld(t testing.TB, options ...func(*world)) (*world, *fakeStore) {
	t.Helper()
	fake := newFakeStore()
	return buildWorld(t, fake, options...), fake
}

func buildWorld(t testing.TB, ks kms.KeyStore, options ...func(*world)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), logs: &logBuffer{}, clock: &testClock{now: time.Date(2031, 5, 6, 7, 8, 9, 123_456_000, time.UTC)}}
	log := slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if w.db, err = sqlite.Create(t.Context(), filepath.Join(w.dir, "data"), sqlite.Options{Logger: log, Program: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.db.Close() })
	w.journal, err = audit.Open(w.journalDir(), audit.Options{Create: true, SegmentBytes: 256 << 10, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.journal.Close(ctx); err != nil {
			t.Errorf("close journal: %v", err)
		}
	})
	w.cfg = kms.Config{
		Store: w.db, Regions: map[kms.Region]kms.KeyStore{testRegion: ks}, Journal: w.journal, Logger: log, Now: w.clock.Now,
	}
	w.sealKey = kms.NewSealKey(ks, w.db.Instance())
	w.principals = new(atomic.Pointer[identity.Directory])
	w.setPrincipals(alice(), mallory())
	w.cfg.AccessKeys = w.loadAccessKeys()
	for _, o := range options {
		o(w)
	}
	w.start()
	t.Cleanup(func() { w.svc.Close() })
	return w
}

// start makes the service; after a first one it is a restart.
func (w *world) start() {
	w.t.Helper()
	if w.svc != nil {
		w.svc.Close()
	}
	var err error
	if w.svc, err = kms.New(w.t.Context(), w.cfg); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) journalDir() string { return filepath.Join(w.dir, "audit") }

// withConfig changes the configuration.
func withConfig(f func(*kms.Config)) func(*world) { return func(w *world) { f(&w.cfg) } }

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// testClock stands still until it is moved.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// alice calls from the account that owns the keys.
func alice() *identity.Caller { return callerOf(testAccount) }

// mallory calls from another account.
func mallory() *identity.Caller { return callerOf(foreignAccount) }

func callerOf(account string) *identity.Caller {
	p, err := identity.ParsePrincipal("arn:aws:iam::" + account + ":user/tests/caller")
	if err != nil {
		panic(err)
	}
	return &identity.Caller{
		Principal: p, Subject: "spiffe://test.example/caller", Region: testRegion, Door: "grpc",
		RequestID: "request-" + account, SourceIP: "192.0.2.7", UserAgent: "kms-test/1", TLSVersion: "TLSv1.3", CipherSuite: "TLS_AES_128_GCM_SHA256",
	}
}

// operationOf returns the operation of a request message.
func operationOf(req proto.Message) string {
	return strings.TrimSuffix(string(req.ProtoReflect().Descriptor().Name()), "Request")
}

// try makes a request as alice.
func try[R proto.Message](w *world, req proto.Message) (R, *kms.Error) {
	w.t.Helper()
	return tryAs[R](w, alice(), req)
}

// tryAs makes a request; the error must be a *kms.Error.
func tryAs[R proto.Message](w *world, caller *identity.Caller, req proto.Message) (R, *kms.Error) {
	w.t.Helper()
	return tryIn[R](w.t.Context(), w, caller, req)
}

func tryIn[R proto.Message](ctx context.Context, w *world, caller *identity.Caller, req proto.Message) (R, *kms.Error) {
	w.t.Helper()
	var zero R
	resp, err := w.svc.Do(ctx, caller, operationOf(req), req)
	if err != nil {
		var e *kms.Error
		if !errors.As(err, &e) {
			w.t.Errorf("%s: the error %v is a %T, not a *kms.Error", operationOf(req), err, err)
			return zero, &kms.Error{Code: "?", Message: err.Error()}
		}
		if !declared(operationOf(req), e.Code) {
			w.t.Errorf("%s answered with %s, which it does not declare", operationOf(req), describe(e))
		}
		if resp != nil {
			w.t.Errorf("%s: an answer beside the error %v", operationOf(req), err)
		}
		return zero, e
	}
	return resp.(R), nil
}

// declared reports whether the operation may answer with the code: it declares
// it, or every operation may.
func declared(name string, code kms.Code) bool {
	switch code {
	case kms.CodeValidation, kms.CodeAccessDenied, kms.CodeThrottling, kms.CodeUnknownOperation, kms.CodeUnsupportedOperation:
		return true
	}
	for _, sd := range kms.Services() {
		if md := sd.Methods().ByName(protoreflect.Name(name)); md != nil {
			op, _ := proto.GetExtension(md.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
			return slices.Contains(op.GetErrors(), string(code))
		}
	}
	return false
}

// do makes a request as alice that must succeed.
func do[R proto.Message](w *world, req proto.Message) R {
	w.t.Helper()
	resp, err := try[R](w, req)
	if err != nil {
		w.t.Fatalf("%s(%s): %s", operationOf(req), brief(req), describe(err))
	}
	return resp
}

// refuse makes a request as alice that must fail with the code.
func refuse(w *world, req proto.Message, want kms.Code) *kms.Error {
	w.t.Helper()
	return refuseAs(w, alice(), req, want)
}

func refuseAs(w *world, caller *identity.Caller, req proto.Message, want kms.Code) *kms.Error {
	w.t.Helper()
	_, err := tryAs[proto.Message](w, caller, req)
	switch {
	case err == nil:
		w.t.Errorf("%s(%s) succeeded, want %s", operationOf(req), brief(req), want)
		return &kms.Error{}
	case err.Code != want:
		w.t.Errorf("%s(%s): %s, want %s", operationOf(req), brief(req), describe(err), want)
	}
	return err
}

// brief shows a request in a failure, shortened.
func brief(req proto.Message) string {
	s := fmt.Sprint(req)
	if len(s) > 160 {
		s = s[:160] + "…"
	}
	return s
}

// describe shows an error with its cause.
func describe(err *kms.Error) string {
	s := err.Error()
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	if cause := err.Unwrap(); cause != nil {
		s += " (cause: " + cause.Error() + ")"
	}
	return s
}

// event is an audit record as a reader of CloudTrail sees it.
type event struct {
	EventVersion        string
	UserIdentity        map[string]string
	EventTime           time.Time
	EventSource         string
	EventName           string
	AWSRegion           string
	SourceIPAddress     string
	UserAgent           string
	ErrorCode           string
	ErrorMessage        string
	RequestParameters   map[string]any
	ResponseElements    map[string]any
	AdditionalEventData map[string]string
	RequestID           string
	EventID             string
	ReadOnly            bool
	Resources           []map[string]string
	EventType           string
	RecipientAccountID  string
	EventCategory       string
	ManagementEvent     bool
	TLSDetails          map[string]string

	raw       string
	protected bool
}

// events reads the whole journal back.
func (w *world) events() []event {
	w.t.Helper()
	var out []event
	for r, err := range audit.Read(w.journalDir(), 0) {
		if err != nil {
			w.t.Fatalf("read journal: %v", err)
		}
		if r.Kind != audit.KindEvent {
			continue
		}
		var e event
		if err := json.Unmarshal(r.Payload, &e); err != nil {
			w.t.Fatalf("record %d is no event: %v\n%s", r.Seq, err, r.Payload)
		}
		e.raw, e.protected = string(r.Payload), r.Protected
		out = append(out, e)
	}
	return out
}

// eventsOf returns what f left in the journal.
func (w *world) eventsOf(f func()) []event {
	w.t.Helper()
	before := len(w.events())
	f()
	return w.events()[before:]
}

// eventually polls until done returns true, without a fixed sleep deciding.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
