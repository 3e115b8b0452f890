package servertest

import (
	"fmt"
	"os"
	"testing"
)

// program is keyholdd, built once for all tests of the package.
var program string

func TestMain(m *testing.M) {
	if step := os.Getenv(crashEnv); step != "" {
		if err := crashingDaemon(step); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "keyhold-servertest")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if program, err = Build(dir); err != nil {
		return 0, err
	}
	return m.Run(), nil
}
