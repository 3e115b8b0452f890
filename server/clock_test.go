package server

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestClockConfirmation: a confirmation is for the clock that was looked at,
// counts once, and does not lie in wait for the next jump.
func TestClockConfirmation(t *testing.T) {
	t.Parallel()
	at := time.Date(2031, 5, 6, 7, 8, 9, 10, time.UTC)
	for _, tt := range []struct {
		name string
		now  time.Time
		want bool
	}{
		{"at once", at, true},
		{"as late as may be", at.Add(confirmationLifetime), true},
		{"too late", at.Add(confirmationLifetime + 1), false},
		{"as far back as may be", at.Add(-confirmationLifetime), true},
		{"too far back", at.Add(-confirmationLifetime - 1), false},
		{"after a jump by a year", at.AddDate(1, 0, 0), false},
	} {
		cfg := &Config{DataDir: t.TempDir()}
		if err := ConfirmClock(cfg, at); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(cfg.DataDir, clockFile)
		got, err := takeConfirmation(path, tt.now)
		if got != tt.want || (err == nil) != tt.want {
			t.Errorf("%s: %t, %v, want %t", tt.name, got, err, tt.want)
		}
		if again, err := takeConfirmation(path, at); again || err != nil {
			t.Errorf("%s: a second time: %t, %v", tt.name, again, err)
		}
	}
}

func TestClockConfirmationDamaged(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "yes", "2031-05-06"} {
		path := filepath.Join(t.TempDir(), clockFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if ok, err := takeConfirmation(path, time.Now()); ok || err == nil {
			t.Errorf("%q: %t, %v", text, ok, err)
		}
	}
}
