package door

import (
	"net"
	"sync"
)

// limited is a listener with at most so many open connections; more wait in
// the kernel's queue. Without it strangers, who need no certificate to open a
// connection, take the file descriptors that journal and database live on. A
// stranger keeps a place for handshakeTimeout at most.
type limited struct {
	net.Listener
	places chan struct{}
	once   sync.Once
	closed chan struct{}
}

// Limit returns l with at most so many connections open at a time.
func Limit(l net.Listener, most int) net.Listener {
	return &limited{Listener: l, places: make(chan struct{}, most), closed: make(chan struct{})}
}

// Accept is net.Listener's.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { <-l.places })}, nil
}

// Close is net.Listener's.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	leave func()
}

// Close is net.Conn's. The place is free once the descriptor is.
func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
