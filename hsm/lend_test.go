package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// sealing is one call under a loan, and what came of it.
type sealing struct {
	iv, sealed []byte
	err        error
}

// sealUnder seals n times under a context.
func sealUnder(c context.Context, k *Key, n int) []sealing {
	out := make([]sealing, n)
	for i := range out {
		out[i].iv, out[i].sealed, out[i].err = seal(c, k)
	}
	return out
}

// TestLend: calls under a loan do what they do without, on one session, and are counted and timed one by one.
func TestLend(t *testing.T) {
	w := newWorld(t, true)
	calls := &callCounter{}
	tok := w.openWith(quiet(w.token("alpha")), Options{Observer: calls})
	check(t, tok.WaitReady(ctx(t)))
	k := aesKey(t, tok, "one")
	works(t, k)
	var timing Timing
	var done []sealing
	var random []byte
	before := calls.of("Seal")
	if !tok.Lend(WithTiming(ctx(t), &timing), func(c context.Context) {
		done = sealUnder(c, k, 20)
		if tok.Status().InUse != 1 {
			t.Errorf("%d sessions in use, want the lent one", tok.Status().InUse)
		}
		var err error
		random, err = tok.Random(c, 32)
		check(t, err)
	}) {
		t.Fatal("nothing was lent")
	}
	for i, s := range done {
		check(t, s.err)
		if got, err := k.Open(ctx(t), s.iv, testAAD, s.sealed); err != nil || string(got) != "plaintext" {
			t.Errorf("%d opens to %q, %v", i, got, err)
		}
	}
	if n := calls.of("Seal") - before; n != 20 || calls.of("Lend") != 1 || len(random) != 32 {
		t.Errorf("%d calls of Seal and %d of Lend were counted, want 20 and 1", n, calls.of("Lend"))
	}
	if timing.Token <= 0 {
		t.Error("no time was spent in the token")
	}
	// What does not open, and what is not there, costs the loan nothing.
	if !tok.Lend(ctx(t), func(c context.Context) {
		bad := append([]byte{done[0].sealed[0] ^ 1}, done[0].sealed[1:]...)
		_, err := k.Open(c, done[0].iv, testAAD, bad)
		wantErr(t, "open what was changed", err, ErrAuthentication)
		_, _, err = seal(c, tok.Key(AES256, PurposeSeal, []byte("none")))
		wantErr(t, "seal with a key that is not known", err, ErrLoanOver)
		if s := sealUnder(c, k, 1); s[0].err != nil {
			t.Errorf("after that: %v", s[0].err)
		}
	}) {
		t.Error("nothing was lent")
	}
	if n := tok.Status().Evicted; n != 0 {
		t.Errorf("%d sessions were closed", n)
	}
}

// callCounter counts finished calls by name.
type callCounter struct {
	noObserver
	calls sync.Map // name -> *atomic.Int64
}

func (c *callCounter) Call(_, call, _ string, _, _ time.Duration) {
	n, _ := c.calls.LoadOrStore(call, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func (c *callCounter) of(call string) int64 {
	n, _ := c.calls.LoadOrStore(call, new(atomic.Int64))
	return n.(*atomic.Int64).Load()
}

// TestLendGivesBack: what cannot be done on the session alone ends the loan, and is done the usual way after it, without waiting for anything.
func TestLendGivesBack(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxSessions = 2
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	works(t, k)
	for _, c := range []struct {
		call    string
		rv      uint
		evicted uint64
		over    bool // the loan is, and the call works elsewhere
		spoilt  bool // later calls of the loan are refused
	}{
		{"C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 1, true, true},
		{"C_EncryptInit", pkcs11.CKR_DEVICE_ERROR, 1, true, true},
		{"C_Encrypt", pkcs11.CKR_DEVICE_REMOVED, 1, true, true},
		{"C_EncryptInit", pkcs11.CKR_USER_NOT_LOGGED_IN, 0, true, true},
		{"C_EncryptInit", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, 0, true, true},
		{"C_EncryptInit", pkcs11.CKR_KEY_HANDLE_INVALID, 0, true, true},
		{"C_EncryptInit", pkcs11.CKR_MECHANISM_INVALID, 0, false, false},
		{"C_Encrypt", pkcs11.CKR_DATA_LEN_RANGE, 1, false, true},
	} {
		name := c.call + " " + CodeName(c.rv)
		before := tok.Status().Evicted
		var done []sealing
		if !tok.Lend(ctx(t), func(lent context.Context) {
			done = sealUnder(lent, k, 2)
			w.fault.Fail(t, c.call, c.rv, 1)
			done = append(done, sealUnder(lent, k, 2)...)
		}) {
			t.Fatalf("%s: nothing was lent", name)
		}
		for i, want := range []bool{false, false, c.over, c.spoilt} {
			failed := i == 2
			if got := errors.Is(done[i].err, ErrLoanOver); got != want || !failed && !got && done[i].err != nil {
				t.Errorf("%s: call %d: %v", name, i, done[i].err)
			}
		}
		if done[2].err == nil {
			t.Errorf("%s: it did not fail", name)
		}
		w.fault.Clear(t, c.call)
		began := time.Now()
		works(t, k)
		// Without a loan in the way the token is mended in some milliseconds; one
		// that was waited for took seconds.
		if d := time.Since(began); d > time.Second {
			t.Errorf("%s: mended in %s", name, d)
		}
		check(t, tok.WaitReady(ctx(t)))
		if n := tok.Status().Evicted - before; n != c.evicted && c.evicted > 0 {
			t.Errorf("%s: %d sessions closed, want %d", name, n, c.evicted)
		}
	}
	// A key that has to be searched for is not searched for under a loan.
	tok.state.Load().conn.index.forget("one")
	tok.Lend(ctx(t), func(lent context.Context) {
		if s := sealUnder(lent, k, 1); !errors.Is(s[0].err, ErrLoanOver) {
			t.Errorf("seal with a key that is not known: %v", s[0].err)
		}
	})
	works(t, k)
}

// TestLendHangs: Lend returns at its deadline while a call hangs. When the call comes back it fails, and so does all that follows.
func TestLendHangs(t *testing.T) {
	w := newWorld(t, true)
	cfg := quiet(w.token("alpha"))
	cfg.MaxStuck = 3
	tok := w.ready(cfg)
	k := aesKey(t, tok, "one")
	works(t, k)
	late := make(chan []sealing, 1)
	began := time.Now()
	if !tok.Lend(short(t, 100*time.Millisecond), func(c context.Context) {
		done := sealUnder(c, k, 1)
		w.fault.Hang(t, "C_EncryptInit")
		late <- append(done, sealUnder(c, k, 3)...)
	}) {
		t.Fatal("nothing was lent")
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it returned after %s", d)
	}
	select {
	case <-late:
		t.Fatal("the call did not hang")
	default:
	}
	until(t, "it is counted", func() bool { return tok.Status().Stuck == 1 })
	w.fault.Clear(t, "C_EncryptInit")
	for i, s := range <-late {
		if i > 0 {
			wantErr(t, fmt.Sprintf("call %d", i), s.err, context.DeadlineExceeded)
		} else {
			check(t, s.err)
		}
	}
	until(t, "it has returned", func() bool { return tok.Status().Stuck == 0 && tok.Status().InUse == 0 })
	works(t, k)
}

// TestLendEnds: where time is over between two calls Lend waits for run, which is told so by all further calls.
func TestLendEnds(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(quiet(w.token("alpha")))
	k := aesKey(t, tok, "one")
	c, cancel := context.WithCancel(ctx(t))
	returned := false
	if !tok.Lend(c, func(lent context.Context) {
		if s := sealUnder(lent, k, 1); s[0].err != nil {
			t.Error(s[0].err)
		}
		cancel()
		for _, s := range sealUnder(lent, k, 3) {
			wantErr(t, "seal after the end", s.err, context.Canceled)
		}
		returned = true
	}) || !returned {
		t.Error("Lend did not wait for run")
	}
	if tok.Lend(c, func(context.Context) { t.Error("run was called after the end") }) {
		t.Error("something was lent after the end")
	}
	// A panic is not the process's end, and the session is not used again.
	before := tok.Status().Evicted
	tok.Lend(ctx(t), func(context.Context) { panic("of the test") })
	if n := tok.Status().Evicted - before; n != 1 {
		t.Errorf("%d sessions closed after a panic", n)
	}
	works(t, k)
	check(t, tok.Close(ctx(t)))
	if tok.Lend(ctx(t), func(context.Context) { t.Error("run was called on a closed token") }) {
		t.Error("a closed token lent something")
	}
}

// TestLendUnderChurn: loans, single calls, ends of contexts and errors at once; nothing is lost or left behind.
func TestLendUnderChurn(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			for i := range 60 {
				c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				if (g+i)%7 == 0 {
					c, cancel = context.WithTimeout(context.Background(), time.Duration(i)*20*time.Microsecond)
				}
				run := func(lent context.Context) {
					for _, s := range sealUnder(lent, k, 5) {
						if s.err != nil && lent.Err() == nil && !errors.Is(s.err, ErrLoanOver) {
							t.Errorf("seal: %v", s.err)
						}
					}
				}
				if !tok.Lend(c, run) {
					run(c)
				}
				cancel()
				if g == 0 && i%10 == 0 {
					w.fault.Fail(t, "C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID, 1)
				}
			}
		})
	}
	group.Wait()
	until(t, "all sessions are back", func() bool { return tok.Status().InUse == 0 })
	works(t, k)
}

// BenchmarkLend is BenchmarkSeal under loans of 16 calls.
func BenchmarkLend(b *testing.B) {
	w := newWorld(b, false)
	tok := w.ready(w.token("alpha"))
	k := aesKey(b, tok, "one")
	iv, plaintext := make([]byte, 12), make([]byte, 1024)
	_, _ = rand.Read(iv)
	hot := func(c context.Context) {
		for range 16 {
			if _, err := k.Seal(c, iv, testAAD, plaintext); err != nil {
				b.Error(err)
			}
		}
	}
	hot(b.Context())
	b.ResetTimer()
	for range b.N / 16 {
		if !tok.Lend(b.Context(), hot) {
			b.Fatal("nothing was lent")
		}
	}
}
