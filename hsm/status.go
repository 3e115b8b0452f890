package hsm

import (
	"time"

	"github.com/miekg/pkcs11"
)

// Status is a snapshot of a token for operators. It is made without calling the library.
type Status struct {
	State  State
	Reason string // why it is not ready; empty when it is
	Since  time.Time
	Module string

	// As the token said at the last connection; empty before the first.
	Label, Serial, Manufacturer, Model, Firmware string
	PIN                                          PINFlags

	MaxSessions int // for cryptography, as configuration and token allow
	Open        int // sessions open now, the three for Keyhold's own use and those that could not be closed included
	InUse       int // sessions with a call on them now, hanging ones included
	Waiting     int // calls that wait for a session
	Stuck       int // calls that hang in the library
	Evicted     uint64
	Copies      int    // keys that are held as session copies
	Objects     int    // token objects whose handles are known
	Generation  uint64 // how many connections there have been

	CanaryAt  time.Time // when the canary was last asked; zero before the first time
	CanaryErr string    // what it said; empty when it was well

	TokenDir string // the folder whose files are synced; empty for tokens that keep their objects durable themselves
}

// PINFlags are the token's flags about the user's PIN.
type PINFlags struct {
	Initialized, CountLow, FinalTry, Locked, ToBeChanged bool
}

func pinFlags(flags uint) PINFlags {
	return PINFlags{
		Initialized: flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0,
		CountLow:    flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0,
		FinalTry:    flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0,
		Locked:      flags&pkcs11.CKF_USER_PIN_LOCKED != 0,
		ToBeChanged: flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0,
	}
}

// MaxSessions returns how many calls do cryptography at once as the configuration
// has it; the token's own limit may be lower (Status).
func (t *Token) MaxSessions() int { return t.cfg.MaxSessions }

// Status returns a snapshot.
func (t *Token) Status() Status {
	st := t.state.Load()
	t.mu.Lock()
	d := t.details
	t.mu.Unlock()
	s := Status{
		State: st.public(), Reason: errorText(st.reason), Since: st.since, Module: t.cfg.Module,
		InUse: int(t.inUse.Load()), Waiting: int(t.waiting.Load()), Stuck: int(t.stuck.Load()), Evicted: t.evicted.Load(),
		Generation: d.generation, CanaryAt: d.canaryAt, CanaryErr: errorText(d.canaryErr),
	}
	if c := d.conn; c != nil {
		s.Label, s.Serial, s.Manufacturer, s.Model = d.info.Label, d.info.SerialNumber, trimPadding(d.info.ManufacturerID), trimPadding(d.info.Model)
		s.Firmware, s.PIN = versionText(d.info.FirmwareVersion), pinFlags(d.info.Flags)
		s.MaxSessions, s.Open, s.Copies, s.Objects = c.wanted(), int(c.open.Load()+t.unclosed.Load()), c.copies.len(), c.index.len()
		s.TokenDir = c.durable.tokenDir()
	}
	return s
}
