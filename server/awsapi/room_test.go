package awsapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/identity"
)

// filled is a request of n bytes.
func filled(n int) string { return "{}" + strings.Repeat(" ", n-2) }

// TestRoomIsBounded: large bodies beyond the room wait, and are read when there is some.
func TestRoomIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, willing(), func(cfg *awsapi.Config, _ *served) { cfg.MaxConnections = 512 })
	body := filled(awsapi.MaxBodyBytes)
	head := s.head(body, true, fmt.Sprintf("Content-Length: %d", len(body)))
	var all []*raw
	for range awsapi.BodyRoomBytes / awsapi.MaxBodyBytes {
		c := s.dial()
		c.send(t, head)
		all = append(all, c)
	}
	until(t, "all are under way", func() bool { return s.UnderWay() == int64(len(all)) })
	late := make(chan answer, 1)
	go func() { late <- s.call("Encrypt", filled(awsapi.SmallBodyBytes+1)) }()
	until(t, "one more is under way", func() bool { return s.UnderWay() == int64(len(all))+1 })
	select {
	case a := <-late:
		t.Fatalf("there was room: %d %s", a.status, a.body)
	default:
	}
	all[0].send(t, body)
	if status, text := all[0].answer(t); status != http.StatusOK {
		t.Errorf("%d %s", status, text)
	}
	if a := <-late; a.status != http.StatusOK {
		t.Errorf("the one that waited: %d %s", a.status, a.body)
	}
	for _, c := range all[1:] {
		c.Close()
	}
	until(t, "all are gone", func() bool { return s.UnderWay() == 0 && !s.RoomTaken() })
}

// TestRoomIsNotWaitedForForEver: whoever holds all the room keeps nobody hanging.
func TestRoomIsNotWaitedForForEver(t *testing.T) {
	t.Parallel()
	s := open(t, willing(), func(cfg *awsapi.Config, s *served) { cfg.MaxConnections, s.room = 512, 50*time.Millisecond })
	head := s.head("{}", true, fmt.Sprintf("Content-Length: %d", awsapi.MaxBodyBytes))
	var all []*raw
	for range awsapi.BodyRoomBytes / awsapi.MaxBodyBytes {
		c := s.dial()
		c.send(t, head)
		all = append(all, c)
	}
	until(t, "there is no room", func() bool { return s.call("Encrypt", filled(awsapi.SmallBodyBytes+1)).status != http.StatusOK })
	a := s.call("Encrypt", filled(awsapi.SmallBodyBytes+1))
	if code, _ := a.exception(t); a.status != http.StatusServiceUnavailable || code != "ServiceUnavailableException" {
		t.Errorf("without room: %d %s", a.status, a.body)
	}
	// What nearly all requests are needs none of it.
	if a := s.call("Encrypt", filled(awsapi.SmallBodyBytes)); a.status != http.StatusOK {
		t.Errorf("a small one: %d %s", a.status, a.body)
	}
	for _, c := range all {
		c.Close()
	}
	until(t, "there is room again", func() bool { return s.call("Encrypt", filled(awsapi.SmallBodyBytes+1)).status == http.StatusOK })
}

// openTwice starts a door that makes nobody wait long for room. All that s's client
// sends is on one HTTP/2 connection; another is for what is not.
func openTwice(t *testing.T) (s *served, another *http.Client) {
	t.Helper()
	s = open(t, willing(), overTLS("h2"), func(_ *awsapi.Config, s *served) { s.room = 50 * time.Millisecond })
	another = &http.Client{Transport: s.client.Transport.(*http.Transport).Clone()}
	t.Cleanup(another.CloseIdleConnections)
	if a := s.call("Encrypt", "{}"); a.proto != "HTTP/2.0" {
		t.Fatalf("%s", a.proto)
	}
	return s, another
}

// TestBodiesHaveNoMoreMemoryThanRoom: also one that does not say how large it is.
func TestBodiesHaveNoMoreMemoryThanRoom(t *testing.T) {
	t.Parallel()
	s := open(t, willing())
	for _, n := range []int{awsapi.MaxBodyBytes, awsapi.MaxBodyBytes + 1} {
		r := s.request("Encrypt", filled(n))
		r.ContentLength = -1
		body, leave, ok := s.Read(r)
		if ok != (n == awsapi.MaxBodyBytes) || cap(body) > awsapi.MaxBodyBytes+1 {
			t.Errorf("%d bytes: %t, in a buffer of %d", n, ok, cap(body))
		}
		leave()
	}
}

// TestSmallBodiesWaitForTheirOwn: whoever is slow with small bodies keeps others of
// the same connection waiting, and of no other one.
func TestSmallBodiesWaitForTheirOwn(t *testing.T) {
	t.Parallel()
	s, another := openTwice(t)
	small := filled(awsapi.SmallBodyBytes)
	var wg sync.WaitGroup
	var bodies []*io.PipeWriter
	for range awsapi.ConnRoomBytes / awsapi.SmallBodyBytes {
		body, w := io.Pipe()
		bodies = append(bodies, w)
		r := s.request("Encrypt", small)
		s.signer.Sign(r, []byte(small), time.Now())
		r.Body, r.GetBody = body, nil
		wg.Go(func() {
			if a, err := s.try(r); err != nil || a.status != http.StatusOK {
				t.Errorf("%d %s, %v", a.status, a.body, err)
			}
		})
	}
	until(t, "there is no room on the connection", func() bool { return s.call("Encrypt", "{}").status == http.StatusServiceUnavailable })
	r := s.request("Encrypt", small)
	s.signer.Sign(r, []byte(small), time.Now())
	resp, err := another.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Errorf("on another connection: %d", resp.StatusCode)
	}
	if s.RoomTaken() {
		t.Error("small bodies have taken the room of large ones")
	}
	for _, w := range bodies {
		if _, err := io.WriteString(w, small); err != nil {
			t.Error(err)
		}
		w.Close()
	}
	wg.Wait()
	if a := s.call("Encrypt", small); a.status != http.StatusOK {
		t.Errorf("when there is room again: %d %s", a.status, a.body)
	}
}

// begin sends requests whose bodies do not say how large they are, on the client's
// connection, and nothing of these bodies. The requests are over once their bodies are
// closed, and then their status was sent to the channel.
func (s *served) begin(n int, body string) ([]*io.PipeWriter, chan int) {
	bodies, statuses := make([]*io.PipeWriter, n), make(chan int, n)
	for i := range bodies {
		var reader *io.PipeReader
		reader, bodies[i] = io.Pipe()
		r := s.request("Encrypt", body)
		s.signer.Sign(r, []byte(body), time.Now())
		r.Body, r.GetBody, r.ContentLength = reader, nil, -1
		go func() {
			a, err := s.try(r)
			if err != nil {
				s.t.Errorf("%v", err)
			}
			statuses <- a.status
		}()
	}
	return bodies, statuses
}

// TestOneConnectionTakesLittleRoom: however many bodies are begun on a connection, those
// of other connections find room.
func TestOneConnectionTakesLittleRoom(t *testing.T) {
	t.Parallel()
	s, another := openTwice(t)
	const held = awsapi.ConnLargeBytes / awsapi.MaxBodyBytes
	bodies, statuses := s.begin(awsapi.MaxStreams, "{}")
	for range len(bodies) - held { // they do not wait for ever
		if status := <-statuses; status != http.StatusServiceUnavailable {
			t.Errorf("no room on the connection: %d", status)
		}
	}
	until(t, "the rest hold room", func() bool { return s.UnderWay() == held })
	if n := s.accepted.Load(); n != 1 {
		t.Errorf("they are on %d connections", n)
	}
	for _, length := range []int64{-1, awsapi.SmallBodyBytes + 1, awsapi.MaxBodyBytes} {
		body := filled(max(2, int(length)))
		r := s.request("Encrypt", body)
		s.signer.Sign(r, []byte(body), time.Now())
		r.ContentLength = length
		resp, err := another.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Errorf("a body of length %d, on another connection: %d", length, resp.StatusCode)
		}
	}
	if a := s.call("Encrypt", filled(awsapi.SmallBodyBytes)); a.status != http.StatusOK {
		t.Errorf("a small one, on the same connection: %d %s", a.status, a.body)
	}
	for _, w := range bodies {
		io.WriteString(w, "{}") // most of them nobody reads any more
		w.Close()
	}
	for range held {
		if status := <-statuses; status != http.StatusOK {
			t.Errorf("one that had room: %d", status)
		}
	}
	until(t, "there is room again", func() bool { return s.UnderWay() == 0 && !s.RoomTaken() })
	if a := s.call("Encrypt", filled(awsapi.MaxBodyBytes)); a.status != http.StatusOK {
		t.Errorf("when there is room again: %d %s", a.status, a.body)
	}
}

// TestRoomIsWhatABodyNeeds: a body that did not say how large it is has no more room,
// once it was read, than one that did.
func TestRoomIsWhatABodyNeeds(t *testing.T) {
	t.Parallel()
	const n = 4 * awsapi.ConnLargeBytes / awsapi.MaxBodyBytes
	var there atomic.Int64
	release := make(chan struct{})
	c := willing()
	do := c.do
	c.do = func(ctx context.Context, caller *identity.Caller, operation string, r proto.Message) (proto.Message, error) {
		there.Add(1)
		<-release
		return do(ctx, caller, operation, r)
	}
	s := open(t, c, overTLS("h2"))
	bodies, statuses := s.begin(n, "{}")
	for _, w := range bodies {
		go func() {
			io.WriteString(w, "{}")
			w.Close()
		}()
	}
	until(t, "all are in the core", func() bool { return there.Load() == n })
	close(release)
	for range n {
		if status := <-statuses; status != http.StatusOK {
			t.Errorf("%d", status)
		}
	}
	until(t, "there is room again", func() bool { return s.UnderWay() == 0 && !s.RoomTaken() })
}
