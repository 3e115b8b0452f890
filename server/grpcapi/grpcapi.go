// Package grpcapi is the gRPC door: keyhold.v1 over TLS 1.3 with client
// certificates.
//
// It does four things: it authenticates the caller by the certificate, decodes
// the request, calls the core, and encodes the answer. The services are built
// from the proto's descriptors, so a method that the core knows is served, and
// no other. What an operation means is none of its business.
package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/door"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// Limits of the door.
const (
	// maxRequestBytes is above the largest request that can be valid: a
	// CreateKey with 8,192 characters of description and 50 tags.
	maxRequestBytes = 256 << 10
	// maxBatchBytes is the same for a batch: 100 items of 4,096 bytes with an
	// encryption context of 8,192 bytes each, and their key names.
	maxBatchBytes = 2 << 20
	// maxBatchItems is what the proto says of BatchRequest.items, for the door to
	// look at before it makes any.
	maxBatchItems = 100
	// batchRoomBytes bounds the batches that are decoded at once, as received. What
	// becomes of a byte takes ten and more: encryption contexts of many small pairs.
	batchRoomBytes = 16 << 20
	// maxReceiveBytes is where gRPC itself stops reading. What lies between is
	// refused with a reason, on the record.
	maxReceiveBytes = 3 << 20
	// maxHeaderBytes bounds a request's metadata.
	maxHeaderBytes = 16 << 10
	// maxStreams bounds the requests under way on one connection.
	maxStreams = 256
	// streamWorkers are goroutines that are kept for requests. What comes while all
	// are busy has one of its own, whose stack has to grow first: that was a
	// fifteenth of the CPU time.
	streamWorkers = 64
	// streamWindowBytes and connWindowBytes are how much a client may send before
	// it is told to go on, and ioBufferBytes how much goes to or comes from the
	// system at once: a usual batch in one go, not in pieces of 32 and 64 KiB.
	streamWindowBytes = 512 << 10
	connWindowBytes   = 1 << 20
	ioBufferBytes     = 128 << 10
	// handshakeTimeout is how long a connection may take to become one.
	handshakeTimeout = 10 * time.Second
	// maxConnectionAge makes clients connect anew, so that certificates that
	// were revoked or unbound do not stay in use.
	maxConnectionAge      = time.Hour
	maxConnectionAgeGrace = time.Minute
	// maxRequestTime bounds requests whose client set no deadline.
	maxRequestTime = time.Minute
	// cutGrace is how long handlers may take to notice that they were cut off.
	cutGrace = time.Second
	// healthInterval is how often readiness is looked at.
	healthInterval = 500 * time.Millisecond
)

// Core is what the door calls.
type Core interface {
	// Do carries out an operation; see kms.Service.Do.
	Do(ctx context.Context, caller *identity.Caller, operation string, req proto.Message) (proto.Message, error)
	// Malformed records that a request was not decoded, and why, and returns
	// the answer.
	Malformed(ctx context.Context, caller *identity.Caller, operation, why string) error
	// Ready returns nil where requests can be served.
	Ready() error
}

var _ Core = (*kms.Service)(nil)

// Config is what a Server is made of. All fields are required.
type Config struct {
	Core Core
	// Principals finds the principal of a certificate, as of now.
	Principals func() *identity.Directory
	// TLS requires and verifies client certificates.
	TLS *tls.Config
	// MaxConnections bounds the connections that are open, authenticated or not.
	MaxConnections int
	// DefaultRegion is that of requests that name none.
	DefaultRegion string
	Logger        *slog.Logger
	// Refused counts requests that were not authenticated.
	Refused func()
}

// Server is the door. It may be used concurrently.
type Server struct {
	cfg    Config
	log    *slog.Logger
	grpc   *grpc.Server
	health *health.Server
	// strangers and failed bound what is logged of callers that nobody knows and
	// of the service's own faults.
	strangers, failed *door.SparingLog
	// batchRoom has batchRoomBytes.
	batchRoom *semaphore.Weighted
	stop      chan struct{}
}

// New makes a Server that serves nothing yet.
func New(cfg Config) (*Server, error) {
	if cfg.TLS == nil || cfg.TLS.MinVersion < tls.VersionTLS13 || cfg.TLS.ClientAuth != tls.RequireAndVerifyClientCert {
		return nil, errors.New("grpcapi: TLS 1.3 with verified client certificates is required")
	}
	if cfg.MaxConnections < 1 {
		return nil, errors.New("grpcapi: MaxConnections must be positive")
	}
	s := &Server{cfg: cfg, log: cfg.Logger, health: health.NewServer(), strangers: door.NewSparingLog(cfg.Logger), failed: door.NewSparingLog(cfg.Logger), batchRoom: semaphore.NewWeighted(batchRoomBytes), stop: make(chan struct{})}
	s.grpc = grpc.NewServer(
		grpc.Creds(connections{credentials.NewTLS(cfg.TLS), s.refuseConnection}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxReceiveBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.InitialWindowSize(streamWindowBytes),
		grpc.InitialConnWindowSize(connWindowBytes),
		grpc.ReadBufferSize(ioBufferBytes),
		grpc.WriteBufferSize(ioBufferBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, Timeout: 20 * time.Second,
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: maxConnectionAgeGrace,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	descs, err := serviceDescs()
	if err != nil {
		return nil, err
	}
	for _, d := range descs {
		s.grpc.RegisterService(d, s)
	}
	healthpb.RegisterHealthServer(s.grpc, drainingHealth{s.health, s.stop})
	reflection.Register(s.grpc)
	s.setHealth(s.cfg.Core.Ready() == nil)
	return s, nil
}

// Serve accepts connections on l until Shutdown. It closes l.
func (s *Server) Serve(l net.Listener) error {
	go s.watchHealth()
	if err := s.grpc.Serve(door.Limit(l, s.cfg.MaxConnections)); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve gRPC on %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops accepting, waits for the requests under way until ctx ends,
// then cuts what is left. It must be called once.
func (s *Server) Shutdown(ctx context.Context) {
	close(s.stop)
	s.health.Shutdown()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		// Connections are cut; a handler that hangs in what does not obey its
		// context must not keep the process from ending.
		select {
		case <-done:
		case <-time.After(cutGrace):
			s.log.WarnContext(ctx, "a request hangs, and is left behind")
		}
	}
}

// watchHealth keeps the health service's answer true.
func (s *Server) watchHealth() {
	t := time.NewTicker(healthInterval)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.setHealth(s.cfg.Core.Ready() == nil)
		}
	}
}

func (s *Server) setHealth(ready bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		status = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
	for _, sd := range kms.Services() {
		s.health.SetServingStatus(string(sd.FullName()), status)
	}
}
