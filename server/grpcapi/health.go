package grpcapi

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// drainingHealth is gRPC's health service, whose watches end when the server
// drains. By itself a watch lasts as long as its client likes, and every drain
// would last its whole grace.
type drainingHealth struct {
	*health.Server
	stop <-chan struct{}
}

// Watch is healthpb.HealthServer's.
func (h drainingHealth) Watch(req *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-h.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := h.Server.Watch(req, watchStream{stream, ctx})
	select {
	case <-h.stop:
		return status.Error(codes.Unavailable, "the server is stopping")
	default:
		return err
	}
}

// watchStream is a stream with a context of its own.
type watchStream struct {
	grpc.ServerStreamingServer[healthpb.HealthCheckResponse]
	ctx context.Context //nolint:containedctx // that of the stream, as its interface demands
}

// Context is grpc.ServerStream's.
func (s watchStream) Context() context.Context { return s.ctx }
