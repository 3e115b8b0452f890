package door

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
)

// pipes is a listener that always has another connection.
type pipes struct{ accepted atomic.Int64 }

func (p *pipes) Accept() (net.Conn, error) {
	p.accepted.Add(1)
	a, _ := net.Pipe()
	return a, nil
}
func (p *pipes) Close() error   { return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestConnectionLimit: n connections are open, one more waits, and a place
// that was given back twice is one place.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	const most = 3
	inner := &pipes{}
	l := Limit(inner, most)
	var conns []net.Conn
	for range most {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	conns[0].Close()
	conns[0].Close()
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	// Had it a place, this Accept would return a connection at once.
	result := make(chan error, 1)
	go func() { _, err := l.Accept(); result <- err }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection beyond the limit: %v, want net.ErrClosed", err)
	}
	if n := inner.accepted.Load(); n != most+1 {
		t.Errorf("%d connections were accepted, want %d", n, most+1)
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// refusing is a listener whose Accept fails.
type refusing struct{ pipes }

func (r *refusing) Accept() (net.Conn, error) { return nil, errors.New("no descriptors") }

func TestFailedAcceptKeepsNoPlace(t *testing.T) {
	t.Parallel()
	l := Limit(&refusing{}, 1)
	for range 3 {
		if _, err := l.Accept(); err == nil || errors.Is(err, net.ErrClosed) {
			t.Fatalf("Accept: %v", err)
		}
	}
}
