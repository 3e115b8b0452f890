package awsapi_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/door"
	"github.com/keyhold/keyhold/server/identity"
)

// once is a request, signed rightly, that the client's transport cannot send again: as
// the AWS SDK for Go makes it. Whatever becomes of its connection before it is answered
// is an error.
func (s *served) once() *http.Request {
	s.t.Helper()
	r := s.request("Encrypt", "{}")
	s.signer.Sign(r, []byte("{}"), time.Now().Add(time.Duration(s.ahead.Load())))
	r.GetBody = nil
	return r
}

// wantSame wants all that was sent so far to have been on n connections. Over HTTP/2 a
// client opens another one when it is sent GOAWAY, and not before.
func (s *served) wantSame(n int64, what string) {
	s.t.Helper()
	if got := s.accepted.Load(); got != n {
		s.t.Errorf("%s: %d connections, want %d", what, got, n)
	}
}

// TestNeighboursOfStrangers: 64 callers with wrong signatures and 8 with right ones
// share an HTTP/2 connection. It is kept, and nobody sees an error of it, whether the
// strangers are told why they are refused or not.
func TestNeighboursOfStrangers(t *testing.T) {
	t.Parallel()
	const strangers, neighbours, each, burst = 64, 8, 10, 100
	s := open(t, willing(), overTLS("h2"), failing(door.FailureLimits{Burst: burst}))
	if a := s.send(s.wrong(false)); a.status != http.StatusBadRequest || a.proto != "HTTP/2.0" { // the connection is there
		t.Fatalf("%d %s", a.status, a.proto)
	}
	var wg sync.WaitGroup
	many := func(callers, status int, request func() *http.Request) {
		for range callers {
			wg.Go(func() {
				for range each {
					if a, err := s.try(request()); err != nil || a.status != status {
						t.Errorf("%d %s, %v, want %d", a.status, a.body, err, status)
					}
				}
			})
		}
	}
	many(strangers, http.StatusBadRequest, func() *http.Request { return s.wrong(false) })
	many(neighbours, http.StatusOK, s.once)
	wg.Wait()
	s.wantSame(1, "strangers and others")
	const failed = strangers*each + 1
	if s.refused.Load() != failed || s.throttled.Load() != failed-burst {
		t.Errorf("%d are refused, %d of them throttled", s.refused.Load(), s.throttled.Load())
	}
}

// TestUnreadBodies: what strangers send over HTTP/2 and nobody reads takes nothing
// from others on the connection: not the window, which is one body, nor streams. All
// requests before authentication that end with the caller's fault are alike.
func TestUnreadBodies(t *testing.T) {
	t.Parallel()
	s := open(t, willing(), overTLS("h2"))
	large := filled(awsapi.MaxBodyBytes)
	for i := range 64 {
		r := s.request("Encrypt", large)
		if i%2 == 1 { // too large, of whoever knows the id of an access key
			r = s.request("Encrypt", large+" ")
			s.stranger("kms").Sign(r, []byte("{}"), time.Now())
		}
		if a := s.send(r); a.status != http.StatusBadRequest && a.status != http.StatusRequestEntityTooLarge {
			t.Fatalf("request %d: %d %s", i+1, a.status, a.body)
		}
	}
	s.wantSame(1, "bodies that are not read")
	var ends []*io.PipeWriter
	for range awsapi.MaxStreams + 1 {
		body, w := io.Pipe()
		ends = append(ends, w)
		r := s.request("Encrypt", "{}")
		r.Body, r.ContentLength, r.GetBody = body, -1, nil
		if a := s.send(r); a.status != http.StatusBadRequest {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if s.RoomTaken() {
		t.Error("strangers have room for bodies")
	}
	if a := s.send(s.once()); a.status != http.StatusOK {
		t.Errorf("another: %d %s", a.status, a.body)
	}
	s.wantSame(1, "bodies without an end")
	for _, w := range ends {
		w.Close()
	}
}

// TestStrangersKeepNoConnection: whoever is not authenticated is hung up on, so that
// nobody takes all connections with one request each: over HTTP/1.1 at once, over HTTP/2
// when nobody was on the connection for as long as an idle one is kept.
func TestStrangersKeepNoConnection(t *testing.T) {
	t.Parallel()
	few := func(cfg *awsapi.Config, s *served) { cfg.MaxConnections, cfg.Now = 2, stopped(s) }
	stranger := func(s *served) {
		t.Helper()
		if a := s.send(s.request("Encrypt", "{}")); a.status != http.StatusBadRequest {
			t.Errorf("%d %s", a.status, a.body)
		}
		r := s.request("Encrypt", "{}")
		r.Method = http.MethodGet
		if a := s.send(r); a.status != http.StatusNotFound {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	for _, options := range [][]option{{few}, {few, overTLS("http/1.1")}} {
		s := open(t, willing(), options...)
		for range 20 {
			stranger(s)
		}
		s.wantSame(40, "strangers over HTTP/1.1")
		if a := s.call("Encrypt", "{}x"); a.header.Get("Connection") != "" || a.status != http.StatusBadRequest {
			t.Errorf("a caller who is known: %d, %v", a.status, a.header)
		}
		s.call("Encrypt", "{}x")
		s.wantSame(41, "a caller who is known")
	}

	s := open(t, willing(), few, overTLS("h2"))
	for i := range int64(20) {
		stranger(s)
		s.ahead.Add(int64(awsapi.IdleTimeout - 1))
		stranger(s)
		s.wantSame(i+1, "too early")
		s.ahead.Add(1)
		until(t, "the connection is closed", func() bool {
			stranger(s)
			return s.accepted.Load() > i+1
		})
	}
	// As long as somebody uses it the connection stays.
	used := s.accepted.Load()
	for range 20 {
		s.ahead.Add(int64(awsapi.IdleTimeout - 1))
		if a := s.send(s.once()); a.status != http.StatusOK {
			t.Errorf("a caller who is known: %d %s", a.status, a.body)
		}
		stranger(s)
	}
	s.wantSame(used, "next to a caller who is known")
}

// TestStrangersCutNobodyOff: what is under way on a connection is answered when it is
// closed for a stranger.
func TestStrangersCutNobodyOff(t *testing.T) {
	t.Parallel()
	began, end := make(chan struct{}), make(chan struct{})
	c := &core{do: func(_ context.Context, _ *identity.Caller, _ string, _ proto.Message) (proto.Message, error) {
		close(began)
		<-end
		return &keyholdv1.EncryptResponse{KeyId: "k"}, nil
	}}
	s := open(t, c, overTLS("h2"))
	done := make(chan struct{})
	defer func() { close(end); <-done }()
	go func() {
		defer close(done)
		if a, err := s.try(s.once()); err != nil || a.status != http.StatusOK || !strings.Contains(string(a.body), `"k"`) {
			t.Errorf("%d %s, %v", a.status, a.body, err)
		}
	}()
	<-began
	s.ahead.Add(int64(awsapi.IdleTimeout))
	until(t, "the connection is closed", func() bool {
		if a := s.send(s.wrong(false)); a.status != http.StatusBadRequest {
			t.Errorf("%d %s", a.status, a.body)
		}
		return s.accepted.Load() > 1
	})
}
