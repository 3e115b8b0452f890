package hsm

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// Token is one PKCS#11 token: its sessions, its keys, and the supervisor that keeps it in service. It is safe for concurrent use.
type Token struct {
	cfg   Config
	label string // what the configuration calls the token, for logs and metrics
	log   *slog.Logger
	obs   Observer
	clock func() time.Time
	mod   *module

	state    atomic.Pointer[state]
	waiting  atomic.Int64 // callers that wait for a session
	inUse    atomic.Int64 // sessions with a call on them
	stuck    atomic.Int64 // calls that hang in the library, over all connections
	evicted  atomic.Uint64
	unclosed atomic.Int64                 // sessions that C_CloseSession did not close, since the module was initialised
	caps     atomic.Pointer[Capabilities] // what the probe proved; nil before the first connection
	wake     chan struct{}                // asks the supervisor to look now; holds one

	mu      sync.Mutex // guards changes of state, and what follows
	lost    *conn      // the connection that a worker found unusable
	reload  bool       // Reload was called
	details details
	closing bool

	keysMu sync.Mutex
	keys   map[keyName]*Key

	stop, done chan struct{}
	closeErr   error // written before done is closed
}

// Open starts to use the token that the configuration names. It fails only when the configuration is wrong. A token that is absent, locked or
// broken gives a Token that is not ready, says why (Ready, Status), and heals by itself.
//
// The caller must Close the token.
func Open(cfg Config, opts Options) (*Token, error) {
	t, err := newToken(cfg, opts)
	if err != nil {
		return nil, err
	}
	go newSupervisor(t).run()
	return t, nil
}

// newToken makes a token without a supervisor, and counts it as a user of its module.
func newToken(cfg Config, opts Options) (*Token, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &Token{
		cfg: cfg, log: opts.Logger, obs: opts.Observer, clock: opts.Now,
		label: cfg.TokenLabel,
		wake:  make(chan struct{}, 1), keys: map[keyName]*Key{}, stop: make(chan struct{}), done: make(chan struct{}),
	}
	if t.label == "" {
		t.label = cfg.TokenSerial
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.log = t.log.With("token", t.label)
	if t.obs == nil {
		t.obs = noObserver{}
	}
	if t.clock == nil {
		t.clock = time.Now
	}
	t.mod = acquireModule(cfg.Module)
	t.state.Store(&state{phase: phaseStarting, reason: unavailable("token %q is being opened", t.label), since: t.clock(), changed: make(chan struct{})})
	t.mod.mu.Lock()
	t.mod.tokens[t] = true
	t.mod.mu.Unlock()
	return t, nil
}

// Close stops accepting calls, waits for those that run, logs out and closes the sessions, and finalizes the module if this was its last token.
// When ctx ends first, or a call hangs in the library, it returns an error and what hangs stays behind until it returns by itself; the library
// is not finalized then. Calling it again returns the same error.
func (t *Token) Close(ctx context.Context) error {
	t.mu.Lock()
	if !t.closing {
		t.closing = true
		t.setStateLocked(phaseClosed, unavailable("token %q is closed", t.label), nil)
		close(t.stop)
	}
	t.mu.Unlock()
	select {
	case <-t.done:
	case <-ctx.Done():
		return ended(ctx, "close token")
	}
	return t.closeErr
}

// Reload tells that the PIN source may have changed, or that the operator mended something: a token that is not ready is tried again now
// instead of at the next interval. A PIN that the token has rejected is still not tried a second time.
func (t *Token) Reload() {
	t.mu.Lock()
	t.reload = true
	t.mu.Unlock()
	t.nudge()
}

// nudge makes the supervisor look now.
func (t *Token) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// suspect asks for the canary, since a call ended in a way that a broken token could explain.
func (t *Token) suspect() { t.nudge() }

// survivesBadTag tells whether the probe proved that a session stays usable after a ciphertext that did not open.
func (t *Token) survivesBadTag() bool {
	c := t.caps.Load()
	return c != nil && c.SessionSurvivesBadTag
}

// proven returns what the probe proved. It waits while the token is being opened, for CallTimeout at most.
func (t *Token) proven(ctx context.Context, call string) (*Capabilities, error) {
	if c := t.caps.Load(); c != nil {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CallTimeout)
	defer cancel()
	if _, err := t.serving(ctx, call); err != nil {
		return nil, err
	}
	return t.caps.Load(), nil
}

// use runs fn on a session for cryptography that it owns meanwhile. call names the operation for metrics.
//
// fn runs on another goroutine, and goes on running after use has returned when ctx ends first: it must not touch memory of the caller. Pass
// copies in and name them in bufs: they are zeroed when fn has run for the last time, or will never run. What fn leaves in captured
// variables may be read only when use returned nil. Secrets are not left there, but handed over (handover).
//
// fn is run a second time, on a fresh session, when the error says that the session, the login or the device was lost; it must be repeatable.
// It reports errors through session.fail, session.initDone and session.authFail. It must not create, find or destroy token objects.
func (t *Token) use(ctx context.Context, call string, fn func(s *session) error, bufs ...[]byte) error {
	if l := t.loanOf(ctx); l != nil {
		nothing := func(context.Context, *conn) (*aim, error) { return &aim{}, nil }
		defer wipeAll(bufs)
		return l.use(ctx, call, nothing, func(s *session, _ *aim) error { return fn(s) })
	}
	return t.run(ctx, laneCrypto, request{call: call, fn: fn, bufs: bufs, repeatable: true})
}

// manage runs fn on the token's one RW session, alone: it is the lock around creating, finding and destroying token objects. When fn returns
// nil the objects that it created or destroyed are made durable before manage does. fn runs at most once. What use says of memory holds here too.
//
// fn should check with ctx of its own now and then if it takes long: it is not interrupted.
func (t *Token) manage(ctx context.Context, call string, fn func(s *session) error) error {
	return t.run(ctx, laneObjects, request{call: call, fn: fn, writes: true})
}

// search runs fn like manage, for finding and reading token objects: nothing is made durable after it, and fn may be run twice.
func (t *Token) search(ctx context.Context, call string, fn func(s *session) error) error {
	return t.run(ctx, laneObjects, request{call: call, fn: fn, repeatable: true})
}

// request is what a caller wants done on a session.
type request struct {
	call       string
	fn         func(s *session) error
	bufs       [][]byte                                   // zeroed in the end
	repeatable bool                                       // fn may run twice
	writes     bool                                       // token objects change: make them durable
	prepare    func(context.Context, *conn) (*aim, error) // finds the object that fn works on; optional
	aim        *aim                                       // what prepare found, of the current attempt
	leave      func() (since time.Time, left bool)        // asked before the caller of a running request gives up; optional
}

// aim is the object that an attempt works on.
type aim struct {
	name objectName
	h    pkcs11.ObjectHandle
	copy *keyCopy // not nil: h is this session copy
	in   *conn

	second *aim // another object that the attempt works on, without a copy; nil where there is none
}

// letGo releases what the current attempt holds.
func (r *request) letGo() {
	if r.aim != nil && r.aim.copy != nil {
		r.aim.in.copies.release(r.aim.copy)
	}
	r.aim = nil
}

// end releases all that the request holds.
func (r *request) end() {
	r.letGo()
	wipeAll(r.bufs)
}

func wipeAll(bufs [][]byte) {
	for _, b := range bufs {
		clear(b)
	}
}

// timeout is the bound on a call on a lane.
func (t *Token) timeout(ln lane) time.Duration {
	if ln == laneObjects {
		return t.cfg.GenerateTimeout
	}
	return t.cfg.CallTimeout
}

// bound is context.WithTimeout for the path of every call: where ctx ends early enough by itself it is returned as it is, which saves a timer.
func bound(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if at, ok := ctx.Deadline(); ok && time.Until(at) <= d {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// run hands a request to a worker of the lane and waits for it, or for ctx. It hands it in again when the connection is replaced before
// somebody took it, and once after the login or the object's handle was lost.
func (t *Token) run(ctx context.Context, ln lane, r request) error {
	ctx, cancel := bound(ctx, t.timeout(ln))
	defer cancel()
	healed, stale := false, 0
	for {
		st, err := t.serving(ctx, r.call)
		if err != nil {
			r.end()
			return err
		}
		left, err := t.attempt(ctx, st, ln, &r)
		if left {
			return err // the worker ends the request
		}
		aim := r.aim
		r.letGo()
		switch cls := classify(err); {
		case errors.Is(err, errMoved):
			continue
		case cls == classLogin || cls == classModule:
			t.markLost(st.conn, err)
			if r.repeatable && !healed {
				healed = true
				continue
			}
		case cls == classHandle && aim != nil:
			aim.stale()
			if stale++; stale < maxStale {
				continue
			}
			t.suspect()
			err = asUnavailable(err) // it has just said that the object is there
		}
		r.end()
		return err
	}
}

// maxStale bounds the handles of one call that the token did not know any more: the session copy's, the one of the token's object, and one that
// was found afresh. A logout takes the first two at once, and one that falls between a search and the use of what it found the third.
const maxStale = 3

// attempt hands the request to a worker once.
func (t *Token) attempt(ctx context.Context, st *state, ln lane, r *request) (left bool, err error) {
	if n := t.waiting.Add(1); n > int64(t.cfg.MaxWaiters) {
		t.waiting.Add(-1)
		return false, unavailable("%d calls already wait for a session of token %q", n-1, t.label)
	}
	if r.prepare != nil {
		if r.aim, err = r.prepare(ctx, st.conn); err != nil {
			t.waiting.Add(-1)
			return false, err
		}
	}
	return st.conn.exec(ctx, ln, *r, st.changed, &t.waiting)
}

// serving returns the state whose connection to use. It waits while the token is being opened or mended, and fails at once when it
// is down.
func (t *Token) serving(ctx context.Context, call string) (*state, error) {
	for {
		if ctx.Err() != nil {
			return nil, ended(ctx, call)
		}
		st := t.state.Load()
		if st.phase == phaseServing {
			return st, nil
		}
		if st.phase != phasePaused && st.phase != phaseStarting {
			return nil, st.reason
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
			return nil, ended(ctx, call)
		}
	}
}
