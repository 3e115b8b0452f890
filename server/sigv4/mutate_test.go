package sigv4

import (
	"bufio"
	"bytes"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"testing"
)

// slowQuery is the canonical query in the simplest words; false if the query is
// to be refused.
func slowQuery(raw string) (string, bool) {
	escape := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	type pair struct{ name, value string }
	var pairs []pair
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		n, err1 := url.QueryUnescape(name)
		v, err2 := url.QueryUnescape(value)
		if err1 != nil || err2 != nil {
			return "", false
		}
		if n != "X-Amz-Signature" {
			pairs = append(pairs, pair{escape(n), escape(v)})
		}
	}
	sort.Slice(pairs, func(i, j int) bool {
		if pairs[i].name != pairs[j].name {
			return pairs[i].name < pairs[j].name
		}
		return pairs[i].value < pairs[j].value
	})
	var out []string
	for _, p := range pairs {
		out = append(out, p.name+"="+p.value)
	}
	return strings.Join(out, "&"), true
}

// same reports whether a door would read the same request from both: nothing
// that it looks at may differ.
func same(x, y *http.Request, xBody, yBody []byte) bool {
	xPath, xQuery, _ := strings.Cut(x.RequestURI, "?")
	yPath, yQuery, _ := strings.Cut(y.RequestURI, "?")
	xCanonical, ok1 := slowQuery(xQuery)
	yCanonical, ok2 := slowQuery(yQuery)
	// Content-Length is not signed here: it says where the body ends, and the
	// body is what counts.
	x.Header.Del("Content-Length")
	y.Header.Del("Content-Length")
	return x.Method == y.Method && xPath == yPath && ok1 && ok2 && xCanonical == yCanonical && x.Host == y.Host &&
		bytes.Equal(xBody, yBody) && maps.EqualFunc(x.Header, y.Header, func(a, b []string) bool {
		fold := func(values []string) string {
			folded := make([]string, 0, len(values))
			for _, v := range values {
				folded = append(folded, strings.Join(strings.Fields(v), " "))
			}
			return strings.Join(folded, "\x00")
		}
		return fold(a) == fold(b)
	})
}

// TestEveryByteCounts changes each byte of a request, in both forms, as it goes
// over the wire: request line, headers and body. Each bit is flipped, and bytes
// that mean something to a parser are put in its place. The result is refused
// unless a door would read what was signed (a header's name in another case,
// say).
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"header", "query"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, testConfig())
			r := newRequest(t, "POST", "/prefix/k%20e?b=x%2Cy&a=1&c", `{"KeyId":"alias/a"}`,
				"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "TrentService.Encrypt")
			if form == "header" {
				testSigner.Sign(r, []byte(`{"KeyId":"alias/a"}`), testTime)
			} else {
				testSigner.Presign(r, []byte(`{"KeyId":"alias/a"}`), testTime, 0x7fff*1e9)
			}
			wire := raw(t, r)
			original, body := mustReceive(t, wire)
			if _, err := v.Verify(original, "kms", Body(body)); err != nil {
				t.Fatal(err)
			}
			mutated := slices.Clone(wire)
			accepted, refused := 0, map[Reason]int{}
			for i, was := range wire {
				others := []byte("\x00\t\n\r !%&'+,-./059:;=?@AZaz~\x7f\xff")
				for bit := range 8 {
					others = append(others, was^1<<bit)
				}
				for _, b := range others {
					if b == was {
						continue
					}
					mutated[i] = b
					got, gotBody, err := receive(mutated)
					if err != nil {
						continue // net/http refuses it
					}
					_, err = v.Verify(got, "kms", Body(gotBody))
					var refusal *Error
					switch {
					case errors.As(err, &refusal):
						refused[refusal.Reason]++
						checkMessage(t, refusal)
					case err != nil:
						t.Fatal(err)
					case !same(original, got, body, gotBody):
						t.Errorf("byte %d, %q for %q, is accepted:\n%s", i, b, was, mutated)
					default:
						accepted++
					}
				}
				mutated[i] = was
			}
			t.Logf("%d bytes; accepted with the same meaning: %d; refused: %v", len(wire), accepted, refused)
			if refused[SignatureMismatch] == 0 || refused[UnknownAccessKey] == 0 || refused[InvalidScope] == 0 {
				t.Error("the mutations did not reach the signature, the key and the scope")
			}
		})
	}
}

// FuzzVerify: any bytes are verified or refused, with a message that is fit to
// send, in every configuration. What is accepted is so again.
func FuzzVerify(f *testing.F) {
	for _, target := range []string{"/", "/a%20b?x=1&y=%2B"} {
		for _, form := range []string{"header", "query"} {
			r := newRequest(f, "POST", target, "body", "X-Amz-Target", "TrentService.Encrypt")
			if form == "header" {
				testSigner.Sign(r, []byte("body"), testTime)
			} else {
				testSigner.Presign(r, []byte("body"), testTime, 1e12)
			}
			f.Add(raw(f, r))
		}
	}
	f.Add([]byte("GET / HTTP/1.1\r\nHost: h\r\nAuthorization: AWS4-HMAC-SHA256 Credential=a/20260115/us-east-1/kms/aws4_request, SignedHeaders=date;host, Signature=0\r\nDate: Thu, 15 Jan 2026 10:11:12 GMT\r\n\r\n"))
	strict := testConfig()
	strict.AllowQuery = false
	lax := testConfig()
	lax.AllowUnsignedPayload, lax.NormalizePath = true, true
	verifiers := []*Verifier{newVerifier(f, strict), newVerifier(f, lax)}
	f.Fuzz(func(t *testing.T, wire []byte) {
		for _, v := range verifiers {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(wire)))
			if err != nil {
				return
			}
			_, first := v.Verify(r, "kms", Body([]byte("body")))
			if first != nil {
				refusal := mustRefusal(t, first)
				checkMessage(t, refusal)
				_ = refusal.Explain()
			}
			_, second := v.Verify(r, "kms", Body([]byte("body")))
			if (first == nil) != (second == nil) {
				t.Errorf("first %v, then %v", first, second)
			}
		}
	})
}
