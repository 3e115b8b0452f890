// Package sigv4_test holds server/sigv4 to signers that nobody here wrote:
// aws-sdk-go-v2, botocore and curl sign and send requests to a server of
// net/http over the wire, HTTP/1.1 and HTTP/2.
package sigv4_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server/sigv4"
)

const (
	accessKeyID = "AKIAIOSFODNN7EXAMPLE"
	secret      = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	sessionID   = "ASIAIOSFODNN7EXAMPLE"
	session     = "IQoJb3JpZ2luX2VjE//////+token=="
	region      = "eu-central-1"
)

// keys are two access keys with one secret: a long-term one, and a temporary one.
type keys struct{}

func (keys) LookUp(_ context.Context, id, token string) (sigv4.Key, error) {
	switch {
	case id != accessKeyID && id != sessionID:
		return nil, sigv4.ErrUnknownAccessKey
	case (id == sessionID) != (token == session) || id == accessKeyID && token != "":
		return nil, sigv4.ErrInvalidSessionToken
	}
	return key{}, nil
}

type key struct{}

func (key) Version() uint64 { return 1 }

func (key) SigningKey(_ context.Context, scope sigv4.Scope) (sigv4.SigningKey, error) {
	return sigv4.DeriveSigningKey([]byte(secret), scope), nil
}

// startDoor runs a server that answers 200 and what was verified, or 403 and why
// not, with all that should have been signed.
func startDoor(t *testing.T, http2 bool) *httptest.Server {
	t.Helper()
	v, err := sigv4.New(sigv4.Config{Credentials: keys{}, Regions: []string{region}, AllowQuery: true})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		got, err := v.Verify(r, "kms", sigv4.Body(body))
		if err != nil {
			if refusal, ok := err.(*sigv4.Error); ok {
				err = fmt.Errorf("%s: %s", refusal.Reason, refusal.Explain())
			}
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, "%s %s %v %v", r.Proto, got.AccessKeyID, got.Presigned, got.SignedHeaders)
	}))
	if http2 {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// request is a case for every signer.
type request struct {
	name, method, target, body string
	headers                    map[string]string
	// notFor names signers that sign this in a way that AWS would refuse, too:
	// botocore and curl 7.88 take a query in a URL as it stands, without sorting
	// or encoding it; curl encodes a path once, as for S3, and leaves an empty
	// header away.
	notFor []string
}

var requests = []request{
	{name: "KMS", method: "POST", target: "/", body: `{"KeyId":"alias/a","Plaintext":"aGVsbG8="}`, headers: map[string]string{
		"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService.Encrypt",
	}},
	{name: "STS", method: "POST", target: "/", body: "Action=GetCallerIdentity&Version=2011-06-15", headers: map[string]string{
		"Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
	}},
	{name: "no body", method: "GET", target: "/"},
	{name: "empty JSON", method: "POST", target: "/", body: "{}", headers: map[string]string{"X-Amz-Target": "TrentService.ListKeys"}},
	{name: "large body", method: "POST", target: "/", body: strings.Repeat("0123456789abcdef", 16<<10)},
	{name: "query", method: "GET", target: "/?Action=GetCallerIdentity&Version=2011-06-15"},
	{name: "query to sort", method: "GET", target: "/?b=2&a-b=3&a=2&a=1&A=%C3%A9", notFor: []string{"curl"}},
	{name: "query with escapes", method: "GET", target: "/?a=x%20y%2B%26%3D%25%3B%2F&%7E=~", notFor: []string{"botocore", "curl"}},
	{name: "path", method: "POST", target: "/prefix/kms/xks/v1/keys/a-b_c.d/encrypt", body: "{}"},
	{name: "path with escapes", method: "POST", target: "/a%20b/%C3%A9/c%2Bd%3A", body: "{}", notFor: []string{"curl"}},
	{name: "spaces in a value", method: "POST", target: "/", body: "x", headers: map[string]string{"X-Amz-Meta-A": "a   b    c"}},
	{name: "empty value", method: "POST", target: "/", body: "x", headers: map[string]string{"X-Amz-Meta-A": ""}, notFor: []string{"curl"}},
	{name: "long value", method: "POST", target: "/", body: "x", headers: map[string]string{"X-Amz-Meta-A": strings.Repeat("v", 6000)}},
	{name: "many headers", method: "POST", target: "/", body: "x", headers: map[string]string{
		"X-Amz-A": "1", "X-Amz-B": "2", "X-Amz-Z": "3", "Content-Language": "de", "If-Match": "etag", "Accept-Encoding": "identity",
	}},
}

// python is an interpreter that has botocore: Debian's package is for its own.
func python(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/usr/bin/python3", "python3"} {
		if exec.CommandContext(t.Context(), p, "-c", "import botocore").Run() == nil {
			return p
		}
	}
	missing(t, "python3 with botocore")
	return ""
}

// missing skips on a laptop and fails in CI.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: run interop/install.sh", what)
	}
	t.Skipf("%s is missing: run interop/install.sh", what)
}

// run runs a program with input and returns its output.
func run(t *testing.T, input any, name string, args ...string) []byte {
	t.Helper()
	in, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, stderr.Bytes())
	}
	return out
}
