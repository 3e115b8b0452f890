package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyhold/keyhold/server/sigv4"
)

// fakeDoor is an AWS door that verifies signatures and knows two operations.
type fakeDoor struct {
	*httptest.Server
	verifier *sigv4.Verifier
	caFile   string

	connections atomic.Int64
	mu          sync.Mutex
	// answer, if it is set, is that of all operations.
	answer  func(w http.ResponseWriter)
	targets map[string]int
	bodies  map[string]bool
	refused []string
}

type fakeKeys struct{}

func (fakeKeys) LookUp(_ context.Context, id, _ string) (sigv4.Key, error) {
	if id != "AKIATEST" {
		return nil, sigv4.ErrUnknownAccessKey
	}
	return fakeKeys{}, nil
}

func (fakeKeys) Version() uint64 { return 1 }

func (fakeKeys) SigningKey(_ context.Context, scope sigv4.Scope) (sigv4.SigningKey, error) {
	return sigv4.DeriveSigningKey([]byte("a secret"), scope), nil
}

// newFakeDoor starts one and adds how it is reached to the environment.
func newFakeDoor(t *testing.T, secure bool, env map[string]string) *fakeDoor {
	t.Helper()
	d := &fakeDoor{targets: map[string]int{}, bodies: map[string]bool{}}
	var err error
	if d.verifier, err = sigv4.New(sigv4.Config{Credentials: fakeKeys{}, Regions: []string{"eu-west-1"}}); err != nil {
		t.Fatal(err)
	}
	d.Server = httptest.NewUnstartedServer(d)
	d.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			d.connections.Add(1)
		}
	}
	if secure {
		d.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		d.StartTLS()
		d.caFile = filepath.Join(t.TempDir(), "ca.pem")
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.Certificate().Raw})
		if err := os.WriteFile(d.caFile, block, 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		d.Start()
	}
	t.Cleanup(d.Close)
	maps.Copy(env, map[string]string{
		"AWS_ENDPOINT_URL": d.URL, "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "a secret", "AWS_REGION": "eu-west-1", "AWS_CA_BUNDLE": d.caFile,
	})
	return d
}

// answers makes f answer all operations.
func (d *fakeDoor) answers(f func(w http.ResponseWriter)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = f
}

func (d *fakeDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, err := d.verifier.Verify(r, "kms", sigv4.Body(body))
	target := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.targets[target]++
	d.bodies[string(body)] = true
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	switch {
	case err != nil || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" || r.Proto != "HTTP/1.1":
		d.refused = append(d.refused, fmt.Sprint(err, r.Header, r.Proto))
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"InvalidSignatureException"}`)
	case d.answer != nil:
		d.answer(w)
	case target == "Encrypt" || target == "GenerateRandom":
		fmt.Fprint(w, `{"CiphertextBlob":"AAAA"}`)
	default:
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"UnknownOperationException"}`)
	}
}

func benchAWS(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	v := &invocation{env: env, stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
	code = v.run(t.Context(), append([]string{"bench", "--door", "aws", "--output", "json", "--duration", "50ms", "--warmup", "0s"}, args...)...)
	return code, out.String(), errs.String()
}

// Requests through the AWS door are signed, and each sender keeps a connection.
func TestBenchAWS(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		_, env := newFake(t)
		d := newFakeDoor(t, secure, env)
		code, stdout, stderr := benchAWS(t, env, "--op", "ping,encrypt", "--concurrency", "4", "--payload", "3", "--keys", "2")
		if code != exitOK {
			t.Fatalf("TLS %t: exit code %d, %s", secure, code, stderr)
		}
		for i, r := range reports(t, stdout) {
			if want := []string{"ping", "encrypt"}[i]; r.Op != want || r.Door != "aws" || r.Errors != 0 || r.Ops == 0 || r.Concurrency != 4 {
				t.Errorf("%+v", r)
			}
		}
		d.mu.Lock()
		if len(d.refused) > 0 {
			t.Errorf("%d requests were not valid, such as %s", len(d.refused), d.refused[0])
		}
		if d.targets["Ping"] == 0 || d.targets["Encrypt"] == 0 || len(d.targets) != 2 || len(d.bodies) != 3 || d.connections.Load() != 4 {
			t.Errorf("targets %v, bodies %v, %d connections", d.targets, d.bodies, d.connections.Load())
		}
		d.mu.Unlock()

		// Two connections are shared.
		before := d.connections.Load()
		if code, _, stderr := benchAWS(t, env, "--op", "random", "--concurrency", "6", "--connections", "2"); code != exitOK || d.connections.Load()-before != 2 {
			t.Errorf("exit code %d, %d connections, %s", code, d.connections.Load()-before, stderr)
		}
	}
}

// What goes wrong is told by its name, and what answers may be anything.
func TestBenchAWSFails(t *testing.T) {
	t.Parallel()
	_, env := newFake(t)
	d := newFakeDoor(t, false, env)
	n := 0
	for _, tt := range []struct {
		answer func(w http.ResponseWriter)
		words  string
	}{
		{func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"__type":"ThrottlingException","message":"slower\u001b[31m"}`)
		}, "random: ThrottlingException (status 400): slower"},
		{func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, `<html>`)
		}, "random: no exception (status 502): the answer is not JSON"},
		{func(w http.ResponseWriter) {
			fmt.Fprint(w, "{}")
			_ = http.NewResponseController(w).Flush() // chunked
		}, "no length"},
		{func(w http.ResponseWriter) { w.Header().Set("Content-Length", "10000000") }, "too large"},
		{func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		d.answers(tt.answer)
		code, stdout, stderr := benchAWS(t, env, "--op", "random")
		if code != exitFailure || stdout != "" || !strings.Contains(stderr, tt.words) || strings.Contains(stderr, "\x1b") {
			t.Errorf("exit code %d, %q, %q, want %q", code, stdout, stderr, tt.words)
		}
	}
	// Some fail, and are counted by name; the connection goes on.
	d.answers(func(w http.ResponseWriter) {
		if n++; n%2 == 0 {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"__type":"KeyUnavailableException"}`)
			return
		}
		fmt.Fprint(w, `{}`)
	})
	before := d.connections.Load()
	code, stdout, stderr := benchAWS(t, env, "--op", "random", "--concurrency", "1")
	if r := reports(t, stdout); code != exitOK || r[0].Errors == 0 || r[0].Ops == 0 || !strings.Contains(stderr, "KeyUnavailableException") || d.connections.Load()-before != 1 {
		t.Errorf("exit code %d, %s, %s", code, stdout, stderr)
	}

	for words, change := range map[string]map[string]string{
		"InvalidSignatureException": {"AWS_SECRET_ACCESS_KEY": "another"},
		"connection refused":        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
		"AWS_CA_BUNDLE":             {"AWS_ENDPOINT_URL": "https://127.0.0.1:1", "AWS_CA_BUNDLE": "/nonexistent"},
		"has no AWS_ACCESS_KEY_ID":  {"AWS_ACCESS_KEY_ID": ""},
	} {
		other := maps.Clone(env)
		maps.Copy(other, change)
		if code, _, stderr := benchAWS(t, other, "--op", "random"); code != exitFailure || !strings.Contains(stderr, words) || strings.Contains(stderr, "secret") {
			t.Errorf("%v: exit code %d, %s", change, code, stderr)
		}
	}
	for _, args := range [][]string{{"--batch", "2"}, {"--coalesce"}, {"--op", "encrypt:batch=2"}, {"--door", "xks"}} {
		if code, _, stderr := benchAWS(t, env, args...); code != exitUsage {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
}
