package awsapi

import (
	"io"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/sigv4"
)

// Limits of the door, for tests at their edges.
const (
	MaxBodyBytes   = maxBodyBytes
	SmallBodyBytes = smallBodyBytes
	ConnRoomBytes  = connRoomBytes
	BodyRoomBytes  = bodyRoomBytes
	ConnLargeBytes = connLargeBytes
	AnswerBytes    = answerBytes
	MaxStreams     = maxStreams
	IdleTimeout    = idleTimeout
)

// SetTimeouts makes the door less patient. Before Serve.
func (s *Server) SetTimeouts(header, body time.Duration) {
	s.http.ReadHeaderTimeout, s.http.ReadTimeout = header, body
}

// SetRoomWait makes requests wait less for room. Before Serve.
func (s *Server) SetRoomWait(d time.Duration) { s.roomWait = d }

// UnderWay is how many requests are.
func (s *Server) UnderWay() int64 { return s.underWay.Load() }

// RoomTaken tells whether any room for bodies that are not small is in use.
func (s *Server) RoomTaken() bool {
	if !s.room.TryAcquire(bodyRoomBytes) {
		return true
	}
	s.room.Release(bodyRoomBytes)
	return false
}

// Encode is what an answer is written with.
func (s *Server) Encode(operation string, resp proto.Message) []byte {
	return s.encode(s.operations[targetPrefix+operation], resp)
}

// Read reads a request's body as the door does. leave is to be called.
func (s *Server) Read(r *http.Request) (body []byte, leave func(), ok bool) {
	body, leave, fault := s.read(r.Context(), r)
	return body, leave, fault == nil
}

// WriteSecret writes an answer as the door does.
func WriteSecret(w io.Writer, answer []byte) { writeSecret(w, answer) }

// HasCodes tells whether a reason has its names in both protocols.
func HasCodes(r sigv4.Reason) bool {
	c, ok := refusalCodes()[r]
	return ok && c.json != "" && c.query != "" && c.status != 0
}
