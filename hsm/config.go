package hsm

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"
)

// Limits and defaults of a token's configuration.
const (
	DefaultMaxSessions     = 16
	DefaultMaxWaiters      = 1024
	DefaultMaxCopies       = 16384
	DefaultCallTimeout     = 10 * time.Second
	DefaultGenerateTimeout = 60 * time.Second
	DefaultHealthInterval  = 2 * time.Second
	DefaultStuckAfter      = time.Second

	maxSessionsLimit = 512  // each session is a goroutine and, while it calls, a thread: far below Go's 10,000
	maxLabelBytes    = 32   // CK_TOKEN_INFO.label
	maxSerialBytes   = 16   // CK_TOKEN_INFO.serialNumber
	maxPathBytes     = 4096 // module path
)

// Config says which token to use and within which bounds. The zero value of every field but Module, PIN and one of TokenLabel and
// TokenSerial is a sound default.
type Config struct {
	// Module is the absolute path of the PKCS#11 library.
	Module string
	// TokenLabel and TokenSerial name the token; one of them is needed, and where both are given both must match. Slot numbers are no names:
	// they change from one start to the next.
	TokenLabel, TokenSerial string
	// PIN is where the user's PIN is read from, at each login.
	PIN PINSource
	// MaxSessions is how many sessions do cryptography at once. Optional, default 16. The token's own limit lowers it; three more sessions are
	// opened beside these (objects, copies, health).
	MaxSessions int
	// MaxWaiters is how many calls may wait for a session; one more fails at once with ErrUnavailable. Optional, default 1024.
	MaxWaiters int
	// MaxStuck is how many calls may hang in the library before the token refuses further ones. Each but the last gets a replacement session.
	// Optional, default MaxSessions.
	MaxStuck int
	// MaxCopies is how many keys are held as session copies at once, the least recently used go first. Optional, default 16,384: on SoftHSM 9 KB each; negative: off.
	// Copies are only made where the token's probe proved them.
	MaxCopies int
	// CallTimeout is the deadline of a call whose context has no earlier one. Optional, default 10 s.
	CallTimeout time.Duration
	// GenerateTimeout is the same for creating, finding and destroying token objects. Optional, default 60 s.
	GenerateTimeout time.Duration
	// HealthInterval is the period of the canary, which also keeps the token's connection alive. Optional, default 2 s.
	HealthInterval time.Duration
	// StuckAfter is how long a call runs, after its caller has gone, until it counts as hanging. Optional, default 1 s.
	StuckAfter time.Duration
	// TokenDir is the folder in which SoftHSM keeps this token's objects, that Keyhold must sync since SoftHSM does not. Optional: it is found
	// through SoftHSM's own configuration. Other tokens have none and keep their objects durable themselves.
	TokenDir string
	// ProbeCache keeps what the start-up probe found, for tokens on which probing is slow. Optional.
	ProbeCache ProbeCache
}

// Options are what the surroundings lend to a token.
type Options struct {
	// Logger gets what an operator should know; nil discards it.
	Logger *slog.Logger
	// Observer is told what metrics need. Optional.
	Observer Observer
	// Now is the clock of states and their times. Optional, default time.Now. Deadlines and durations always use the monotonic clock.
	Now func() time.Time
}

// withDefaults returns the configuration with defaults filled in, or says what is wrong with it and how to mend it.
func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Module == "":
		return c, errors.New("hsm: no PKCS#11 module: name the library's path (module-path in a pkcs11: URI)")
	case len(c.Module) > maxPathBytes:
		return c, fmt.Errorf("hsm: the module's path is longer than %d bytes", maxPathBytes)
	case !filepath.IsAbs(c.Module):
		return c, fmt.Errorf("hsm: module %q: give the absolute path of the library; a bare name would be searched for in folders that others may write", c.Module)
	case c.TokenLabel == "" && c.TokenSerial == "":
		return c, errors.New("hsm: name the token by its label or its serial number; slot numbers change and are not accepted")
	case len(c.TokenLabel) > maxLabelBytes:
		return c, fmt.Errorf("hsm: token label %q is longer than %d bytes", c.TokenLabel, maxLabelBytes)
	case len(c.TokenSerial) > maxSerialBytes:
		return c, fmt.Errorf("hsm: token serial number %q is longer than %d bytes", c.TokenSerial, maxSerialBytes)
	case c.PIN.kind == pinNone:
		return c, errors.New("hsm: no source for the PIN: name a file, an environment variable or a systemd credential (pin-source in a pkcs11: URI)")
	case c.TokenDir != "" && !filepath.IsAbs(c.TokenDir):
		return c, fmt.Errorf("hsm: token folder %q: give an absolute path", c.TokenDir)
	}
	for _, n := range []struct {
		name      string
		v         *int
		def, most int
	}{
		{"MaxSessions", &c.MaxSessions, DefaultMaxSessions, maxSessionsLimit},
		{"MaxWaiters", &c.MaxWaiters, DefaultMaxWaiters, 1 << 20},
		{"MaxCopies", &c.MaxCopies, DefaultMaxCopies, 1 << 20},
	} {
		if *n.v == 0 {
			*n.v = n.def
		}
		if *n.v < 0 && n.name == "MaxCopies" {
			continue
		}
		if *n.v < 1 || *n.v > n.most {
			return c, fmt.Errorf("hsm: %s is %d: use 1 to %d", n.name, *n.v, n.most)
		}
	}
	if c.MaxStuck == 0 {
		c.MaxStuck = c.MaxSessions
	}
	if c.MaxStuck < 1 || c.MaxStuck > maxSessionsLimit {
		return c, fmt.Errorf("hsm: MaxStuck is %d: use 1 to %d", c.MaxStuck, maxSessionsLimit)
	}
	for _, d := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
	}{
		{"CallTimeout", &c.CallTimeout, DefaultCallTimeout},
		{"GenerateTimeout", &c.GenerateTimeout, DefaultGenerateTimeout},
		{"HealthInterval", &c.HealthInterval, DefaultHealthInterval},
		{"StuckAfter", &c.StuckAfter, DefaultStuckAfter},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 0 {
			return c, fmt.Errorf("hsm: %s is %s: use a positive duration", d.name, *d.v)
		}
	}
	return c, nil
}

// Check returns nil where Open would accept the configuration, else what is wrong and how to mend it. It touches nothing that the
// configuration names.
func (c Config) Check() error {
	if _, err := c.withDefaults(); err != nil {
		return err
	}
	return c.PIN.check()
}
