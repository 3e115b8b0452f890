package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/storetest"
)

const (
	// crashDirEnv names the data folder to a child process that shall write to
	// it until it is killed.
	crashDirEnv = "KEYHOLD_TEST_CRASH_DIR"
	// lookDirEnv names it to one that shall look at it, as doctor does.
	lookDirEnv = "KEYHOLD_TEST_LOOK_DIR"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		fmt.Fprintln(os.Stderr, crashChild(dir))
		os.Exit(1) // it never ends by itself
	}
	if dir := os.Getenv(lookDirEnv); dir != "" {
		if err := lookChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// lookChild prints the ids of the keys.
func lookChild(dir string) error {
	ctx := context.Background()
	r, err := OpenReadOnly(ctx, dir, Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	snap, err := r.Snapshot(ctx)
	if err != nil {
		return err
	}
	for _, k := range snap.Keys {
		fmt.Println(k.ID)
	}
	return r.Check(ctx)
}

func crashChild(dir string) error {
	ctx := context.Background()
	s, err := openOrCreate(ctx, dir)
	if err != nil {
		return err
	}
	return storetest.CrashWriter(ctx, s, os.Stdout)
}

// openOrCreate is for tests alone: the program never makes a store silently.
func openOrCreate(ctx context.Context, dir string) (*Store, error) {
	s, err := Open(ctx, dir, Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return Create(ctx, dir, Options{})
	}
	return s, err
}

// newStore returns a new store that t closes.
func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Create(t.Context(), filepath.Join(t.TempDir(), "data"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	storetest.Test(t, func(t *testing.T) kms.Store { return newStore(t) })
}

func TestAccessKeys(t *testing.T) {
	storetest.TestAccessKeys(t, func(t *testing.T) identity.AccessKeyStore { return newStore(t) })
}

func TestDurable(t *testing.T) {
	storetest.TestDurable(t, func(t *testing.T, dir string) kms.Store {
		s, err := openOrCreate(t.Context(), filepath.Join(dir, "data"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// TestKill kills a writing process again and again, and looks each time for
// what it had been told was stored.
func TestKill(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	dir := filepath.Join(t.TempDir(), "data")
	log := storetest.NewCrashLog()
	total := 0
	for range rounds {
		// At least one life of a key, so that each kind of write is met.
		total += killWriter(t, dir, log, 1+rand.IntN(120))
		s, err := Open(t.Context(), dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		log.Check(t, s)
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d processes killed, %d writes acknowledged, %s", rounds, total, log)
}

// killWriter starts a writer and kills it after so many acknowledged writes.
// It returns how many there were.
func killWriter(t *testing.T, dir string, log *storetest.CrashLog, after int) (acknowledged int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ack, err := log.Note(line)
		if err != nil {
			t.Fatal(err)
		}
		if !ack {
			continue
		}
		if acknowledged++; acknowledged == after {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the writer ended by itself: %v", err)
	}
	return acknowledged
}
