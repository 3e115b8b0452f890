package kms

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// MaxClockJump is how far the clock may be from the last stored tick before
// irreversible work is held.
const MaxClockJump = time.Hour

// errClockHeld keeps irreversible work back.
var errClockHeld = errors.New("the clock jumped; deletions wait until an operator confirms it")

// clockGuard remembers whether the clock is in doubt. A wrong clock must not
// destroy keys: a year forward would end every waiting period at once.
type clockGuard struct {
	mu sync.Mutex // serialises looks at the clock
	// held is read without mu: who watches the service must see something also
	// while the store hangs.
	held atomic.Bool
}

// ClockHeld reports whether deletions wait for the clock to be confirmed.
func (s *Service) ClockHeld() bool {
	return s.clock.held.Load()
}

// checkClock compares the clock with the last tick and stores a new one. A
// jump of more than MaxClockJump in either direction, or as long without the
// service running, holds irreversible work until it is confirmed. While it is
// held no tick is stored, so that a restart does not forget.
func (s *Service) checkClock(ctx context.Context, now time.Time) error {
	s.clock.mu.Lock()
	defer s.clock.mu.Unlock()
	last, err := s.store.LastTick(ctx)
	if err != nil {
		s.log.WarnContext(ctx, "last tick not read, deletions wait", "err", err)
		return err
	}
	// Round(0) drops the monotonic reading: it is the wall clock that is in
	// question.
	jump := now.Round(0).Sub(last)
	if !last.IsZero() && (jump > MaxClockJump || jump < -MaxClockJump) && !s.confirmed() {
		if !s.clock.held.Load() {
			s.log.WarnContext(ctx, "clock differs from the last tick by more than an hour, deletions are held until it is confirmed", "now", now.UTC(), "last_tick", last.UTC(), "hint", "check the clock, then run `keyholdd confirm-clock --config FILE`")
		}
		s.clock.held.Store(true)
		return errClockHeld
	}
	if s.clock.held.Load() {
		s.log.InfoContext(ctx, "clock confirmed, deletions go on", "now", now.UTC())
		s.clock.held.Store(false)
	}
	if err := s.store.Tick(ctx, now); err != nil {
		s.log.WarnContext(ctx, "tick not stored, deletions wait", "err", err)
		return err
	}
	return nil
}
