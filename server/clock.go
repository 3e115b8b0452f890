package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// clockFile is how an operator confirms the clock of a running daemon: who
// can write into the data folder may. It holds the time that was confirmed.
const clockFile = "clock-confirmed"

// confirmationLifetime is how far the clock may have gone on since it was
// confirmed. A confirmation that nobody needed must not lie in wait for the
// next jump, and one of before a jump says nothing about the clock after it.
const confirmationLifetime = 15 * time.Minute

// ConfirmClock says that the clock, which reads now, is right: deletions that
// are held because it jumped go on. It holds for a quarter of an hour, and once.
func ConfirmClock(cfg *Config, now time.Time) error {
	path := filepath.Join(cfg.DataDir, clockFile)
	// Whole or not at all: the daemon may look at any moment.
	if err := os.WriteFile(path+".new", []byte(now.UTC().Format(time.RFC3339Nano)+"\n"), 0o600); err != nil {
		return fmt.Errorf("confirm the clock: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("confirm the clock: %w", err)
	}
	return nil
}

// clockConfirmed takes a confirmation of the clock, if there is one.
func (s *Server) clockConfirmed() bool {
	if s.cfg.TrustClock {
		return true
	}
	ok, err := takeConfirmation(filepath.Join(s.cfg.DataDir, clockFile), time.Now())
	if err != nil {
		s.log.WarnContext(context.Background(), "confirmation of the clock not accepted", "err", err, "hint", "run `keyholdd confirm-clock --config FILE` again")
	}
	return ok
}

// takeConfirmation removes the confirmation, so that it counts once, and
// reports whether it is of this clock.
func takeConfirmation(path string, now time.Time) (bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := os.Remove(path); err != nil {
		return false, err // it could be used again
	}
	at, err := time.Parse(time.RFC3339Nano+"\n", string(b))
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if age := now.Sub(at); age > confirmationLifetime || age < -confirmationLifetime {
		return false, fmt.Errorf("the clock was confirmed at %s, and it is %s now", at.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return true, nil
}
