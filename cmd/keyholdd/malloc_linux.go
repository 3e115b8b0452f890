package main

import (
	"os"
	"syscall"
)

// mallocTunables make glibc keep freed memory of all usual sizes with the thread
// that freed it. SoftHSM and OpenSSL allocate dozens of small pieces for each
// operation; a batch of 100 encryptions costs a tenth less CPU with this. glibc
// reads it when a process starts, and only there; other C libraries ignore it.
const mallocTunables = "glibc.malloc.tcache_count=2000:glibc.malloc.tcache_max=65536"

// tuneMalloc starts the program again, in the same process and with the same
// arguments, with memory settings for the PKCS#11 library. It returns where they
// are set already, by this or by the operator, and where it is not possible.
func tuneMalloc() {
	const name = "GLIBC_TUNABLES"
	if _, set := os.LookupEnv(name); set {
		return
	}
	program, err := os.Executable()
	if err != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, append(os.Environ(), name+"="+mallocTunables)) //nolint:gosec // the program itself
}
