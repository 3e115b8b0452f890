package sigv4_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keyhold/keyhold/server/sigv4"
)

// recorder is a server that keeps the requests that it gets.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex
	wire [][]byte
}

func startRecorder(t *testing.T) *recorder {
	t.Helper()
	rec := &recorder{}
	rec.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := httputil.DumpRequest(r, true)
		if err != nil {
			t.Error(err)
		}
		rec.mu.Lock()
		defer rec.mu.Unlock()
		rec.wire = append(rec.wire, b)
	}))
	t.Cleanup(rec.Close)
	return rec
}

// last is the request that came last.
func (rec *recorder) last(t *testing.T) []byte {
	t.Helper()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if len(rec.wire) == 0 {
		t.Fatal("no request was recorded")
	}
	return rec.wire[len(rec.wire)-1]
}

// TestEveryByteOfTheSDKsCounts changes each byte of requests that aws-sdk-go-v2 and
// botocore signed and sent. Each is refused, unless a door would still read all that
// was signed as it was signed.
func TestEveryByteOfTheSDKsCounts(t *testing.T) {
	t.Parallel()
	rec := startRecorder(t)
	signed := map[string][]byte{}
	for _, form := range []string{"header", "query"} {
		send(t, rec.Client(), goSign(t, requests[0].goRequest(t, rec.URL), requests[0].body, form, sessionID, secret))
		signed["aws-sdk-go-v2, "+form] = rec.last(t)
	}
	for form, c := range map[string]botocoreCase{
		"header": {requests[0].method, rec.URL + requests[0].target, requests[0].headers, requests[0].body, 0},
		"query":  {"GET", rec.URL + "/?Action=GetCallerIdentity&Version=2011-06-15", map[string]string{}, "", 60},
	} {
		run(t, botocoreJob{AccessKey: sessionID, Secret: secret, Token: session, Region: region, Service: "kms", Cases: []botocoreCase{c}},
			python(t), "testdata/botocore_send.py")
		signed["botocore, "+form] = rec.last(t)
	}
	for name, wire := range signed {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mutateAll(t, wire)
		})
	}
}

func mutateAll(t *testing.T, wire []byte) {
	v, err := sigv4.New(sigv4.Config{Credentials: keys{}, Regions: []string{region}, AllowQuery: true})
	if err != nil {
		t.Fatal(err)
	}
	original, body, err := receive(wire)
	if err != nil {
		t.Fatal(err)
	}
	vouched, err := v.Verify(original, "kms", sigv4.Body(body))
	if err != nil {
		t.Fatalf("%v\n%s", err, wire)
	}
	want := meaning(t, original, body, vouched.SignedHeaders)
	refused := map[sigv4.Reason]int{}
	mutated := slices.Clone(wire)
	for i, was := range wire {
		for _, b := range []byte{was ^ 1, was ^ 2, was ^ 0x20, was ^ 0x80, ' ', '\t', ',', '&', '/', '%', '0'} {
			if b == was {
				continue
			}
			mutated[i] = b
			r, body, err := receive(mutated)
			if err != nil {
				continue // net/http refuses it
			}
			if _, err = v.Verify(r, "kms", sigv4.Body(body)); err != nil {
				refusal, ok := err.(*sigv4.Error)
				if !ok {
					t.Fatal(err)
				}
				refused[refusal.Reason]++
			} else if got := meaning(t, r, body, vouched.SignedHeaders); !maps.Equal(got, want) {
				t.Errorf("byte %d, %q for %q, is accepted:\n%s", i, b, was, mutated)
			}
		}
		mutated[i] = was
	}
	for _, reason := range []sigv4.Reason{sigv4.SignatureMismatch, sigv4.UnknownAccessKey, sigv4.InvalidSessionToken, sigv4.InvalidScope} {
		if refused[reason] == 0 {
			t.Errorf("nothing was refused for %s: %v", reason, refused)
		}
	}
	t.Logf("%d bytes; refused: %v", len(wire), refused)
}

// receive reads a request as net/http's server does.
func receive(wire []byte) (*http.Request, []byte, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(wire)))
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(r.Body)
	return r, body, err
}

// meaning is what a door reads of what was signed. White space around and within
// a header's value is not signed as it stands, and means nothing.
func meaning(t *testing.T, r *http.Request, body []byte, signedHeaders []string) map[string]string {
	t.Helper()
	path, query, _ := strings.Cut(r.RequestURI, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		q = url.Values{"unreadable": {query}}
	}
	parameters, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{"method": r.Method, "path": path, "query": string(parameters), "body": string(body), "host": r.Host}
	for _, name := range signedHeaders {
		if name != "host" {
			m["header "+name] = strings.Join(strings.Fields(strings.Join(r.Header.Values(name), ",")), " ")
		}
	}
	return m
}
