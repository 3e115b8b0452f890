package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3" // the test makes keys due behind the daemon's back
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// ledger is what the daemon has acknowledged.
type ledger struct {
	mu   sync.Mutex
	keys map[string]*acknowledged // by key id
}

type acknowledged struct {
	blob []byte
	// scheduled is set once ScheduleKeyDeletion was sent: from then on either
	// state is right until its answer is in.
	scheduled, confirmed bool
}

// TestKillDuringCreates ends the daemon with SIGKILL at random moments while
// clients create, use and schedule keys, many times over. Every acknowledged
// key must be there afterwards, open its ciphertext, and be in its state.
func TestKillDuringCreates(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	l := &ledger{keys: make(map[string]*acknowledged)}
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		d := start(t, dir)
		l.check(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		c := d.dial(t)
		for range 4 {
			wg.Go(func() { l.work(ctx, c) })
		}
		// A random moment, from the middle of the first creation on.
		select {
		case <-time.After(time.Duration(20+rand.IntN(400)) * time.Millisecond):
		case <-d.exited:
			t.Fatalf("round %d: the daemon ended: %v\n%s", round, d.err, d.log)
		}
		d.kill()
		cancel()
		wg.Wait()
		verifyAudit(t, dir)
	}
	d := start(t, dir)
	l.check(t, d)
	d.stop(t)
	t.Logf("%d keys acknowledged over %d kills", len(l.keys), rounds)
	if len(l.keys) == 0 {
		t.Error("no key was acknowledged: the test showed nothing")
	}
	checkOrphans(t, dir)
}

// work creates keys until the daemon is gone.
func (l *ledger) work(ctx context.Context, c *client.Client) {
	for ctx.Err() == nil {
		resp, err := c.Keys.CreateKey(ctx, &keyholdv1.CreateKeyRequest{})
		if err != nil {
			return
		}
		id := resp.GetKeyMetadata().GetKeyId()
		key := &acknowledged{}
		l.mu.Lock()
		l.keys[id] = key
		n := len(l.keys)
		l.mu.Unlock()
		if enc, err := c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte(id)}); err == nil {
			key.blob = enc.GetCiphertextBlob()
		}
		if n%3 == 0 {
			key.scheduled = true
			if _, err := c.Keys.ScheduleKeyDeletion(ctx, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id}); err == nil {
				key.confirmed = true
			}
		}
	}
}

// check wants everything that was acknowledged.
func (l *ledger) check(t *testing.T, d *daemon) {
	t.Helper()
	c := d.dial(t)
	for id, key := range l.keys {
		resp, err := c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: id})
		if err != nil {
			t.Errorf("acknowledged key %s: %v", id, err)
			continue
		}
		pending := resp.GetKeyMetadata().GetKeyState() == keyholdv1.KeyState_KEY_STATE_PENDING_DELETION
		if pending && !key.scheduled || !pending && key.confirmed {
			t.Errorf("key %s is %s; deletion sent %t, acknowledged %t", id, resp.GetKeyMetadata().GetKeyState(), key.scheduled, key.confirmed)
		}
		if pending || key.blob == nil {
			continue
		}
		dec, err := c.Crypto.Decrypt(t.Context(), &keyholdv1.DecryptRequest{CiphertextBlob: key.blob})
		if err != nil || string(dec.GetPlaintext()) != id {
			t.Errorf("key %s does not open its ciphertext: %v", id, err)
		}
	}
}

// checkOrphans wants the operator's command to list only creations that were
// never acknowledged, to clean them up, and to find nothing afterwards.
func checkOrphans(t *testing.T, dir string) {
	t.Helper()
	orphans := func(args ...string) string {
		t.Helper()
		args = append([]string{"orphans", "--config", filepath.Join(dir, "keyholdd.yaml")}, args...)
		cmd := exec.Command(binaries.keyholdd, args...)
		var log logBuffer
		cmd.Stderr = &log
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("keyholdd %s: %v\n%s", strings.Join(args, " "), err, &log)
		}
		return string(out)
	}
	list := orphans()
	t.Logf("orphans:\n%s", list)
	if strings.TrimSpace(list) == "no orphans" {
		return
	}
	var args []string
	for line := range strings.Lines(list) {
		if strings.HasPrefix(line, "record without object") {
			t.Errorf("a record without its object: %s", line)
		}
		_, rest, _ := strings.Cut(line, "object ")
		if strings.HasPrefix(line, "object without") {
			_, rest, _ = strings.Cut(rest, "object ")
		}
		id, _, _ := strings.Cut(rest, " ")
		args = append(args, "--destroy", id)
	}
	orphans(args...)
	if list := orphans(); strings.TrimSpace(list) != "no orphans" {
		t.Errorf("after the clean-up:\n%s", list)
	}
}

// TestKillDuringDeletions ends the daemon with SIGKILL while it destroys keys
// that are due. In the end those keys are gone from store and token, and no
// other key is touched.
func TestKillDuringDeletions(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	c := d.dial(t)
	kept, due := &ledger{keys: make(map[string]*acknowledged)}, make(map[string]bool)
	for i := range 160 {
		resp, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		id := resp.GetKeyMetadata().GetKeyId()
		if i%16 == 0 {
			enc, err := c.Crypto.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte(id)})
			if err != nil {
				t.Fatal(err)
			}
			kept.keys[id] = &acknowledged{blob: enc.GetCiphertextBlob()}
			continue
		}
		if _, err := c.Keys.ScheduleKeyDeletion(t.Context(), &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id}); err != nil {
			t.Fatal(err)
		}
		due[id] = true
	}
	d.kill()
	makeDue(t, dir)
	// Each kill falls a moment after the first deletion of its round.
	midway := 0
	for range 5 {
		if pendingKeys(t, dir) == 0 {
			break
		}
		d := launch(t, dir)
		for !strings.Contains(d.log.String(), "key deleted") {
			select {
			case <-d.exited:
				t.Fatalf("the daemon ended: %v\n%s", d.err, d.log)
			case <-t.Context().Done():
				t.Fatal("no key is deleted")
			case <-time.After(time.Millisecond): // deletions follow each other in milliseconds
			}
		}
		time.Sleep(time.Duration(rand.IntN(25)) * time.Millisecond) // a random moment, not a wait for anything
		d.kill()
		if pendingKeys(t, dir) > 0 {
			midway++
		}
	}
	if midway == 0 {
		t.Error("no kill fell between two deletions: the test showed nothing")
	}
	t.Logf("%d kills between deletions", midway)
	d = start(t, dir)
	c = d.dial(t)
	deadline := time.Now().Add(startTimeout)
	for id := range due {
		for {
			_, err := c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: id})
			if status.Code(err) == codes.NotFound {
				break
			}
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("key %s that is due: %v\n%s", id, err, d.log)
			}
		}
	}
	kept.check(t, d)
	d.stop(t)
	verifyAudit(t, dir)
	checkOrphans(t, dir)
}

// pendingKeys counts the keys that wait for their deletion in the database of
// a daemon that does not run.
func pendingKeys(t *testing.T, dir string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(dir, "data", "keyhold.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM keys WHERE state LIKE '%PENDING_DELETION'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// makeDue moves every deletion date into the past.
func makeDue(t *testing.T, dir string) {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(dir, "data", "keyhold.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	past := time.Now().Add(-time.Minute).UnixMicro()
	result, err := db.ExecContext(t.Context(), "UPDATE keys SET deletion_us = ? WHERE state LIKE '%PENDING_DELETION'", past)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		t.Fatal(fmt.Errorf("%d keys made due: %w", n, err))
	}
}
