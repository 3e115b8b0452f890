package tokenbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Whenever it is interrupted, no key of its own stays in the token, and the
// keys of others do.
func TestInterrupted(t *testing.T) {
	f := hsmtest.New(t)
	token := f.Open(t)
	if _, err := token.Generate(t.Context(), hsm.GenerateRequest{Spec: hsm.AES256, Purpose: hsm.PurposeSeal, ID: hsmtest.ID("theirs"), Label: keyLabel}); err != nil {
		t.Fatal(err)
	}
	for stop := 1; stop <= 4; stop++ {
		ctx, cancel := context.WithCancel(t.Context())
		made := 0
		_, err := Run(ctx, Options{
			Token: f.Config(), Ops: Names(), Concurrency: []int{2}, Duration: time.Hour, Payload: 64,
			Notify: func(format string, args ...any) {
				t.Logf(format, args...)
				if made++; made < stop {
					return
				}
				if stop < 4 {
					cancel()
					return
				}
				time.AfterFunc(time.Second, cancel) // while it measures
			},
		})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted after key %d: %v", stop, err)
		}
		objects, err := token.Objects(t.Context())
		if err != nil || len(objects) != 2 { // with the canary
			t.Errorf("interrupted after key %d: %d objects, %v", stop, len(objects), err)
		}
	}
}

// A file that is too short for the measurement is begun anew.
func TestDiskBeginsAnew(t *testing.T) {
	for _, written := range []bool{true, false} {
		f, err := newDiskFile(fmt.Sprintf("%s/%t", t.TempDir(), written), written)
		if err != nil {
			t.Fatal(err)
		}
		f.at = diskFileBytes - 1000
		if err := f.run(t.Context(), make([]byte, 1000), 1); err != nil || f.at != diskFileBytes {
			t.Errorf("the last block: at %d, %v", f.at, err)
		}
		if err := f.run(t.Context(), make([]byte, 1000), 1); err != nil || f.at != 1000 {
			t.Errorf("the first block again: at %d, %v", f.at, err)
		}
		info, err := f.f.Stat()
		if err != nil || info.Size() != diskFileBytes || f.tally.ops != 2 {
			t.Errorf("%d bytes, %d operations, %v", info.Size(), f.tally.ops, err)
		}
		if err := f.f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDiskFails(t *testing.T) {
	if _, err := RunDisk(t.Context(), t.TempDir()+"/none", 1024, time.Second); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := RunDisk(ctx, dir, 1024, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
