package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/keyhold/keyhold/server/kms"
)

// clock compares the clock with the last tick that the daemon stored.
func (e *exam) clock(ctx context.Context, live bool) {
	if e.reader == nil {
		e.skip("clock", "", "the store could not be read")
		return
	}
	last, err := e.reader.LastTick(ctx)
	if err != nil {
		fact, remedy := hint(err, "restore the database from a backup")
		e.fail("clock", "", fact, remedy)
		return
	}
	confirm := "check the clock, then run `keyholdd confirm-clock --config " + e.opts.ConfigFile + "`"
	now := e.opts.Now().UTC()
	// Round(0): it is the wall clock that is in question.
	since := now.Round(0).Sub(last)
	fact := fmt.Sprintf("it is %s, the daemon last stored %s", now.Format(time.RFC3339), last.UTC().Format(time.RFC3339))
	switch {
	case last.IsZero():
		e.ok("clock", "", "it is "+now.Format(time.RFC3339)+"; the daemon has not stored a time yet")
	case since < -kms.MaxClockJump:
		e.fail("clock", "", fact+", which is in the future", confirm)
	case since > kms.MaxClockJump && e.cfg.TrustClock:
		e.ok("clock", "", fact+"; trust_clock is set")
	case since > kms.MaxClockJump && live:
		e.warn("clock", "", fact+"; it holds deletions until the clock is confirmed", confirm)
	case since > kms.MaxClockJump:
		e.warn("clock", "", fact+"; it will hold deletions when it starts, until the clock is confirmed", confirm)
	default:
		e.ok("clock", "", fact)
	}
}

// timeSync asks the system whether its clock is kept right, where that is
// cheap to know.
func (e *exam) timeSync() {
	synced, fact, err := clockSynchronised()
	switch {
	case err != nil:
		e.skip("time-sync", "", err.Error())
	case synced:
		e.ok("time-sync", "", fact)
	default:
		e.warn("time-sync", "", fact, "run chrony, systemd-timesyncd or another NTP client; certificates and waiting periods depend on the clock")
	}
}
