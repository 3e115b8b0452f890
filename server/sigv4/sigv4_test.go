package sigv4

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/sigv4/sign"
)

const (
	testKeyID  = "AKIDEXAMPLE"
	testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

var testTime = time.Date(2026, 1, 15, 10, 11, 12, 0, time.UTC)

// testKeys is Credentials in memory.
type testKeys map[string]*testKey

type testKey struct {
	secret  string
	token   string
	version uint64
	derived atomic.Int32
}

func (k *testKey) Version() uint64 { return k.version }

func (k *testKey) SigningKey(_ context.Context, scope Scope) (SigningKey, error) {
	k.derived.Add(1)
	return DeriveSigningKey([]byte(k.secret), scope), nil
}

func (keys testKeys) LookUp(_ context.Context, id, token string) (Key, error) {
	k, ok := keys[id]
	switch {
	case !ok:
		return nil, ErrUnknownAccessKey
	case token == "expired-token":
		return nil, ErrExpiredToken
	case token != k.token:
		return nil, ErrInvalidSessionToken
	}
	return k, nil
}

// testConfig is a verifier's for the region us-east-1 at testTime.
func testConfig() Config {
	return Config{
		Credentials: testKeys{
			testKeyID:     {secret: testSecret},
			"ASIASESSION": {secret: "session secret", token: "session-token//=="},
		},
		Regions:    []string{"us-east-1", "eu-west-1"},
		Now:        func() time.Time { return testTime },
		AllowQuery: true,
	}
}

func newVerifier(t testing.TB, c Config) *Verifier {
	t.Helper()
	v, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var testSigner = sign.Signer{AccessKeyID: testKeyID, Secret: testSecret, Region: "us-east-1", Service: "kms"}

// raw writes a signed request as it goes over the wire.
func raw(t testing.TB, r *http.Request) []byte {
	t.Helper()
	r.Header.Set("User-Agent", "") // none
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// receive reads a request as net/http's server does.
func receive(b []byte) (*http.Request, []byte, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(r.Body)
	return r, body, err
}

// newRequest makes a request with the headers of a KMS client.
func newRequest(t testing.TB, method, target, body string, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost:8080"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// signed is a request in the header form, as the server receives it.
func signed(t testing.TB, method, target, body string, headers ...string) (*http.Request, []byte) {
	t.Helper()
	r := newRequest(t, method, target, body, headers...)
	testSigner.Sign(r, []byte(body), testTime)
	return mustReceive(t, raw(t, r))
}

// presigned is a request in the query form, as the server receives it.
func presigned(t testing.TB, method, target, body string, headers ...string) (*http.Request, []byte) {
	t.Helper()
	r := newRequest(t, method, target, body, headers...)
	testSigner.Presign(r, []byte(body), testTime, 10*time.Minute)
	return mustReceive(t, raw(t, r))
}

func mustReceive(t testing.TB, b []byte) (*http.Request, []byte) {
	t.Helper()
	r, body, err := receive(b)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return r, body
}

// wantRefusal fails unless err is a refusal for this reason, with a message that
// contains part, is fit for every protocol, and is no longer than it may be.
func wantRefusal(t testing.TB, err error, reason Reason, part string) {
	t.Helper()
	var refusal *Error
	if !errors.As(err, &refusal) {
		t.Fatalf("got error %v, want a refusal: %s", err, reason)
	}
	if refusal.Reason != reason || !strings.Contains(refusal.Message, part) {
		t.Errorf("refused: %v\nwant %s: ...%s...", err, reason, part)
	}
	checkMessage(t, refusal)
}

func checkMessage(t testing.TB, e *Error) {
	t.Helper()
	if e.Message == "" || len(e.Message) >= 512 || strings.ContainsFunc(e.Message, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("the message is not 1 to 511 bytes of printable ASCII: %q", e.Message)
	}
}

// suiteCase is a case of AWS's test suite.
type suiteCase struct {
	Name, Req, Creq, STS, Authz string
}

// request makes the request of a case as the server would see it, path and query
// as they are in the file: net/http itself would not take all of them.
func (c suiteCase) request(t *testing.T) (*http.Request, []byte) {
	t.Helper()
	head, body, _ := strings.Cut(c.Req, "\n\n")
	first, headers, _ := strings.Cut(strings.TrimSuffix(head, "\n"), "\n")
	method, target, _ := strings.Cut(strings.TrimSuffix(first, " HTTP/1.1"), " ")
	r, _ := mustReceive(t, []byte(method+" / HTTP/1.1\r\n"+strings.ReplaceAll(headers, "\n", "\r\n")+"\r\n\r\n"))
	r.RequestURI = target
	r.Header.Set("Authorization", c.Authz)
	if _, rest, ok := strings.Cut(c.Creq, "\nx-amz-security-token:"); ok {
		// One case leaves adding the token to the signer.
		token, _, _ := strings.Cut(rest, "\n")
		r.Header.Set(headerToken, token)
	}
	return r, []byte(body)
}

func loadSuite(t *testing.T) []suiteCase {
	t.Helper()
	b, err := os.ReadFile("testdata/aws4_testsuite.json")
	if err != nil {
		t.Fatal(err)
	}
	var suite struct{ Cases []suiteCase }
	if err := json.Unmarshal(b, &suite); err != nil {
		t.Fatal(err)
	}
	if len(suite.Cases) != 34 {
		t.Fatalf("the suite has %d cases, want 34", len(suite.Cases))
	}
	return suite.Cases
}

// TestAWSSuite runs AWS's Signature Version 4 Test Suite: each signature is
// accepted, and for another one the refusal explains what the suite says should
// have been signed.
func TestAWSSuite(t *testing.T) {
	t.Parallel()
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	for _, c := range loadSuite(t) {
		t.Run(c.Name, func(t *testing.T) {
			r, body := c.request(t)
			config := testConfig()
			config.Now = func() time.Time { return at }
			config.NormalizePath = true
			config.Credentials = testKeys{testKeyID: {secret: testSecret, token: r.Header.Get(headerToken)}}
			v := newVerifier(t, config)

			if c.Name == "post-sts-header-after" {
				// A token that is not signed: some services of AWS take it.
				r.Header.Set(headerToken, "token")
				_, err := v.Verify(r, "service", Body(body))
				wantRefusal(t, err, SignatureMismatch, "'X-Amz-Security-Token' must be a 'SignedHeader'")
				return
			}
			got, err := v.Verify(r, "service", Body(body))
			if err != nil {
				t.Fatal(err)
			}
			if got.AccessKeyID != testKeyID || got.Presigned || !got.At.Equal(at) ||
				got.Scope != (Scope{"20150830", "us-east-1", "service"}) {
				t.Errorf("verified %+v", got)
			}

			r.Header.Set("Authorization", c.Authz[:len(c.Authz)-64]+strings.Repeat("0", 64))
			_, err = v.Verify(r, "service", Body(body))
			wantRefusal(t, err, SignatureMismatch, "does not match the signature you provided")
			var refusal *Error
			errors.As(err, &refusal)
			for _, want := range []string{"\n'" + c.Creq + "'\n", "\n'" + c.STS + "'\n"} {
				if !strings.Contains(refusal.Explain(), want) {
					t.Errorf("got %s\nwant %s", refusal.Explain(), want)
				}
			}
		})
	}
}

// TestSuitePathsAreNormal: without NormalizePath the suite's paths that are not
// in normal form are refused, and only they.
func TestSuitePathsAreNormal(t *testing.T) {
	t.Parallel()
	config := testConfig()
	config.Now = func() time.Time { return time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC) }
	v := newVerifier(t, config)
	refused := 0
	for _, c := range loadSuite(t) {
		r, body := c.request(t)
		if r.Header.Get(headerToken) != "" {
			continue
		}
		_, err := v.Verify(r, "service", Body(body))
		if strings.Contains(c.Req, "/.") || strings.Contains(c.Req, "//") {
			wantRefusal(t, err, IncompleteSignature, "empty or dot segments")
			refused++
		} else if err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	if refused != 6 {
		t.Errorf("%d paths refused, want 6", refused)
	}
}

// TestXKSVector is a request as AWS KMS signs it for an XKS proxy (XKS proxy API
// specification, Authentication): computed apart from any code of ours.
func TestXKSVector(t *testing.T) {
	t.Parallel()
	config := testConfig()
	config.Credentials = testKeys{"BETWEEN2TAND3TACHARACTERS": {secret: "PleaseReplaceThisWithSomeSecretOfLength43To64"}}
	v := newVerifier(t, config)
	const body = `{"requestMetadata":{"kmsRequestId":"4112f4d6-db54-4af4-ae30-c55a22a8dfae","kmsOperation":"KmsHealthCheck"}}`
	r, b := mustReceive(t, []byte("POST /example/uri/path/prefix/kms/xks/v1/health HTTP/1.1\r\nHost: xks.example.com\r\nX-Amz-Date: 20260115T101112Z\r\n"+
		"Content-Type: application/json\r\nContent-Length: 107\r\nAuthorization: AWS4-HMAC-SHA256 Credential=BETWEEN2TAND3TACHARACTERS/20260115/us-east-1/kms-xks-proxy/aws4_request, "+
		"SignedHeaders=host;x-amz-date, Signature=6f621f33712f1731815bc86df9f7d9edf08a3018ee858ec46da3e47c34c4bad6\r\n\r\n"+body))
	got, err := v.Verify(r, "kms-xks-proxy", Body(b))
	if err != nil {
		t.Fatal(err)
	}
	if got.Path != "/example/uri/path/prefix/kms/xks/v1/health" || !slices.Equal(got.SignedHeaders, []string{"host", "x-amz-date"}) {
		t.Errorf("verified %+v", got)
	}
}

// TestAccepted: what signers may do, in both forms.
func TestAccepted(t *testing.T) {
	t.Parallel()
	kms := []string{"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "TrentService.Encrypt"}
	for _, c := range []struct {
		name, method, target, body string
		headers                    []string
	}{
		{"KMS", "POST", "/", `{"KeyId":"1"}`, kms},
		{"no body", "GET", "/", "", nil},
		{"empty path", "GET", "", "", nil},
		{"query", "GET", "/?Action=GetCallerIdentity&Version=2011-06-15", "", nil},
		{"query in any order, twice the same name", "GET", "/?b=2&a=1&b=1&a", "", nil},
		{"semicolon, space, plus, percent", "GET", "/?a=1%3B2&b=x+y%20z%2B%25&%C3%A9=%ff", "", nil},
		{"path with escapes", "POST", "/a%20b/%C3%A9/%2F/c", "x", kms},
		{"spaces in a value", "POST", "/", "", []string{"X-Amz-Meta", "  a   b\t c  "}},
		{"empty value", "POST", "/", "", []string{"X-Amz-Meta", ""}},
		{"UTF-8 value", "POST", "/", "", []string{"X-Amz-Meta", "é ü"}},
		{"long value", "POST", "/", strings.Repeat("x", 1<<20), []string{"X-Amz-Meta", strings.Repeat("v", 8000)}},
		{"content hash", "POST", "/", "abc", []string{headerPayload, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVerifier(t, testConfig())
			r, body := signed(t, c.method, c.target, c.body, c.headers...)
			if _, err := v.Verify(r, "kms", Body(body)); err != nil {
				t.Errorf("header form: %v", err)
			}
			r, body = presigned(t, c.method, c.target, c.body, c.headers...)
			got, err := v.Verify(r, "kms", Body(body))
			if err != nil {
				t.Fatalf("query form: %v", err)
			}
			if !got.Presigned {
				t.Error("query form: not Presigned")
			}
		})
	}
}

// TestSession: temporary credentials, in both forms.
func TestSession(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	for token, want := range map[string]Reason{
		"session-token//==": 0, "expired-token": ExpiredToken, "other": InvalidSessionToken, "": InvalidSessionToken,
	} {
		s := sign.Signer{AccessKeyID: "ASIASESSION", Secret: "session secret", SessionToken: token, Region: "eu-west-1", Service: "kms"}
		for _, form := range []string{"header", "query"} {
			r := newRequest(t, "POST", "/", "body")
			if form == "header" {
				s.Sign(r, []byte("body"), testTime)
			} else {
				s.Presign(r, []byte("body"), testTime, time.Minute)
			}
			got, body := mustReceive(t, raw(t, r))
			_, err := v.Verify(got, "kms", Body(body))
			switch {
			case want != 0:
				wantRefusal(t, err, want, "The security token included in the request is ")
			case err != nil:
				t.Errorf("%s form, token %q: %v", form, token, err)
			}
		}
	}
}

// TestHeadersOnTheWay: what a load balancer adds is not signed and does no harm.
func TestHeadersOnTheWay(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	r, body := signed(t, "POST", "/", "body", "X-Amz-Target", "TrentService.Encrypt")
	for _, name := range []string{"X-Amzn-Trace-Id", "X-Forwarded-For", "User-Agent", "Via", "Host"} {
		r.Header.Set(name, r.Host)
		if _, err := v.Verify(r, "kms", Body(body)); err != nil {
			t.Errorf("with %s: %v", name, err)
		}
	}
}

// TestHashedBody: a door may hash while it reads, and may not know the length.
func TestHashedBody(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	r, body := signed(t, "POST", "/", "body")
	if _, err := v.Verify(r, "kms", BodySHA256(sha(body), -1)); err != nil {
		t.Error(err)
	}
	_, err := v.Verify(r, "kms", BodySHA256(sha([]byte("bode")), 4))
	wantRefusal(t, err, SignatureMismatch, "does not match")
}

// TestLookUpFails: a fault of ours is no refusal.
func TestLookUpFails(t *testing.T) {
	t.Parallel()
	fault := errors.New("the store is gone")
	for name, credentials := range map[string]Credentials{
		"look-up":    faulty{err: fault},
		"derivation": faulty{key: faultyKey{fault}},
		"no key":     faulty{},
	} {
		c := testConfig()
		c.Credentials = credentials
		r, body := signed(t, "POST", "/", "body")
		_, err := newVerifier(t, c).Verify(r, "kms", Body(body))
		var refusal *Error
		if err == nil || errors.As(err, &refusal) || name != "no key" && !errors.Is(err, fault) {
			t.Errorf("%s: got error %v", name, err)
		}
		if err := newVerifier(t, c).CheckHeader(r, "kms"); name == "look-up" && !errors.Is(err, fault) || name == "derivation" && err != nil {
			t.Errorf("%s: CheckHeader: %v", name, err)
		}
	}
}

type faulty struct {
	key Key
	err error
}

func (f faulty) LookUp(context.Context, string, string) (Key, error) { return f.key, f.err }

type faultyKey struct{ err error }

func (faultyKey) Version() uint64 { return 0 }

func (k faultyKey) SigningKey(context.Context, Scope) (SigningKey, error) {
	return SigningKey{}, k.err
}
