package awsapi_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/sigv4"
	"github.com/keyhold/keyhold/server/sigv4/sign"
)

// refusal is a way not to be authenticated, in both protocols.
type refusal struct {
	reason      sigv4.Reason
	json, query string
	status      int // of the query protocol
	words       string
	// ruin signs the request, wrongly.
	ruin func(s *served, r *http.Request, signer sign.Signer, body []byte)
}

func refusals() []refusal {
	as := func(change func(*sign.Signer)) func(*served, *http.Request, sign.Signer, []byte) {
		return func(_ *served, r *http.Request, signer sign.Signer, body []byte) {
			change(&signer)
			signer.Sign(r, body, time.Now())
		}
	}
	at := func(d time.Duration) func(*served, *http.Request, sign.Signer, []byte) {
		return func(_ *served, r *http.Request, signer sign.Signer, body []byte) {
			signer.Sign(r, body, time.Now().Add(d))
		}
	}
	const (
		mismatch = "InvalidSignatureException"
		unknown  = "UnrecognizedClientException"
	)
	return []refusal{
		{sigv4.MissingAuthenticationToken, "MissingAuthenticationTokenException", "MissingAuthenticationToken", 403, "Missing Authentication Token", func(*served, *http.Request, sign.Signer, []byte) {}},
		{sigv4.IncompleteSignature, "IncompleteSignatureException", "IncompleteSignature", 400, "", func(_ *served, r *http.Request, signer sign.Signer, body []byte) {
			signer.Sign(r, body, time.Now())
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "Signature=", "", 1))
		}},
		{sigv4.InvalidScope, mismatch, "SignatureDoesNotMatch", 403, "Credential should be scoped to a valid region", as(func(s *sign.Signer) { s.Region = "eu-west-1" })},
		{sigv4.InvalidScope, mismatch, "SignatureDoesNotMatch", 403, "Credential should be scoped to correct service", as(func(s *sign.Signer) { s.Service = "s3" })},
		{sigv4.InvalidScope, mismatch, "SignatureDoesNotMatch", 403, "Credential should be scoped to correct service", as(func(s *sign.Signer) {
			s.Service = map[string]string{"kms": "sts", "sts": "kms"}[s.Service]
		})},
		{sigv4.Expired, mismatch, "SignatureDoesNotMatch", 403, "Signature expired: ", at(-5*time.Minute - 2*time.Second)},
		{sigv4.NotYetCurrent, mismatch, "SignatureDoesNotMatch", 403, "Signature not yet current: ", at(6 * time.Minute)},
		{sigv4.UnknownAccessKey, unknown, "InvalidClientTokenId", 403, "The security token included in the request is invalid", as(func(s *sign.Signer) { s.AccessKeyID = "AKIANOBODY" })},
		{sigv4.UnknownAccessKey, unknown, "InvalidClientTokenId", 403, "The security token included in the request is invalid", func(s *served, r *http.Request, signer sign.Signer, body []byte) {
			s.keys.gone.Store(true) // deactivated while the signature was verified
			signer.Sign(r, body, time.Now())
		}},
		{sigv4.InvalidSessionToken, unknown, "InvalidClientTokenId", 403, "The security token included in the request is invalid", as(func(s *sign.Signer) { s.SessionToken = "IQoJb3JpZ2luX2Vj" })},
		{sigv4.ExpiredToken, "ExpiredTokenException", "ExpiredToken", 403, "The security token included in the request is expired", as(func(s *sign.Signer) { s.SessionToken = "expired" })},
		{sigv4.SignatureMismatch, mismatch, "SignatureDoesNotMatch", 403, "The request signature we calculated does not match the signature you provided", as(func(s *sign.Signer) { s.Secret = "another" })},
		{sigv4.PayloadMismatch, mismatch, "SignatureDoesNotMatch", 403, "x-amz-content-sha256", func(_ *served, r *http.Request, signer sign.Signer, body []byte) {
			r.Header.Set("X-Amz-Content-Sha256", strings.Repeat("0", 64))
			signer.Sign(r, body, time.Now())
		}},
	}
}

// TestRefusals: each reason has AWS's name in both protocols, is counted, and does
// not reach the core.
func TestRefusals(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return nil, errors.New("reached")
	}}
	s := open(t, c)
	tested := map[sigv4.Reason]bool{}
	sent := 0
	for _, tt := range refusals() {
		tested[tt.reason] = true
		const body = `{"KeyId":"k","Plaintext":"c2VjcmV0"}`
		r := s.request("Encrypt", body)
		tt.ruin(s, r, s.signer, []byte(body))
		a := s.send(r)
		if code, message := a.exception(t); a.status != http.StatusBadRequest || code != tt.json || !strings.Contains(message, tt.words) {
			t.Errorf("%s: %d %s, want %s about %q", tt.reason, a.status, a.body, tt.json, tt.words)
		}
		r = s.form(stsForm)
		tt.ruin(s, r, s.sts(), []byte(stsForm))
		a = s.send(r)
		kind, code, message, id := a.queryError(t)
		if a.status != tt.status || kind != "Sender" || code != tt.query || !strings.Contains(message, tt.words) || id != a.header.Get("X-Amzn-Requestid") {
			t.Errorf("%s: %d %s, want %s about %q", tt.reason, a.status, a.body, tt.query, tt.words)
		}
		s.keys.gone.Store(false)
		if sent += 2; s.refused.Load() != int64(sent) {
			t.Errorf("%s: %d refusals are counted, want %d", tt.reason, s.refused.Load(), sent)
		}
		if log := strings.ReplaceAll(s.logs.String(), `"`, ""); !strings.Contains(log, "why="+tt.reason.String()+" ") {
			t.Errorf("%s is not in the log", tt.reason)
		}
	}
	for _, reason := range sigv4.Reasons() {
		if !tested[reason] || !awsapi.HasCodes(reason) {
			t.Errorf("%s has no row", reason)
		}
	}
	if seen := c.seen(); len(seen) > 0 {
		t.Errorf("the core saw %v", seen)
	}
	for _, secret := range []string{s.signer.Secret, "c2VjcmV0", "Signature=", "IQoJ"} {
		if strings.Contains(s.logs.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

// TestStrangersAreLoggedSparingly: their number is counted and not written.
func TestStrangersAreLoggedSparingly(t *testing.T) {
	t.Parallel()
	s := open(t, &core{})
	const sent = 300
	for range sent {
		s.send(s.request("Encrypt", "{}"))
	}
	lines := strings.Count(s.logs.String(), "caller not authenticated")
	if s.refused.Load() != sent || lines < 50 || lines >= sent {
		t.Errorf("%d refused, %d lines", s.refused.Load(), lines)
	}
}

// TestKeyCannotBeDerived: while the token is down it is no fault of the caller's.
func TestKeyCannotBeDerived(t *testing.T) {
	t.Parallel()
	c := identified()
	s := open(t, c)
	down := errors.New("open a secret: " + kms.ErrStoreUnavailable.Error())
	s.keys.down.Store(&down)
	a := s.call("Encrypt", "{}")
	if code, message := a.exception(t); a.status != http.StatusInternalServerError || code != "KMSInternalException" || strings.Contains(message, "open a secret") {
		t.Errorf("%d %s", a.status, a.body)
	}
	r := s.form(stsForm)
	s.sts().Sign(r, []byte(stsForm), time.Now())
	a = s.send(r)
	if kind, code, _, _ := a.queryError(t); a.status != http.StatusInternalServerError || kind != "Receiver" || code != "InternalFailure" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if s.refused.Load() != 0 || !strings.Contains(s.logs.String(), "a signature could not be verified") || !strings.Contains(s.logs.String(), "open a secret") {
		t.Errorf("%d refused; the log: %s", s.refused.Load(), s.logs)
	}
	s.keys.down.Store(nil)
	if a := s.call("Encrypt", "{}"); a.status != http.StatusInternalServerError || len(c.seen()) != 1 {
		t.Errorf("when it is up again the core is not asked: %d %s", a.status, a.body)
	}
}

// TestNotDecoded: what is no request is recorded as such, and answered with AWS's
// exception; what the core says of its own state is answered as that.
func TestNotDecoded(t *testing.T) {
	t.Parallel()
	c := &core{do: func(_ context.Context, _ *identity.Caller, _ string, req proto.Message) (proto.Message, error) {
		r, _ := req.(*keyholdv1.EncryptRequest)
		return &keyholdv1.EncryptResponse{KeyId: r.GetKeyId(), CiphertextBlob: r.GetPlaintext()}, nil
	}}
	s := open(t, c)
	for name, body := range map[string]string{
		"empty":              "",
		"not JSON":           "KeyId=k",
		"null":               "null",
		"an array":           "[]",
		"a text":             `"KeyId"`,
		"a number":           "1",
		"behind the object":  "{}x",
		"two objects":        "{}{}",
		"cut":                `{"KeyId":"k"`,
		"cut in a word":      `{"KeyId":"a","Z":nul`,
		"a trailing comma":   `{"KeyId":"k",}`,
		"single quotes":      `{'KeyId':'k'}`,
		"a member twice":     `{"KeyId":"a","KeyId":"b"}`,
		"a stranger twice":   `{"KeyId":"a","X":1,"X":2}`,
		"an entry twice":     `{"KeyId":"a","EncryptionContext":{"a":"1","a":"2"}}`,
		"wrong type":         `{"KeyId":1}`,
		"a list for a text":  `{"KeyId":["k"]}`,
		"a text for a map":   `{"EncryptionContext":"a=b"}`,
		"a number in a map":  `{"EncryptionContext":{"a":1}}`,
		"null in a map":      `{"EncryptionContext":{"a":null}}`,
		"null in a list":     `{"GrantTokens":[null]}`,
		"a text for a bool":  `{"DryRun":"true"}`,
		"bad base64":         `{"Plaintext":"a"}`,
		"base64 of an URL":   `{"Plaintext":"_-8="}`,
		"no padding":         `{"Plaintext":"YQ"}`,
		"invalid UTF-8":      "{\"KeyId\":\"\xff\"}",
		"overlong UTF-8":     "{\"KeyId\":\"\xc0\xaf\"}",
		"half a pair":        `{"KeyId":"\ud83d"}`,
		"a control":          "{\"KeyId\":\"\x00\"}",
		"deep":               `{"X":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}",
		"deep, never closed": strings.Repeat(`{"EncryptionContext":`, 10_000),
		"many elements":      `{"GrantTokens":[` + strings.Repeat(`"",`, 20_000) + `""]}`,
		"UTF-16":             "\xff\xfe{\x00}\x00",
		"a mark":             "\xef\xbb\xbf{}",
		"gzip":               "\x1f\x8b\x08\x00",
	} {
		before := len(c.seen())
		a := s.call("Encrypt", body)
		code, message := a.exception(t)
		if a.status != http.StatusBadRequest || code != "SerializationException" || message == "" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if seen := c.seen()[before:]; len(seen) != 1 || seen[0] != "malformed Encrypt" {
			t.Errorf("%s: the core saw %v", name, seen)
		}
	}
	// These are requests.
	for body, want := range map[string]string{
		` { "KeyId" : "k" } ` + "\n":                  `{"KeyId":"k"}`,
		`{"KeyId":"b","Plaintext":null,"keyId":"c"}`:  `{"KeyId":"b"}`,
		`{"Plaintext":"YQ==","Unknown":{"a":[1,{}]}}`: `{"CiphertextBlob":"YQ=="}`,
	} {
		if a := s.call("Encrypt", body); a.status != http.StatusOK || string(a.body) != want {
			t.Errorf("%s: %d %s, want %s", body, a.status, a.body, want)
		}
	}
	// A value that an enumeration does not know is AWS's ValidationException.
	before := len(c.seen())
	a := s.call("Encrypt", `{"KeyId":"k","Plaintext":"YQ==","EncryptionAlgorithm":"ROT13"}`)
	code, message := a.exception(t)
	if want := "1 validation error detected: Value 'ROT13' at 'encryptionAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: ["; a.status != http.StatusBadRequest ||
		code != "ValidationException" || !strings.HasPrefix(message, want) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if seen := c.seen()[before:]; len(seen) != 1 || seen[0] != "malformed Encrypt" {
		t.Errorf("the core saw %v", seen)
	}
	for _, tt := range []struct {
		code   kms.Code
		status int
	}{{kms.CodeThrottling, 400}, {kms.CodeInternal, 500}} {
		c.malformed = &kms.Error{Code: tt.code}
		for _, body := range []string{"{}x", `{"EncryptionAlgorithm":"ROT13"}`} {
			if a := s.call("Encrypt", body); a.status != tt.status || string(a.body) != `{"__type":"`+string(tt.code)+`"}` {
				t.Errorf("%s, when the core answers %s: %d %s", body, tt.code, a.status, a.body)
			}
		}
	}
}
