package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The supervisor's times.
const (
	backoffMin       = 500 * time.Millisecond // between attempts to connect, doubling
	backoffMax       = 3 * time.Second        // a token that is back serves again within 5 s
	reinitBackoffMax = 30 * time.Second       // between initialisations of a module in which another token serves
	neverSeenBackoff = 5 * time.Minute        // the same for a token that this process has never seen
	drainTimeout     = 2 * time.Second        // for calls to leave the library before it is initialised again; all tokens of the module wait meanwhile
	shutTimeout      = 3 * time.Second        // for a dead connection's workers to end before the next one is made
	healthTimeoutMax = 5 * time.Second
	reinitPatience   = 30 * time.Second       // how long the initialisation of a module for a neighbour pauses a token, and not longer
	suspectSpacing   = 100 * time.Millisecond // between canaries that errors asked for: bad ciphertexts must not buy canaries
)

// supervisor keeps one token in service: it connects, looks at the canary, and heals in three steps. A dead session is replaced by its worker.
// When that does not help, the connection is replaced: new sessions, login, handles. When that does not help either, the module is initialised
// again, rarely, since it interrupts every token of the module. All fields belong to the goroutine of run.
type supervisor struct {
	t       *Token
	c       *conn // the connection in use, also while the token is down because of the breaker or a hanging canary
	pins    *pinGuard
	seen    bool          // the token has been found once
	pending chan dialled  // an attempt to connect, or to initialise, that has not returned
	what    string        // what the pending attempt does
	probed  string        // serial number and firmware that the capabilities were proven on
	canary  canarySight   // the last canary that was well
	backoff time.Duration // before the next attempt to connect
	reinit  time.Duration // the same for initialising the module
	reinitT time.Time     // when that may be done again
	moved   bool          // the last look at the canary met a module that was initialised again
	checked time.Time     // when the canary was last asked

	last       *conn     // the connection before the next one; its workers may not have ended
	sweptAt    time.Time // when a connection was last replaced because of sessions that were not closed
	sweptEpoch uint64    // since which initialisation of the module those are counted
}

type dialled struct {
	c   *conn
	err error
}

// canarySight says where a canary was seen: on which token, and since which initialisation of the module. Only a fresh initialisation makes
// SoftHSM look at its folder anew, so only after one is it believed that the token has none any more.
type canarySight struct {
	serial string
	epoch  uint64
}

func newSupervisor(t *Token) *supervisor { return &supervisor{t: t, pins: newPINGuard()} }

// run supervises until the token is closed.
func (s *supervisor) run() {
	defer close(s.t.done)
	for !s.closing() {
		s.step()
		timer := time.NewTimer(s.pause())
		select {
		case <-s.t.stop:
		case <-s.t.wake:
			s.space()
		case <-timer.C:
		}
		timer.Stop()
	}
	s.end()
}

// closing tells whether the token is being closed.
func (s *supervisor) closing() bool {
	select {
	case <-s.t.stop:
		return true
	default:
		return false
	}
}

// pause is how long to wait for the next look.
func (s *supervisor) pause() time.Duration {
	if s.c != nil {
		return s.t.cfg.HealthInterval
	}
	return s.backoff
}

// space waits a little when the canary has just been asked.
func (s *supervisor) space() {
	wait := suspectSpacing - time.Since(s.checked)
	if wait <= 0 || s.c == nil {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.t.stop:
	}
}

// step looks at the token once, and does what it needs.
func (s *supervisor) step() {
	t := s.t
	t.mu.Lock()
	reload, lost := t.reload, t.lost
	t.reload, t.lost = false, nil
	t.mu.Unlock()
	if reload {
		s.pins.reload()
		s.backoff, s.reinit, s.reinitT = 0, 0, time.Time{}
	}
	if s.c != nil {
		switch {
		case lost == s.c || !s.current():
			t.markLost(s.c, fmt.Errorf("PKCS#11 module %s was initialised again", t.mod.path)) // calls wait; they would try the dead connection over and over
			s.drop()
		case s.overdue():
			t.markLost(s.c, errUnclosed)
			s.drop()
		case !s.healthy():
			return
		}
	}
	if s.c == nil {
		s.connect()
	}
}

// current tells whether the connection is of the module's current epoch.
func (s *supervisor) current() bool {
	epoch, ok := s.t.mod.now()
	return ok && epoch == s.c.epoch
}

// healthy asks the canary and sets the state accordingly. It returns false when the connection is kept though it does not serve, because calls
// hang in it; a connection that failed is dropped.
func (s *supervisor) healthy() bool {
	t, c := s.t, s.c
	ctx, cancel := context.WithTimeout(context.Background(), min(t.cfg.CallTimeout, healthTimeoutMax))
	defer cancel()
	s.checked = time.Now()
	err := c.checkCanary(ctx)
	t.noteCanary(err)
	s.moved = errors.Is(err, errMoved)
	switch {
	case t.tripped():
		return false
	case s.moved:
		// The module was initialised again meanwhile, for a neighbour: calls wait for the new connection.
		t.markLost(c, err)
		s.drop()
		return true
	case err != nil && t.mod.pausedFor() > 0 && t.mod.pausedFor() < reinitPatience:
		t.pause(c.epoch)
		return false
	case err == nil:
		s.canary = canarySight{c.info.SerialNumber, c.epoch}
		t.serve(nil, c)
	case errors.Is(err, errNoCanary):
		t.serve(unavailable("token %q has no canary key, so its health cannot be proven: run keyholdd init --config FILE", t.label), c)
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errHangs):
		t.setDown(unavailable("token %q does not answer: the canary's call has not returned from PKCS#11 module %s", t.label, t.mod.path))
		return false
	default:
		t.setDown(fmt.Errorf("canary of token %q: %w", t.label, asUnavailable(err)))
		s.drop()
		return true
	}
	s.backoff, s.reinit = 0, 0
	c.regrow()
	return true
}

// connect replaces the connection. It initialises the module again when that may help and is due.
func (s *supervisor) connect() {
	t := s.t
	err := s.dial()
	if hanging := t.mod.hanging(); err != nil && mayHeal(err) && hanging > 0 {
		// Closing the gate would only make the neighbours wait in vain.
		err = fmt.Errorf("%w; %d calls have not returned from PKCS#11 module %s, so it cannot be initialised again; restart the process if they never do", err, hanging, t.mod.path)
	} else if err != nil && mayHeal(err) && s.mayReinit() {
		t.log.Info("initialising the PKCS#11 module again", "module", t.mod.path, "because", err.Error())
		epoch, _ := t.mod.now()
		rerr := s.attempt("C_Finalize or C_Initialize", func() (*conn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
			defer cancel()
			return nil, t.mod.reinitialise(ctx, epoch, t)
		})
		if errors.Is(rerr, errClosing) {
			return
		}
		t.obs.Initialized(t.label, rerr)
		if rerr != nil {
			err = fmt.Errorf("%w; %w", err, rerr)
		} else {
			err = s.dial()
		}
	}
	if errors.Is(err, errClosing) {
		return
	}
	if err != nil {
		t.setDown(asUnavailable(err))
		s.backoff = min(max(2*s.backoff, min(backoffMin, t.cfg.HealthInterval)), s.backoffMost())
		return
	}
	s.seen = true
}

// errNotReturned is in the reason of a token that is down while an attempt to open it is under way.
var errNotReturned = errors.New("has not returned")

// dial makes a new connection and proves it with the canary.
func (s *supervisor) dial() error {
	for {
		if err := s.attempt("C_Initialize or C_Login", s.t.dialer(s)); err != nil {
			return err
		}
		s.healthy()
		if s.c != nil {
			return nil
		}
		if !s.moved {
			return &deviceError{s.t.state.Load().reason}
		}
	}
}

// attempt runs fn, which may hang in the library, in a goroutine of its own. While it does not return the token is down, and nothing else is
// attempted. It returns errClosing when the token was closed first; fn's connection is shut then.
func (s *supervisor) attempt(what string, fn func() (*conn, error)) error {
	t := s.t
	ch := make(chan dialled, 1)
	s.pending, s.what = ch, what
	go func() {
		c, err := fn()
		ch <- dialled{c, err}
	}()
	slow := time.NewTimer(t.cfg.CallTimeout)
	defer slow.Stop()
	for {
		select {
		case r := <-ch:
			s.pending = nil
			s.c = r.c
			return r.err
		case <-slow.C:
			t.setDown(unavailable("token %q: %s %w from PKCS#11 module %s since %s", t.label, what, errNotReturned, t.mod.path, t.clock().Add(-t.cfg.CallTimeout).UTC().Format(time.RFC3339)))
		case <-t.stop:
			return errClosing
		}
	}
}

var (
	errClosing  = errors.New("hsm: the token is being closed")
	errHangs    = fmt.Errorf("%w: an earlier call still hangs", ErrUnavailable)
	errNoCanary = errors.New("hsm: the token has no canary key")
)

// deviceError is an error of connecting that initialising the module again may mend.
type deviceError struct{ err error }

func (e *deviceError) Error() string { return e.err.Error() }
func (e *deviceError) Unwrap() error { return e.err }

// mayHeal tells whether initialising the module again may help against err.
func mayHeal(err error) bool {
	var d *deviceError
	if errors.As(err, &d) {
		return true
	}
	switch classify(err) {
	case classDevice, classModule, classSession, classHandle, classLogin:
		return true
	}
	return false
}

// mayReinit tells whether the module may be initialised again now, and when not before next time.
func (s *supervisor) mayReinit() bool {
	if time.Now().Before(s.reinitT) {
		return false
	}
	low, most := min(backoffMin, s.t.cfg.HealthInterval), s.backoffMost()
	if s.t.mod.neighbours(s.t) {
		low, most = 2*time.Second, reinitBackoffMax
		if !s.seen {
			most = neverSeenBackoff
		}
	}
	s.reinit = min(max(2*s.reinit, low), most)
	s.reinitT = time.Now().Add(s.reinit)
	return true
}

// backoffMost is the longest pause between attempts: an operator who wants to know the token's health more often also wants it back sooner.
func (s *supervisor) backoffMost() time.Duration { return min(backoffMax, 20*s.t.cfg.HealthInterval) }

// drop gives the connection up, and waits a little for its workers, so that their sessions are free when the next connection needs them.
func (s *supervisor) drop() {
	c := s.c
	s.c, s.last = nil, c
	c.shut()
	timer := time.NewTimer(shutTimeout)
	defer timer.Stop()
	select {
	case <-c.gone:
	case <-timer.C:
		s.t.log.Warn("workers of a lost connection have not ended", "hanging", s.t.stuck.Load())
	}
}

// end closes the connection, as far as the library lets it, and gives the module back.
func (s *supervisor) end() {
	t := s.t
	if s.pending != nil {
		r := <-s.pending // Close's context bounds how long anybody waits for this
		if r.c != nil {
			s.c = r.c
		}
	}
	if s.c != nil {
		s.c.logout.Store(t.mod.alone(t, s.c.slot))
		s.c.shut()
		<-s.c.gone
	}
	t.mod.mu.Lock()
	delete(t.mod.tokens, t)
	t.mod.mu.Unlock()
	t.closeErr = t.mod.release()
}

// trip opens the breaker: too many calls hang. The supervisor closes it when enough of them have returned.
func (t *Token) trip(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st := t.state.Load(); st.conn == c {
		t.setStateLocked(phaseDown, t.trippedReason(), nil)
	}
	t.nudge()
}

// tripped keeps the breaker open while too many calls hang.
func (t *Token) tripped() bool {
	if t.stuck.Load() < int64(t.cfg.MaxStuck) {
		return false
	}
	t.setDown(t.trippedReason())
	return true
}

func (t *Token) trippedReason() error {
	return unavailable("%d or more calls hang in PKCS#11 module %s; token %q is used again when they return, or after a restart", t.cfg.MaxStuck, t.mod.path, t.label)
}

// tokenNotFound words the most frequent trouble.
func tokenNotFound(cfg Config, seen []string) error {
	name := fmt.Sprintf("label %q", cfg.TokenLabel)
	if cfg.TokenLabel == "" {
		name = fmt.Sprintf("serial number %q", cfg.TokenSerial)
	} else if cfg.TokenSerial != "" {
		name += fmt.Sprintf(" and serial number %q", cfg.TokenSerial)
	}
	return &deviceError{fmt.Errorf("token with %s not found in module %s; tokens there: %s", name, cfg.Module, list(seen))}
}
