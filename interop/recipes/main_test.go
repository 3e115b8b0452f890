// Package recipes_test runs what docs/clients.md tells people to type, as it
// stands there, and scripts of clients that are no Go, against a real daemon.
package recipes_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/keyhold/keyhold/interop/daemon"
)

var running *daemon.Daemon

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if running, err = daemon.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if err := running.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		return code
	}())
}
