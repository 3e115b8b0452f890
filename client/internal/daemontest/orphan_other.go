//go:build !linux

package daemontest

import "syscall"

// dieWithParent is nothing here: the system cannot do it.
func dieWithParent() *syscall.SysProcAttr { return nil }
