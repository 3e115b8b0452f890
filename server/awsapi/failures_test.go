package awsapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/door"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/sigv4/sign"
)

// both answers Encrypt and GetCallerIdentity.
func both() *core {
	return &core{do: func(_ context.Context, _ *identity.Caller, operation string, _ proto.Message) (proto.Message, error) {
		if operation == "GetCallerIdentity" {
			return &keyholdv1.GetCallerIdentityResponse{}, nil
		}
		return &keyholdv1.EncryptResponse{}, nil
	}}
}

// stopped is a clock that goes as s.ahead does, and not by itself.
func stopped(s *served) func() time.Time {
	began := time.Now()
	return func() time.Time { return began.Add(time.Duration(s.ahead.Load())) }
}

// failing sets limits of failed authentications, on a clock that stands still.
func failing(l door.FailureLimits) option {
	return func(cfg *awsapi.Config, s *served) {
		l.Now = stopped(s)
		cfg.Failures = l
	}
}

// stranger signs with another secret.
func (s *served) stranger(service string) sign.Signer {
	signer := s.signer
	signer.Service, signer.Secret = service, "another"
	return signer
}

// wrong is a request of either protocol with a wrong signature.
func (s *served) wrong(query bool) *http.Request {
	if query {
		r := s.form(stsForm)
		s.stranger("sts").Sign(r, []byte(stsForm), time.Now())
		return r
	}
	r := s.request("Encrypt", "{}")
	s.stranger("kms").Sign(r, []byte("{}"), time.Now())
	return r
}

// wantTold wants an answer to wrong that tells why.
func (s *served) wantTold(query bool, what string) {
	s.t.Helper()
	a := s.send(s.wrong(query))
	var code string
	if query {
		_, code, _, _ = a.queryError(s.t)
	} else {
		code, _ = a.exception(s.t)
	}
	if code != "InvalidSignatureException" && code != "SignatureDoesNotMatch" {
		s.t.Errorf("%s: %d %s", what, a.status, a.body)
	}
}

// wantThrottled wants a request to be answered with no more than that.
func (s *served) wantThrottled(r *http.Request, query bool, what string) {
	s.t.Helper()
	refused, throttled := s.refused.Load(), s.throttled.Load()
	a := s.send(r)
	if query {
		kind, code, message, id := a.queryError(s.t)
		if a.status != http.StatusBadRequest || kind != "Sender" || code != "Throttling" || message != "Rate exceeded" || id != a.header.Get("X-Amzn-Requestid") {
			s.t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	} else if a.status != http.StatusBadRequest || string(a.body) != `{"__type":"ThrottlingException","message":"Rate exceeded"}` || a.header.Get("Content-Type") != jsonType {
		s.t.Errorf("%s: %d %s", what, a.status, a.body)
	}
	if s.refused.Load() != refused+1 || s.throttled.Load() != throttled+1 {
		s.t.Errorf("%s: %d refused and %d throttled are counted, of one", what, s.refused.Load()-refused, s.throttled.Load()-throttled)
	}
}

// wantServed wants requests of all forms that are signed rightly to be served.
func (s *served) wantServed() {
	s.t.Helper()
	// Signed by the wall clock, which the verifier's is ahead of.
	now := time.Now().Add(time.Duration(s.ahead.Load()))
	header, presigned, form := s.request("Encrypt", "{}"), s.request("Encrypt", "{}"), s.form(stsForm)
	get, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+"?"+stsForm, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	s.signer.Sign(header, []byte("{}"), now)
	s.signer.Presign(presigned, []byte("{}"), now, time.Minute)
	s.sts().Sign(form, []byte(stsForm), now)
	s.sts().Presign(get, nil, now, time.Minute)
	for name, r := range map[string]*http.Request{"header": header, "presigned": presigned, "sts": form, "sts, presigned": get} {
		if a := s.send(r); a.status != http.StatusOK {
			s.t.Errorf("%s: a request that is signed rightly: %d %s", name, a.status, a.body)
		}
	}
}

// TestFailuresAreBounded: n failed authentications are told why, n+1 are not, until
// there is room again; and whoever signs rightly is served meanwhile, from the same
// address.
func TestFailuresAreBounded(t *testing.T) {
	t.Parallel()
	for _, options := range [][]option{nil, {overTLS("h2")}, {overTLS("http/1.1")}} {
		for _, query := range []bool{false, true} {
			const burst, perSecond = 5, 4
			s := open(t, both(), append(options, failing(door.FailureLimits{PerSecond: perSecond, Burst: burst}))...)
			s.wantServed()
			for i := range burst {
				s.wantTold(query, fmt.Sprintf("failure %d", i+1))
			}
			s.wantThrottled(s.wrong(query), query, "one more")
			s.wantThrottled(s.wrong(!query), !query, "the other protocol")
			s.wantServed()
			s.ahead.Add(int64(time.Second/perSecond - time.Millisecond))
			s.wantThrottled(s.wrong(query), query, "too early")
			s.ahead.Add(int64(time.Millisecond))
			s.wantTold(query, "when there is room for one")
			s.wantThrottled(s.wrong(query), query, "one more than that")
			s.ahead.Add(int64(time.Minute))
			for range burst {
				s.wantTold(query, "a minute later")
			}
			s.wantThrottled(s.wrong(query), query, "a minute later, one more")
			s.wantServed()
		}
	}
}

// TestEveryRefusalIsBounded: in both protocols, whatever is wrong.
func TestEveryRefusalIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, both(), failing(door.FailureLimits{Burst: 1}))
	s.wantTold(false, "the first")
	for _, tt := range refusals() {
		r := s.request("Encrypt", "{}")
		tt.ruin(s, r, s.signer, []byte("{}"))
		s.wantThrottled(r, false, tt.reason.String())
		r = s.form(stsForm)
		tt.ruin(s, r, s.sts(), []byte(stsForm))
		s.wantThrottled(r, true, tt.reason.String())
		s.keys.gone.Store(false)
	}
	r := s.request("Encrypt", "{}")
	s.stranger("kms").Presign(r, []byte("{}"), time.Now(), time.Minute)
	s.wantThrottled(r, false, "presigned")
	r.Body, _ = r.GetBody()
	s.signer.Presign(r, []byte("{}"), time.Now().Add(-2*time.Minute), time.Minute)
	s.wantThrottled(r, false, "presigned and expired")
	get, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"?"+stsForm, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	s.stranger("sts").Presign(get, nil, time.Now(), time.Minute)
	s.wantThrottled(get, true, "presigned, sts")
	s.wantServed()
	if log := s.logs.String(); !strings.Contains(log, `why="signature mismatch" told_why=false`) {
		t.Errorf("the log does not say why: %s", log)
	}

	c := s.dial()
	c.send(t, s.head("{}", false, "Content-Length: 2")+"{}")
	if status, body := c.answer(t); status != http.StatusBadRequest || !strings.Contains(body, "ThrottlingException") {
		t.Errorf("%d %s", status, body)
	}
	c.wantClosed(t, "a stranger who is throttled")
}

// TestFaultsAreNotFailures: what is no fault of the caller's does not count.
func TestFaultsAreNotFailures(t *testing.T) {
	t.Parallel()
	s := open(t, both(), failing(door.FailureLimits{Burst: 1}))
	down := errors.New("the token is down")
	s.keys.down.Store(&down)
	for range 3 {
		if a := s.call("Encrypt", "{}"); a.status != http.StatusInternalServerError {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	// Nor does what is no request of an operation, or one that is not decoded.
	r := s.request("Encrypt", "{}")
	r.Method = http.MethodGet
	if a := s.send(r); a.status != http.StatusNotFound {
		t.Errorf("%d %s", a.status, a.body)
	}
	s.ahead.Store(int64(2 * time.Second)) // a derivation that failed is not tried again for one
	s.keys.down.Store(nil)
	if a := s.call("Encrypt", "{}x"); a.status != http.StatusBadRequest {
		t.Errorf("%d %s", a.status, a.body)
	}
	s.ahead.Store(0)
	s.wantTold(false, "the first failure")
	s.wantThrottled(s.wrong(false), false, "the second")
}

// from hands the door a request with a wrong signature that came from an address, and
// returns whether it is told why.
func (s *served) from(address string) (told bool) {
	s.t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader([]byte("{}")))
	r.Host, r.RemoteAddr = s.address, address
	r.Header.Set("X-Amz-Target", "TrentService.Encrypt")
	s.stranger("kms").Sign(r, []byte("{}"), time.Now())
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	body := w.Body.String()
	if told = strings.Contains(body, "InvalidSignatureException"); !told && !strings.Contains(body, "ThrottlingException") {
		s.t.Errorf("%s: %d %s", address, w.Code, body)
	}
	return told
}

// TestSourcesOfFailures: each address, and each /64, has its own share, until all of
// them together have had theirs.
func TestSourcesOfFailures(t *testing.T) {
	t.Parallel()
	s := open(t, both(), failing(door.FailureLimits{Burst: 1, AllBurst: 6, AllPerSecond: 1, Sources: 2}))
	for _, tt := range []struct {
		address string
		told    bool
	}{
		{"192.0.2.1:1000", true},
		{"192.0.2.1:2000", false}, // it takes nothing of what is for all
		{"[::ffff:192.0.2.1]:1000", false},
		{"192.0.2.2:1000", true},
		{"[2001:db8::1]:1000", true}, // 192.0.2.1 is forgotten
		{"[2001:db8::2:0:0:1]:1000", false},
		{"192.0.2.1:1000", true},
		{"[2001:db8:0:1::1]:1000", true},
		{"no address", true},
		{"", false},               // nor is this one
		{"192.0.2.3:1000", false}, // all have had their share
		{"[2001:db8:0:2::1]:1000", false},
	} {
		if told := s.from(tt.address); told != tt.told {
			t.Errorf("%s: told why: %t, want %t", tt.address, told, tt.told)
		}
	}
	s.wantThrottled(s.wrong(false), false, "loopback, which has not failed yet")
	s.wantServed()
	s.ahead.Add(int64(time.Second))
	if !s.from("192.0.2.4:1000") || s.from("192.0.2.5:1000") {
		t.Error("a second later not one of all is told why")
	}
}

// TestFailuresAtOnce: 64 clients with wrong signatures at once are told why so many
// times as there is room for, and others are served.
func TestFailuresAtOnce(t *testing.T) {
	t.Parallel()
	const clients, each, burst = 64, 5, 100
	s := open(t, both(), overTLS("http/1.1"), failing(door.FailureLimits{Burst: burst}))
	var told atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				a, err := s.try(s.wrong(false))
				if err != nil {
					t.Error(err)
					continue
				}
				code, _ := a.exception(t)
				switch {
				case code == "InvalidSignatureException":
					told.Add(1)
				case code != "ThrottlingException":
					t.Errorf("%d %s", a.status, a.body)
				}
			}
		})
	}
	for range 20 {
		if a := s.call("Encrypt", "{}"); a.status != http.StatusOK {
			t.Errorf("a request that is signed rightly: %d %s", a.status, a.body)
		}
	}
	wg.Wait()
	if told.Load() != burst || s.refused.Load() != clients*each || s.throttled.Load() != clients*each-burst {
		t.Errorf("%d are told why, %d refused, %d of them throttled", told.Load(), s.refused.Load(), s.throttled.Load())
	}
}
