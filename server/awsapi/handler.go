package awsapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/sigv4"
)

// targetPrefix begins the X-Amz-Target of KMS operations.
const targetPrefix = "TrentService."

// maxUserAgentBytes bounds what a client may say about itself in every audit
// record.
const maxUserAgentBytes = 256

// contentType is that of AWS JSON 1.1.
const contentType = "application/x-amz-json-1.1"

// ServeHTTP is http.Handler's.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.underWay.Add(1)
	defer s.underWay.Add(-1)
	requestID := uuid.NewString()
	w.Header().Set("X-Amzn-Requestid", requestID)
	w.Header().Set("Cache-Control", "no-cache, no-store, must-revalidate, private")
	service, known := serviceKMS, false
	if isQuery(r) {
		service = serviceSTS
	}
	fail := func(f *failure) {
		if !known && f.status < http.StatusInternalServerError && !s.keepsStranger(r) {
			// Strangers keep no place among the connections. On HTTP/2 this is GOAWAY.
			w.Header().Set("Connection", "close")
		}
		if service == serviceSTS {
			writeQueryFailure(w, requestID, *f)
		} else {
			writeFailure(w, *f)
		}
	}
	defer func() {
		if p := recover(); p != nil {
			s.panicked(r.Context(), requestID, p)
			fail(&failure{status: http.StatusInternalServerError, code: codeInternal(service), message: internalMessage})
		}
	}()
	if r.URL.Path != "/" || service == serviceKMS && r.Method != http.MethodPost {
		fail(&failure{status: http.StatusNotFound, code: string(kms.CodeUnknownOperation)})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), maxRequestTime)
	defer cancel()
	// Bodies of strangers are not read: they could be as many and as slow as their
	// senders like.
	if err := s.cfg.Verifier.CheckHeader(r.WithContext(ctx), service); err != nil {
		fail(s.unauthenticated(ctx, r, requestID, service, err))
		return
	}
	body, leave, fault := s.read(ctx, r)
	defer leave()
	if fault == nil {
		var caller *identity.Caller
		if caller, fault = s.authenticate(ctx, r, requestID, service, body); fault == nil {
			known = true
			s.noteUse(r)
			if service == serviceSTS {
				fault = s.serveQuery(ctx, w, r, caller, body)
			} else {
				fault = s.serveKMS(ctx, w, r, caller, body)
			}
		}
	}
	if fault != nil {
		fail(fault)
	}
}

// panicked logs a fault in this package; the core answers its own. What the
// panic says is not logged: it may be of the request.
func (s *Server) panicked(ctx context.Context, requestID string, p any) {
	s.faults.Warn(ctx, "request panicked", "request_id", requestID, "panic", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
}

// serveKMS serves a request of the KMS API.
func (s *Server) serveKMS(ctx context.Context, w http.ResponseWriter, r *http.Request, caller *identity.Caller, body []byte) *failure {
	op := s.operations[r.Header.Get("X-Amz-Target")]
	if op == nil {
		return &failure{status: http.StatusBadRequest, code: string(kms.CodeUnknownOperation)}
	}
	answer, fault := s.serve(ctx, caller, op, body)
	if fault != nil {
		return fault
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	writeSecret(w, answer)
	return nil
}

// authenticate is step 1: whose signature it is.
func (s *Server) authenticate(ctx context.Context, r *http.Request, requestID, service string, body []byte) (*identity.Caller, *failure) {
	v, err := s.cfg.Verifier.Verify(r.WithContext(ctx), service, sigv4.Body(body))
	var principal *identity.Principal
	if err == nil {
		principal, err = s.cfg.Keys.Caller(v)
	}
	if err != nil {
		return nil, s.unauthenticated(ctx, r, requestID, service, err)
	}
	c := &identity.Caller{
		Principal: principal, Subject: v.AccessKeyID, AccessKeyID: v.AccessKeyID, Region: v.Scope.Region, Door: "aws", RequestID: requestID,
		SourceIP: host(r.RemoteAddr),
	}
	if agent := r.UserAgent(); agent != "" {
		c.UserAgent = agent[:min(len(agent), maxUserAgentBytes)]
	}
	if r.TLS != nil {
		c.TLSVersion, c.CipherSuite, c.Host = tlsVersion(r.TLS.Version), tls.CipherSuiteName(r.TLS.CipherSuite), r.Host
	}
	return c, nil
}

// unauthenticated answers a request whose signature was refused, or could not be
// verified: the token may be down, and then it is no fault of the caller's.
func (s *Server) unauthenticated(ctx context.Context, r *http.Request, requestID, service string, err error) *failure {
	var refusal *sigv4.Error
	if errors.As(err, &refusal) {
		if !s.refused(ctx, r, requestID, refusal.Reason.String()) {
			return throttled(service)
		}
		return authFailure(refusal, service)
	}
	if !errors.Is(err, context.Canceled) { // the caller has gone
		s.faults.Warn(ctx, "a signature could not be verified", "request_id", requestID, "err", err)
	}
	return &failure{status: http.StatusInternalServerError, code: codeInternal(service), message: "The service cannot verify signatures at the moment."}
}

// refused counts and logs a caller that nobody knows, sparingly, and returns whether
// it may be told why. It is not audited: it must not fill a disk.
//
// Nowhere else are failures bounded: a request whose signature was not verified yet
// may be right, and must not pay for those of others, which anybody can send.
func (s *Server) refused(ctx context.Context, r *http.Request, requestID, why string) (told bool) {
	if s.cfg.Refused != nil {
		s.cfg.Refused()
	}
	from := host(r.RemoteAddr)
	if told = s.failures.Tell(from); !told && s.cfg.Throttled != nil {
		s.cfg.Throttled()
	}
	s.strangers.Warn(ctx, "caller not authenticated", "from", from, "why", why, "told_why", told, "request_id", requestID)
	return told
}

func host(address string) string {
	h, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return h
}

// tlsVersion is CloudTrail's spelling.
func tlsVersion(v uint16) string { return strings.ReplaceAll(tls.VersionName(v), "TLS ", "TLSv") }
