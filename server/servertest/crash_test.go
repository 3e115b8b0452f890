package servertest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

const (
	// crashEnv makes the test binary a daemon that ends itself by SIGKILL at the
	// step it names, "never" for none; see crasher.
	crashEnv = "KEYHOLD_TEST_CRASH"
	// clockEnv is by how much its clock is wrong.
	clockEnv = "KEYHOLD_TEST_CLOCK"
)

// crashingDaemon serves the configuration that is its argument.
func crashingDaemon(step string) error {
	cfg, err := server.LoadConfig(os.Args[1])
	if err != nil {
		return err
	}
	shift, err := time.ParseDuration(os.Getenv(clockEnv))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := server.New(ctx, cfg, server.Options{Logger: server.NewLogger(os.Stderr, cfg.Log), Version: "test", Seams: func(c *kms.Config) {
		at := &crasher{step: step}
		c.Store, c.Journal = crashStore{c.Store, at}, crashJournal{c.Journal, at}
		c.Now = func() time.Time { return time.Now().Add(shift) }
	}})
	if err != nil {
		return err
	}
	defer s.Close(ctx)
	return s.Run(ctx)
}

// crasher ends the process at one step: "before" or "after" a write of the store
// (InsertKey and so on), or an append of the journal, named by what it records
// and which time that is: CreateKey/1 is the intent, CreateKey/2 the outcome.
type crasher struct {
	step    string
	appends atomic.Int64
}

func (c *crasher) at(when, what string) {
	if c.step == when+" "+what {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until it strikes
	}
}

func (c *crasher) around(what string, fn func() error) error {
	c.at("before", what)
	err := fn()
	c.at("after", what)
	return err
}

type crashStore struct {
	kms.Store
	at *crasher
}

func (s crashStore) InsertKey(ctx context.Context, r *kms.KeyRecord) error {
	return s.at.around("InsertKey", func() error { return s.Store.InsertKey(ctx, r) })
}

func (s crashStore) UpdateKey(ctx context.Context, r *kms.KeyRecord) error {
	return s.at.around("UpdateKey", func() error { return s.Store.UpdateKey(ctx, r) })
}

func (s crashStore) DeleteKey(ctx context.Context, id kms.KeyID, revision int64) error {
	return s.at.around("DeleteKey", func() error { return s.Store.DeleteKey(ctx, id, revision) })
}

func (s crashStore) InsertAlias(ctx context.Context, a *kms.AliasRecord) error {
	return s.at.around("InsertAlias", func() error { return s.Store.InsertAlias(ctx, a) })
}

func (s crashStore) UpdateAlias(ctx context.Context, a *kms.AliasRecord) error {
	return s.at.around("UpdateAlias", func() error { return s.Store.UpdateAlias(ctx, a) })
}

func (s crashStore) DeleteAlias(ctx context.Context, a *kms.AliasRecord) error {
	return s.at.around("DeleteAlias", func() error { return s.Store.DeleteAlias(ctx, a) })
}

type crashJournal struct {
	kms.Journal
	at *crasher
}

// Append is kms.Journal's. Only the appends of the operation that the step names
// are counted.
func (j crashJournal) Append(ctx context.Context, class audit.Class, durability audit.Durability, payloads ...[]byte) (seq uint64, err error) {
	_, step, _ := strings.Cut(j.at.step, " ")
	name, _, isAppend := strings.Cut(step, "/")
	if !isAppend || len(payloads) != 1 || !strings.Contains(string(payloads[0]), `"eventName":"`+name+`"`) {
		return j.Journal.Append(ctx, class, durability, payloads...)
	}
	what := fmt.Sprintf("%s/%d", name, j.at.appends.Add(1))
	err = j.at.around(what, func() (err error) {
		seq, err = j.Journal.Append(ctx, class, durability, payloads...)
		return err
	})
	return seq, err
}

// steps of an operation that changes something, in their order. Those with a C_
// are calls of the token, where the library ends the process.
func createSteps() []string {
	return []string{
		"before CreateKey/1", "after CreateKey/1", "before InsertKey", "after InsertKey", "before C_GenerateKeyPair", "after C_GenerateKeyPair",
		"before C_Sign", "before UpdateKey", "after UpdateKey", "before CreateKey/2", "after CreateKey/2",
	}
}

func deleteSteps() []string {
	return []string{
		"before DeleteKey/1", "after DeleteKey/1", "before UpdateKey", "after UpdateKey", "before C_DestroyObject", "after C_DestroyObject",
		"before DeleteKey", "after DeleteKey", "before DeleteKey/2", "after DeleteKey/2",
	}
}

func aliasSteps(operation, write string) []string {
	return []string{
		"before " + operation + "/1", "after " + operation + "/1", "before " + write, "after " + write, "before " + operation + "/2", "after " + operation + "/2",
	}
}

// crashes is a daemon that is killed over and over.
type crashes struct {
	d     *Daemon
	load  *Load
	check *Checker
	clock time.Duration
}

func newCrashes(t *testing.T, change func(*server.Config)) *crashes {
	t.Helper()
	c := &crashes{}
	c.d = New(t, Options{Program: program, Serve: []string{os.Args[0]}, Change: change})
	c.arm("never")
	c.d.Start(t)
	c.load = NewLoad(t, c.d.Dial(t))
	c.check = NewChecker(t, c.d, c.load)
	return c
}

// arm says where the next process ends.
func (c *crashes) arm(step string) {
	c.d.Env = []string{crashEnv + "=" + step, clockEnv + "=" + c.clock.String(), "GORACE=atexit_sleep_ms=0"}
}

// crash lets the daemon, armed with the step, carry fn out, and waits for its
// end. Then it starts it again and checks everything.
func (c *crashes) crash(t *testing.T, step string, fn func(ctx context.Context) error) {
	t.Helper()
	c.d.Stop(t)
	c.arm(step)
	c.d.Start(t)
	if when, call, _ := strings.Cut(step, " "); strings.HasPrefix(call, "C_") {
		c.d.Module.Set(t, call, fault.Fault{Kill: true, After: when == "after"})
	}
	c.d.Connected(t, c.load.c)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := fn(ctx); status.Code(err) != codes.Unavailable {
		t.Errorf("the client of a daemon that died saw %v", err)
	}
	c.restart(t)
}

// restart starts the daemon after it died.
func (c *crashes) restart(t *testing.T) {
	t.Helper()
	c.d.WaitExit(t)
	c.d.Module.ProcessDied()
	c.d.Module.ClearAll()
	c.arm("never")
	began := time.Now()
	c.d.Start(t)
	t.Logf("ready %s after its start", time.Since(began).Round(time.Millisecond))
	c.check.Restarted(t)
	if c.check.Leftovers > 0 {
		c.cleanUp(t)
	}
}

// cleanUp removes what the crash left behind, as an operator would.
func (c *crashes) cleanUp(t *testing.T) {
	t.Helper()
	c.d.Stop(t)
	out, err := c.d.Do(t, "orphans")
	args := []string{"orphans"}
	for line := range strings.Lines(out) {
		if _, rest, ok := strings.Cut(line, " object "); ok && !strings.HasPrefix(line, "record without") {
			id := rest
			if strings.HasPrefix(line, "object without") {
				_, id, _ = strings.Cut(rest, " object ")
			}
			id, _, _ = strings.Cut(strings.TrimPrefix(id, "object "), " ")
			args = append(args, "--destroy", strings.TrimSpace(id))
		}
	}
	if err == nil {
		out, err = c.d.Do(t, args...)
	}
	if err != nil {
		t.Fatalf("keyholdd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	c.d.Start(t)
	c.check.Restarted(t)
	if c.check.Leftovers > 0 {
		t.Errorf("%d leftovers after the clean-up by %q:\n%s", c.check.Leftovers, args, out)
	}
}

// TestKilled ends a daemon by SIGKILL at every step of creating a key, changing an
// alias and deleting a key. What was acknowledged is there afterwards, what was
// not is whole or not there, and what is left over can be cleaned up.
func TestKilled(t *testing.T) {
	t.Parallel()
	c := newCrashes(t, nil)
	for i, step := range createSteps() {
		t.Run("create/"+dashed(step), func(t *testing.T) {
			before := c.keys(t)
			c.crash(t, step, func(ctx context.Context) error {
				// A pair, since its pairwise test has a call that nothing else makes.
				_, err := c.load.CreateKey(ctx, &keyholdv1.CreateKeyRequest{
					KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY,
				})
				return err
			})
			want := before
			if i >= slices.Index(createSteps(), "after UpdateKey") {
				want++ // it is whole, though nobody was told
			}
			if got := c.keys(t); got != want {
				t.Errorf("%d keys, %d before, want %d", got, before, want)
			}
		})
	}
	for _, op := range []struct {
		name, write, target string
		send                func(ctx context.Context) error
	}{
		{"CreateAlias", "InsertAlias", c.load.Base.AES.ID, func(ctx context.Context) error {
			_, err := c.load.c.Keys.CreateAlias(ctx, &keyholdv1.CreateAliasRequest{AliasName: "alias/killed", TargetKeyId: c.load.Base.AES.ID})
			return err
		}},
		{"UpdateAlias", "UpdateAlias", c.load.Base.Other.ID, func(ctx context.Context) error {
			_, err := c.load.c.Keys.UpdateAlias(ctx, &keyholdv1.UpdateAliasRequest{AliasName: "alias/killed", TargetKeyId: c.load.Base.Other.ID})
			return err
		}},
		{"DeleteAlias", "DeleteAlias", "", func(ctx context.Context) error {
			_, err := c.load.c.Keys.DeleteAlias(ctx, &keyholdv1.DeleteAliasRequest{AliasName: "alias/killed"})
			return err
		}},
	} {
		steps := aliasSteps(op.name, op.write)
		for i, step := range steps {
			t.Run("alias/"+dashed(step), func(t *testing.T) {
				c.alias(t, op.name)
				want := c.load.Ledger.Aliases()["alias/killed"][0]
				if i >= slices.Index(steps, "after "+op.write) {
					want = op.target
				}
				c.load.Ledger.AliasChanging("alias/killed", op.target)
				c.crash(t, step, op.send)
				if got := c.load.Ledger.Aliases()["alias/killed"]; len(got) != 1 || got[0] != want {
					t.Errorf("the alias is at %q, want %q", got, want)
				}
			})
		}
	}
	for _, step := range deleteSteps() {
		t.Run("delete/"+dashed(step), func(t *testing.T) { c.deletion(t, step) })
	}
	c.d.Stop(t)
}

// keys counts the keys that clients see.
func (c *crashes) keys(t *testing.T) int {
	t.Helper()
	most := int32(1000)
	resp, err := c.load.c.Keys.ListKeys(t.Context(), &keyholdv1.ListKeysRequest{Limit: &most})
	if err != nil {
		t.Fatal(err)
	}
	return len(resp.GetKeys())
}

func dashed(s string) string { return strings.NewReplacer(" ", "-", "/", "-").Replace(s) }

// alias makes the alias what the operation begins from.
func (c *crashes) alias(t *testing.T, operation string) {
	t.Helper()
	ctx, name := t.Context(), "alias/killed"
	_, err := c.load.c.Keys.DeleteAlias(ctx, &keyholdv1.DeleteAliasRequest{AliasName: name})
	target := ""
	if (err == nil || status.Code(err) == codes.NotFound) && operation != "CreateAlias" {
		target = c.load.Base.AES.ID
		_, err = c.load.c.Keys.CreateAlias(ctx, &keyholdv1.CreateAliasRequest{AliasName: name, TargetKeyId: target})
	}
	if err != nil && status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	c.load.Ledger.AliasChanged(name, target)
}

// deletion kills the daemon while it carries out a deletion that is due, and
// wants the next one to finish it.
func (c *crashes) deletion(t *testing.T, step string) {
	t.Helper()
	ctx := t.Context()
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
	if when, call, _ := strings.Cut(step, " "); strings.HasPrefix(call, "C_") {
		c.d.Module.Set(t, call, fault.Fault{Kill: true, After: when == "after"})
	}
	c.clock += time.Duration(days+1) * 24 * time.Hour
	c.arm(step)
	c.d.Launch(t) // the key is due as soon as it looks
	c.d.WaitExit(t)
	c.d.Module.ProcessDied()
	c.d.Module.ClearAll()
	c.arm("never")
	c.d.Start(t)
	c.gone(t, key)
	c.check.Restarted(t)
	if c.check.Leftovers > 0 {
		t.Errorf("%d leftovers after a deletion", c.check.Leftovers)
	}
}

// gone waits until a key that is due is deleted.
func (c *crashes) gone(t *testing.T, key *Key) {
	t.Helper()
	c.d.until(t, "the key that was due is gone", func() error {
		_, err := c.load.c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: key.ID})
		switch status.Code(err) {
		case codes.NotFound:
			return nil
		case codes.OK:
			return errNotYet
		}
		return err
	})
	c.load.Ledger.Deleted(key)
}
