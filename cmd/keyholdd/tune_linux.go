package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mallocTunables make glibc keep more of the freed memory with the thread that
// freed it. SoftHSM and OpenSSL allocate dozens of small pieces for each operation;
// with this each costs some 5 % less CPU time. glibc reads it when a process
// starts, and only there; other C libraries ignore it.
const mallocTunables = "glibc.malloc.tcache_count=2000"

// timerSlack is how much later than asked for the kernel may wake a thread, in
// order to wake several at once. Go's runtime has a thread that looks, under load
// every 20 microseconds, for calls that block, and with the usual slack of 50
// microseconds was a twelfth of the daemon's CPU time and a third of its context
// switches. What waits here for a time, waits milliseconds. A thread has it from the
// one that made it, and a program from the one that was there before it.
const timerSlack = time.Millisecond

// Variables of the environment.
const (
	tunablesVariable = "GLIBC_TUNABLES"
	// tunedVariable says that this program has tuned itself: the loader takes the
	// other one away from programs with privileges of their own (file capabilities),
	// which would start again for ever. Any value keeps it from being done.
	tunedVariable = "KEYHOLD_TUNED"
)

// tune starts the program again, in the same process and with the same arguments,
// with memory settings for the PKCS#11 library, unless the operator has set some,
// and with the timer slack. It returns in the program that was started so, and
// where it is not possible.
func tune() {
	if os.Getenv(tunedVariable) != "" {
		return
	}
	program, err := os.Executable()
	if err != nil {
		return
	}
	environ := append(os.Environ(), tunedVariable+"=1")
	if os.Getenv(tunablesVariable) == "" {
		environ = append(environ, tunablesVariable+"="+mallocTunables)
	}
	runtime.LockOSThread() // the slack is a thread's
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack.Nanoseconds()), 0, 0, 0)
	_ = syscall.Exec(program, os.Args, environ) //nolint:gosec // the program itself
}
