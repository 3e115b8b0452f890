package awsapi_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/identity"
)

// willing answers every Encrypt.
func willing() *core {
	return &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return &keyholdv1.EncryptResponse{KeyId: "k"}, nil
	}}
}

// chunked hides a body's length from the client's transport.
type chunked struct{ io.Reader }

// TestBodyLimit: n bytes are a request, n+1 are none, whether the length is said or
// not; and nobody has to send what is too large.
func TestBodyLimit(t *testing.T) {
	t.Parallel()
	for _, options := range [][]option{nil, {overTLS("h2")}} {
		s := open(t, willing(), options...)
		for _, tt := range []struct{ size, status int }{
			{2, 200},
			{4096, 200},
			{4097, 200},
			{awsapi.MaxBodyBytes, 200},
			{awsapi.MaxBodyBytes + 1, 413},
			{10 << 20, 413},
		} {
			body := "{}" + strings.Repeat(" ", tt.size-2)
			for _, lengthSaid := range []bool{true, false} {
				r := s.request("Encrypt", body)
				s.signer.Sign(r, []byte(body), time.Now())
				if !lengthSaid {
					r.Body, r.ContentLength, r.GetBody = io.NopCloser(chunked{strings.NewReader(body)}), -1, nil
				}
				a, err := s.try(r)
				if err != nil && tt.size > 1<<20 {
					continue // it was hung up on while it sent
				}
				if err != nil || a.status != tt.status {
					t.Errorf("%d bytes, said %t: %d %.200s, %v, want %d", tt.size, lengthSaid, a.status, a.body, err, tt.status)
					continue
				}
				if tt.status == 413 {
					if code, _ := a.exception(t); code != "RequestEntityTooLargeException" {
						t.Errorf("%d bytes: %s", tt.size, a.body)
					}
				}
			}
		}
		if s.RoomTaken() {
			t.Error("room for bodies is lost")
		}
	}
}

// raw sends bytes as they are.
type raw struct {
	net.Conn
	r *bufio.Reader
}

func (s *served) dial() *raw {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &raw{conn, bufio.NewReader(conn)}
}

func (c *raw) send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// answer reads one.
func (c *raw) answer(t testing.TB) (status int, body string) {
	t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// wantClosed wants the server to hang up.
func (c *raw) wantClosed(t testing.TB, what string) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c.r); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("%s: the connection is kept", what)
	}
}

// head is the header of a request as it is sent, signed for a body, with more lines.
func (s *served) head(body string, signed bool, more ...string) string {
	r := s.request("Encrypt", body)
	if signed {
		s.signer.Sign(r, []byte(body), time.Now())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "POST / HTTP/1.1\r\nHost: %s\r\n", s.address)
	_ = r.Header.Write(&b)
	for _, line := range more {
		b.WriteString(line + "\r\n")
	}
	return b.String() + "\r\n"
}

// TestExpectContinue: who waits to be told gets told, but not a stranger.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	s := open(t, willing())
	c := s.dial()
	c.send(t, s.head("{}", true, "Content-Length: 2", "Expect: 100-continue"))
	if status, _ := c.answer(t); status != http.StatusContinue {
		t.Fatalf("%d, want 100", status)
	}
	c.send(t, "{}")
	if status, body := c.answer(t); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	c = s.dial()
	c.send(t, s.head("{}", false, "Content-Length: 2", "Expect: 100-continue"))
	if status, body := c.answer(t); status != http.StatusBadRequest || !strings.Contains(body, "MissingAuthenticationTokenException") {
		t.Errorf("a stranger: %d %s", status, body)
	}
}

// TestPipelined requests are answered in order; a stranger's is the last one.
func TestPipelined(t *testing.T) {
	t.Parallel()
	s := open(t, willing())
	c := s.dial()
	good := s.head("{}", true, "Content-Length: 2") + "{}"
	c.send(t, good+s.head("{}x", true, "Content-Length: 3")+"{}x"+
		s.head("{}", true, "Transfer-Encoding: chunked")+"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"+
		s.head("{}", false, "Content-Length: 2")+"{}"+good)
	for i, want := range []int{200, 400, 200, 400} {
		if status, body := c.answer(t); status != want {
			t.Errorf("request %d: %d %s, want %d", i+1, status, body, want)
		}
	}
	c.wantClosed(t, "a stranger")
}

// TestAmbiguousFraming: what two parsers might cut differently is refused.
func TestAmbiguousFraming(t *testing.T) {
	t.Parallel()
	c := willing()
	s := open(t, c)
	for name, more := range map[string][]string{
		"two lengths":         {"Content-Length: 2", "Content-Length: 3"},
		"a length that is no": {"Content-Length: +2"},
		"another coding":      {"Transfer-Encoding: gzip, chunked"},
		"two hosts":           {"Host: other", "Content-Length: 2"},
		"a bare name":         {"X-Thing", "Content-Length: 2"},
		"space before colon":  {"X-Amz-Target : TrentService.Encrypt", "Content-Length: 2"},
	} {
		conn := s.dial()
		conn.send(t, s.head("{}", true, more...)+"{}")
		if status, body := conn.answer(t); status < 400 {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if seen := c.seen(); len(seen) > 0 {
		t.Errorf("the core saw %v", seen)
	}
}

// TestSlow: whoever drips a header or a body is cut off, and holds no room
// meanwhile unless an access key is named.
func TestSlow(t *testing.T) {
	t.Parallel()
	s := open(t, willing(), impatient(300*time.Millisecond, 600*time.Millisecond))
	c := s.dial()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, b := range []byte(s.head("{}", true, "Content-Length: 2")) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	c.wantClosed(t, "a slow header")
	close(stop)
	wg.Wait()

	// A stranger is answered before the body, which would be all the room there is.
	announced := fmt.Sprintf("Content-Length: %d", awsapi.MaxBodyBytes)
	for range awsapi.BodyRoomBytes/awsapi.MaxBodyBytes/8 + 1 {
		c = s.dial()
		c.send(t, s.head("{}", false, announced))
		if status, body := c.answer(t); status != http.StatusBadRequest || !strings.Contains(body, "MissingAuthenticationTokenException") {
			t.Fatalf("a stranger: %d %s", status, body)
		}
	}
	if s.RoomTaken() {
		t.Error("strangers have room for bodies")
	}

	c = s.dial()
	c.send(t, s.head("{}", true, announced)+"{")
	until(t, "room is taken", s.RoomTaken)
	if status, body := c.answer(t); status != http.StatusBadRequest || !strings.Contains(body, "RequestTimeoutException") {
		t.Errorf("a slow body: %d %s", status, body)
	}
	c.wantClosed(t, "a slow body")
	until(t, "room is given back", func() bool { return !s.RoomTaken() })
}

// TestSlowOverHTTP2: the same holds for one of many requests on a connection, and the
// others go on.
func TestSlowOverHTTP2(t *testing.T) {
	t.Parallel()
	s := open(t, willing(), overTLS("h2"), impatient(10*time.Second, 600*time.Millisecond))
	r := s.request("Encrypt", "{}")
	s.signer.Sign(r, []byte("{}"), time.Now())
	body, w := io.Pipe()
	defer w.Close()
	r.Body, r.GetBody = body, nil
	slow := make(chan answer, 1)
	go func() { slow <- s.send(r) }()
	until(t, "it is under way", func() bool { return s.UnderWay() == 1 })
	if a := s.call("Encrypt", "{}"); a.status != http.StatusOK || a.proto != "HTTP/2.0" {
		t.Errorf("meanwhile: %d %s %s", a.status, a.proto, a.body)
	}
	a := <-slow
	if code, _ := a.exception(t); a.status != http.StatusBadRequest || code != "RequestTimeoutException" {
		t.Errorf("a slow body: %d %s", a.status, a.body)
	}
}

// TestGarbage: 64 clients send it, in the clear and over TLS, and all others are
// served.
func TestGarbage(t *testing.T) {
	t.Parallel()
	for _, options := range [][]option{nil, {overTLS("h2")}} {
		s := open(t, willing(), options...)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				for ctx.Err() == nil {
					garbage := make([]byte, 1+i*64)
					_, _ = rand.Read(garbage)
					switch i % 4 {
					case 1:
						garbage = append([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n"), garbage...)
					case 2:
						garbage = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), garbage...)
					case 3:
						garbage = append([]byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n"), garbage...)
					}
					if conn, err := net.Dial("tcp", s.address); err == nil {
						_, _ = conn.Write(garbage)
						_ = conn.Close()
					}
					select {
					case <-ctx.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
		}
		for range 50 {
			if a := s.call("Encrypt", "{}"); a.status != http.StatusOK {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		stop()
		wg.Wait()
		until(t, "nothing is under way", func() bool { return s.UnderWay() == 0 && !s.RoomTaken() })
	}
}

// TestHeaderLimit: session tokens fit, and no more than that.
func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	s := open(t, willing())
	r := s.request("Encrypt", "{}")
	r.Header.Set("X-Filler", strings.Repeat("a", 16<<10))
	s.signer.Sign(r, []byte("{}"), time.Now())
	if a := s.send(r); a.status != http.StatusOK {
		t.Errorf("16 KiB: %d %s", a.status, a.body)
	}
	r = s.request("Encrypt", "{}")
	r.Header.Set("X-Filler", strings.Repeat("a", 64<<10))
	s.signer.Sign(r, []byte("{}"), time.Now())
	// It may be hung up on while it sends.
	if a, err := s.try(r); err == nil && a.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB: %d %s", a.status, a.body)
	}
}

// TestReplay: within the window a request is as good as before, and not after it.
func TestReplay(t *testing.T) {
	t.Parallel()
	s := open(t, willing())
	r := s.request("Encrypt", "{}")
	s.signer.Sign(r, []byte("{}"), time.Now().Truncate(time.Second))
	again := func() answer {
		r := r.Clone(t.Context())
		r.Body, _ = r.GetBody()
		return s.send(r)
	}
	for range 2 {
		if a := again(); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	s.ahead.Store(int64(5*time.Minute + time.Second))
	a := again()
	if code, message := a.exception(t); code != "InvalidSignatureException" || !strings.HasPrefix(message, "Signature expired: ") {
		t.Errorf("after the window: %s", a.body)
	}
}

// TestCancelled: the core is told when the client has gone.
func TestCancelled(t *testing.T) {
	t.Parallel()
	for _, options := range [][]option{nil, {overTLS("h2")}} {
		began, ended := make(chan struct{}), make(chan error, 1)
		c := &core{do: func(ctx context.Context, _ *identity.Caller, _ string, _ proto.Message) (proto.Message, error) {
			if d, ok := ctx.Deadline(); !ok || time.Until(d) > time.Minute {
				return nil, fmt.Errorf("the deadline is %s, %t", d, ok)
			}
			close(began)
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		}}
		s := open(t, c, options...)
		ctx, cancel := context.WithCancel(t.Context())
		r := s.request("Encrypt", "{}").WithContext(ctx)
		s.signer.Sign(r, []byte("{}"), time.Now())
		go func() {
			<-began
			cancel()
		}()
		if _, err := s.try(r); err == nil {
			t.Error("the call was answered")
		}
		select {
		case err := <-ended:
			if err != context.Canceled {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the core was not told")
		}
		until(t, "nothing is under way", func() bool { return s.UnderWay() == 0 })
		if strings.Contains(s.logs.String(), "request failed") {
			t.Errorf("it is logged as a fault: %s", s.logs)
		}
	}
}

// TestShutdown drains, and cuts what is not done in time.
func TestShutdown(t *testing.T) {
	t.Parallel()
	for _, cut := range []bool{false, true} {
		began, end := make(chan struct{}), make(chan struct{})
		c := &core{do: func(ctx context.Context, _ *identity.Caller, _ string, _ proto.Message) (proto.Message, error) {
			close(began)
			select {
			case <-end:
				return &keyholdv1.EncryptResponse{KeyId: "k"}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		s := open(t, c)
		r := s.request("Encrypt", "{}")
		s.signer.Sign(r, []byte("{}"), time.Now())
		type result struct {
			answer
			err error
		}
		done := make(chan result, 1)
		go func() {
			a, err := s.try(r)
			done <- result{a, err}
		}()
		<-began
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		stopped := make(chan struct{})
		go func() {
			s.stop(ctx)
			close(stopped)
		}()
		until(t, "no more is accepted", func() bool {
			conn, err := net.Dial("tcp", s.address)
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
		if cut {
			cancel()
		} else {
			close(end)
		}
		got := <-done
		<-stopped
		cancel()
		if n := s.UnderWay(); n != 0 {
			t.Errorf("cut %t: %d requests are under way after Shutdown", cut, n)
		}
		if ok := got.err == nil && got.status == http.StatusOK; ok == cut {
			t.Errorf("cut %t: %d %s, %v", cut, got.status, got.body, got.err)
		}
	}
}
