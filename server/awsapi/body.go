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

// roomFor returns where there must be room for a body of n bytes, -1 if it does not
// say, and how much.
func (s *Server) roomFor(r *http.Request, n int64) (*semaphore.Weighted, int64) {
	if n < 0 {
		return s.room, maxBodyBytes
	}
	if c := connOf(r); c != nil && n <= smallBodyBytes {
		return c.room, n
	}
	return s.room, n
}

// read reads the body, when there is room for it. leave must be called.
func (s *Server) read(ctx context.Context, r *http.Request) (body []byte, leave func(), fault *failure) {
	n := r.ContentLength
	if n > maxBodyBytes {
		return nil, func() {}, requestTooLarge()
	}
	room, size := s.roomFor(r, n)
	ctx, cancel := context.WithTimeout(ctx, s.roomWait)
	defer cancel()
	if room.Acquire(ctx, size) != nil {
		return nil, func() {}, &failure{status: http.StatusServiceUnavailable, code: "ServiceUnavailableException", message: "Too many requests are under way."}
	}
	body, err := readBody(r.Body, n)
	leave = func() {
		clear(body) // there may be a plaintext in it
		room.Release(size)
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
			grown := make([]byte, len(body), 2*cap(body))
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
