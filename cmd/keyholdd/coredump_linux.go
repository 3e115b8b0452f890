package main

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// forbidCoreDumps keeps PINs, plaintexts and what the PKCS#11 library holds
// out of core files, and other processes of the user out of this one.
func forbidCoreDumps(log *slog.Logger) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		log.Warn("core dumps not forbidden", "err", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("process not made undumpable", "err", err)
	}
}
