//go:build !linux

package daemon

import "syscall"

// dieWithParent is nothing here: the system cannot do it.
func dieWithParent() *syscall.SysProcAttr { return nil }
