package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// world is a SoftHSM of the test's own: its own library instance, configuration and tokens.
type world struct {
	t      testing.TB
	dir    string // holds everything
	tokens string // directories.tokendir
	module string
	fault  *fault.Module // nil where the library is not wrapped
	probes ProbeCache
}

// softhsm finds the library.
func softhsm(t testing.TB) string {
	t.Helper()
	list, err := os.ReadFile("../softhsm-config/module-paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range bytes.Fields(list) {
		if _, err := os.Stat(string(path)); err == nil {
			return string(path)
		}
	}
	t.Fatal("SoftHSM is not installed: run softhsm-config/install.sh")
	return ""
}

// newWorld makes a SoftHSM without tokens. With faults its library can be told to misbehave.
func newWorld(t testing.TB, faults bool) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, tokens: filepath.Join(dir, "tokens"), probes: &sharedProbes}
	conf := filepath.Join(dir, "softhsm2.conf")
	check(t, os.Mkdir(w.tokens, 0o700))
	check(t, os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", w.tokens), 0o600))
	// SoftHSM reads the variable at each C_Initialize.
	setenv(t, "SOFTHSM2_CONF", conf)
	if faults {
		w.fault = fault.New(t, softhsm(t))
		w.module = w.fault.Path
		return w
	}
	lib, err := os.ReadFile(softhsm(t))
	check(t, err)
	w.module = filepath.Join(dir, "softhsm.so")
	check(t, os.WriteFile(w.module, lib, 0o700))
	return w
}

func setenv(t testing.TB, name, value string) {
	t.Helper()
	t.Setenv(name, value)
}

const testPIN = "correct horse"

// token makes a token with a canary and returns the configuration to open it.
func (w *world) token(label string) Config {
	w.t.Helper()
	cfg := w.bareToken(label)
	tok := w.open(cfg)
	if _, err := tok.EnsureCanary(ctx(w.t)); err != nil {
		w.t.Fatalf("make canary: %v", err)
	}
	check(w.t, tok.Close(ctx(w.t)))
	return cfg
}

// bareToken makes a token without a canary.
func (w *world) bareToken(label string) Config {
	w.t.Helper()
	_, err := InitToken(ctx(w.t), InitConfig{Module: w.module, Label: label, SOPIN: []byte("87654321"), UserPIN: []byte(testPIN)})
	check(w.t, err)
	pin := w.pinFile(label)
	check(w.t, os.WriteFile(pin, []byte(testPIN+"\n"), 0o600))
	return Config{
		Module: w.module, TokenLabel: label, PIN: PINFile(pin), ProbeCache: w.probes,
		MaxSessions: 4, HealthInterval: 50 * time.Millisecond, StuckAfter: 20 * time.Millisecond,
	}
}

func (w *world) pinFile(label string) string { return filepath.Join(w.dir, label+".pin") }

// open opens a token and closes it after the test.
func (w *world) open(cfg Config) *Token {
	w.t.Helper()
	return w.openWith(cfg, Options{})
}

func (w *world) openWith(cfg Config, opts Options) *Token {
	w.t.Helper()
	if _, bench := w.t.(*testing.B); opts.Logger == nil && !bench {
		opts.Logger = slog.New(slog.NewTextHandler(testLog{w.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	tok, err := Open(cfg, opts)
	check(w.t, err)
	w.t.Cleanup(func() {
		if w.fault != nil {
			w.fault.ClearAll()
		}
		closing, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := tok.Close(closing); err != nil {
			w.t.Errorf("close: %v", err)
		}
		if w.fault != nil {
			for _, v := range w.fault.Violations() {
				w.t.Errorf("violation: %s", v)
			}
		}
	})
	return tok
}

// testLog writes to the test's log as long as the test runs.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Logf("%s", bytes.TrimSpace(b))
	}
	return len(b), nil
}

// ready opens a token and waits until it is ready.
func (w *world) ready(cfg Config) *Token {
	w.t.Helper()
	tok := w.open(cfg)
	if err := tok.WaitReady(ctx(w.t)); err != nil {
		w.t.Fatalf("wait: %v", err)
	}
	return tok
}

// ctx is a context that ends long after everything should have happened.
func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

func short(t testing.TB, d time.Duration) context.Context {
	c, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return c
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition that must come true.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	eventually(t, what, func() error {
		if !cond() {
			return errNotYet
		}
		return nil
	})
}

var errNotYet = errors.New("not yet")

// eventually waits until a condition has no error any more.
func eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("never happened: %s: %v\n%s", what, err, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// aesKey makes a key for sealing.
func aesKey(t testing.TB, tok *Token, id string) *Key {
	t.Helper()
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte(id), Label: "label of " + id})
	if err != nil {
		t.Fatalf("generate %s: %v", id, err)
	}
	return tok.Key(AES256, PurposeSeal, []byte(id))
}

var testAAD = []byte("additional data")

// seal seals something and returns what opens it.
func seal(c context.Context, k *Key) (iv, sealed []byte, err error) {
	iv = make([]byte, 12)
	_, _ = rand.Read(iv)
	sealed, err = k.Seal(c, iv, testAAD, []byte("plaintext"))
	return iv, sealed, err
}

// works proves that a key seals and opens.
func works(t testing.TB, k *Key) {
	t.Helper()
	iv, sealed, err := seal(ctx(t), k)
	if err != nil {
		t.Fatalf("seal: %v", err)
	}
	got, err := k.Open(ctx(t), iv, testAAD, sealed)
	if err != nil || string(got) != "plaintext" {
		t.Fatalf("open: %q, %v", got, err)
	}
}

// wantErr checks an error's kind.
func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: got error %v, want %v", what, err, want)
	}
}

// probeOnce keeps the probe of the test's first token and believes it of all others: they are SoftHSM too, and probing costs half a second.
type probeOnce struct {
	mu    sync.Mutex
	key   string
	value []byte
}

// Get tells of every token what Put told of the first.
func (c *probeOnce) Get(key string) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.ReplaceAll(c.value, []byte(c.key), []byte(key)), c.value != nil
}

func (c *probeOnce) Put(key string, value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key, c.value = key, value
}

// sharedProbes is filled by the first test that opens a token.
var sharedProbes probeOnce
