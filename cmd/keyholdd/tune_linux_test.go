package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tuneTestVariable makes this test's program do as main does, and say what it has.
const tuneTestVariable = "KEYHOLDD_TEST_TUNE"

func init() { //nolint:gochecknoinits // before TestMain, as main would be
	if os.Getenv(tuneTestVariable) == "" {
		return
	}
	tune()
	slack := make(chan int)
	go func() { // on whatever thread the runtime takes
		n, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		slack <- n
	}()
	fmt.Println(<-slack, os.Getenv(tunablesVariable), os.Getpid(), os.Args[1:])
	os.Exit(0)
}

func TestTune(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	plain := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, tunablesVariable+"=") || strings.HasPrefix(v, tunedVariable+"=")
	})
	usual, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		set      string
		slack    int
		tunables string
	}{
		"as it is":                {"", int(timerSlack), mallocTunables},
		"with tunables of others": {tunablesVariable + "=glibc.malloc.check=0", int(timerSlack), "glibc.malloc.check=0"},
		"not wanted":              {tunedVariable + "=0", usual, ""},
	} {
		cmd := exec.Command(program, "an", "argument")
		cmd.Env = append(slices.Clone(plain), tuneTestVariable+"=1")
		if c.set != "" {
			cmd.Env = append(cmd.Env, c.set)
		}
		var stdout strings.Builder
		cmd.Stdout = &stdout
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := fmt.Sprintln(c.slack, c.tunables, cmd.Process.Pid, []string{"an", "argument"}); stdout.String() != want {
			t.Errorf("%s: %q, want %q", name, stdout.String(), want)
		}
	}
}
