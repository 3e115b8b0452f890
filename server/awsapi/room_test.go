package awsapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/awsapi"
)

// TestRoomIsBounded: bodies beyond the room wait, and are read when there is some.
func TestRoomIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, willing(), func(cfg *awsapi.Config, _ *served) { cfg.MaxConnections = 512 })
	body := "{}" + strings.Repeat(" ", awsapi.MaxBodyBytes-2)
	head := s.head(body, true, fmt.Sprintf("Content-Length: %d", len(body)))
	var all []*raw
	for range awsapi.BodyRoomBytes / awsapi.MaxBodyBytes {
		c := s.dial()
		c.send(t, head)
		all = append(all, c)
	}
	until(t, "all are under way", func() bool { return s.UnderWay() == int64(len(all)) })
	late := make(chan answer, 1)
	go func() { late <- s.call("Encrypt", "{}") }()
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
	until(t, "there is no room", func() bool { return s.call("Encrypt", "{}").status != http.StatusOK })
	a := s.call("Encrypt", "{}")
	if code, _ := a.exception(t); a.status != http.StatusServiceUnavailable || code != "ServiceUnavailableException" {
		t.Errorf("without room: %d %s", a.status, a.body)
	}
	for _, c := range all {
		c.Close()
	}
	until(t, "there is room again", func() bool { return s.call("Encrypt", "{}").status == http.StatusOK })
}
