package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// TestPoolBound: no more sessions than configured, none shared, however many callers there are.
func TestPoolBound(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	w.fault.Set(t, "C_Encrypt", fault.Fault{Slow: time.Millisecond})
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for range 64 {
		wg.Go(func() {
			for range 5 {
				if _, _, err := seal(ctx(t), k); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	if all, _ := w.fault.Sessions(); all > 4+ownSessions {
		t.Errorf("%d sessions are open, want at most %d", all, 4+ownSessions)
	}
	if s := tok.Status(); s.Waiting != 0 || s.Stuck != 0 {
		t.Errorf("status: %+v", s)
	}
}

// occupy makes n calls hang in C_Encrypt and returns when they do. The canary's calls pass: they are on another slot of the fault's view only if
// asked so; here the caller sets a long health interval.
func occupy(t *testing.T, w *world, k *Key, n int) (wait func()) {
	t.Helper()
	w.fault.Hang(t, "C_EncryptInit")
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, _, err := seal(ctx(t), k); err != nil {
				t.Errorf("seal that hung: %v", err)
			}
		})
	}
	until(t, "calls hang", func() bool { return w.fault.Hanging(t, "C_EncryptInit") >= n })
	return wg.Wait
}

// quiet keeps the canary from calling during the test.
func quiet(cfg Config) Config {
	cfg.HealthInterval = time.Hour
	return cfg
}

func TestWaitersObeyContext(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	wait := occupy(t, w, k, 4)
	began := time.Now()
	_, _, err := seal(short(t, 30*time.Millisecond), k)
	wantErr(t, "seal while all sessions are busy", err, context.DeadlineExceeded)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	canceled, cancel := context.WithCancel(context.Background())
	errs := make(chan error)
	go func() {
		_, _, err := seal(canceled, k)
		errs <- err
	}()
	until(t, "the call waits", func() bool { return tok.Status().Waiting == 1 })
	cancel()
	wantErr(t, "seal whose context is canceled", <-errs, context.Canceled)
	if n := tok.Status().Waiting; n != 0 {
		t.Errorf("%d wait, want 0", n)
	}
	w.fault.Clear(t, "C_EncryptInit")
	wait()
	works(t, k)
}

func TestWaitersAreBounded(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxWaiters = 3
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	wait := occupy(t, w, k, 4)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, _, err := seal(ctx(t), k); err != nil {
				t.Errorf("waiter: %v", err)
			}
		})
	}
	until(t, "3 calls wait", func() bool { return tok.Status().Waiting == 3 })
	_, _, err := seal(ctx(t), k)
	wantErr(t, "fourth waiter", err, ErrUnavailable)
	w.fault.Clear(t, "C_EncryptInit")
	wait()
	wg.Wait()
	works(t, k)
}

// TestSessionLimit: the token's own limit counts, with its odd values, and is kept.
func TestSessionLimit(t *testing.T) {
	for _, c := range []struct {
		name    string
		report  uint
		enforce int
		want    int // sessions for cryptography by Status
	}{
		{"reported", 5, 5, 2},
		{"smallest", uint(ownSessions) + 1, ownSessions + 1, 1},
		{"larger than configured", 100, 100, 4},
		{"unknown", ^uint(0), 0, 4},
		{"infinite", 0, 0, 4},
		{"not reported", 0, 5, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, true)
			cfg := quiet(w.token("alpha"))
			w.fault.LimitSessions(c.report, c.enforce)
			tok := w.ready(cfg)
			if n := tok.Status().MaxSessions; n != c.want {
				t.Errorf("MaxSessions %d, want %d", n, c.want)
			}
			k := aesKey(t, tok, "one")
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for range 4 {
						if _, _, err := seal(ctx(t), k); err != nil {
							t.Errorf("seal: %v", err)
						}
					}
				})
			}
			wg.Wait()
			if all, _ := w.fault.Sessions(); c.enforce > 0 && all > c.enforce {
				t.Errorf("%d sessions are open", all)
			}
		})
	}
}

func TestTooFewSessions(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	w.fault.LimitSessions(uint(ownSessions), 0)
	tok := w.open(cfg)
	until(t, "it says so", func() bool {
		return strings.Contains(tok.Status().Reason, fmt.Sprintf("at least %d are needed", ownSessions+1))
	})
	w.fault.LimitSessions(uint(ownSessions)+1, 0)
	check(t, tok.WaitReady(ctx(t)))
}

// TestNoSessionLeft: other programs hold all sessions of the token.
func TestNoSessionLeft(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	w.fault.LimitSessions(0, 1)
	_, _, err := seal(ctx(t), k)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no free session") {
		t.Fatalf("seal: %v", err)
	}
	w.fault.LimitSessions(0, 0)
	works(t, k)
}

func TestTiming(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxSessions = 1
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	w.fault.Set(t, "C_Encrypt", fault.Fault{Slow: 20 * time.Millisecond})
	var tm [3]Timing
	var wg sync.WaitGroup
	for i := range tm {
		wg.Go(func() {
			if _, _, err := seal(WithTiming(ctx(t), &tm[i]), k); err != nil {
				t.Errorf("seal: %v", err)
			}
		})
	}
	wg.Wait()
	var queued time.Duration
	for _, x := range tm {
		if x.Token < 20*time.Millisecond {
			t.Errorf("token time %s, want 20 ms or more", x.Token)
		}
		queued += x.Queue
	}
	if queued < 50*time.Millisecond { // one waited for one, one for two calls
		t.Errorf("queue time of all %s, want about 60 ms", queued)
	}
}
