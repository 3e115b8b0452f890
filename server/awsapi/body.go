package awsapi

import (
	"context"
	"errors"
	"io"
	"net/http"

	"golang.org/x/sync/semaphore"
)

// firstBodyBytes is the first buffer of a body whose length is not said.
const firstBodyBytes = 4 << 10

var errTooLarge = errors.New("the body is too large")

// bodyRoom is the room that a body has.
type bodyRoom struct {
	// own is of its connection, shared of all connections. Either may be nil.
	own, shared *semaphore.Weighted
	bytes       int64 // in both
}

// roomFor returns the room that a body of n bytes, -1 if it does not say, must have.
func (s *Server) roomFor(r *http.Request, n int64) bodyRoom {
	c := connOf(r)
	if c != nil && n >= 0 && n <= smallBodyBytes {
		return bodyRoom{own: c.small, bytes: n}
	}
	b := bodyRoom{shared: s.room, bytes: n}
	if n < 0 {
		b.bytes = maxBodyBytes
	}
	if c != nil {
		b.own = c.large
	}
	return b
}

// enter waits for the room until ctx ends. The connection's comes first: what waits
// for that does not stand in line for the room of all.
func (b *bodyRoom) enter(ctx context.Context) error {
	if b.own != nil {
		if err := b.own.Acquire(ctx, b.bytes); err != nil {
			return err
		}
	}
	if b.shared != nil {
		if err := b.shared.Acquire(ctx, b.bytes); err != nil {
			b.shared = nil
			b.leave()
			return err
		}
	}
	return nil
}

// shrink gives back all but n bytes.
func (b *bodyRoom) shrink(n int64) {
	if n < b.bytes {
		rest := bodyRoom{own: b.own, shared: b.shared, bytes: b.bytes - n}
		rest.leave()
		b.bytes = n
	}
}

// leave gives back what there is.
func (b *bodyRoom) leave() {
	if b.shared != nil {
		b.shared.Release(b.bytes)
	}
	if b.own != nil {
		b.own.Release(b.bytes)
	}
}

// read reads the body, when there is room for it. leave must be called: it wipes what
// was read, also of a body that is not returned.
func (s *Server) read(ctx context.Context, r *http.Request) ([]byte, func(), *failure) {
	n := r.ContentLength
	if n > maxBodyBytes {
		return nil, func() {}, requestTooLarge()
	}
	room := s.roomFor(r, n)
	ctx, cancel := context.WithTimeout(ctx, s.roomWait)
	defer cancel()
	if room.enter(ctx) != nil {
		return nil, func() {}, &failure{status: http.StatusServiceUnavailable, code: "ServiceUnavailableException", message: "Too many requests are under way."}
	}
	body, err := readBody(r.Body, n)
	room.shrink(int64(cap(body))) // it may not have said how small it is
	leave := func() {
		clear(body) // there may be a plaintext in it
		room.leave()
	}
	switch {
	case errors.Is(err, errTooLarge):
		return nil, leave, requestTooLarge()
	case err != nil:
		return nil, leave, &failure{status: http.StatusBadRequest, code: "RequestTimeoutException", message: "The request body was not received."}
	}
	return body, leave, nil
}

func requestTooLarge() *failure {
	return &failure{status: http.StatusRequestEntityTooLarge, code: "RequestEntityTooLargeException", message: "The request is too large."}
}

// readBody reads up to maxBodyBytes. length is what was declared, or -1. What it
// read is the caller's to wipe, also with an error; no other buffer has any of it,
// which is why this is not io.ReadAll.
func readBody(r io.Reader, length int64) ([]byte, error) {
	// One more, so that the end is met without another buffer.
	body := make([]byte, 0, max(length+1, 1))
	if length < 0 {
		body = make([]byte, 0, firstBodyBytes)
	}
	for {
		if len(body) == cap(body) {
			grown := make([]byte, len(body), min(2*cap(body), maxBodyBytes+1)) // no more than it has room for, and its end
			copy(grown, body)
			clear(body)
			body = grown
		}
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case len(body) > maxBodyBytes:
			return body, errTooLarge
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return body, err
		}
	}
}

// pieceBytes is less than what net/http buffers. It copies such a piece before
// Write returns. Of a larger one HTTP/2 may still read when the client resets the
// stream, and Write has returned because of that.
const pieceBytes = 2 << 10

// writeSecret writes an answer and wipes it.
func writeSecret(w io.Writer, answer []byte) {
	defer clear(answer)
	for rest := answer; len(rest) > 0; {
		n, err := w.Write(rest[:min(len(rest), pieceBytes)])
		if err != nil {
			return // the client has gone
		}
		rest = rest[n:]
	}
}
