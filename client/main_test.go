package client_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/client/internal/daemontest"
)

// TestMain runs a real daemon for the tests that want one and for the examples,
// which find it in the environment.
func TestMain(m *testing.M) {
	daemon, err := daemontest.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(func(code int) {
		if err := daemon.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// dialReal connects to the daemon.
func dialReal(tb testing.TB) *client.Client {
	tb.Helper()
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// isException tells the service's exceptions apart.
func isException(err error, name string) bool {
	e, ok := client.ErrorFrom(err)
	return ok && e.Exception == name
}
