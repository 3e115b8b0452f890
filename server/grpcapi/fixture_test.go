package grpcapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/door"
	"github.com/keyhold/keyhold/server/grpcapi"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// authority signs test certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = issue(t, nil, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func issue(t *testing.T, ca *authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// client returns a client certificate with the SPIFFE id.
func (a *authority) client(t *testing.T, spiffe string, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	u, err := url.Parse(spiffe)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{URIs: []*url.URL{u}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, f := range change {
		f(template)
	}
	cert, key := issue(t, a, template)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// writeServerFiles writes a fresh server certificate, its key and the clients'
// authority, and returns where they are.
func (a *authority) writeServerFiles(t *testing.T, dir, name string) door.TLSFiles {
	t.Helper()
	cert, key := issue(t, a, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := door.TLSFiles{
		Cert: filepath.Join(dir, "server.pem"), Key: filepath.Join(dir, "server.key"), ClientCA: filepath.Join(dir, "ca.pem"), CheckInterval: -1, MinVersion: tls.VersionTLS13, Protocols: []string{"h2"},
	}
	for path, block := range map[string]*pem.Block{
		files.Cert:     {Type: "CERTIFICATE", Bytes: cert.Raw},
		files.Key:      {Type: "PRIVATE KEY", Bytes: keyDER},
		files.ClientCA: {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// core stands for kms.Service: it answers what a test says and remembers what
// it was asked.
type core struct {
	do    func(ctx context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error)
	ready atomic.Pointer[error]

	mu    sync.Mutex
	calls []string
}

func (c *core) Do(ctx context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error) {
	c.mu.Lock()
	c.calls = append(c.calls, operation)
	c.mu.Unlock()
	return c.do(ctx, caller, operation, req)
}

func (c *core) Malformed(_ context.Context, _ *identity.Caller, operation, why string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, "malformed "+operation)
	return &kms.Error{Code: kms.CodeValidation, Message: why}
}

func (c *core) Ready() error {
	if p := c.ready.Load(); p != nil {
		return *p
	}
	return nil
}

const (
	app     = "spiffe://test.example/app"
	appARN  = "arn:aws:iam::111122223333:role/app"
	unbound = "spiffe://test.example/nobody"
)

// served is a running Server.
type served struct {
	directory atomic.Pointer[identity.Directory]
	*grpcapi.Server
	ca      *authority
	address string
	files   door.TLSFiles
	dir     string
	refused atomic.Int64
	served  chan error
	stop    func()
	// stopWithin drains until ctx ends, then cuts. Only the first stop counts.
	stopWithin func(ctx context.Context)
}

func open(t *testing.T, c *core) *served {
	t.Helper()
	d := &served{ca: newAuthority(t), dir: t.TempDir(), served: make(chan error, 1)}
	d.files = d.ca.writeServerFiles(t, d.dir, "first")
	log := slog.New(slog.DiscardHandler)
	conf, err := door.NewTLS(d.files, log)
	if err != nil {
		t.Fatal(err)
	}
	d.bind(t, app)
	d.Server, err = grpcapi.New(grpcapi.Config{
		Core: c, Principals: d.directory.Load, TLS: conf, MaxConnections: 64, DefaultRegion: "us-east-1",
		Logger: log, Refused: func() { d.refused.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = l.Addr().String()
	go func() { d.served <- d.Serve(l) }()
	var once sync.Once
	d.stopWithin = func(ctx context.Context) {
		once.Do(func() {
			d.Shutdown(ctx)
			if err := <-d.served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	d.stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		d.stopWithin(ctx)
	}
	t.Cleanup(d.stop)
	return d
}

// dial connects with the certificate; nil for none.
func (d *served) dial(t *testing.T, cert *tls.Certificate, change ...func(*tls.Config)) *grpc.ClientConn {
	t.Helper()
	conf := &tls.Config{RootCAs: d.ca.pool(), ServerName: "localhost", MinVersion: tls.VersionTLS13}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	for _, f := range change {
		f(conf)
	}
	conn, err := grpc.NewClient(d.address, grpc.WithTransportCredentials(credentials.NewTLS(conf)), grpc.WithUserAgent("door-test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// app connects as the bound principal.
func (d *served) app(t *testing.T) *grpc.ClientConn {
	t.Helper()
	cert := d.ca.client(t, app)
	return d.dial(t, &cert)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bind makes the application's principal known by these subjects and no others.
func (d *served) bind(t *testing.T, subjects ...string) {
	t.Helper()
	directory, err := identity.NewDirectory([]identity.Binding{{Principal: appARN, Subjects: subjects}})
	if err != nil {
		t.Fatal(err)
	}
	d.directory.Store(directory)
}
