package hsm

import (
	"errors"
	"time"

	"github.com/miekg/pkcs11"
)

// A session that C_CloseSession does not close is still there, and counts against the token's limit. It is counted (Status.Open), and ended with
// the connection: all sessions with the token are closed at once before the next connection is made. That is not tried again by handle: the call
// may have closed the session and failed afterwards, and the handle may be another session's by now.

const (
	maxUnclosed   = 16          // sessions that were not closed until the connection is replaced because of them
	unclosedPause = time.Minute // between two connections that are replaced for that reason
)

// endSession closes a session that nobody uses any more.
func (c *conn) endSession(h pkcs11.SessionHandle) {
	err := callError("C_CloseSession", c.p.CloseSession(h))
	if err == nil || isCode(err, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		return // it is gone
	}
	c.t.unclosed.Add(1)
	c.t.log.Warn("a session was not closed", "err", err)
}

// overdue tells whether the connection has to be replaced for the sake of sessions that were not closed.
func (s *supervisor) overdue() bool {
	if s.t.unclosed.Load() < maxUnclosed || time.Since(s.sweptAt) < unclosedPause {
		return false
	}
	s.sweptAt = time.Now()
	return true
}

// sweep closes all sessions with the token before a connection of the epoch is made, where some were not closed. It must be sure that nobody is
// on one of them: neither a worker of the last connection nor another Token of this process. It may hang with the library.
func (s *supervisor) sweep(epoch uint64, slot uint) {
	t := s.t
	if epoch != s.sweptEpoch {
		s.sweptEpoch = epoch
		t.unclosed.Store(0) // C_Finalize closed them
	}
	n := t.unclosed.Load()
	if n == 0 || t.stuck.Load() > 0 || s.last != nil && !s.last.ended() || !t.mod.only(t, slot) {
		return
	}
	err := callError("C_CloseAllSessions", t.mod.p.CloseAllSessions(slot))
	if err != nil {
		t.log.Warn("sessions that were not closed stay open", "sessions", n, "err", err)
		return
	}
	t.unclosed.Add(-n)
	t.log.Info("sessions that were not closed have been closed", "sessions", n)
}

// ended tells whether the connection's last worker has ended.
func (c *conn) ended() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// only tells whether nobody else in this process can have a session on the slot. A token that is not connected might be about to.
func (m *module) only(t *Token, slot uint) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for o := range m.tokens {
		o.mu.Lock()
		c := o.details.conn
		o.mu.Unlock()
		if o != t && (c == nil || c.epoch != m.epoch || c.slot == slot) {
			return false
		}
	}
	return !m.foreign
}

var errUnclosed = errors.New("hsm: too many sessions were not closed")
