package daemon

import (
	"fmt"
	"os"
	"testing"
)

// Main runs a package's tests against a daemon of their own, and returns what
// TestMain ends the process with. prepare is called before the tests.
func Main(m *testing.M, prepare func(*Daemon) error) (code int) {
	d, err := Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := d.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	if err := prepare(d); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
