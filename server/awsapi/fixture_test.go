package awsapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/sigv4"
	"github.com/keyhold/keyhold/server/sigv4/sign"
)

const (
	account  = "111122223333"
	aliceARN = "arn:aws:iam::" + account + ":user/alice"
	region   = "us-east-1"
	patience = 30 * time.Second
	jsonType = "application/x-amz-json-1.1"
)

// core stands for kms.Service: it answers what a test says and remembers what it
// was asked.
type core struct {
	do        func(ctx context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error)
	malformed error // what a request that is not decoded is answered with; nil: ValidationException

	mu    sync.Mutex
	calls []string
}

func (c *core) note(call string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, call)
}

func (c *core) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.calls...)
}

func (c *core) Do(ctx context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error) {
	c.note(operation)
	return c.do(ctx, caller, operation, req)
}

func (c *core) CheckConstraints(string, proto.Message) error { return nil }

func (c *core) Malformed(_ context.Context, _ *identity.Caller, operation, why string) error {
	c.note("malformed " + operation)
	if c.malformed != nil {
		return c.malformed
	}
	return &kms.Error{Code: kms.CodeValidation, Message: why}
}

// keys stand for the access keys of package credentials.
type keys struct {
	secrets map[string]string
	down    atomic.Pointer[error] // what deriving a signing key is answered with
	gone    atomic.Bool           // the key is nobody's once the signature was verified
}

type key struct {
	of     *keys
	secret string
}

func (k *keys) LookUp(_ context.Context, id, token string) (sigv4.Key, error) {
	switch token {
	case "":
	case "expired":
		return nil, sigv4.ErrExpiredToken
	default:
		return nil, sigv4.ErrInvalidSessionToken
	}
	secret, ok := k.secrets[id]
	if !ok {
		return nil, sigv4.ErrUnknownAccessKey
	}
	return &key{k, secret}, nil
}

func (k *keys) Caller(sigv4.Verified) (*identity.Principal, error) {
	if k.gone.Load() {
		return nil, &sigv4.Error{Reason: sigv4.UnknownAccessKey, Message: "The security token included in the request is invalid."}
	}
	return identity.ParsePrincipal(aliceARN)
}

func (*key) Version() uint64 { return 1 }

func (k *key) SigningKey(_ context.Context, scope sigv4.Scope) (sigv4.SigningKey, error) {
	if err := k.of.down.Load(); err != nil {
		return sigv4.SigningKey{}, *err
	}
	return sigv4.DeriveSigningKey([]byte(k.secret), scope), nil
}

// logBuffer collects what is logged.
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

// served is a running Server.
type served struct {
	*awsapi.Server
	t       testing.TB
	url     string
	address string
	keys    *keys
	signer  sign.Signer
	client  *http.Client
	logs    *logBuffer
	refused atomic.Int64
	// throttled are those of refused that were not told why.
	throttled atomic.Int64
	accepted  atomic.Int64 // connections
	ahead     atomic.Int64 // of the clock, in nanoseconds
	// header and body are timeouts, where they are not the door's own.
	header, body time.Duration
	// room is how long requests wait for room, where it is not the door's own.
	room time.Duration
	// stop drains until ctx ends, then cuts. Only the first stop counts.
	stop func(ctx context.Context)
}

// counting is a listener that counts connections.
type counting struct {
	net.Listener
	accepted *atomic.Int64
}

func (l counting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return conn, err
}

// option changes what open makes.
type option func(cfg *awsapi.Config, s *served)

// overTLS serves TLS; the client speaks the protocols.
func overTLS(protocols ...string) option {
	return func(cfg *awsapi.Config, s *served) {
		cert, pool := selfSigned(s.t)
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
		s.client = &http.Client{Transport: &http.Transport{
			ForceAttemptHTTP2: protocols[0] == "h2", TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, NextProtos: protocols},
		}}
	}
}

// impatient lets slow clients wait less.
func impatient(header, body time.Duration) option {
	return func(_ *awsapi.Config, s *served) { s.header, s.body = header, body }
}

func selfSigned(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, pool
}

// signerOf is what alice has.
func signerOf() sign.Signer {
	return sign.Signer{AccessKeyID: "AKIAALICE", Secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", Region: region, Service: "kms"}
}

// open serves on loopback until the test ends.
func open(t testing.TB, c awsapi.Core, options ...option) *served {
	t.Helper()
	s := &served{t: t, signer: signerOf(), logs: &logBuffer{}}
	s.keys = &keys{secrets: map[string]string{s.signer.AccessKeyID: s.signer.Secret}}
	now := func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }
	verifier, err := sigv4.New(sigv4.Config{Credentials: s.keys, Regions: []string{region}, AllowQuery: true, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	cfg := awsapi.Config{
		Core: c, Verifier: verifier, Keys: s.keys, MaxConnections: 256,
		Logger:  slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Refused: func() { s.refused.Add(1) }, Throttled: func() { s.throttled.Add(1) }, Now: now,
	}
	s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	for _, o := range options {
		o(&cfg, s)
	}
	if s.Server, err = awsapi.New(cfg); err != nil {
		t.Fatal(err)
	}
	if s.header > 0 {
		s.SetTimeouts(s.header, s.body)
	}
	if s.room > 0 {
		s.SetRoomWait(s.room)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.url = "http://" + s.address + "/"
	if cfg.TLS != nil {
		s.url = "https://" + s.address + "/"
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(counting{l, &s.accepted}) }()
	var once sync.Once
	s.stop = func(ctx context.Context) {
		once.Do(func() {
			s.Shutdown(ctx)
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s.stop(ctx)
		if strings.Contains(s.logs.String(), "panic") {
			t.Errorf("there was a panic:\n%s", s.logs)
		}
	})
	return s
}

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   []byte
	proto  string
	length int64
}

// exception is the body of an error of the JSON protocol.
func (a answer) exception(t testing.TB) (code, message string) {
	t.Helper()
	var e struct {
		Type    string `json:"__type"`
		Message string `json:"message"`
	}
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || a.header.Get("Content-Type") != jsonType {
		t.Errorf("%d %s is no error of the JSON protocol: %q", a.status, a.header.Get("Content-Type"), a.body)
	}
	return e.Type, e.Message
}

// queryError is the body of an error of the query protocol.
func (a answer) queryError(t testing.TB) (kind, code, message, requestID string) {
	t.Helper()
	var e struct {
		XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
		Error   struct{ Type, Code, Message string }
		ID      string `xml:"RequestId"`
	}
	if err := xml.Unmarshal(a.body, &e); err != nil || a.header.Get("Content-Type") != "text/xml" {
		t.Errorf("%d %s is no error of the query protocol: %q", a.status, a.header.Get("Content-Type"), a.body)
	}
	return e.Error.Type, e.Error.Code, e.Error.Message, e.ID
}

// send sends a request and reads the answer.
func (s *served) send(r *http.Request) answer {
	s.t.Helper()
	a, err := s.try(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *served) try(r *http.Request) (answer, error) {
	resp, err := s.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b, resp.Proto, resp.ContentLength}, err
}

// request makes an unsigned one for a KMS operation.
func (s *served) request(operation, body string) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", jsonType)
	r.Header.Set("X-Amz-Target", "TrentService."+operation)
	r.Header.Set("User-Agent", "door-test")
	return r
}

// call sends a signed request for a KMS operation.
func (s *served) call(operation, body string) answer {
	s.t.Helper()
	r := s.request(operation, body)
	s.signer.Sign(r, []byte(body), time.Now())
	return s.send(r)
}

const stsForm = "Action=GetCallerIdentity&Version=2011-06-15"

// form makes an unsigned request of the query protocol.
func (s *served) form(body string) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	return r
}

// sts signs for the other service.
func (s *served) sts() sign.Signer {
	signer := s.signer
	signer.Service = "sts"
	return signer
}

// until waits for what is to be true soon.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
