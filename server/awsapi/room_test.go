package awsapi_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/awsapi"
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

// TestSmallBodiesWaitForTheirOwn: whoever is slow with small bodies keeps others of
// the same connection waiting, and of no other one.
func TestSmallBodiesWaitForTheirOwn(t *testing.T) {
	t.Parallel()
	s := open(t, willing(), overTLS("h2"), func(_ *awsapi.Config, s *served) { s.room = 50 * time.Millisecond })
	another := &http.Client{Transport: s.client.Transport.(*http.Transport).Clone()}
	defer another.CloseIdleConnections()
	if a := s.call("Encrypt", "{}"); a.proto != "HTTP/2.0" { // all that follows is on this connection
		t.Fatalf("%s", a.proto)
	}
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
