package hsm

import (
	"context"
	"time"
)

// OpenOnce is [Open] for tools that look at a token: it connects once and mends nothing. Whatever happens, at most one login is tried.
//
// When it returns nil the token was found, its flags allowed a login, the login was accepted, its objects are listed and its abilities are
// proven; what the canary said Ready tells, and the health is not looked at again. A connection that is lost later stays lost: calls fail with
// ErrUnavailable. Otherwise the error says why the token cannot be used, and nothing needs to be closed. When ctx ends first because the
// library hangs, what hangs stays behind.
//
// The caller must Close the token.
func OpenOnce(ctx context.Context, cfg Config, opts Options) (*Token, error) {
	t, err := newToken(cfg, opts)
	if err != nil {
		return nil, err
	}
	tried := make(chan error, 1)
	go newSupervisor(t).once(tried)
	select {
	case err = <-tried:
	case <-ctx.Done():
		err = &waitError{ctx.Err(), t.Ready()}
	}
	if err == nil {
		return t, nil
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), onceCloseTimeout)
	defer cancel()
	_ = t.Close(closing) // what hangs was reported above
	return nil, err
}

// onceCloseTimeout bounds the clean-up after a token that could not be used.
const onceCloseTimeout = 2 * time.Second

// once connects, tells how that went, and then waits to be closed.
func (s *supervisor) once(tried chan<- error) {
	t := s.t
	defer close(t.done)
	err := s.attempt("C_Initialize or C_Login", t.dialer(s))
	if err == nil {
		s.healthy()
	} else {
		err = unavailable("%w", err)
		t.setDown(err)
	}
	tried <- err
	for !s.closing() {
		select {
		case <-t.stop:
		case <-t.wake:
			s.noteLost()
		}
	}
	s.end()
}

// noteLost takes a connection that calls found unusable out of service.
func (s *supervisor) noteLost() {
	t := s.t
	t.mu.Lock()
	lost := t.lost
	t.lost = nil
	t.mu.Unlock()
	if s.c == nil || lost != s.c {
		return
	}
	t.setDown(t.Ready())
	s.drop()
}
