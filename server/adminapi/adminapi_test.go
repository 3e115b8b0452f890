package adminapi_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/adminapi"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

// core stands for the key service.
type core struct{ down atomic.Bool }

func (c *core) Ready() error {
	if c.down.Load() {
		return errors.New("key store of us-east-1: token with label \"x\" not found")
	}
	return nil
}

func (c *core) KeyCounts() map[string]int { return map[string]int{"Enabled": 3, "PendingDeletion": 1} }
func (c *core) Orphans() []kms.Orphan     { return []kms.Orphan{{Kind: kms.OrphanObject}} }
func (c *core) ClockHeld() bool           { return true }

// open serves on loopback and returns how to get a path.
func open(t *testing.T, c *core, m *adminapi.Metrics) func(method, path string) (int, string) {
	t.Helper()
	s := adminapi.New(adminapi.Config{Ready: c.Ready, Metrics: m, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
}

func TestHealthAndReadiness(t *testing.T) {
	t.Parallel()
	c := &core{}
	get := open(t, c, adminapi.NewMetrics())
	for _, tt := range []struct {
		down         bool
		method, path string
		code         int
		says         string
	}{
		{false, "GET", "/healthz", 200, "ok"},
		{false, "GET", "/readyz", 200, "ready"},
		{true, "GET", "/healthz", 200, "ok"},
		{true, "GET", "/readyz", 503, "token with label \"x\" not found"},
		{false, "GET", "/readyz", 200, "ready"},
		{false, "POST", "/readyz", 405, ""},
		{false, "GET", "/", 404, ""},
		{false, "GET", "/debug/pprof/", 404, ""},
	} {
		c.down.Store(tt.down)
		if code, body := get(tt.method, tt.path); code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s %s while down=%t: %d %q, want %d %q", tt.method, tt.path, tt.down, code, body, tt.code, tt.says)
		}
	}
}

// journal is an audit log on a full disk.
type journal struct{}

func (journal) Status() audit.Status { return audit.Status{SegmentLeft: 4096, SpareFailed: true} }
func (journal) Healthy() error       { return audit.ErrFull }

// TestMetrics feeds every observer once and wants to see it.
func TestMetrics(t *testing.T) {
	t.Parallel()
	m := adminapi.NewMetrics()
	c := &core{}
	m.Watch(c, nil, journal{})
	m.Operation("Encrypt", "", time.Millisecond, kms.Timing{Queue: time.Microsecond, Token: 2 * time.Microsecond, Audit: 3 * time.Microsecond})
	m.Operation("Encrypt", kms.CodeDisabled, time.Millisecond, kms.Timing{})
	m.Refused()
	m.Refused()
	m.Throttled()
	m.Commit(audit.Commit{Records: 3, Bytes: 1000, Synced: true, Elapsed: time.Millisecond})
	m.Commit(audit.Commit{Err: errors.New("no space")})
	o := m.Token("home")
	o.Call("label", "C_Encrypt", "CKR_OK", time.Microsecond, time.Microsecond)
	o.Evicted("label", "CKR_SESSION_HANDLE_INVALID")
	o.Initialized("label", nil)
	o.Initialized("label", errors.New("no"))

	_, text := open(t, c, m)("GET", "/metrics")
	for _, want := range []string{
		`keyhold_requests_total{code="",operation="Encrypt"} 1`,
		`keyhold_requests_total{code="DisabledException",operation="Encrypt"} 1`,
		`keyhold_request_seconds_count{operation="Encrypt"} 2`,
		`keyhold_request_part_seconds_count{operation="Encrypt",part="queue"} 2`,
		`keyhold_request_part_seconds_count{operation="Encrypt",part="token"} 2`,
		`keyhold_request_part_seconds_count{operation="Encrypt",part="audit"} 2`,
		`keyhold_unauthenticated_total 2`,
		`keyhold_unauthenticated_throttled_total 1`,
		`keyhold_audit_commit_seconds_count 1`,
		`keyhold_audit_commit_records_sum 3`,
		`keyhold_audit_bytes_total 1000`,
		`keyhold_audit_failures_total 1`,
		`keyhold_token_calls_total{call="C_Encrypt",ckr="CKR_OK",token="home"} 1`,
		`keyhold_token_sessions_evicted_total{ckr="CKR_SESSION_HANDLE_INVALID",token="home"} 1`,
		`keyhold_token_reinitialized_total{result="ok",token="home"} 1`,
		`keyhold_token_reinitialized_total{result="failed",token="home"} 1`,
		`keyhold_ready 1`,
		`keyhold_clock_held 1`,
		`keyhold_audit_healthy 0`,
		`keyhold_audit_segment_left_bytes 4096`,
		`keyhold_audit_no_next_segment 1`,
		`keyhold_keys{state="Enabled"} 3`,
		`keyhold_keys{state="PendingDeletion"} 1`,
		`keyhold_orphans{kind="object without record"} 1`,
		`keyhold_orphans{kind="record without object"} 0`,
		`process_cpu_seconds_total`,
		`go_goroutines`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	c.down.Store(true)
}

// TestOperationsPage: what docs/operations.md tells operators to watch is there.
func TestOperationsPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`keyhold_[a-z_]+`).FindAllString(string(page), -1)
	for _, name := range names {
		if !strings.Contains(string(source), `"`+name+`"`) {
			t.Errorf("the page names %s, which is not served", name)
		}
	}
	if len(names) < 10 {
		t.Errorf("the page names %q: the test looks in the wrong place", names)
	}
}
