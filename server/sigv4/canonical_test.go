package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
)

func mustRefusal(t testing.TB, err error) *Error {
	t.Helper()
	var refusal *Error
	if !errors.As(err, &refusal) {
		t.Fatalf("got error %v, want a refusal", err)
	}
	return refusal
}

// macOf signs a string to sign with the test key.
func macOf(t testing.TB, toSign string) string {
	t.Helper()
	lines := strings.Split(toSign, "\n")
	scope := strings.Split(lines[2], "/")
	key := DeriveSigningKey([]byte(testSecret), Scope{scope[0], scope[1], scope[2]})
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(toSign))
	return hex.EncodeToString(h.Sum(nil))
}

func TestCanonicalPath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ path, canonical, normal string }{
		{"", "/", "/"},
		{"/", "/", "/"},
		{"/a", "/a", "/a"},
		{"/a/", "/a/", "/a/"},
		{"/a b", "/a%20b", "/a b"},
		{"/a%20b", "/a%2520b", "/a%20b"}, // encoded twice
		{"/%2f/%2e%2e/b", "/%252f/%252e%252e/b", "/%2f/%2e%2e/b"},
		{"/a+b;c=d", "/a%2Bb%3Bc%3Dd", "/a+b;c=d"},
		{"/é\xff", "/%C3%A9%FF", "/é\xff"},
		{"/%zz", "/%25zz", "/%zz"},
		{"//", "/", "/"},
		{"///a//b//", "/a/b/", "/a/b/"},
		{"/./a/./b/.", "/a/b/", "/a/b/"},
		{"/..", "/", "/"},
		{"/../../a", "/a", "/a"},
		{"/a/b/../c", "/a/c", "/a/c"},
		{"/a/b/..", "/a/", "/a/"},
		{"/a/...", "/a/...", "/a/..."},
		{"/.a/..b", "/.a/..b", "/.a/..b"},
	} {
		canonical, normal, refusal := canonicalPath(c.path, true)
		if refusal != nil || canonical != c.canonical || normal != c.normal {
			t.Errorf("%q: got %q, %q, %v; want %q, %q", c.path, canonical, normal, refusal, c.canonical, c.normal)
		}
		_, sent, refusal := canonicalPath(c.path, false)
		if isNormal := c.path == "" || c.path == c.normal; isNormal != (refusal == nil) || isNormal && sent != c.normal {
			t.Errorf("%q as it was sent: got %q, %v", c.path, sent, refusal)
		}
	}
}

func TestCanonicalQuery(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ raw, want string }{
		{"", ""},
		{"a", "a="},
		{"a=", "a="},
		{"=", "="},
		{"=a", "=a"},
		{"a=b=c", "a=b%3Dc"},
		{"&&a&&", "a="},
		{"b=1&a=2&a=1", "a=1&a=2&b=1"},
		{"a=+", "a=%20"},
		{"a=%20", "a=%20"},
		{"a=%2B", "a=%2B"},
		{"a=%2b", "a=%2B"},
		{"a=%7e~%41", "a=~~A"},
		{"a=1;b=2", "a=1%3Bb%3D2"},
		{"a=?/:@!$'()*,", "a=%3F%2F%3A%40%21%24%27%28%29%2A%2C"},
		{"\xff=é", "%FF=%C3%A9"},
		{"a%00=%0a", "a%00=%0A"},
		// By encoded name, then value: `-` sorts before `=`, and `%` before all.
		{"a-b=1&a=2", "a=2&a-b=1"},
		{"a=z&a=%C3%A9&A=1", "A=1&a=%C3%A9&a=z"},
		{"X-Amz-Signature=1&a=2", "a=2"},
		{"x-amz-signature=1&a=2", "a=2&x-amz-signature=1"},
	} {
		params, refusal := parseQuery(c.raw)
		if refusal != nil {
			t.Errorf("%q: %v", c.raw, refusal)
		} else if got := string(appendQuery(nil, params)); got != c.want {
			t.Errorf("%q: got %q, want %q", c.raw, got, c.want)
		}
	}
}

func TestCanonicalHeaders(t *testing.T) {
	t.Parallel()
	r := &http.Request{
		Host: "example.com:8443", TransferEncoding: []string{"chunked"},
		Header: http.Header{
			"A": {"  x \t  y  "}, "B": {"2", "1", "", "1"}, "C": {""}, "D": {`"a   b"`}, "E": {"é\xff"},
		},
	}
	names := []string{":authority", "a", "b", "c", "content-length", "d", "e", "host", "transfer-encoding"}
	got, refusal := appendHeaders(nil, r, names, &Payload{size: 12})
	const want = ":authority:example.com:8443\na:x y\nb:2,1,,1\nc:\ncontent-length:12\nd:\"a b\"\ne:é\xff\nhost:example.com:8443\ntransfer-encoding:chunked\n"
	if refusal != nil || string(got) != want {
		t.Errorf("got %q, %v\nwant %q", got, refusal, want)
	}
	_, refusal = appendHeaders(nil, r, []string{"content-length"}, &Payload{size: -1})
	if refusal == nil {
		t.Error("a Content-Length that nobody knows was accepted")
	}
	for _, value := range []string{"a\nb", "a\rb", "\x00", "a\x7f"} {
		r.Header.Set("A", value)
		if _, refusal = appendHeaders(nil, r, []string{"a"}, &Payload{}); refusal == nil {
			t.Errorf("%q was accepted", value)
		}
	}
}

// TestAuthority: HTTP/2's name for the host may be signed instead (XKS proxy API
// specification, Authentication).
func TestAuthority(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	r, body := signed(t, "POST", "/", "body")
	edit("SignedHeaders=host;", "SignedHeaders=:authority;")(r)
	_, err := v.Verify(r, "kms", Body(body))
	explained := mustRefusal(t, err)
	if !strings.Contains(explained.canonicalRequest, "\n:authority:localhost:8080\n") {
		t.Fatalf("canonical request: %s", explained.canonicalRequest)
	}
	a := r.Header.Get("Authorization")
	r.Header.Set("Authorization", a[:len(a)-64]+macOf(t, explained.stringToSign))
	if _, err := v.Verify(r, "kms", Body(body)); err != nil {
		t.Error(err)
	}
}

// TestHopHeaders: headers about the connection may be signed, too (libmongocrypt
// signs Connection and Content-Length); net/http leaves them, or what they said.
func TestHopHeaders(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	for name, body := range map[string]string{
		"Content-Length: 4\r\n":          "body",
		"Transfer-Encoding: chunked\r\n": "4\r\nbody\r\n0\r\n\r\n",
	} {
		length, _, _ := strings.Cut(strings.ToLower(name), ":")
		names := []string{"connection", length, "expect", "host", "te", "x-amz-date"}
		slices.Sort(names)
		wire := "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\nTE: trailers\r\n" + name +
			"X-Amz-Date: " + testTime.Format(dateLayout) + "\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260115/us-east-1/kms/aws4_request, " +
			"SignedHeaders=" + strings.Join(names, ";") + ", Signature=" + strings.Repeat("0", 64) + "\r\n\r\n" + body
		r, data := mustReceive(t, []byte(wire))
		_, err := v.Verify(r, "kms", Body(data))
		explained := mustRefusal(t, err)
		for _, line := range []string{"\nconnection:close\n", "\nexpect:100-continue\n", "\nte:trailers\n", "\n" + strings.TrimSpace(strings.ToLower(strings.Replace(name, ": ", ":", 1))) + "\n"} {
			if !strings.Contains(explained.canonicalRequest, line) {
				t.Errorf("%q is not in the canonical request:\n%s", line, explained.Explain())
			}
		}
	}
}

// TestHTTPDate: the Date header counts where there is no X-Amz-Date, in either
// format.
func TestHTTPDate(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	for _, c := range []struct {
		date   []string
		reason Reason
	}{
		{[]string{testTime.Format(http.TimeFormat)}, 0},
		{[]string{testTime.Format(dateLayout)}, 0},
		{[]string{testTime.Format(time.RFC850)}, IncompleteSignature},
		{[]string{testTime.Format(time.ANSIC)}, IncompleteSignature},
		{[]string{testTime.Format(time.RFC1123Z)}, IncompleteSignature},
		{[]string{strings.Replace(testTime.Format(http.TimeFormat), "12 GMT", "12.5 GMT", 1)}, IncompleteSignature},
		{[]string{testTime.Add(time.Hour).Format(http.TimeFormat)}, NotYetCurrent},
		{[]string{testTime.Format(http.TimeFormat), testTime.Format(http.TimeFormat)}, IncompleteSignature},
	} {
		r, body := signed(t, "POST", "/", "body")
		r.Header.Del(headerDate)
		r.Header["Date"] = c.date
		edit("SignedHeaders=host;x-amz-date", "SignedHeaders=date;host")(r)
		_, err := v.Verify(r, "kms", Body(body))
		if c.reason != 0 {
			wantRefusal(t, err, c.reason, "")
			continue
		}
		explained := mustRefusal(t, err)
		a := r.Header.Get("Authorization")
		r.Header.Set("Authorization", a[:len(a)-64]+macOf(t, explained.stringToSign))
		if got, err := v.Verify(r, "kms", Body(body)); err != nil || !got.At.Equal(testTime) {
			t.Errorf("%q: %v, %v", c.date, got.At, err)
		}
		edit("SignedHeaders=date;host", "SignedHeaders=host")(r)
		_, err = v.Verify(r, "kms", Body(body))
		wantRefusal(t, err, SignatureMismatch, "'Date' must be a 'SignedHeader'")
	}
	// X-Amz-Date wins over a Date that says something else.
	r, body := signed(t, "POST", "/", "body")
	r.Header.Set("Date", testTime.Add(-time.Hour).Format(http.TimeFormat))
	if _, err := v.Verify(r, "kms", Body(body)); err != nil {
		t.Error(err)
	}
}

// FuzzPath: the normal form is what path.Clean makes of it, but for the slash at
// its end, and stays as it is.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/", "/a/../b", "//a/./b/..", "/a//", "/%2e/..x/...", "/../.."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		canonical, normal, refusal := canonicalPath(p, true)
		if refusal != nil {
			return
		}
		want := path.Clean("/" + p)
		if got := strings.TrimSuffix(normal, "/"); got != strings.TrimSuffix(want, "/") {
			t.Errorf("%q: got %q, want %q", p, normal, want)
		}
		if _, again, refusal := canonicalPath(normal, false); refusal != nil || again != normal {
			t.Errorf("%q: %q is not in normal form: %v", p, normal, refusal)
		}
		if decode(canonical) != normal {
			t.Errorf("%q: %q does not decode to %q", p, canonical, normal)
		}
	})
}

// FuzzCanonicalQuery: equal to a slow implementation over net/url, and canonical
// already when it is read again.
func FuzzCanonicalQuery(f *testing.F) {
	for _, seed := range []string{"", "a=1&b=2", "b&a=%20+&&", "a=%zz", "a;b=c", "é=\xff", "a=b=c&a=b", "X-Amz-Signature=1&%58-Amz-Signature=2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		params, refusal := parseQuery(raw)
		want, ok := slowQuery(raw)
		if refusal != nil {
			if ok && len(raw) <= maxQueryBytes && strings.Count(raw, "&") < maxQueryParams {
				t.Errorf("%q: %v", raw, refusal)
			}
			return
		}
		if !ok {
			t.Fatalf("%q was accepted", raw)
		}
		got := string(appendQuery(nil, params))
		if got != want {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
		again, refusal := parseQuery(got)
		if refusal != nil {
			t.Fatalf("%q: %q is refused: %v", raw, got, refusal)
		}
		if twice := string(appendQuery(nil, again)); twice != got {
			t.Errorf("%q: %q becomes %q", raw, got, twice)
		}
		for _, p := range again {
			if want, err := url.PathUnescape(p.value); err != nil || decode(p.value) != want {
				t.Errorf("%q decodes to %q, want %q, %v", p.value, decode(p.value), want, err)
			}
		}
	})
}
