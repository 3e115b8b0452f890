// Package awsapi is the AWS door: what speaks the AWS KMS API speaks to Keyhold
// here. Requests are JSON 1.1 over HTTP/1.1 and HTTP/2, signed with AWS Signature
// Version 4; sts:GetCallerIdentity, which tools call first, is answered too, in the
// query protocol.
//
// It authenticates the caller by the signature, decodes the request, calls the
// core, and encodes the answer. Operations and their messages are those of the
// proto, read off its descriptors; what an operation means is none of its business.
package awsapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/door"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/sigv4"
)

// Limits of the door.
const (
	// maxBodyBytes is above the largest request that can be valid: a CreateKey with
	// 8,192 characters of description, 50 tags and a policy of 32 KiB.
	maxBodyBytes = 256 << 10
	// smallBodyBytes is more than nearly all requests have: a Decrypt with the longest
	// ciphertext and encryption context has half.
	smallBodyBytes = 32 << 10
	// connRoomBytes bounds the small bodies that are in memory at once of one
	// connection. No other connection has a part in it: whoever knows the id of an
	// access key, which is no secret, can send bodies, and be slow about it.
	connRoomBytes = 256 << 10
	// bodyRoomBytes bounds all other bodies that are in memory at once.
	bodyRoomBytes = 64 << 20
	// connLargeBytes bounds those of them that one connection may have: else the
	// streams of a single one, on which nothing need be sent, would take all the room.
	connLargeBytes = 1 << 20
	// maxRoomWait is how long a request waits for room, that of its connection and
	// that of all together, before it is told to come again, which the SDKs do.
	maxRoomWait = 5 * time.Second
	// maxHeaderBytes bounds a request's header. A session token has up to 8 KiB.
	maxHeaderBytes = 32 << 10
	// maxStreams bounds the requests under way on one HTTP/2 connection.
	maxStreams = 256

	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	// maxRequestTime bounds the work; writeTimeout, that and the answer.
	maxRequestTime = time.Minute
	writeTimeout   = 90 * time.Second
	// writeStall is how long a connection may take nothing of what is written to it.
	writeStall = 30 * time.Second
	// cutGrace is how long requests may take to notice that they were cut.
	cutGrace = 5 * time.Second
	// idleTimeout is longer than the SDKs keep idle connections. See also keepsStranger.
	idleTimeout = 2 * time.Minute
)

// Services in credential scopes.
const (
	serviceKMS = "kms"
	serviceSTS = "sts"
)

// Core is what the door calls.
type Core interface {
	// Do carries out an operation; see kms.Service.Do.
	Do(ctx context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error)
	// CheckConstraints returns what a request breaks, and does nothing else.
	CheckConstraints(operation string, req proto.Message) error
	// Malformed records that a request was not decoded, and why, and returns
	// the answer.
	Malformed(ctx context.Context, caller *identity.Caller, operation, why string) error
}

var _ Core = (*kms.Service)(nil)

// Keys are access keys.
type Keys interface {
	// Caller returns whose a verified request is. The error is a *sigv4.Error
	// where the key is nobody's any more.
	Caller(v sigv4.Verified) (*identity.Principal, error)
}

// Config is what a Server is made of. All fields but TLS, Failures and Now are
// required.
type Config struct {
	Core Core
	// Verifier verifies signatures; it must have all regions that are served.
	Verifier *sigv4.Verifier
	// Keys says whose requests are.
	Keys Keys
	// TLS is nil for plain HTTP, which Serve takes on loopback only.
	TLS *tls.Config
	// MaxConnections bounds the connections that are open, authenticated or not.
	MaxConnections int
	Logger         *slog.Logger
	// Refused counts requests that were not authenticated.
	Refused func()
	// Throttled counts those of them that were told to come again later, instead of
	// why they were refused.
	Throttled func()
	// Failures bounds how many are told why. Its zero value is for production.
	Failures door.FailureLimits
	// Now is the clock by which connections are of use: time.Now.
	Now func() time.Time
}

// Server is the door. It may be used concurrently.
type Server struct {
	cfg        Config
	http       *http.Server
	operations map[string]*operation // by X-Amz-Target
	room       *semaphore.Weighted   // of bodyRoomBytes, for bodies that are not small; connections have parts in it
	roomWait   time.Duration
	codec      codec
	underWay   atomic.Int64 // requests
	// strangers and faults bound what is logged of callers that nobody knows and
	// of the service's own faults.
	strangers, faults *door.SparingLog
	failures          *door.Failures
	began             time.Time // when it was made
}

// New makes a Server that serves nothing yet.
func New(cfg Config) (*Server, error) {
	if cfg.MaxConnections < 1 {
		return nil, errors.New("awsapi: MaxConnections must be positive")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	operations, err := findOperations()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, operations: operations, room: semaphore.NewWeighted(bodyRoomBytes), roomWait: maxRoomWait,
		codec: newCodec(), strangers: door.NewSparingLog(cfg.Logger), faults: door.NewSparingLog(cfg.Logger),
		failures: door.NewFailures(cfg.Failures), began: cfg.Now(),
	}
	s.http = &http.Server{
		Handler: s, TLSConfig: cfg.TLS, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ConnContext: s.withConn,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxBodyBytes, MaxReceiveBufferPerStream: maxBodyBytes, WriteByteTimeout: writeStall,
		},
		// What clients do wrong on a connection is theirs to know.
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Serve accepts connections on l until Shutdown. It closes l. Plain HTTP is
// refused on an address that others can reach: signatures keep requests from being
// changed, but not from being read, and neither answers.
func (s *Server) Serve(l net.Listener) error {
	limited := door.Limit(l, s.cfg.MaxConnections)
	var err error
	switch {
	case s.cfg.TLS != nil:
		err = s.http.ServeTLS(limited, "", "")
	case !onLoopback(l.Addr()):
		return errors.Join(fmt.Errorf("awsapi: %s is not a loopback address: plaintexts would cross the network in the clear; configure a certificate", l.Addr()), limited.Close())
	default:
		err = s.http.Serve(limited)
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the AWS API on %s: %w", l.Addr(), err)
	}
	return nil
}

func onLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// Shutdown stops accepting, waits for the requests under way until ctx ends,
// then cuts what is left. When it returns none is under way, but one that hangs in
// what does not obey its context, which must not keep the process from ending.
func (s *Server) Shutdown(ctx context.Context) {
	if s.http.Shutdown(ctx) == nil {
		return
	}
	_ = s.http.Close()
	// Unlike Shutdown it does not wait.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	over := time.After(cutGrace)
	for s.underWay.Load() > 0 {
		select {
		case <-tick.C:
		case <-over:
			s.cfg.Logger.WarnContext(ctx, "a request hangs, and is left behind")
			return
		}
	}
}
