package witness_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/hsm/witness"
)

// TestMain makes the test binary the child when it is told to be.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "witness":
			if err := witness.Main(os.Stdin, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "liar": // answers nothing
			os.Exit(0)
		case "dies":
			fmt.Fprintln(os.Stderr, "a child that dies")
			os.Exit(3)
		case "hangs":
			select {}
		}
	}
	os.Exit(m.Run())
}

func child(t *testing.T, f *hsmtest.Fixture, how string) witness.Child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return witness.Child{Exe: exe, Args: []string{how}, Module: f.Module, PIN: hsm.PINFile(f.PINFile)}
}

func objects(t *testing.T, token *hsm.Token) int {
	t.Helper()
	all, err := token.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestRun(t *testing.T) {
	f := hsmtest.New(t)
	token := f.Open(t)
	before := objects(t, token)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	report, err := witness.Run(ctx, token, child(t, f, "witness"))
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	for _, c := range report.Checks {
		if c.Err != "" || c.Skipped != "" {
			t.Errorf("%s: %s%s", c.Name, c.Err, c.Skipped)
		}
	}
	if len(report.Checks) != 20 || !report.OK() {
		t.Errorf("%d checks, OK %t", len(report.Checks), report.OK())
	}
	if after := objects(t, token); after != before {
		t.Errorf("%d objects before, %d after", before, after)
	}
	if err := token.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

// A child that fails leaves nothing behind, and says why.
func TestRunFailures(t *testing.T) {
	f := hsmtest.New(t)
	token := f.Open(t)
	before := objects(t, token)
	for how, want := range map[string]string{"dies": "a child that dies", "liar": "read length", "hangs": "deadline"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if how == "hangs" {
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		}
		_, err := witness.Run(ctx, token, child(t, f, how))
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: Run = %v, want an error with %q", how, err, want)
		}
	}
	bad := child(t, f, "witness")
	bad.PIN = hsm.PINEnv("KEYHOLD_TEST_NO_SUCH_VARIABLE")
	if _, err := witness.Run(t.Context(), token, bad); err == nil {
		t.Error("Run without a PIN succeeded")
	}
	if after := objects(t, token); after != before {
		t.Errorf("%d objects before, %d after", before, after)
	}
	hsmtest.Close(t, token)
	if _, err := witness.Run(t.Context(), token, child(t, f, "witness")); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("Run on a closed token = %v, want ErrUnavailable", err)
	}
}

func TestMainRefuses(t *testing.T) {
	for name, in := range map[string][]byte{
		"nothing":      nil,
		"half a frame": {0, 0, 0, 9, '{'},
		"huge":         {0xff, 0xff, 0xff, 0xff},
		"no JSON":      {0, 0, 0, 1, 'x', 0, 0, 0, 0},
		"no PIN":       {0, 0, 0, 2, '{', '}'},
	} {
		var out bytes.Buffer
		if err := witness.Main(bytes.NewReader(in), &out); err == nil || out.Len() > 0 {
			t.Errorf("%s: Main = %v with %d bytes of answer", name, err, out.Len())
		}
	}
}
