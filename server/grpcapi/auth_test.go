package grpcapi_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/grpcapi"
	"github.com/keyhold/keyhold/server/identity"
)

// TestAuthentication tries certificates that must not get in.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return &keyholdv1.GenerateRandomResponse{}, nil
	}}
	d := open(t, c)
	stranger := newAuthority(t)
	expired := d.ca.client(t, app, func(x *x509.Certificate) {
		x.NotBefore, x.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	serverUse := d.ca.client(t, app, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	foreign, nobody := stranger.client(t, app), d.ca.client(t, unbound)
	for _, tt := range []struct {
		name   string
		cert   *tls.Certificate
		change func(*tls.Config)
		want   codes.Code
	}{
		{"no certificate", nil, nil, codes.Unavailable},
		{"another authority's", &foreign, nil, codes.Unavailable},
		{"expired", &expired, nil, codes.Unavailable},
		{"for servers only", &serverUse, nil, codes.Unavailable},
		{"TLS 1.2", &nobody, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, codes.Unavailable},
		{"bound to nobody", &nobody, nil, codes.Unauthenticated},
	} {
		var change []func(*tls.Config)
		if tt.change != nil {
			change = append(change, tt.change)
		}
		conn := d.dial(t, tt.cert, change...)
		_, err := keyholdv1.NewCryptographyServiceClient(conn).GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{})
		if status.Code(err) != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	if len(c.calls) != 0 {
		t.Errorf("the core was called: %v", c.calls)
	}
	// gRPC may try a connection again.
	if n := d.refused.Load(); n < 6 {
		t.Errorf("%d refusals counted, want 6 or more", n)
	}
}

// Whoever says nothing that could be refused, as probes do, is no refusal; and of
// what strangers say of themselves little is logged.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	refused := 0
	s, err := grpcapi.New(grpcapi.Config{
		Core: &core{}, TLS: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert}, MaxConnections: 1,
		Logger: slog.New(slog.NewTextHandler(&logged, nil)), Refused: func() { refused++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	from := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
	for _, silent := range []error{io.EOF, &net.OpError{Op: "read", Err: syscall.ECONNRESET}} {
		s.RefuseConnection(from, silent)
	}
	if refused != 0 || logged.Len() > 0 {
		t.Errorf("%d refusals of probes, %q", refused, logged.String())
	}
	s.RefuseConnection(from, errors.New(strings.Repeat("x", 100_000)))
	if refused != 1 || logged.Len() > 1000 || !strings.Contains(logged.String(), "192.0.2.1") {
		t.Errorf("%d refusals, %d bytes are logged", refused, logged.Len())
	}
}

// TestUnbinding: who calls is found out once a connection, but not for good.
func TestUnbinding(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return &keyholdv1.GenerateRandomResponse{}, nil
	}}
	d := open(t, c)
	client := keyholdv1.NewCryptographyServiceClient(d.app(t))
	for _, want := range []codes.Code{codes.OK, codes.Unauthenticated, codes.OK} {
		if d.bind(t, app); want != codes.OK {
			d.bind(t, unbound)
		}
		for range 2 {
			if _, err := client.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{}); status.Code(err) != want {
				t.Errorf("%v, want %s", err, want)
			}
		}
	}
}

func TestRegionMetadata(t *testing.T) {
	t.Parallel()
	var region string
	c := &core{do: func(_ context.Context, caller *identity.Caller, _ string, _ proto.Message) (proto.Message, error) {
		region = caller.Region
		return &keyholdv1.GenerateRandomResponse{}, nil
	}}
	client := keyholdv1.NewCryptographyServiceClient(open(t, c).app(t))
	for sent, want := range map[string]string{"eu-west-1": "eu-west-1", strings.Repeat("r", 100): strings.Repeat("r", 64)} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "keyhold-region", sent)
		if _, err := client.GenerateRandom(ctx, &keyholdv1.GenerateRandomRequest{}); err != nil || region != want {
			t.Errorf("region %q arrived as %q, %v", sent, region, err)
		}
	}
	// Two are not one of them, and not the default.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "keyhold-region", "us-east-1", "keyhold-region", "eu-west-1")
	if _, err := client.GenerateRandom(ctx, &keyholdv1.GenerateRandomRequest{}); err != nil || region != "us-east-1,eu-west-1" {
		t.Errorf("two regions arrived as %q, %v", region, err)
	}
}
