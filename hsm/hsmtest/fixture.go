// Package hsmtest is for tests of what uses tokens, and of tokens themselves:
// a SoftHSM fixture ([New]), and the conformance suite that every token must
// pass ([Test]). Package fault beside it makes libraries that misbehave.
//
// It promises that a fixture touches nothing outside the test's own folder,
// and that where SoftHSM is missing a test fails in CI (the variable CI is set)
// and is skipped elsewhere. Its functions that bring keys into a token from
// outside are why it is not part of package hsm, which cannot.
package hsmtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// setupTimeout bounds what the fixture does by itself: a token that does not
// come up fails the test with a reason instead of hanging it.
const setupTimeout = time.Minute

// A Fixture is a SoftHSM of the test's own: its own instance of the library, so
// that it may be initialised and finalized as the test likes, its own
// configuration in SOFTHSM2_CONF, and one initialised token without keys. The
// variable is the process's, so tests with fixtures cannot run in parallel,
// and of two fixtures in one test the later one's is set ([Fixture.Use]).
type Fixture struct {
	softhsmconfig.Token
	Dir    string       // everything is in here
	Probes *ProbeMemory // what the token can do, so that opening it again does not find out again
}

// New makes a fixture that lasts as long as the test.
func New(t testing.TB) *Fixture {
	t.Helper()
	return NewFrom(t, Library(t))
}

// Library returns the path of the SoftHSM library, or ends the test.
func Library(t testing.TB) string {
	t.Helper()
	path, err := softhsmconfig.Locate()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

// NewFrom is New with a copy of the given library, such as one that was built
// with other options.
func NewFrom(t testing.TB, library string) *Fixture {
	t.Helper()
	dir := t.TempDir()
	// The linker takes a library of another inode for another library.
	module := filepath.Join(dir, "softhsm.so")
	content, err := os.ReadFile(library)
	if err != nil {
		t.Fatalf("read library: %v", err)
	}
	if err := os.WriteFile(module, content, 0o700); err != nil {
		t.Fatalf("copy library: %v", err)
	}
	return NewAt(t, dir, module)
}

// NewAt is New with the library at module as it is, in an existing folder.
func NewAt(t testing.TB, dir, module string) *Fixture {
	t.Helper()
	t.Setenv(softhsmconfig.EnvConf, os.Getenv(softhsmconfig.EnvConf)) // puts it back after the test
	ctx, cancel := context.WithTimeout(t.Context(), setupTimeout)
	defer cancel()
	token, err := softhsmconfig.Init(ctx, softhsmconfig.Options{Dir: dir, Label: "keyhold-test", Module: module})
	if err != nil {
		t.Fatalf("initialise token: %v", err)
	}
	f := &Fixture{Token: token, Dir: dir, Probes: new(ProbeMemory)}
	if err := f.Use(); err != nil {
		t.Fatalf("set %s: %v", softhsmconfig.EnvConf, err)
	}
	return f
}

// Config returns a configuration to open the token with.
func (f *Fixture) Config() hsm.Config {
	return hsm.Config{Module: f.Module, TokenLabel: f.Label, PIN: hsm.PINFile(f.PINFile), ProbeCache: f.Probes}
}

// Open opens the token, makes its canary key where that is missing, and waits
// until it is ready. It is closed with the test.
func (f *Fixture) Open(t testing.TB) *hsm.Token {
	t.Helper()
	return OpenWith(t, f.Config(), hsm.Options{})
}

// OpenWith is Open with a configuration and options of the caller.
func OpenWith(t testing.TB, cfg hsm.Config, opts hsm.Options) *hsm.Token {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), setupTimeout)
	defer cancel()
	token, err := hsm.Open(cfg, opts)
	if err != nil {
		t.Fatalf("open token: %v", err)
	}
	t.Cleanup(func() { Close(t, token) })
	if _, err := token.EnsureCanary(ctx); err != nil {
		t.Fatalf("make canary key: %v", err)
	}
	if err := token.WaitReady(ctx); err != nil {
		t.Fatalf("wait for token: %v", err)
	}
	return token
}

// Close closes a token, which may be closed already.
func Close(t testing.TB, token *hsm.Token) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	if err := token.Close(ctx); err != nil {
		t.Errorf("close token: %v", err)
	}
}

// ProbeMemory is an [hsm.ProbeCache] in memory. Its zero value is empty.
type ProbeMemory struct {
	mu sync.Mutex
	m  map[string][]byte
}

var _ hsm.ProbeCache = (*ProbeMemory)(nil)

// Get is explained at hsm.ProbeCache.
func (p *ProbeMemory) Get(key string) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.m[key]
	return v, ok
}

// Put is explained at hsm.ProbeCache.
func (p *ProbeMemory) Put(key string, value []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[string][]byte{}
	}
	p.m[key] = value
}

// ID returns a CKA_ID of 16 bytes that follows from a name, so that a failure
// can be traced to its key.
func ID(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	return sum[:16]
}

// Label returns the label that goes with ID.
func Label(name string) string { return "test-" + hex.EncodeToString(ID(name)[:4]) }
