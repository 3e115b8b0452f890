package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/keyhold/keyhold/server/identity"
)

// regionHeader is the request metadata that names the region.
const regionHeader = "keyhold-region"

// maxRegionBytes and maxUserAgentBytes bound what a client may say about
// itself in every audit record.
const (
	maxRegionBytes    = 64
	maxUserAgentBytes = 256
	// maxWhyBytes bounds what is logged of a handshake that failed.
	maxWhyBytes = 512
)

// connection is what authentication finds out about a connection, once for all of
// its requests.
type connection struct {
	credentials.TLSInfo

	sourceIP, version, suite string
	// found is by whom, in which directory. A directory is never changed.
	found atomic.Pointer[whose]
}

type whose struct {
	in        *identity.Directory
	principal *identity.Principal
	subject   string
	err       error
}

// connections makes TLS handshakes give a *connection.
type connections struct {
	credentials.TransportCredentials

	// refused is told of a handshake that failed.
	refused func(from net.Addr, err error)
}

// ServerHandshake is credentials.TransportCredentials's.
func (c connections) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, auth, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.refused(raw.RemoteAddr(), err)
		return conn, auth, err
	}
	info, ok := auth.(credentials.TLSInfo)
	if !ok {
		return conn, auth, err
	}
	return conn, &connection{
		TLSInfo: info, sourceIP: address(raw.RemoteAddr()), version: tlsVersion(info.State.Version), suite: tls.CipherSuiteName(info.State.CipherSuite),
	}, nil
}

// Clone is credentials.TransportCredentials's.
func (c connections) Clone() credentials.TransportCredentials {
	return connections{c.TransportCredentials.Clone(), c.refused}
}

// whose finds out whose the certificate is, as the directory has it now.
func (c *connection) whose(in *identity.Directory) *whose {
	if w := c.found.Load(); w != nil && w.in == in {
		return w
	}
	w := &whose{in: in}
	w.principal, w.subject, w.err = in.Authenticate(c.State.VerifiedChains[0][0])
	c.found.Store(w)
	return w
}

// authenticate is step 1. TLS has verified the certificate's chain and the
// possession of its key; this finds out whose it is. Refusals are counted and
// logged sparingly, not audited: they must not fill a disk.
func (s *Server) authenticate(ctx context.Context, requestID string) (*identity.Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, s.refuse(ctx, requestID, "", "no peer")
	}
	conn, ok := p.AuthInfo.(*connection)
	if !ok || len(conn.State.VerifiedChains) == 0 {
		return nil, s.refuse(ctx, requestID, address(p.Addr), "no verified client certificate")
	}
	w := conn.whose(s.cfg.Principals())
	if w.err != nil {
		return nil, s.refuse(ctx, requestID, conn.sourceIP, w.err.Error())
	}
	c := &identity.Caller{
		Principal: w.principal, Subject: w.subject, Region: s.cfg.DefaultRegion, Door: "grpc", RequestID: requestID,
		SourceIP: conn.sourceIP, TLSVersion: conn.version, CipherSuite: conn.suite,
	}
	// Several are never silently one of them, nor the default: no region has a
	// comma in its name, so the core refuses what they make together.
	if v := strings.Join(metadata.ValueFromIncomingContext(ctx, regionHeader), ","); v != "" {
		c.Region = v[:min(len(v), maxRegionBytes)]
	}
	if v := metadata.ValueFromIncomingContext(ctx, "user-agent"); len(v) > 0 {
		c.UserAgent = v[0][:min(len(v[0]), maxUserAgentBytes)]
	}
	return c, nil
}

// refuseConnection counts and logs a connection whose TLS handshake failed: its
// certificate is expired or of another CA, perhaps. Whoever says nothing that could
// be refused, as probes do, is not among them.
func (s *Server) refuseConnection(from net.Addr, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if s.cfg.Refused != nil {
		s.cfg.Refused()
	}
	why := err.Error() // it may quote what a certificate says of itself
	s.strangers.Warn(context.Background(), "TLS handshake failed", "from", address(from), "why", why[:min(len(why), maxWhyBytes)])
}

// refuse answers a caller that nobody knows.
func (s *Server) refuse(ctx context.Context, requestID, from, why string) error {
	if s.cfg.Refused != nil {
		s.cfg.Refused()
	}
	s.strangers.Warn(ctx, "caller not authenticated", "from", from, "why", why, "request_id", requestID)
	return withInfo(codes.Unauthenticated, "UnrecognizedClientException",
		"The client certificate is not bound to a principal. Bind one of its subjects in the configuration's principals.", requestID, nil)
}

func address(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// tlsVersion is CloudTrail's spelling.
func tlsVersion(v uint16) string {
	if v == tls.VersionTLS13 {
		return "TLSv1.3"
	}
	return tls.VersionName(v)
}
