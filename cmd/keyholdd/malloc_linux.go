package main

import (
	"os"
	"syscall"
)

// mallocTunables make glibc keep more of the freed memory with the thread that
// freed it. SoftHSM and OpenSSL allocate dozens of small pieces for each operation;
// with this each costs some 5 % less CPU time. glibc reads it when a process
// starts, and only there; other C libraries ignore it.
const mallocTunables = "glibc.malloc.tcache_count=2000"

// Variables of the environment.
const (
	tunablesVariable = "GLIBC_TUNABLES"
	// tunedVariable says that this program has set the other one: the loader takes
	// that one away from programs with privileges of their own (file capabilities),
	// which would start again for ever.
	tunedVariable = "KEYHOLD_MALLOC_TUNED"
)

// tuneMalloc starts the program again, in the same process and with the same
// arguments, with memory settings for the PKCS#11 library. It returns where they
// are set already, by this or by the operator, and where it is not possible.
func tuneMalloc() {
	if os.Getenv(tunedVariable) != "" || os.Getenv(tunablesVariable) != "" {
		return
	}
	program, err := os.Executable()
	if err != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, append(os.Environ(), tunablesVariable+"="+mallocTunables, tunedVariable+"=1")) //nolint:gosec // the program itself
}
