// Package recipes_test runs what docs/clients.md tells people to type, as it
// stands there, and scripts of clients that are no Go, against a real daemon.
package recipes_test

import (
	"os"
	"testing"

	"github.com/keyhold/keyhold/interop/daemon"
)

var running *daemon.Daemon

func TestMain(m *testing.M) {
	os.Exit(daemon.Main(m, func(d *daemon.Daemon) error {
		running = d
		return nil
	}))
}
