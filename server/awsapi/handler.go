package awsapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
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
	requestID := uuid.NewString()
	w.Header().Set("X-Amzn-Requestid", requestID)
	w.Header().Set("Cache-Control", "no-cache, no-store, must-revalidate, private")
	if r.URL.Path != "/" {
		writeFailure(w, failure{status: http.StatusNotFound, code: string(kms.CodeUnknownOperation)})
		return
	}
	body, leave, fault := s.read(r)
	defer leave()
	query := isQuery(r)
	ctx, cancel := context.WithTimeout(r.Context(), maxRequestTime)
	defer cancel()
	switch {
	case fault != nil && query:
		writeQueryFailure(w, requestID, *fault)
	case fault != nil:
		writeFailure(w, *fault)
	case query:
		s.serveQuery(ctx, w, r, requestID, body)
	default:
		s.serveKMS(ctx, w, r, requestID, body)
	}
}

// read reads the body, as far as there is room for it.
func (s *Server) read(r *http.Request) (body []byte, leave func(), fault *failure) {
	n := r.ContentLength
	if n < 0 {
		n = maxBodyBytes
	}
	if n > maxBodyBytes {
		return nil, func() {}, &failure{status: http.StatusRequestEntityTooLarge, code: "RequestEntityTooLargeException", message: tooLarge}
	}
	if s.room.Acquire(r.Context(), n) != nil {
		return nil, func() {}, &failure{status: http.StatusServiceUnavailable, code: "ServiceUnavailableException", message: "Too many requests are under way."}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBodyBytes+1))
	leave = func() {
		clear(body) // there may be a plaintext in it
		s.room.Release(n)
	}
	switch {
	case err != nil:
		return nil, leave, &failure{status: http.StatusBadRequest, code: "RequestTimeoutException", message: "The request body was not received."}
	case len(body) > maxBodyBytes:
		return nil, leave, &failure{status: http.StatusRequestEntityTooLarge, code: "RequestEntityTooLargeException", message: tooLarge}
	}
	return body, leave, nil
}

// serveKMS serves a request of the KMS API.
func (s *Server) serveKMS(ctx context.Context, w http.ResponseWriter, r *http.Request, requestID string, body []byte) {
	target := r.Header.Get("X-Amz-Target")
	if r.Method != http.MethodPost {
		writeFailure(w, failure{status: http.StatusNotFound, code: string(kms.CodeUnknownOperation)})
		return
	}
	caller, fault := s.authenticate(ctx, r, requestID, serviceKMS, body)
	if fault != nil {
		writeFailure(w, *fault)
		return
	}
	op := s.operations[target]
	if op == nil {
		writeFailure(w, failure{status: http.StatusBadRequest, code: string(kms.CodeUnknownOperation)})
		return
	}
	answer, fault := s.serve(ctx, caller, op, body)
	if fault != nil {
		writeFailure(w, *fault)
		return
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(answer) // the client has gone, if anything
	clear(answer)
}

// authenticate is step 1: whose signature it is.
func (s *Server) authenticate(ctx context.Context, r *http.Request, requestID, service string, body []byte) (*identity.Caller, *failure) {
	v, err := s.cfg.Verifier.Verify(r.WithContext(ctx), service, sigv4.Body(body))
	var principal *identity.Principal
	if err == nil {
		principal, err = s.cfg.Keys.Caller(v)
	}
	var refusal *sigv4.Error
	switch {
	case errors.As(err, &refusal):
		s.refused(ctx, r, requestID, refusal.Reason.String())
		return nil, authFailure(refusal, service)
	case err != nil:
		s.faults.Warn(ctx, "a signature could not be verified", "request_id", requestID, "err", err)
		return nil, &failure{status: http.StatusInternalServerError, code: codeInternal(service), message: "The service cannot verify signatures at the moment."}
	}
	c := &identity.Caller{
		Principal: principal, Subject: v.AccessKeyID, AccessKeyID: v.AccessKeyID, Region: v.Scope.Region, Door: "aws", RequestID: requestID,
		SourceIP: host(r.RemoteAddr),
	}
	if agent := r.UserAgent(); agent != "" {
		c.UserAgent = agent[:min(len(agent), maxUserAgentBytes)]
	}
	if r.TLS != nil {
		c.TLSVersion, c.CipherSuite = tlsVersion(r.TLS.Version), tls.CipherSuiteName(r.TLS.CipherSuite)
	}
	return c, nil
}

// refused counts and logs a caller that nobody knows, sparingly. It is not
// audited: it must not fill a disk.
func (s *Server) refused(ctx context.Context, r *http.Request, requestID, why string) {
	if s.cfg.Refused != nil {
		s.cfg.Refused()
	}
	s.strangers.Warn(ctx, "caller not authenticated", "from", host(r.RemoteAddr), "why", why, "request_id", requestID)
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
