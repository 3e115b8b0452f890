package daemon

import "syscall"

// dieWithParent ends the daemon when the test process ends without stopping it:
// by a panic, or when its time runs out.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
