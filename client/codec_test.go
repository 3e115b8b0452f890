package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// echoing encrypts by giving the plaintext back.
type echoing struct {
	keyholdv1.UnimplementedCryptographyServiceServer
}

func (echoing) Encrypt(_ context.Context, in *keyholdv1.EncryptRequest) (*keyholdv1.EncryptResponse, error) {
	return &keyholdv1.EncryptResponse{CiphertextBlob: in.GetPlaintext()}, nil
}

// TestBuffersWiped: an encoded request is wiped when it was sent, a short one
// too.
func TestBuffersWiped(t *testing.T) {
	for _, n := range []int{1, 4096} {
		s, err := client.MarshalRequest(&keyholdv1.EncryptRequest{Plaintext: bytes.Repeat([]byte{7}, n)})
		if err != nil {
			t.Fatal(err)
		}
		data := s[0].ReadOnlyData()
		if s.Free(); !bytes.Equal(data, make([]byte, len(data))) {
			t.Errorf("%d bytes: not wiped", n)
		}
		body, err := client.WipedItem(t.Context(), &keyholdv1.EncryptRequest{Plaintext: bytes.Repeat([]byte{7}, n)})
		if err != nil {
			t.Fatal(err)
		}
		if len(body) <= n || !bytes.Equal(body, make([]byte, len(body))) {
			t.Errorf("%d bytes, in a batch: not wiped", n)
		}
	}
}

// TestBuffersIntact: requests arrive as they are, each time that they are sent,
// and so do answers, while buffers are wiped and used again around them.
func TestBuffersIntact(t *testing.T) {
	p := newPKI(t)
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[string][]proto.Message{} // by key id
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.serverTLS(t))), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			in, ok := req.(*keyholdv1.EncryptRequest)
			if !ok {
				return nil, fmt.Errorf("a request of type %T", req)
			}
			mu.Lock()
			seen[in.GetKeyId()] = append(seen[in.GetKeyId()], in)
			first := len(seen[in.GetKeyId()]) == 1
			mu.Unlock()
			if first {
				return nil, failure(codes.Unavailable, "")
			}
			return handle(ctx, req)
		}))
	keyholdv1.RegisterCryptographyServiceServer(s, echoing{})
	run(t, s, lis)
	c := dialTest(t, p, lis.Addr().String(), nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				in := &keyholdv1.EncryptRequest{KeyId: fmt.Sprint(i, " ", j), Plaintext: bytes.Repeat([]byte{byte(1 + i)}, 1<<(2*(j%9)))}
				out, err := c.Crypto.Encrypt(t.Context(), in)
				if err != nil || !bytes.Equal(out.GetCiphertextBlob(), in.GetPlaintext()) {
					t.Errorf("%s: another answer than was sent, or %v", in.GetKeyId(), err)
				}
				mu.Lock()
				got := seen[in.GetKeyId()]
				mu.Unlock()
				if len(got) != 2 || !proto.Equal(got[0], in) || !proto.Equal(got[1], in) {
					t.Errorf("%s: %d requests, or others than were sent", in.GetKeyId(), len(got))
				}
			}
		})
	}
	wg.Wait()
}

// TestTransparentRetry: what gRPC sends again by itself, since the server has
// not looked at it, is what was sent at first.
func TestTransparentRetry(t *testing.T) {
	p := newPKI(t)
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	conf := p.serverTLS(t)
	conf.NextProtos = []string{"h2"}
	type result struct {
		bodies [][]byte
		err    error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := lis.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer conn.Close()
		bodies, err := refuseStreams(tls.Server(conn, conf), 2)
		done <- result{bodies, err}
	}()
	in := &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: bytes.Repeat([]byte("attack at dawn"), 100)}
	c := dialTest(t, p, lis.Addr().String(), func(cfg *client.Config) { cfg.Retry.MaxAttempts, cfg.Timeout = 1, 20*time.Second })
	if _, err := c.Crypto.Encrypt(t.Context(), in); err == nil {
		t.Error("a refused call succeeds")
	}
	got := <-done
	if got.err != nil || len(got.bodies) != 2 {
		t.Fatalf("%d requests, %v", len(got.bodies), got.err)
	}
	for i, body := range got.bodies {
		const prefix = 5 // compressed or not, and the length
		sent := new(keyholdv1.EncryptRequest)
		if err := proto.Unmarshal(body[prefix:], sent); err != nil || !proto.Equal(in, sent) {
			t.Errorf("request %d is another one: %v", i+1, err)
		}
	}
}

// refuseStreams is an HTTP/2 server that refuses requests as not looked at (RFC
// 9113, 8.7), so many, and returns what they were.
func refuseStreams(conn io.ReadWriter, n int) (bodies [][]byte, err error) {
	const (
		data, rstStream, settings = 0, 3, 4 // types of frames
		endStream                 = 1       // flag of DATA
		refusedStream             = 7       // error code
	)
	if _, err := io.CopyN(io.Discard, conn, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{0, 0, 0, settings, 0, 0, 0, 0, 0}); err != nil {
		return nil, err
	}
	var body []byte
	for len(bodies) < n {
		var header [9]byte
		if _, err := io.ReadFull(conn, header[:]); err != nil {
			return bodies, err
		}
		payload := make([]byte, int(header[0])<<16|int(header[1])<<8|int(header[2]))
		if _, err := io.ReadFull(conn, payload); err != nil {
			return bodies, err
		}
		if header[3] != data {
			continue
		}
		if body = append(body, payload...); header[4]&endStream == 0 {
			continue
		}
		bodies, body = append(bodies, body), nil
		frame := append([]byte{0, 0, 4, rstStream, 0}, header[5:9]...)
		if _, err := conn.Write(binary.BigEndian.AppendUint32(frame, refusedStream)); err != nil {
			return bodies, err
		}
	}
	return bodies, nil
}
