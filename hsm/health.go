package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// checkCanary encrypts and decrypts with the canary key's token object, on a session that is kept for this. It must be the token's object: a
// session copy works on when the token is gone. It returns errNoCanary when the token has no such key, which also happens when SoftHSM's
// folder has gone and the canary was never seen on this connection.
func (c *conn) checkCanary(ctx context.Context) error {
	h := pkcs11.ObjectHandle(c.canary.Load())
	if h == 0 {
		switch err := c.findCanary(ctx); {
		case errors.Is(err, errBusy) && c.canarySeen.Load():
			return err // it was there: nobody knows now whether the token still shows its objects
		case errors.Is(err, errBusy):
			return errNoCanary // a large key is being generated, say: no sign of bad health
		case err != nil:
			return err
		}
		if h = pkcs11.ObjectHandle(c.canary.Load()); h == 0 {
			// Whoever looked first has forgotten the stale handle already; that makes the token no emptier.
			if c.canarySeen.Load() {
				return unavailable("the canary key has disappeared")
			}
			return errNoCanary
		}
	}
	err := c.canaryOn(ctx, h)
	if classify(err) != classHandle {
		return err
	}
	// Made anew by another process, or gone with the token. A canary that was here and is not any more is bad news, not an empty token.
	c.canary.CompareAndSwap(uint64(h), 0)
	if err := c.findCanary(ctx); err != nil {
		return err
	}
	if h = pkcs11.ObjectHandle(c.canary.Load()); h == 0 {
		return unavailable("the canary key has disappeared: %w", err)
	}
	return c.canaryOn(ctx, h)
}

// canaryOn runs the canary on one handle.
func (c *conn) canaryOn(ctx context.Context, h pkcs11.ObjectHandle) error {
	err := c.ask(ctx, laneCanary, "Canary", func(s *session) error { return s.canary(h) })
	if errors.Is(err, ErrAuthentication) {
		return unavailable("the token did not open what it had sealed just before")
	}
	return err
}

// findCanary looks for the canary key.
func (c *conn) findCanary(ctx context.Context) error {
	return c.ask(ctx, laneObjects, "FindCanary", func(s *session) error {
		found, err := s.find(canaryTemplate(), 1)
		if err == nil && len(found) > 0 {
			c.sawCanary(found[0])
		}
		return err
	})
}

// sawCanary keeps the canary key's handle.
func (c *conn) sawCanary(h pkcs11.ObjectHandle) {
	c.canarySeen.Store(true)
	c.canary.Store(uint64(h))
}

// ask runs fn on one of the connection's own lanes, whatever state the token is in. It returns errBusy when nobody took the job before ctx
// ended.
func (c *conn) ask(ctx context.Context, ln lane, call string, fn func(*session) error) error {
	var queue atomic.Int64 // these are not callers that wait for a session
	left, err := c.exec(ctx, ln, request{call: call, fn: fn, repeatable: true}, nil, &queue)
	if !left && err != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	return err
}

var errBusy = errors.New("hsm: the worker is busy with another call")

// canaryTemplate finds the canary key.
func canaryTemplate() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, canaryLabel),
	}
}

// noteCanary keeps the canary's outcome for Status.
func (t *Token) noteCanary(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.details.canaryAt = t.clock()
	t.details.canaryErr = err
}

// noteConnected keeps what is known of the token for Status.
func (t *Token) noteConnected(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.details.info = c.info
	t.details.generation++
	t.details.conn = c
}

// details are what Status tells beside the state. They are guarded by Token.mu.
type details struct {
	info       pkcs11.TokenInfo
	conn       *conn
	generation uint64
	canaryAt   time.Time
	canaryErr  error
}
