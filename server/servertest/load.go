package servertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

const (
	// callDeadline is that of the clients' calls; a call that returns later than
	// deadlineSlack after it has ignored it. Both are generous: machines of CI stand
	// still for seconds.
	callDeadline  = 20 * time.Second
	deadlineSlack = 10 * time.Second
	// pace is between two calls of a client: the machine is there for the daemon.
	pace = 2 * time.Millisecond
)

// Base are the keys that every load uses and no one changes.
type Base struct {
	AES, Other, HMAC, P256, RSA, ECDH, KEK, Exportable *Key
}

// Load is clients at work. Every answer is checked; an error is counted and, if
// its code is not allowed at the moment, a finding.
type Load struct {
	Ledger *Ledger
	Base   Base

	c    *client.Client
	gate sync.RWMutex // held for writing while the load is paused

	mu       sync.Mutex
	allowed  map[codes.Code]bool
	calls    map[string]int                // by operation
	errors   map[string]map[codes.Code]int // by operation
	findings []string

	stop chan struct{}
	wg   sync.WaitGroup
}

// NewLoad makes the keys of a load. Its clients begin with Run.
func NewLoad(tb testing.TB, c *client.Client) *Load {
	tb.Helper()
	l := &Load{Ledger: NewLedger(), c: c, allowed: map[codes.Code]bool{}, calls: map[string]int{}, errors: map[string]map[codes.Code]int{}, stop: make(chan struct{})}
	sign := keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY
	for _, k := range []struct {
		to  **Key
		req *keyholdv1.CreateKeyRequest
	}{
		{&l.Base.AES, &keyholdv1.CreateKeyRequest{}},
		{&l.Base.Other, &keyholdv1.CreateKeyRequest{}},
		{&l.Base.HMAC, &keyholdv1.CreateKeyRequest{KeySpec: keyholdv1.KeySpec_KEY_SPEC_HMAC_256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC}},
		{&l.Base.P256, &keyholdv1.CreateKeyRequest{KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, KeyUsage: sign}},
		{&l.Base.RSA, &keyholdv1.CreateKeyRequest{KeySpec: keyholdv1.KeySpec_KEY_SPEC_RSA_2048, KeyUsage: sign}},
		{&l.Base.ECDH, &keyholdv1.CreateKeyRequest{KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_KEY_AGREEMENT}},
		{&l.Base.KEK, &keyholdv1.CreateKeyRequest{KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP}},
		{&l.Base.Exportable, &keyholdv1.CreateKeyRequest{KeyCustody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE}},
	} {
		key, err := l.CreateKey(tb.Context(), k.req)
		if err != nil {
			tb.Fatalf("create a key of the load: %v", err)
		}
		*k.to = key
	}
	return l
}

// Run starts n clients, which end with the test.
func (l *Load) Run(tb testing.TB, n int) {
	tb.Helper()
	for i := range n {
		w := &worker{Load: l, number: i}
		l.wg.Go(w.run)
	}
	tb.Cleanup(l.Stop)
}

// Stop ends the clients. It may be called again.
func (l *Load) Stop() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// Pause waits until no call is under way and lets none begin until Resume.
func (l *Load) Pause() { l.gate.Lock() }

// Resume ends what Pause began.
func (l *Load) Resume() { l.gate.Unlock() }

// Allow says which errors calls may end with from now on; without arguments
// none.
func (l *Load) Allow(allowed ...codes.Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.allowed = make(map[codes.Code]bool)
	for _, c := range allowed {
		l.allowed[c] = true
	}
}

// Findings returns what was wrong since the last time.
func (l *Load) Findings() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.findings
	l.findings = nil
	return f
}

// Calls returns how many calls there were, and how many of them failed.
func (l *Load) Calls() (all, failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.calls {
		all += n
	}
	for _, byCode := range l.errors {
		for _, n := range byCode {
			failed += n
		}
	}
	return all, failed
}

// Report says how many calls of each operation there were and how they ended.
func (l *Load) Report() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, op := range slices.Sorted(maps.Keys(l.calls)) {
		fmt.Fprintf(&b, "%-22s %8d calls", op, l.calls[op])
		for _, code := range slices.Sorted(maps.Keys(l.errors[op])) {
			fmt.Fprintf(&b, "  %s %d", code, l.errors[op][code])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// finding notes what must not be.
func (l *Load) finding(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.findings) < 50 {
		l.findings = append(l.findings, fmt.Sprintf(format, args...))
	}
}

// call carries one call out and counts it.
func (l *Load) call(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	began := time.Now()
	err := fn(ctx)
	took := time.Since(began)
	code := status.Code(err)
	l.mu.Lock()
	l.calls[name]++
	allowed := l.allowed[code]
	if code != codes.OK {
		if l.errors[name] == nil {
			l.errors[name] = make(map[codes.Code]int)
		}
		l.errors[name][code]++
	}
	l.mu.Unlock()
	if code != codes.OK && !allowed {
		l.finding("%s: %v, which is not allowed now", name, err)
	}
	if took > callDeadline+deadlineSlack {
		l.finding("%s took %s, its deadline was %s", name, took, callDeadline)
	}
	return err
}

// CreateKey makes a key and remembers it.
func (l *Load) CreateKey(ctx context.Context, req *keyholdv1.CreateKeyRequest) (*Key, error) {
	resp, err := l.c.Keys.CreateKey(ctx, req)
	if err != nil {
		return nil, err
	}
	k := l.Ledger.Created(resp.GetKeyMetadata())
	if k.Spec == keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT || k.Spec == keyholdv1.KeySpec_KEY_SPEC_HMAC_256 {
		return k, nil
	}
	pub, err := l.c.Crypto.GetPublicKey(ctx, &keyholdv1.GetPublicKeyRequest{KeyId: k.ID})
	if err != nil {
		return k, nil //nolint:nilerr // the checker pins it
	}
	return k, l.Ledger.SetPublicKey(k, pub.GetPublicKey())
}
