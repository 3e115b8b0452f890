package servertest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// hostile is how many clients there are that mean no good.
const hostile = 64

// TestHostile lets 64 clients send garbage, drip bytes, send messages that are far
// too large, and give up calls, each while the load's clients go on, until these
// have been served some hundred times.
func TestHostile(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	defer f.end(t)
	cfg := f.d.ClientConfig()
	pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	known := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	target := victim{f, cfg, known}
	for _, kind := range hostileRows() {
		t.Run(kind.name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var wg sync.WaitGroup
			for range hostile {
				wg.Go(func() {
					for ctx.Err() == nil {
						kind.do(ctx, t, target)
						select { // the machine is one
						case <-ctx.Done():
						case <-time.After(200 * time.Millisecond):
						}
					}
				})
			}
			// A machine that is too small for all of them may make a call late: few of
			// them, and never wrong.
			f.load.Allow(codes.Unavailable, codes.DeadlineExceeded)
			began, before := f.load.Calls()
			f.d.until(t, "the others are served", func() error {
				if all, _ := f.load.Calls(); all < began+200 {
					return errNotYet
				}
				return nil
			})
			stop()
			wg.Wait()
			if all, failed := f.load.Calls(); failed-before > (all-began)/20 {
				t.Errorf("%d of %d calls failed", failed-before, all-began)
			}
			f.serves(t, kind.name, op("encrypt"))
			f.over(t)
		})
	}
}

// victim is whom they mean.
type victim struct {
	f     *fixture
	cfg   client.Config
	known *tls.Config // of a client that the daemon knows
}

// hostileRow is a way to mean no good. do is called until ctx ends.
type hostileRow struct {
	name string
	do   func(ctx context.Context, t *testing.T, v victim)
}

func hostileRows() []hostileRow {
	return []hostileRow{
		{"garbage", func(_ context.Context, t *testing.T, v victim) { garbage(t, v.cfg.Addr, nil) }},
		{"garbage-after-handshake", func(_ context.Context, t *testing.T, v victim) { garbage(t, v.cfg.Addr, v.known) }},
		{"slow-loris", func(ctx context.Context, t *testing.T, v victim) { drip(ctx, t, v.cfg.Addr, nil) }},
		{"slow-loris-after-handshake", func(ctx context.Context, t *testing.T, v victim) { drip(ctx, t, v.cfg.Addr, v.known) }},
		{"giant-messages", func(ctx context.Context, t *testing.T, v victim) { giants(ctx, t, v.cfg) }},
		{"cancelled-calls", func(ctx context.Context, t *testing.T, v victim) { v.f.cancels(ctx, t, v.cfg) }},
	}
}

// connect opens a connection, with TLS where there is a configuration.
func connect(t *testing.T, addr string, cfg *tls.Config) net.Conn {
	d := &net.Dialer{Timeout: patience}
	var conn net.Conn
	var err error
	if cfg != nil {
		conn, err = tls.DialWithDialer(d, "tcp", addr, cfg)
	} else {
		conn, err = d.Dial("tcp", addr)
	}
	if err != nil {
		t.Errorf("connect: %v", err)
		return nil
	}
	return conn
}

// garbage sends random bytes until the server has enough of it.
func garbage(t *testing.T, addr string, cfg *tls.Config) {
	conn := connect(t, addr, cfg)
	if conn == nil {
		return
	}
	defer conn.Close()
	junk := make([]byte, 4096)
	_, _ = rand.Read(junk)
	_, _ = conn.Write(junk) // it may have hung up already
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = conn.Read(junk)
}

// drip sends the beginning of a handshake, or of HTTP/2, a byte at a time.
func drip(ctx context.Context, t *testing.T, addr string, cfg *tls.Config) {
	conn := connect(t, addr, cfg)
	if conn == nil {
		return
	}
	defer conn.Close()
	begin := []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	if cfg != nil {
		begin = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	}
	for i := range begin {
		if _, err := conn.Write(begin[i : i+1]); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	<-ctx.Done() // and says no more
}

// giantBytes is more than any message may have.
const giantBytes = 5 << 20

// giants sends messages of which the server reads no more than their length.
func giants(ctx context.Context, t *testing.T, cfg client.Config) {
	c, err := client.Dial(cfg)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	call, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	_, err = c.Crypto.Encrypt(call, &keyholdv1.EncryptRequest{KeyId: "alias/none", Plaintext: make([]byte, giantBytes)})
	switch status.Code(err) {
	case codes.ResourceExhausted, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
	default:
		t.Errorf("a message of %d bytes: %v", giantBytes, err)
	}
	<-ctx.Done() // one each: they cost the test more than the daemon
}

// cancels gives calls up at any time from before they begin.
func (f *fixture) cancels(ctx context.Context, t *testing.T, cfg client.Config) {
	c, err := client.Dial(cfg)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	for i := 0; ctx.Err() == nil && i < 5; i++ {
		call, cancel := context.WithTimeout(ctx, time.Duration(pick(5000))*time.Microsecond)
		_, err := c.Crypto.Sign(call, &keyholdv1.SignRequest{
			KeyId: f.load.Base.RSA.ID, Message: []byte("x"), SigningAlgorithm: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_256,
		})
		cancel()
		switch status.Code(err) {
		case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		default:
			t.Errorf("a call that was given up: %v", err)
		}
	}
}
