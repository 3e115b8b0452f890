package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/proto/awsjson"
	"github.com/keyhold/keyhold/server/sigv4/sign"
)

// The doors that bench can come in through.
const (
	doorGRPC = "grpc"
	doorAWS  = "aws"
)

// Limits of an answer of the AWS door.
const (
	maxAWSHeaderLines = 100
	maxAWSAnswerBytes = 1 << 20
)

// awsPing is an operation that there is not. A signed request for it costs what
// connection and signature cost: the server looks for the operation when it knows
// who asks. It is not recorded, as gRPC's health check is not.
const awsPing = "Ping"

// awsLoad sends requests to the AWS door, over HTTP/1.1 connections that are kept,
// as most SDKs do. It does without net/http's client, which costs more than the
// server's side of a request.
type awsLoad struct {
	address, host string
	tls           *tls.Config // nil: plain HTTP
	signer        sign.Signer
	agent         string
	encoder       *awsjson.Encoder
	conns         []*awsConn
}

// awsConn is a connection: one request at a time.
type awsConn struct {
	load *awsLoad

	mu sync.Mutex
	nc net.Conn // nil: none yet, or the last one broke
	r  *bufio.Reader
}

// awsRequest is a request that is sent again and again.
type awsRequest struct {
	target string
	body   []byte
	ping   bool
	// bytes is what is sent: signed anew after resign.
	bytes atomic.Pointer[awsBytes]
}

type awsBytes struct {
	at  time.Time
	raw []byte
}

// resign is how long a signature is sent: servers take them for five minutes.
const resign = 2 * time.Minute

// awsError is an error that the AWS door answered.
type awsError struct {
	exception string
	status    int
	message   string
}

func (e *awsError) Error() string {
	return printable(fmt.Sprintf("%s (status %d): %s", orWord(e.exception, "no exception"), e.status, e.message))
}

// dialAWS prepares the connections. They are made at the first request.
func (a *app) dialAWS(s *awsSettings, connections int) (*awsLoad, error) {
	l := &awsLoad{
		host: s.endpoint.Host, address: s.endpoint.Host, agent: "keyhold/" + a.versionText() + " bench",
		signer:  sign.Signer{AccessKeyID: s.accessKeyID, Secret: s.secret, Region: s.region, Service: "kms"},
		encoder: awsjson.NewEncoder(awsjson.Options{EpochTimes: true}),
	}
	port := "80"
	if s.endpoint.Scheme == "https" {
		port = "443"
		l.tls = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.endpoint.Hostname(), NextProtos: []string{"http/1.1"}}
		if s.caBundle != "" {
			pem, err := os.ReadFile(s.caBundle)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", awsCABundle, err)
			}
			l.tls.RootCAs = x509.NewCertPool()
			if !l.tls.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s: there is no certificate in %s", awsCABundle, s.caBundle)
			}
		}
	}
	if s.endpoint.Port() == "" {
		l.address = net.JoinHostPort(s.endpoint.Hostname(), port)
	}
	for range connections {
		l.conns = append(l.conns, &awsConn{load: l})
	}
	return l, nil
}

func (l *awsLoad) close() {
	for _, c := range l.conns {
		c.mu.Lock()
		c.hangUp()
		c.mu.Unlock()
	}
}

// request makes a request for an operation.
func (l *awsLoad) request(op *benchOp, req proto.Message) *awsRequest {
	if op.name == "ping" {
		return &awsRequest{target: awsPing, body: []byte("{}"), ping: true}
	}
	return &awsRequest{target: path.Base(op.method), body: l.encoder.AppendMessage(nil, req)}
}

// signed returns the bytes of a request, with a signature that is young enough.
func (l *awsLoad) signed(q *awsRequest) []byte {
	now := time.Now()
	if b := q.bytes.Load(); b != nil && now.Sub(b.at) < resign {
		return b.raw
	}
	r := &http.Request{Method: http.MethodPost, Host: l.host, URL: &url.URL{Path: "/"}, Header: http.Header{
		"Content-Type": {"application/x-amz-json-1.1"},
		"X-Amz-Target": {"TrentService." + q.target},
		"User-Agent":   {l.agent},
	}}
	l.signer.Sign(r, q.body, now)
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", l.host, len(q.body))
	_ = r.Header.Write(&b) // to memory
	b.WriteString("\r\n")
	b.Write(q.body)
	q.bytes.Store(&awsBytes{now, b.Bytes()})
	return b.Bytes()
}

// send sends a request and reads its answer.
func (l *awsLoad) send(ctx context.Context, q *awsRequest, conn int) error {
	raw := l.signed(q)
	c := l.conns[conn%len(l.conns)]
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.exchange(ctx, raw)
	var e *awsError
	switch isAnswer := errors.As(err, &e); {
	case isAnswer && q.ping && e.exception == "UnknownOperationException":
		return nil
	case err != nil && !isAnswer:
		c.hangUp()
	}
	return err
}

// hangUp closes the connection. The caller holds mu.
func (c *awsConn) hangUp() {
	if c.nc != nil {
		_ = c.nc.Close() // nothing is under way
		c.nc = nil
	}
}

// exchange is one request and its answer. An *awsError leaves the connection as it
// was. The caller holds mu.
func (c *awsConn) exchange(ctx context.Context, raw []byte) error {
	if c.nc == nil {
		nc, err := c.load.dial(ctx)
		if err != nil {
			return err
		}
		c.nc, c.r = nc, bufio.NewReader(nc)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.nc.SetDeadline(deadline); err != nil {
			return err
		}
	}
	// An interrupt ends what is under way.
	nc := c.nc
	defer context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.nc.Write(raw); err != nil {
		return err
	}
	return c.readAnswer()
}

func (l *awsLoad) dial(ctx context.Context) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", l.address)
	if err != nil || l.tls == nil {
		return nc, err
	}
	secure := tls.Client(nc, l.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return secure, nil
}

// readAnswer reads an answer, which has a Content-Length, and looks at it only if
// it is an error.
func (c *awsConn) readAnswer() error {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	version, rest, _ := bytes.Cut(line, []byte(" "))
	code, _, _ := bytes.Cut(rest, []byte(" "))
	status, err := strconv.Atoi(string(bytes.TrimSpace(code)))
	if err != nil || string(version) != "HTTP/1.1" {
		return errors.New("what answers does not speak HTTP/1.1")
	}
	length := -1
	for range maxAWSHeaderLines {
		if line, err = c.r.ReadSlice('\n'); err != nil {
			return err
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); len(name) == len("Content-Length") && strings.EqualFold(string(name), "Content-Length") {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return fmt.Errorf("read the answer's length: %w", err)
			}
		}
	}
	if length < 0 || length > maxAWSAnswerBytes {
		return errors.New("the answer has no length, or one that is too large")
	}
	if status == http.StatusOK {
		_, err = c.r.Discard(length)
		return err
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return err
	}
	var e struct {
		Type    string `json:"__type"`
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &e) != nil {
		e.Message = "the answer is not JSON"
	}
	return &awsError{exception: e.Type, status: status, message: e.Message}
}
