// Package sign signs requests with AWS Signature Version 4, for Keyhold's own
// tools and tests: the header form and the presigned query form, for services
// other than S3.
//
// It shares no code with the verifier (package sigv4), so that the one is a test
// of the other. It works with net/url and the path and query that it writes
// itself: it is no signer for requests of others.
//
// Source: IAM User Guide, "Create a signed request".
package sign

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Signer signs for one access key. It may be used concurrently. It prints itself
// without its secret.
type Signer struct {
	AccessKeyID string
	Secret      string
	// SessionToken is that of temporary credentials. Optional.
	SessionToken string
	Region       string
	Service      string
}

// Sign signs r in the header form: it sets X-Amz-Date, X-Amz-Security-Token if
// there is one, and Authorization. Host, Content-Type, and all X-Amz-* headers
// are signed. body is what r will send.
func (s Signer) Sign(r *http.Request, body []byte, at time.Time) {
	date := at.UTC().Format("20060102T150405Z")
	r.Header.Set("X-Amz-Date", date)
	if s.SessionToken != "" {
		r.Header.Set("X-Amz-Security-Token", s.SessionToken)
	}
	query := sortedQuery(r.URL.Query())
	r.URL.RawQuery = query
	signed, signature := s.sign(r, query, body, date)
	r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		s.AccessKeyID, s.scope(date), signed, signature))
}

// Presign signs r in the query form, valid for a time in whole seconds.
func (s Signer) Presign(r *http.Request, body []byte, at time.Time, valid time.Duration) {
	date := at.UTC().Format("20060102T150405Z")
	q := r.URL.Query()
	q.Set("X-Amz-Algorithm", "AWS4-HMAC-SHA256")
	q.Set("X-Amz-Credential", s.AccessKeyID+"/"+s.scope(date))
	q.Set("X-Amz-Date", date)
	q.Set("X-Amz-Expires", strconv.Itoa(int(valid/time.Second)))
	q.Set("X-Amz-SignedHeaders", strings.Join(signedHeaders(r), ";"))
	if s.SessionToken != "" {
		q.Set("X-Amz-Security-Token", s.SessionToken)
	}
	query := sortedQuery(q)
	_, signature := s.sign(r, query, body, date)
	r.URL.RawQuery = query + "&X-Amz-Signature=" + signature
}

func (s Signer) scope(date string) string {
	return date[:8] + "/" + s.Region + "/" + s.Service + "/aws4_request"
}

// sign returns the list of signed headers and the signature.
func (s Signer) sign(r *http.Request, query string, body []byte, date string) (signed, signature string) {
	names := signedHeaders(r)
	signed = strings.Join(names, ";")
	var headers strings.Builder
	for _, name := range names {
		sent := r.Header.Values(name)
		if name == "host" {
			sent = []string{host(r)}
		}
		var values []string
		for _, v := range sent {
			values = append(values, strings.Join(strings.Fields(v), " "))
		}
		headers.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	// The path is encoded once more: each segment of what will be sent.
	segments := strings.Split(r.URL.EscapedPath(), "/")
	for i := range segments {
		segments[i] = escape(segments[i])
	}
	path := strings.Join(segments, "/")
	if path == "" {
		path = "/"
	}
	canonical := strings.Join([]string{r.Method, path, query, headers.String(), signed, digest(body)}, "\n")
	toSign := strings.Join([]string{"AWS4-HMAC-SHA256", date, s.scope(date), digest([]byte(canonical))}, "\n")

	key := []byte("AWS4" + s.Secret)
	for _, part := range []string{date[:8], s.Region, s.Service, "aws4_request", toSign} {
		h := hmac.New(sha256.New, key)
		_, _ = io.WriteString(h, part)
		key = h.Sum(nil)
	}
	return signed, hex.EncodeToString(key)
}

func host(r *http.Request) string {
	if r.Host != "" {
		return r.Host
	}
	return r.URL.Host
}

func signedHeaders(r *http.Request) []string {
	names := []string{"host"}
	for name := range r.Header {
		name = strings.ToLower(name)
		if name == "content-type" || strings.HasPrefix(name, "x-amz-") {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

func sortedQuery(q url.Values) string {
	var pairs []string
	for name, values := range q {
		for _, v := range values {
			pairs = append(pairs, escape(name)+"\x00"+escape(v))
		}
	}
	// The separator sorts before every byte of an encoded name, `=` does not.
	sort.Strings(pairs)
	return strings.ReplaceAll(strings.Join(pairs, "&"), "\x00", "=")
}

// escape encodes all but unreserved bytes. url.QueryEscape differs in the space.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Format keeps the secret out of all verbs of package fmt.
func (s Signer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "signer of "+s.AccessKeyID) }

// LogValue keeps the secret out of logs.
func (s Signer) LogValue() slog.Value { return slog.StringValue("signer of " + s.AccessKeyID) }
