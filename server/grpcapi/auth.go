package grpcapi

import (
	"context"
	"crypto/tls"
	"net"
	"strings"

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
)

// authenticate is step 1. TLS has verified the certificate's chain and the
// possession of its key; this finds out whose it is. Refusals are counted and
// logged sparingly, not audited: they must not fill a disk.
func (s *Server) authenticate(ctx context.Context, requestID string) (*identity.Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, s.refuse(ctx, requestID, "", "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, s.refuse(ctx, requestID, address(p.Addr), "no verified client certificate")
	}
	principal, subject, err := s.cfg.Principals().Authenticate(info.State.VerifiedChains[0][0])
	if err != nil {
		return nil, s.refuse(ctx, requestID, address(p.Addr), err.Error())
	}
	c := &identity.Caller{
		Principal: principal, Subject: subject, Region: s.cfg.DefaultRegion, Door: "grpc", RequestID: requestID,
		SourceIP: address(p.Addr), TLSVersion: tlsVersion(info.State.Version), CipherSuite: tls.CipherSuiteName(info.State.CipherSuite),
	}
	md, _ := metadata.FromIncomingContext(ctx)
	// Several are never silently one of them, nor the default: no region has a
	// comma in its name, so the core refuses what they make together.
	if v := strings.Join(md.Get(regionHeader), ","); v != "" {
		c.Region = v[:min(len(v), maxRegionBytes)]
	}
	if v := md.Get("user-agent"); len(v) > 0 {
		c.UserAgent = v[0][:min(len(v[0]), maxUserAgentBytes)]
	}
	return c, nil
}

// refuse answers a caller that nobody knows.
func (s *Server) refuse(ctx context.Context, requestID, from, why string) error {
	if s.cfg.Refused != nil {
		s.cfg.Refused()
	}
	s.logSparingly(ctx, s.strangers, "caller not authenticated", "from", from, "why", why, "request_id", requestID)
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
