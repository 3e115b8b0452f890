package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// server answers GenerateRandom with what answer says.
type server struct {
	keyholdv1.UnimplementedCryptographyServiceServer
	answer func(ctx context.Context) error
}

func (s *server) GenerateRandom(ctx context.Context, _ *keyholdv1.GenerateRandomRequest) (*keyholdv1.GenerateRandomResponse, error) {
	if err := s.answer(ctx); err != nil {
		return nil, err
	}
	return &keyholdv1.GenerateRandomResponse{Plaintext: []byte{1}}, nil
}

// serve starts a server on loopback and returns its address.
func serve(t *testing.T, conf *tls.Config, answer func(context.Context) error) string {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)))
	keyholdv1.RegisterCryptographyServiceServer(s, &server{answer: answer})
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

func config(t *testing.T, p *pki, addr string) client.Config {
	t.Helper()
	cert, key := p.issue(t, "client", "client.test")
	return client.Config{Addr: addr, CAFile: p.caFile, CertFile: cert, KeyFile: key}
}

func call(t *testing.T, cfg client.Config) error {
	t.Helper()
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	_, err = c.Crypto.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(1)})
	return err
}

func TestDial(t *testing.T) {
	p := newPKI(t)
	var (
		version  uint16
		caller   string
		region   []string
		deadline time.Duration
	)
	addr := serve(t, p.serverTLS(t), func(ctx context.Context) error {
		pr, _ := peer.FromContext(ctx)
		info, ok := pr.AuthInfo.(credentials.TLSInfo)
		if !ok {
			return errors.New("no TLS")
		}
		version, caller = info.State.Version, info.State.PeerCertificates[0].Subject.CommonName
		md, _ := metadata.FromIncomingContext(ctx)
		region = md.Get(client.RegionHeader)
		end, ok := ctx.Deadline()
		if !ok {
			return errors.New("no deadline")
		}
		deadline = time.Until(end)
		return nil
	})
	cfg := config(t, p, addr)
	cfg.Region, cfg.Timeout = "eu-central-1", time.Minute
	if err := call(t, cfg); err != nil {
		t.Fatal(err)
	}
	if version != tls.VersionTLS13 {
		t.Errorf("version = %s, want TLS 1.3", tls.VersionName(version))
	}
	if caller != "client.test" {
		t.Errorf("caller = %q, want client.test", caller)
	}
	if diff := cmp.Diff([]string{"eu-central-1"}, region); diff != "" {
		t.Errorf("region (-want +got):\n%s", diff)
	}
	if deadline <= client.DefaultTimeout || deadline > time.Minute {
		t.Errorf("deadline in %v, want just under a minute", deadline)
	}

	// A deadline and a region of the caller's own win.
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), client.RegionHeader, "own"), 20*time.Second)
	defer cancel()
	if _, err := c.Crypto.GenerateRandom(ctx, &keyholdv1.GenerateRandomRequest{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"own"}, region); diff != "" {
		t.Errorf("region (-want +got):\n%s", diff)
	}
	if deadline > 20*time.Second {
		t.Errorf("deadline in %v, want at most the caller's 20s", deadline)
	}
}

func TestDialServerName(t *testing.T) {
	p := newPKI(t)
	addr := serve(t, p.serverTLS(t), func(context.Context) error { return nil })
	cfg := config(t, p, addr)
	cfg.ServerName = "keyhold.test"
	if err := call(t, cfg); err != nil {
		t.Fatalf("right name: %v", err)
	}
	cfg.ServerName = "other.test"
	if err := call(t, cfg); status.Code(err) != codes.Unavailable {
		t.Fatalf("wrong name: %v, want UNAVAILABLE", err)
	}
}

func TestDialRefusesPeers(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	never := func(context.Context) error {
		t.Error("a request got through")
		return nil
	}
	t.Run("server below TLS 1.3", func(t *testing.T) {
		conf := p.serverTLS(t)
		conf.MaxVersion = tls.VersionTLS12
		if err := call(t, config(t, p, serve(t, conf, never))); status.Code(err) != codes.Unavailable {
			t.Errorf("%v, want UNAVAILABLE", err)
		}
	})
	t.Run("server of another authority", func(t *testing.T) {
		cfg := config(t, p, serve(t, other.serverTLS(t), never))
		if err := call(t, cfg); !strings.Contains(fmt.Sprint(err), "certificate") {
			t.Errorf("%v, want a complaint about the certificate", err)
		}
	})
	t.Run("system roots do not know the server", func(t *testing.T) {
		cfg := config(t, p, serve(t, p.serverTLS(t), never))
		cfg.CAFile = ""
		if err := call(t, cfg); !strings.Contains(fmt.Sprint(err), "certificate") {
			t.Errorf("%v, want a complaint about the certificate", err)
		}
	})
	t.Run("client of another authority", func(t *testing.T) {
		cfg := config(t, other, serve(t, p.serverTLS(t), never))
		cfg.CAFile = p.caFile
		if err := call(t, cfg); status.Code(err) != codes.Unavailable {
			t.Errorf("%v, want UNAVAILABLE", err)
		}
	})
}

// A certificate that was renewed on disk is used by the next handshake.
func TestCertificateReload(t *testing.T) {
	p := newPKI(t)
	var caller string
	conf := p.serverTLS(t)
	addr := serve(t, conf, func(ctx context.Context) error {
		pr, _ := peer.FromContext(ctx)
		if info, ok := pr.AuthInfo.(credentials.TLSInfo); ok {
			caller = info.State.PeerCertificates[0].Subject.CommonName
		}
		return nil
	})
	cfg := config(t, p, addr)
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p.issue(t, "client", "renewed.test")
	if _, err := c.Crypto.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{}); err != nil {
		t.Fatal(err)
	}
	if caller != "renewed.test" {
		t.Errorf("caller = %q, want renewed.test", caller)
	}
}

func TestDialRefusesConfig(t *testing.T) {
	p := newPKI(t)
	good := config(t, p, "127.0.0.1:1")
	notPEM := p.dir + "/not.pem"
	if err := os.WriteFile(notPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(*client.Config)
		want   string
	}{
		{"no address", func(c *client.Config) { c.Addr = "" }, "not host:port"},
		{"no port", func(c *client.Config) { c.Addr = "localhost" }, "not host:port"},
		{"empty port", func(c *client.Config) { c.Addr = "localhost:" }, "not host:port"},
		{"empty host", func(c *client.Config) { c.Addr = ":9443" }, "not host:port"},
		{"negative timeout", func(c *client.Config) { c.Timeout = -1 }, "negative"},
		{"CA missing", func(c *client.Config) { c.CAFile = "/nonexistent" }, "CA certificates"},
		{"CA not PEM", func(c *client.Config) { c.CAFile = notPEM }, "no certificate in PEM"},
		{"no certificate", func(c *client.Config) { c.CertFile = "" }, "client certificate"},
		{"no key", func(c *client.Config) { c.KeyFile = "" }, "client certificate"},
		{"certificate missing", func(c *client.Config) { c.CertFile = "/nonexistent" }, "/nonexistent"},
		{"key not PEM", func(c *client.Config) { c.KeyFile = notPEM }, notPEM},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			c, err := client.Dial(cfg)
			if err == nil {
				c.Close()
			}
			if !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("Dial: %v, want something with %q", err, tt.want)
			}
		})
	}
}

func TestErrorFrom(t *testing.T) {
	p := newPKI(t)
	st, err := status.New(codes.InvalidArgument, "two fields are wrong").WithDetails(
		&errdetails.ErrorInfo{Reason: "RATE", Domain: "proxy.example.org"},
		&errdetails.ErrorInfo{Reason: "ValidationException", Domain: client.ErrorDomain, Metadata: map[string]string{"request_id": "r-1"}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "key_id", Description: "must be at least 1 character"},
			{Field: "number_of_bytes", Description: "must be at most 1024"},
		}},
	)
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, p.serverTLS(t), func(context.Context) error { return st.Err() })
	callErr := call(t, config(t, p, addr))

	want := &client.Error{
		Exception: "ValidationException",
		Status:    codes.InvalidArgument,
		Message:   "two fields are wrong",
		RequestID: "r-1",
		Violations: []client.FieldViolation{
			{Field: "key_id", Description: "must be at least 1 character"},
			{Field: "number_of_bytes", Description: "must be at most 1024"},
		},
	}
	got, ok := client.ErrorFrom(fmt.Errorf("generate: %w", callErr))
	if !ok {
		t.Fatalf("ErrorFrom(%v) says it is no status", callErr)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(client.Error{})); diff != "" {
		t.Errorf("ErrorFrom (-want +got):\n%s", diff)
	}
	if text := "ValidationException: two fields are wrong (request id r-1)"; got.Error() != text {
		t.Errorf("Error() = %q, want %q", got, text)
	}
	if status.Code(got) != codes.InvalidArgument {
		t.Errorf("the gRPC status is lost: %v", status.Code(got))
	}
	if again, ok := client.ErrorFrom(got); !ok || again != got {
		t.Error("ErrorFrom of an *Error gives another")
	}
}

func TestErrorFromOthers(t *testing.T) {
	for _, err := range []error{nil, errors.New("plain"), context.Canceled} {
		if e, ok := client.ErrorFrom(err); ok {
			t.Errorf("ErrorFrom(%v) = %v, want none", err, e)
		}
	}
	e, ok := client.ErrorFrom(status.Error(codes.Unavailable, "connection refused"))
	if !ok || e.Exception != "" || e.Error() != "Unavailable: connection refused" {
		t.Errorf("ErrorFrom = %v, %t", e, ok)
	}
	st, err := status.New(codes.Internal, "").WithDetails(&errdetails.RequestInfo{RequestId: "r-2"})
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := client.ErrorFrom(st.Err()); !ok || e.RequestID != "r-2" || e.Error() != "Internal (request id r-2)" {
		t.Errorf("ErrorFrom = %v, %t", e, ok)
	}
}
