//go:build unix

package main

import "syscall"

// become runs a program in place of this one: the same process, with the same
// input, output and signals. It returns only if that fails.
func become(program string, argv, environ []string) error {
	return syscall.Exec(program, argv, environ) //nolint:gosec // G204: the caller names a program of the user's
}
