package hsm

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"
	"go.uber.org/goleak"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	if uri := os.Getenv(killedEnv); uri != "" {
		killedChild(uri)
	}
	goleak.VerifyTestMain(m)
}

func TestOpenUseClose(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	k := aesKey(t, tok, "one")
	before := w.fault.CryptoOnRW()
	for range 10 {
		works(t, k)
	}
	if n := w.fault.CryptoOnRW() - before; n != 0 {
		t.Errorf("%d cryptographic calls on RW sessions, want none", n)
	}
	if _, rw := w.fault.Sessions(); rw != 1 {
		t.Errorf("%d RW sessions are open, want 1", rw)
	}
	s := tok.Status()
	if s.State != StateReady || s.Label != "alpha" || s.Serial == "" || s.MaxSessions != 4 || s.Generation != 1 || s.CanaryErr != "" || !s.PIN.Initialized {
		t.Errorf("status: %+v", s)
	}
	check(t, tok.Close(ctx(t)))
	check(t, tok.Close(ctx(t))) // again
	if all, _ := w.fault.Sessions(); all != 0 {
		t.Errorf("%d sessions are open after Close", all)
	}
	if n, init := w.fault.Calls(t, "C_Finalize"), w.fault.Calls(t, "C_Initialize"); n != init {
		t.Errorf("%d C_Finalize for %d C_Initialize", n, init)
	}
	_, _, err := seal(ctx(t), k)
	wantErr(t, "seal after close", err, ErrUnavailable)
	wantErr(t, "ready after close", tok.Ready(), ErrUnavailable)
	wantErr(t, "wait after close", tok.WaitReady(ctx(t)), ErrUnavailable)
}

func TestCloseWhileOpening(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	for range 20 {
		tok := w.open(cfg)
		check(t, tok.Close(ctx(t)))
	}
}

func TestKeysSurviveReopen(t *testing.T) {
	w := newWorld(t, false)
	cfg := w.token("alpha")
	tok := w.ready(cfg)
	iv, sealed, err := seal(ctx(t), aesKey(t, tok, "one"))
	check(t, err)
	check(t, tok.Close(ctx(t)))
	tok = w.ready(cfg)
	got, err := tok.Key(AES256, PurposeSeal, []byte("one")).Open(ctx(t), iv, testAAD, sealed)
	if err != nil || string(got) != "plaintext" {
		t.Fatalf("open: %q, %v", got, err)
	}
}

func TestTwoModules(t *testing.T) {
	w1 := newWorld(t, true)
	tok1 := w1.ready(w1.token("alpha"))
	w2 := newWorld(t, true)
	tok2 := w2.ready(w2.token("alpha")) // the same label in another module
	k1, k2 := aesKey(t, tok1, "one"), aesKey(t, tok2, "one")
	works(t, k1)
	works(t, k2)
	iv, sealed, err := seal(ctx(t), k1)
	check(t, err)
	_, err = k2.Open(ctx(t), iv, testAAD, sealed)
	wantErr(t, "open with the other module's key", err, ErrAuthentication)
	check(t, tok1.Close(ctx(t)))
	works(t, k2)
}

func TestTwoTokensOfOneModule(t *testing.T) {
	w := newWorld(t, true)
	alpha, beta := w.token("alpha"), w.token("beta")
	tokA, tokB := w.ready(alpha), w.ready(beta)
	a, b := aesKey(t, tokA, "one"), aesKey(t, tokB, "one")
	works(t, a)
	works(t, b)
	check(t, tokA.Close(ctx(t)))
	works(t, b) // neither finalized nor logged out
	tokA = w.ready(alpha)
	works(t, tokA.Key(AES256, PurposeSeal, []byte("one")))
}

func TestOneTokenOpenedTwice(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	t1, t2 := w.ready(cfg), w.ready(cfg)
	aesKey(t, t1, "one")
	k := t2.Key(AES256, PurposeSeal, []byte("one"))
	works(t, k)
	check(t, t1.Close(ctx(t))) // shares the login: must not end it
	works(t, k)
}

func TestNoCanary(t *testing.T) {
	w := newWorld(t, false)
	tok := w.open(w.bareToken("alpha"))
	k := aesKey(t, tok, "one") // serves, so that the canary can be made
	if err := tok.Ready(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "keyholdd init") {
		t.Fatalf("ready without a canary: %v", err)
	}
	if s := tok.Status(); s.State != StateDegraded {
		t.Errorf("state %s, want %s", s.State, StateDegraded)
	}
	wantErr(t, "canary", tok.Canary(ctx(t)), ErrKeyNotFound)
	created, err := tok.EnsureCanary(ctx(t))
	if err != nil || !created {
		t.Fatalf("ensure: %v, %v", created, err)
	}
	check(t, tok.WaitReady(ctx(t)))
	if created, err = tok.EnsureCanary(ctx(t)); err != nil || created {
		t.Fatalf("ensure again: %v, %v", created, err)
	}
	works(t, k)
}

// TestEnsureCanaryOfSlowToken: a token that opens more slowly than a call may be is waited for, as long as the caller likes.
func TestEnsureCanaryOfSlowToken(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.bareToken("alpha")
	cfg.CallTimeout = 100 * time.Millisecond
	w.fault.Hang(t, "C_Login")
	tok := w.open(cfg)
	until(t, "it is down", func() bool { return tok.Status().State == StateDown })
	_, err := tok.EnsureCanary(short(t, 50*time.Millisecond))
	wantErr(t, "ensure, for 50 ms", err, context.DeadlineExceeded)
	wantErr(t, "ensure, for 50 ms", err, ErrUnavailable)
	made := make(chan error, 1)
	go func() {
		created, err := tok.EnsureCanary(ctx(t))
		if err == nil && !created {
			err = errors.New("there was one")
		}
		made <- err
	}()
	w.fault.Clear(t, "C_Login")
	check(t, <-made)
	check(t, tok.WaitReady(ctx(t)))
}

func TestOpenRefusesConfiguration(t *testing.T) {
	good := Config{Module: "/lib/x.so", TokenLabel: "a", PIN: PINFile("/pin")}
	for name, spoil := range map[string]func(c *Config){
		"no module":         func(c *Config) { c.Module = "" },
		"relative module":   func(c *Config) { c.Module = "x.so" },
		"long module":       func(c *Config) { c.Module = "/" + strings.Repeat("x", maxPathBytes) },
		"no token":          func(c *Config) { c.TokenLabel = "" },
		"long label":        func(c *Config) { c.TokenLabel = strings.Repeat("x", 33) },
		"long serial":       func(c *Config) { c.TokenSerial = strings.Repeat("x", 17) },
		"no PIN":            func(c *Config) { c.PIN = PINSource{} },
		"relative PIN file": func(c *Config) { c.PIN = PINFile("pin") },
		"negative sessions": func(c *Config) { c.MaxSessions = -1 },
		"too many sessions": func(c *Config) { c.MaxSessions = maxSessionsLimit + 1 },
		"negative waiters":  func(c *Config) { c.MaxWaiters = -1 },
		"negative stuck":    func(c *Config) { c.MaxStuck = -1 },
		"negative timeout":  func(c *Config) { c.CallTimeout = -1 },
		"relative folder":   func(c *Config) { c.TokenDir = "x" },
	} {
		c := good
		spoil(&c)
		if tok, err := Open(c, Options{}); err == nil {
			_ = tok.Close(ctx(t))
			t.Errorf("%s: accepted", name)
		}
	}
	c := good
	c.TokenLabel, c.TokenSerial, c.MaxSessions, c.MaxCopies = strings.Repeat("x", 32), strings.Repeat("x", 16), maxSessionsLimit, -1
	if _, err := c.withDefaults(); err != nil {
		t.Errorf("at the limits: %v", err)
	}
	d, err := good.withDefaults()
	if err != nil || d.MaxSessions != DefaultMaxSessions || d.MaxStuck != DefaultMaxSessions || d.CallTimeout != DefaultCallTimeout || d.MaxCopies != DefaultMaxCopies {
		t.Errorf("defaults: %+v, %v", d, err)
	}
}

func TestAbsentModuleAndToken(t *testing.T) {
	w := newWorld(t, false)
	cfg := w.token("alpha")
	for name, c := range map[string]struct {
		spoil func(c *Config)
		want  string
	}{
		"module":    {func(c *Config) { c.Module = w.dir + "/none.so" }, "install it"},
		"no module": {func(c *Config) { c.Module = w.pinFile("alpha") }, "could not be loaded"},
		"label":     {func(c *Config) { c.TokenLabel = "other" }, `token with label "other" not found`},
		"serial":    {func(c *Config) { c.TokenSerial = "0123456789abcdef" }, `and serial number "0123456789abcdef" not found`},
	} {
		bad := cfg
		c.spoil(&bad)
		tok := w.open(bad)
		until(t, name+": why it is down", func() bool {
			s := tok.Status()
			return s.State == StateDown && strings.Contains(s.Reason, c.want)
		})
		err := tok.WaitReady(short(t, 1))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: wait: %v", name, err)
		}
		check(t, tok.Close(ctx(t)))
	}
}

// stateLog is an observer that keeps the states.
type stateLog struct {
	noObserver
	mu     sync.Mutex
	states []State
}

func (l *stateLog) State(_ string, s State, _ string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states = append(l.states, s)
}

// TestDeadConnectionIsTakenOutOfService: calls wait while a connection of an older initialisation is replaced. Were it left in service, they
// would try it over and over.
func TestDeadConnectionIsTakenOutOfService(t *testing.T) {
	var log stateLog
	tok, err := newToken(Config{Module: "/nowhere/lib.so", TokenLabel: "alpha", PIN: PINFile("/nowhere/pin")}, Options{Observer: &log})
	check(t, err)
	s := newSupervisor(tok)
	s.c = newConn(tok, 0, 0, pkcs11.TokenInfo{})
	tok.serve(nil, s.c)
	s.step()
	if diff := cmp.Diff([]State{StateReady, StatePaused, StateDown}, log.states); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}
