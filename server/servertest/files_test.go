package servertest

import (
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
)

// TestDamagedFiles spoils what the daemon keeps on the disk while it does not run.
// It refuses to start and says why, changes nothing, and goes on with everything
// that it acknowledged once the files are back as they were.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	f.load.Stop()
	f.check.CheckAll(t)
	f.d.Stop(t)
	segment := lastSegment(t, f.d.Settings.Audit.Dir)
	database := filepath.Join(f.d.Settings.DataDir, "keyhold.db")
	for _, c := range damages() {
		t.Run(c.name, func(t *testing.T) {
			path := database
			if strings.HasPrefix(c.name, "journal") {
				path = segment
			}
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(t, path, whole)
			spoilt, err := os.ReadFile(path)
			if err != nil || bytes.Equal(spoilt, whole) {
				t.Fatalf("nothing was spoilt: %v", err)
			}
			said := len(f.d.Log.String())
			f.d.Launch(t)
			f.d.WaitExit(t)
			if text := f.d.Log.String()[said:]; f.d.err == nil || !strings.Contains(text, c.says) {
				t.Errorf("the daemon ends with %v and says %q, want %q in it", f.d.err, text, c.says)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, spoilt) {
				t.Errorf("the damaged file was changed: %v", err)
			}
			if out, err := f.d.Do(t, "doctor", "--no-witness"); err == nil {
				t.Errorf("doctor finds nothing:\n%s", out)
			}
			writeFile(t, path, whole)
			began := time.Now()
			f.d.Start(t)
			t.Logf("ready %s after its start", time.Since(began).Round(time.Millisecond))
			f.check.Restarted(t)
			f.d.Stop(t)
		})
	}
}

// damage is done to a file.
type damage struct {
	name  string
	spoil func(t *testing.T, path string, whole []byte)
	says  string // when the daemon refuses
}

func damages() []damage {
	flip := func(t *testing.T, path string, whole []byte, at int) {
		t.Helper()
		b := bytes.Clone(whole)
		b[at] ^= 1
		writeFile(t, path, b)
	}
	return []damage{
		{"journal-truncated", func(t *testing.T, path string, whole []byte) {
			// In the middle of what was acknowledged.
			writeFile(t, path, whole[:bytes.LastIndex(whole, []byte(`"eventName":"`))-2000])
		}, "audit journal"},
		{"journal-bit-flipped", func(t *testing.T, path string, whole []byte) {
			flip(t, path, whole, bytes.LastIndex(whole, []byte(`"eventName":"`)))
		}, "audit journal"},
		{"database-bit-flipped", func(t *testing.T, path string, whole []byte) {
			flip(t, path, whole, bytes.Index(whole, []byte("KEY_STATE_ENABLED"))+len("KEY_STATE_E"))
		}, "store"},
		{"database-truncated", func(t *testing.T, path string, whole []byte) {
			writeFile(t, path, whole[:len(whole)/2])
		}, "store"},
		{"database-newer", func(t *testing.T, path string, _ []byte) {
			db, err := sql.Open("sqlite3", path)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var version int
			if err := db.QueryRowContext(t.Context(), "PRAGMA user_version").Scan(&version); err != nil {
				t.Fatal(err)
			}
			if _, err := db.ExecContext(t.Context(), fmt.Sprintf("PRAGMA user_version = %d; PRAGMA wal_checkpoint(TRUNCATE)", version+1)); err != nil {
				t.Fatal(err)
			}
		}, "newer"},
	}
}

// TestDisks lets the disks of the journal and of the database fill up under load.
func TestDisks(t *testing.T) {
	t.Parallel()
	audit, data := SmallDisk(t, "24m"), SmallDisk(t, "3m")
	f := newFixture(t, func(c *server.Config) {
		c.Audit.Dir, c.Audit.SegmentBytes, c.DataDir = filepath.Join(audit, "audit"), 256<<10, filepath.Join(data, "data")
	})
	defer f.end(t)
	away := []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Internal}
	for _, c := range diskRows() {
		t.Run(c.name, func(t *testing.T) {
			disk := map[string]string{"journal": audit, "database": data}[c.of]
			f.load.Allow(away...)
			fillDisk(t, disk)
			f.d.until(t, c.refused+" is refused", func() error {
				switch code := status.Code(f.try(op(c.refused), callDeadline)); code {
				case codes.OK:
					return errNotYet // there is room that was allocated before
				case codes.Unavailable, codes.Internal:
					return nil
				default:
					return fmt.Errorf("%s ends with %s", c.refused, code)
				}
			})
			for _, name := range c.served {
				if err := f.try(op(name), callDeadline); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			emptyDisk(t, disk)
			f.serves(t, c.name, operations()...)
			f.over(t)
		})
	}
}

// diskRow is a disk that fills up.
type diskRow struct {
	name, of string
	served   []string // all the time
	refused  string
}

func diskRows() []diskRow {
	return []diskRow{
		{"journal-disk-full", "journal", nil, "encrypt"},
		{"database-disk-full", "database", []string{"encrypt", "decrypt", "sign", "mac", "random"}, "generate key"},
	}
}

// fillDisk leaves no byte.
func fillDisk(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); !strings.Contains(fmt.Sprint(err), syscall.ENOSPC.Error()) {
		t.Fatalf("filling the disk: %v", err)
	}
}

func emptyDisk(t *testing.T, disk string) {
	t.Helper()
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
}

// zeros is an endless file.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestClock starts a daemon whose clock is two days ahead, then two days behind. A
// key that is due, or was, is not destroyed until an operator has confirmed the
// clock; everything else goes on.
func TestClock(t *testing.T) {
	t.Parallel()
	c := newCrashes(t, func(cfg *server.Config) { cfg.TrustClock = false })
	ctx := t.Context()
	for _, shift := range []struct {
		name  string
		clock time.Duration
	}{{"clock-forward", 8 * 24 * time.Hour}, {"clock-backward", -8 * 24 * time.Hour}} {
		t.Run(shift.name, func(t *testing.T) {
			key, err := c.load.CreateKey(ctx, &keyholdv1.CreateKeyRequest{})
			if err != nil {
				t.Fatal(err)
			}
			days := int32(7)
			if _, err := c.load.c.Keys.ScheduleKeyDeletion(ctx, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: key.ID, PendingWindowInDays: &days}); err != nil {
				t.Fatal(err)
			}
			c.load.Ledger.Changed(key, keyholdv1.KeyState_KEY_STATE_PENDING_DELETION)
			c.d.Stop(t)
			c.clock += shift.clock
			c.arm("never")
			c.d.Start(t)
			c.held(t, 1)
			c.check.Restarted(t) // the key is there, and all others do what they are for
			if out, err := c.d.Do(t, "confirm-clock"); err != nil {
				t.Fatalf("confirm-clock: %v\n%s", err, out)
			}
			c.d.Stop(t) // the next start looks at once
			c.d.Start(t)
			c.held(t, 0)
			if shift.clock > 0 {
				c.gone(t, key)
			}
			c.check.Restarted(t)
		})
	}
	c.d.Stop(t)
}

// held waits until the daemon says whether its clock is in doubt.
func (c *crashes) held(t *testing.T, want float64) {
	t.Helper()
	c.d.until(t, "the clock is judged", func() error {
		m, err := c.d.Metrics()
		if err == nil && m["keyhold_clock_held"] != want {
			err = fmt.Errorf("keyhold_clock_held is %v, want %v", m["keyhold_clock_held"], want)
		}
		return err
	})
}
