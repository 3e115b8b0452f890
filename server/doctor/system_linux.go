package doctor

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clockSynchronised asks the kernel, which NTP clients tell (adjtimex(2)).
func clockSynchronised() (synced bool, fact string, err error) {
	var tx unix.Timex // Modes 0: only read
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return false, "", fmt.Errorf("the kernel does not tell: adjtimex: %w", err)
	}
	if state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0 {
		return false, "the kernel says that the clock is not synchronised", nil
	}
	return true, "the kernel says that the clock is synchronised, with an error of at most " + (time.Duration(tx.Maxerror) * time.Microsecond).String(), nil
}
