//go:build !linux

package main

import (
	"log/slog"
	"syscall"
)

// forbidCoreDumps keeps PINs, plaintexts and what the PKCS#11 library holds
// out of core files.
func forbidCoreDumps(log *slog.Logger) {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		log.Warn("core dumps not forbidden", "err", err)
	}
}
