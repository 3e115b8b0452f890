package credentials_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/identity/credentials"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
	"github.com/keyhold/keyhold/server/sigv4"
	"github.com/keyhold/keyhold/server/sigv4/sign"
	"github.com/keyhold/keyhold/server/store/sqlite"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

const (
	account     = "111122223333"
	region      = "us-east-1"
	otherRegion = "eu-west-1"
)

// The one token of this test binary: making and probing one costs seconds.
//
//nolint:gochecknoglobals // one per process, as SoftHSM itself
var shared struct {
	once   sync.Once
	dir    string
	config hsm.Config
	token  *hsm.Token
	err    error
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
	if shared.dir, err = os.MkdirTemp("", "keyhold-credentials-test"); err != nil {
		return err
	}
	made, err := softhsmconfig.Init(ctx, softhsmconfig.Options{Dir: shared.dir, Label: "credentials-test", Module: library})
	if err != nil {
		return err
	}
	if err := made.Use(); err != nil {
		return err
	}
	shared.config = hsm.Config{Module: made.Module, TokenLabel: made.Label, PIN: hsm.PINFile(made.PINFile)}
	if shared.token, err = hsm.Open(shared.config, hsm.Options{}); err != nil {
		return err
	}
	if _, err := shared.token.EnsureCanary(ctx); err != nil {
		return err
	}
	return shared.token.WaitReady(ctx)
}

// home is the home token, with a count of what it opened, and what it may be made
// to answer.
type home struct {
	*tokenstore.Store

	opened atomic.Int64
	down   atomic.Pointer[error]
	// during is called while a secret is being opened.
	during atomic.Pointer[func()]
}

func (h *home) Open(ctx context.Context, l kms.Locator, aad []byte, s kms.Sealed) ([]byte, error) {
	h.opened.Add(1)
	if f := h.during.Load(); f != nil {
		(*f)()
	}
	if err := h.down.Load(); err != nil {
		return nil, *err
	}
	return h.Store.Open(ctx, l, aad, s)
}

// world is an installation as far as access keys go, over SoftHSM and SQLite.
type world struct {
	t          testing.TB
	db         *sqlite.Store
	home       *home
	sealer     identity.Sealer
	keys       *identity.AccessKeys
	creds      *credentials.AccessKeys
	verifier   *sigv4.Verifier
	principals atomic.Pointer[identity.Directory]
	logs       bytes.Buffer

	mu  sync.Mutex
	now time.Time
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, home: &home{Store: tokenstore.New(sharedToken(t))}, now: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)}
	var err error
	if w.db, err = sqlite.Create(t.Context(), filepath.Join(t.TempDir(), "data"), sqlite.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.db.Close() })
	key := kms.NewSealKey(w.home, w.db.Instance())
	if _, err := key.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.sealer = key.Column("access_keys", "sealed_secret")
	w.setPrincipals("alice", "bob")
	w.start()
	return w
}

// start loads the keys, as a process does that starts.
func (w *world) start() {
	w.t.Helper()
	var err error
	w.keys, err = identity.NewAccessKeys(w.t.Context(), identity.AccessKeysConfig{
		Store: w.db, Sealer: w.sealer, Principals: w.principals.Load, Logger: slog.New(slog.NewTextHandler(&w.logs, nil)), Now: w.clock,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.creds = credentials.New(w.keys)
	if w.verifier, err = sigv4.New(sigv4.Config{Credentials: w.creds, Regions: []string{region, otherRegion}, Now: w.clock, AllowQuery: true}); err != nil {
		w.t.Fatal(err)
	}
	w.creds.Forget(w.verifier)
	w.home.opened.Store(0)
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) setPrincipals(names ...string) {
	w.t.Helper()
	var bindings []identity.Binding
	for _, n := range names {
		bindings = append(bindings, identity.Binding{Principal: arn(n)})
	}
	d, err := identity.NewDirectory(bindings)
	if err != nil {
		w.t.Fatal(err)
	}
	w.principals.Store(d)
}

func arn(name string) string { return "arn:aws:iam::" + account + ":user/" + name }

// create makes a key, and a signer that has it.
func (w *world) create(name string) sign.Signer {
	w.t.Helper()
	p := w.keys.Principal(arn(name))
	r, secret, err := w.keys.Create(w.t.Context(), p, identity.NewAccessKeyID(), 2)
	if err != nil {
		w.t.Fatal(err)
	}
	defer secret.Wipe()
	return sign.Signer{AccessKeyID: r.ID, Secret: string(secret), Region: region, Service: "kms"}
}

// request signs one and reads it as a server does.
func (w *world) request(s sign.Signer, presigned bool) (*http.Request, []byte) {
	body := []byte(`{"KeyId":"alias/app"}`)
	out := &http.Request{Method: http.MethodPost, URL: &url.URL{Scheme: "http", Host: "127.0.0.1:8080", Path: "/"}, Header: http.Header{}}
	if presigned {
		s.Presign(out, body, w.clock(), time.Minute)
	} else {
		s.Sign(out, body, w.clock())
	}
	in := httptest.NewRequest(http.MethodPost, out.URL.RequestURI(), bytes.NewReader(body))
	in.Host, in.Header = out.URL.Host, out.Header
	return in, body
}

// presigned makes a presigned request of some age.
func (w *world) presigned(s sign.Signer, age, valid time.Duration) (*http.Request, []byte) {
	body := []byte("{}")
	out := &http.Request{Method: http.MethodPost, URL: &url.URL{Scheme: "http", Host: "127.0.0.1:8080", Path: "/"}, Header: http.Header{}}
	s.Presign(out, body, w.clock().Add(-age), valid)
	in := httptest.NewRequest(http.MethodPost, out.URL.RequestURI(), bytes.NewReader(body))
	in.Host, in.Header = out.URL.Host, out.Header
	return in, body
}

// try verifies a request and finds whose it is.
func (w *world) try(s sign.Signer, presigned bool) (*identity.Principal, error) {
	r, body := w.request(s, presigned)
	v, err := w.verifier.Verify(r, "kms", sigv4.Body(body))
	if err != nil {
		return nil, err
	}
	return w.creds.Caller(v)
}

func (w *world) accept(s sign.Signer, name string) {
	w.t.Helper()
	for _, presigned := range []bool{false, true} {
		if p, err := w.try(s, presigned); err != nil || p.ARN != arn(name) {
			w.t.Errorf("a request of %s: %v, %v", name, p, err)
		}
	}
}

func (w *world) refuse(s sign.Signer, want sigv4.Reason) {
	w.t.Helper()
	p, err := w.try(s, false)
	var e *sigv4.Error
	if !errors.As(err, &e) || e.Reason != want || p != nil {
		w.t.Errorf("%v, %v, want %v", p, err, want)
		return
	}
	if want == sigv4.UnknownAccessKey && e.Message != "The security token included in the request is invalid." {
		w.t.Errorf("the refusal says %q", e.Message)
	}
}

func (w *world) setActive(s sign.Signer, active bool) {
	w.t.Helper()
	if err := w.keys.SetActive(w.t.Context(), s.AccessKeyID, active); err != nil {
		w.t.Fatal(err)
	}
}
