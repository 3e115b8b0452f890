package hsm

import (
	"context"
	"time"
)

// State is what an operator sees of a token's life.
type State string

// The states of a token.
const (
	StateStarting State = "starting" // the first connection is being made
	StateReady    State = "ready"    // connected, logged in, canary green
	StateDegraded State = "degraded" // serves, but has no canary key, so that its health is not proven
	StatePaused   State = "paused"   // calls wait while the supervisor mends the connection
	StateDown     State = "down"     // calls fail at once
	StateClosed   State = "closed"
)

type phase uint8

const (
	phaseStarting phase = iota
	phaseServing
	phasePaused
	phaseDown
	phaseClosed // final
)

// state is one immutable state of a token. A new one replaces it, and closes changed.
type state struct {
	phase   phase
	reason  error // why Ready is not nil; matches ErrUnavailable
	since   time.Time
	conn    *conn // not nil where serving
	changed chan struct{}
}

// public is the state as operators see it.
func (s *state) public() State {
	switch s.phase {
	case phaseStarting:
		return StateStarting
	case phaseServing:
		if s.reason != nil {
			return StateDegraded
		}
		return StateReady
	case phasePaused:
		return StatePaused
	case phaseClosed:
		return StateClosed
	}
	return StateDown
}

// setDown lets calls fail at once. A closed token stays closed, and a state that says the same is kept.
func (t *Token) setDown(reason error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setStateLocked(phaseDown, reason, nil)
}

// serve puts the connection into service, unless a worker has just found it unusable: a canary that was asked before must not hide that.
func (t *Token) serve(reason error, c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost != c {
		t.setStateLocked(phaseServing, reason, c)
	}
}

func (t *Token) setStateLocked(p phase, reason error, c *conn) {
	old := t.state.Load()
	if old.phase == phaseClosed {
		return
	}
	if old.phase == p && old.conn == c && errorText(old.reason) == errorText(reason) {
		return
	}
	next := &state{phase: p, reason: reason, since: t.clock(), conn: c, changed: make(chan struct{})}
	if old.public() == next.public() {
		next.since = old.since
	}
	t.state.Store(next)
	close(old.changed)
	t.obs.State(t.label, next.public(), errorText(reason))
	if old.public() == next.public() && errorText(old.reason) == errorText(reason) {
		return
	}
	if reason == nil {
		t.log.Info("token ready", "state", next.public())
		return
	}
	if p == phaseClosed {
		t.log.Info("token closed")
		return
	}
	t.log.Warn("token not ready", "state", next.public(), "reason", reason.Error())
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// pause makes calls wait, because the module is about to be initialised again; only a token that serves from that epoch is paused.
func (t *Token) pause(epoch uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.state.Load()
	if st.phase == phaseServing && st.conn.epoch == epoch {
		t.setStateLocked(phasePaused, unavailable("PKCS#11 module %s is being initialised again to heal another token", t.mod.path), nil)
	}
}

// markLost reports that a connection cannot be used any more. Calls wait from now on until the supervisor has looked.
func (t *Token) markLost(c *conn, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.state.Load()
	if st.phase != phaseServing || st.conn != c {
		return
	}
	t.lost = c
	t.setStateLocked(phasePaused, unavailable("connection to token %q lost: %w", t.label, err), nil)
	t.nudge()
}

// Ready returns nil when the token serves and its canary is green, and otherwise why not, with the remedy; the error matches ErrUnavailable.
// It never calls the library.
func (t *Token) Ready() error { return t.state.Load().reason }

// WaitReady waits until Ready returns nil. When ctx ends first the error tells both that, and why the token is not ready.
func (t *Token) WaitReady(ctx context.Context) error {
	for {
		st := t.state.Load()
		if st.phase == phaseServing && st.reason == nil {
			return nil
		}
		if st.phase == phaseClosed {
			return st.reason
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
			return &waitError{ctx.Err(), st.reason}
		}
	}
}

// waitError says why a wait ended in vain.
type waitError struct{ ctx, reason error }

func (e *waitError) Error() string   { return e.reason.Error() + " (" + e.ctx.Error() + ")" }
func (e *waitError) Unwrap() []error { return []error{e.ctx, e.reason} }
