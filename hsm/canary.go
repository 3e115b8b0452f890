package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// canaryLabel is the label of the canary key, and its CKA_ID too. The key does nothing but show that the token works.
const canaryLabel = "keyhold-canary"

// canary seals and opens on h, the token's object and not a session copy, and compares.
func (s *session) canary(h pkcs11.ObjectHandle) error {
	// With random IVs the 2^32 that one key may have (NIST SP 800-38D, 8.3) last for centuries.
	iv, aad, plaintext := randomBytes(sealIVBytes), []byte(canaryLabel), randomBytes(32)
	sealed, err := s.seal(h, iv, aad, plaintext)
	if err != nil {
		return err
	}
	opened, err := s.open(h, iv, aad, sealed)
	if err != nil {
		return err
	}
	if !bytes.Equal(opened, plaintext) {
		return unavailable("the canary key opened something else than it had sealed")
	}
	return nil
}

// Canary encrypts and decrypts with the token object of the canary key and returns nil when that worked. The supervisor does so all the time
// (see Ready); this is for tools that want to see it themselves. Without a canary key the error matches ErrKeyNotFound.
func (t *Token) Canary(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CallTimeout)
	defer cancel()
	st, err := t.serving(ctx, "Canary")
	if err != nil {
		return err
	}
	err = st.conn.checkCanary(ctx)
	if errors.Is(err, errNoCanary) {
		return fmt.Errorf("%w: the canary, %q: run keyholdd init --config FILE", ErrKeyNotFound, canaryLabel)
	}
	return err
}

// EnsureCanary makes the canary key where the token has none. created tells whether it did. It waits until ctx ends for a token that is being
// opened, which takes as long as it has objects and may be longer than any call. Several processes must not do so at once.
func (t *Token) EnsureCanary(ctx context.Context) (created bool, err error) {
	if err := t.opened(ctx); err != nil {
		return false, err
	}
	if err := t.Canary(ctx); !errors.Is(err, ErrKeyNotFound) {
		return false, err
	}
	_, err = t.Generate(ctx, GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte(canaryLabel), Label: canaryLabel})
	if err != nil {
		return false, fmt.Errorf("make the canary key: %w", err)
	}
	t.nudge() // a token without a canary was not ready
	return true, t.Canary(ctx)
}

// opened waits for an attempt to open the token, and returns why it failed.
func (t *Token) opened(ctx context.Context) error {
	for {
		_, err := t.serving(ctx, "Canary")
		if err == nil || !errors.Is(err, errNotReturned) {
			return err
		}
		st := t.state.Load()
		if st.phase == phaseServing || !errors.Is(st.reason, errNotReturned) {
			continue
		}
		select {
		case <-st.changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}
