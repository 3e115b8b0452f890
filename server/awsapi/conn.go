package awsapi

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// conn is what the door remembers of a connection.
type conn struct {
	// small is of connRoomBytes, for small bodies; large, of connLargeBytes, is this
	// connection's part in the room for all others.
	small, large *semaphore.Weighted
	// used is when a caller last authenticated on it, at first when it was accepted:
	// in nanoseconds after the Server was made.
	used atomic.Int64
}

// connKey is that of a connection's *conn in the contexts of its requests.
type connKey struct{}

// withConn is http.Server's ConnContext.
func (s *Server) withConn(ctx context.Context, _ net.Conn) context.Context {
	c := &conn{small: semaphore.NewWeighted(connRoomBytes), large: semaphore.NewWeighted(connLargeBytes)}
	c.used.Store(s.age())
	return context.WithValue(ctx, connKey{}, c)
}

// connOf returns what is remembered of a request's connection; nil: it has none, as in
// tests.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// age is how long ago the Server was made, whatever becomes of the wall clock.
func (s *Server) age() int64 { return int64(s.cfg.Now().Sub(s.began)) }

// noteUse notes that a caller has authenticated on a connection.
func (s *Server) noteUse(r *http.Request) {
	if c := connOf(r); c != nil {
		c.used.Store(s.age())
	}
}

// keepsStranger tells whether the connection is kept after a request that did not
// authenticate.
//
// Of HTTP/1.1 it is not: the body would have to be read before the next request, and
// the connection is nobody else's. HTTP/2 resets the stream, whose body is dropped, and
// other callers may be on the connection. GOAWAY would be an error for them: what they
// send before they see it is not looked at, and many clients cannot send it again. So
// it is sent only if the connection would be closed without that request as well, had it
// been idle. That one is no use of a connection, or strangers could keep all there are.
func (s *Server) keepsStranger(r *http.Request) bool {
	c := connOf(r)
	return c != nil && r.ProtoMajor >= 2 && time.Duration(s.age()-c.used.Load()) < idleTimeout
}
