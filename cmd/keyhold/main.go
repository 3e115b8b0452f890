// Command keyhold is Keyhold's client and operator tool: it makes and manages
// keys, uses them on files and pipes, and verifies the audit log offline.
//
// Commands are a noun and a verb (`keyhold key create`); what is done with a
// key is a verb of its own (`keyhold encrypt`). `keyhold help` lists them.
//
// Scripts may rely on: the names of commands and flags; raw bytes on standard
// output where it is not a terminal; with --output json, the members and
// values of the AWS KMS API; and the exit code, which is 0 for success, 1 for
// failure and 2 for a command line that makes no sense.
//
// It is pure Go and never loads a PKCS#11 library: keys are reached through
// the server only.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is what the build was told: -ldflags '-X main.version=v1.2.3'.
// Nothing else sets it.
var version string

func main() { os.Exit(runMain()) }

// runMain runs the tool until it is done, or was told by a signal to end.
func runMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	// The first signal cancels the call under way, the second ends the program.
	context.AfterFunc(ctx, stop)
	// A terminal that is closed may send two at once, so these end nothing. Under
	// nohup there are to be none.
	if !signal.Ignored(syscall.SIGHUP) {
		var stopHangup context.CancelFunc
		ctx, stopHangup = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stopHangup()
	}
	return run(ctx, os.Args[1:], &app{
		stdin:      os.Stdin,
		stdout:     os.Stdout,
		stderr:     os.Stderr,
		getenv:     os.Getenv,
		isTerminal: isTerminal,
		version:    version,
	})
}
