package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// DefaultTimeout is the deadline of a call whose context has none.
const DefaultTimeout = 30 * time.Second

// RegionHeader is the gRPC metadata that names the region of a call.
const RegionHeader = "keyhold-region"

// Config says where the server is and who the caller is.
type Config struct {
	// Addr is the server's host and port.
	Addr string

	// CAFile is a PEM file with the certificates that the server's chain must
	// end in. Optional: without it the system's roots are used.
	CAFile string

	// CertFile and KeyFile are the caller's certificate chain and private key
	// in PEM. They are read at each handshake.
	CertFile string
	KeyFile  string

	// ServerName is the name that the server's certificate must carry.
	// Optional: the host of Addr.
	ServerName string

	// Region is sent with each call. Optional: the server's default.
	Region string

	// Timeout is the deadline of calls whose context has none. Zero means
	// DefaultTimeout; negative is refused.
	Timeout time.Duration

	// UserAgent is put before gRPC's own. Optional.
	UserAgent string

	// Retry says which calls are tried again, and how often. Optional: the zero
	// value has the defaults. The call's deadline covers all attempts.
	Retry Retry

	// Hooks are called around each attempt. Optional.
	Hooks Hooks

	// StatsHandler is told by gRPC what happens on the wire, without the
	// messages: OpenTelemetry's otelgrpc.NewClientHandler() is one. Optional.
	StatsHandler stats.Handler
}

// Client is a connection to one server. It is safe for concurrent use, and
// one is enough for a program: calls share it.
type Client struct {
	// Crypto is the data plane: what is done with keys.
	Crypto keyholdv1.CryptographyServiceClient

	// Keys is the control plane: the life of keys and aliases.
	Keys keyholdv1.KeyManagementServiceClient

	// AccessKeys manages what principals sign requests with at other doors.
	AccessKeys keyholdv1.AccessKeyServiceClient

	// Access makes calls about who may use a key, and about tags.
	Access keyholdv1.KeyAccessServiceClient

	// Health is the standard health service.
	Health grpc_health_v1.HealthClient

	conn *grpc.ClientConn
	// retry and timeout are the configuration's, complete.
	retry   Retry
	timeout time.Duration
}

// Dial checks cfg, reads the certificate files and prepares a connection. It
// does not wait for the server: an unreachable one shows at the first call, as
// status UNAVAILABLE. Close the Client when it is no longer needed.
func Dial(cfg Config) (*Client, error) {
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("timeout %v is negative", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	var err error
	if cfg.Retry, err = cfg.Retry.withDefaults(); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("address %q is not host:port: %w", cfg.Addr, err)
	}
	if host == "" || port == "" {
		return nil, fmt.Errorf("address %q is not host:port: host or port is empty", cfg.Addr)
	}
	tlsConfig, err := TLSConfig(cfg)
	if err != nil {
		return nil, err
	}
	if tlsConfig.ServerName == "" {
		tlsConfig.ServerName = host
	}
	conn, err := grpc.NewClient("dns:///"+cfg.Addr, dialOptions(cfg, tlsConfig)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Addr, err)
	}
	return &Client{
		Crypto:     keyholdv1.NewCryptographyServiceClient(conn),
		Keys:       keyholdv1.NewKeyManagementServiceClient(conn),
		Access:     keyholdv1.NewKeyAccessServiceClient(conn),
		AccessKeys: keyholdv1.NewAccessKeyServiceClient(conn),
		Health:     grpc_health_v1.NewHealthClient(conn),
		conn:       conn,
		retry:      cfg.Retry, timeout: cfg.Timeout,
	}, nil
}

// minConnectTimeout is how long the server may take to answer a connection
// attempt, TLS handshake included.
const minConnectTimeout = 20 * time.Second

// How much the service may send before it is told to go on, and how much goes to
// or comes from the system at once: the answers of a usual batch in one go, not in
// gRPC's pieces of 32 and 64 KiB.
const (
	streamWindowBytes = 512 << 10
	connWindowBytes   = 1 << 20
	ioBufferBytes     = 128 << 10
)

func dialOptions(cfg Config, tlsConfig *tls.Config) []grpc.DialOption {
	// A connection that failed is tried again at the pace of the calls: with
	// gRPC's own pace, a second and more, all attempts of a call would meet the
	// one failed connection.
	connect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: minConnectTimeout}
	connect.Backoff.BaseDelay, connect.Backoff.MaxDelay = cfg.Retry.BaseDelay, max(cfg.Retry.BaseDelay, cfg.Retry.MaxDelay)
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithChainUnaryInterceptor(perCall(cfg), retrying(cfg)),
		grpc.WithConnectParams(connect),
		// Neither a proxy nor a DNS record decides how plaintext travels.
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithInitialWindowSize(streamWindowBytes),
		grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithReadBufferSize(ioBufferBytes),
		grpc.WithWriteBufferSize(ioBufferBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec())),
		experimental.WithBufferPool(&buffers), // for what arrives
	}
	if cfg.UserAgent != "" {
		opts = append(opts, grpc.WithUserAgent(cfg.UserAgent))
	}
	if cfg.StatsHandler != nil {
		opts = append(opts, grpc.WithStatsHandler(withoutMessages{cfg.StatsHandler}))
	}
	return opts
}

// Close ends the connection. Calls that are under way fail with CANCELED.
func (c *Client) Close() error {
	if c.conn == nil {
		return errors.New("client was not made by Dial")
	}
	return c.conn.Close()
}

// perCall gives every call a deadline and names its region.
func perCall(cfg Config) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, cfg.Timeout)
			defer cancel()
		}
		// A region that the caller has put into the context wins.
		if md, _ := metadata.FromOutgoingContext(ctx); cfg.Region != "" && len(md.Get(RegionHeader)) == 0 {
			ctx = metadata.AppendToOutgoingContext(ctx, RegionHeader, cfg.Region)
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
}
