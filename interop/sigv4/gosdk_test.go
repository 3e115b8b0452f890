package sigv4_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// TestGoSDK: aws-sdk-go-v2's signer, with long-term and temporary credentials, in
// both forms, over HTTP/1.1 and HTTP/2. It signs content-length.
func TestGoSDK(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		door := startDoor(t, proto == "HTTP/2.0")
		for _, form := range []string{"header", "query"} {
			for _, c := range requests {
				for _, id := range []string{accessKeyID, sessionID} {
					t.Run(strings.Join([]string{proto, form, c.name, id}, "/"), func(t *testing.T) {
						r := c.goRequest(t, door.URL)
						r = goSign(t, r, c.body, form, id, secret)
						status, answer := send(t, door.Client(), r)
						if status != http.StatusOK || !strings.HasPrefix(answer, proto+" "+id) {
							t.Errorf("%s %s: %d\n%s", r.Method, r.URL, status, answer)
						}
						if c.body != "" && !strings.Contains(answer, "content-length") {
							t.Errorf("content-length was not signed: %s", answer)
						}
					})
				}
			}
		}
	}
}

// TestGoSDKChunked: what signed content-length comes in chunks, as a proxy may
// send it on.
func TestGoSDKChunked(t *testing.T) {
	t.Parallel()
	door := startDoor(t, false)
	r := goSign(t, requests[0].goRequest(t, door.URL), requests[0].body, "header", accessKeyID, secret)
	r.ContentLength = -1
	if status, answer := send(t, door.Client(), r); status != http.StatusOK || !strings.Contains(answer, "content-length") {
		t.Errorf("%d\n%s", status, answer)
	}
}

// TestGoSDKRefused: another secret, another body, another target, another path.
func TestGoSDKRefused(t *testing.T) {
	t.Parallel()
	door := startDoor(t, false)
	for name, change := range map[string]func(*http.Request){
		"target": func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.Decrypt") },
		"path":   func(r *http.Request) { r.URL.Path = "/x" },
		"query":  func(r *http.Request) { r.URL.RawQuery += "&a=b" },
		"body": func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", len(requests[0].body))))
		},
		"host": func(r *http.Request) { r.Host = "kms.eu-central-1.amazonaws.com" },
	} {
		r := goSign(t, requests[0].goRequest(t, door.URL), requests[0].body, "header", accessKeyID, secret)
		change(r)
		if status, answer := send(t, door.Client(), r); status != http.StatusForbidden || !strings.HasPrefix(answer, "signature mismatch") {
			t.Errorf("another %s: %d\n%s", name, status, answer)
		}
	}
	r := goSign(t, requests[0].goRequest(t, door.URL), requests[0].body, "header", accessKeyID, "another secret")
	if status, answer := send(t, door.Client(), r); status != http.StatusForbidden || !strings.HasPrefix(answer, "signature mismatch") {
		t.Errorf("another secret: %d\n%s", status, answer)
	}
}

func (c request) goRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), c.method, url+c.target, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range c.headers {
		r.Header.Set(name, value)
	}
	return r
}

func goSign(t *testing.T, r *http.Request, body, form, id, secret string) *http.Request {
	t.Helper()
	credentials := aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}
	if id == sessionID {
		credentials.SessionToken = session
	}
	sum := sha256.Sum256([]byte(body))
	hash := hex.EncodeToString(sum[:])
	signer := v4.NewSigner()
	if form == "header" {
		if err := signer.SignHTTP(context.Background(), credentials, r, hash, "kms", region, time.Now()); err != nil {
			t.Fatal(err)
		}
		return r
	}
	url, headers, err := signer.PresignHTTP(context.Background(), credentials, r, hash, "kms", region, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	presigned, err := http.NewRequestWithContext(t.Context(), r.Method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	presigned.Header = headers
	presigned.Header.Del("Host")
	return presigned
}

func send(t *testing.T, client *http.Client, r *http.Request) (status int, answer string) {
	t.Helper()
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}
