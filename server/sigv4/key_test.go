package sigv4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/sigv4/sign"
)

func sha(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

// TestDeriveSigningKey is the example of the AWS General Reference, "Examples of
// how to derive a signing key for Signature Version 4".
func TestDeriveSigningKey(t *testing.T) {
	t.Parallel()
	got := DeriveSigningKey([]byte(testSecret), Scope{"20120215", "us-east-1", "iam"})
	const want = "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"
	if hex.EncodeToString(got[:]) != want {
		t.Errorf("got %s, want %s", hex.EncodeToString(got[:]), want)
	}
}

// TestSecretsDoNotPrint looks for a signing key and a secret in whatever is
// printed or logged of the types that hold them.
func TestSecretsDoNotPrint(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, testConfig())
	r, body := signed(t, "POST", "/", "body")
	verified, err := v.Verify(r, "kms", Body(body))
	if err != nil {
		t.Fatal(err)
	}
	key := DeriveSigningKey([]byte(testSecret), verified.Scope)
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	text := slog.New(slog.NewTextHandler(&out, nil))
	for _, value := range []any{key, &key, struct{ K SigningKey }{key}, v, *v, struct{ V *Verifier }{v}, struct{ v *Verifier }{v}, testSigner, &testSigner} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
		log.Info("value", "value", value)
		text.Info("value", "value", value)
	}
	if err := json.NewEncoder(&out).Encode(key); err != nil {
		t.Fatal(err)
	}
	nobodys := v.nobody.secret
	for _, secret := range [][]byte{key[:], nobodys[:], []byte(testSecret)} {
		for _, shape := range []string{
			string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
			strings.Trim(fmt.Sprintf("%d", secret), "[]"), strings.Trim(fmt.Sprintf("%#v", secret[:8]), "[]byte{}"),
		} {
			if strings.Contains(out.String(), shape) {
				t.Errorf("a secret was printed as %q", shape)
			}
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing was printed")
	}
}

// TestSigningKeysAreCached: derived once for each day, region, service and
// version, and again after Forget; a changed secret counts at once.
func TestSigningKeysAreCached(t *testing.T) {
	t.Parallel()
	key := &testKey{secret: testSecret}
	now := testTime
	c := testConfig()
	c.Credentials = testKeys{testKeyID: key}
	c.Now = func() time.Time { return now }
	v := newVerifier(t, c)
	verify := func(region string) error {
		s := testSigner
		s.Secret, s.Region = key.secret, region
		r := newRequest(t, "POST", "/", "body")
		s.Sign(r, []byte("body"), now)
		got, body := mustReceive(t, raw(t, r))
		_, err := v.Verify(got, "kms", Body(body))
		return err
	}
	step := func(what, region string, derived int32, cached int) {
		t.Helper()
		if err := verify(region); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := key.derived.Load(); got != derived || v.keys.len() != cached {
			t.Errorf("%s: %d derivations, %d cached; want %d, %d", what, got, v.keys.len(), derived, cached)
		}
	}
	step("first", "us-east-1", 1, 1)
	step("again", "us-east-1", 1, 1)
	step("another region", "eu-west-1", 2, 2)
	key.secret, key.version = "another secret", 1
	step("another secret", "us-east-1", 3, 3)
	v.Forget("somebody else")
	step("somebody else was forgotten", "us-east-1", 3, 3)
	v.Forget(testKeyID)
	step("forgotten", "us-east-1", 4, 1)
	now = now.Add(24 * time.Hour)
	step("the next day", "us-east-1", 5, 1)
	v.ForgetAll()
	step("all forgotten", "us-east-1", 6, 1)
	now = now.Add(24 * time.Hour)
	v.Expire()
	if n := v.keys.len(); n != 0 {
		t.Errorf("%d keys are left when their day is over", n)
	}
	key.secret = "changed, but not the version"
	now = testTime.Add(72 * time.Hour)
	step("a new day", "us-east-1", 7, 1)
}

// TestDayBefore: just after midnight the day before is still good, and its keys
// stay, in both forms.
func TestDayBefore(t *testing.T) {
	t.Parallel()
	midnight := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	now := midnight.Add(2 * time.Minute)
	key := &testKey{secret: testSecret}
	c := testConfig()
	c.Credentials, c.Now = testKeys{testKeyID: key}, func() time.Time { return now }
	v := newVerifier(t, c)
	for _, at := range []time.Time{now, midnight.Add(-time.Minute), now, midnight.Add(-time.Minute)} {
		r := newRequest(t, "POST", "/", "body")
		testSigner.Sign(r, []byte("body"), at)
		got, body := mustReceive(t, raw(t, r))
		if _, err := v.Verify(got, "kms", Body(body)); err != nil {
			t.Fatal(err)
		}
	}
	if n, cached := key.derived.Load(), v.keys.len(); n != 2 || cached != 2 {
		t.Errorf("%d derivations, %d cached; want 2, 2", n, cached)
	}
}

// TestStrangersDeriveOnce: who knows the id of a key and not its secret has each
// signing key derived once, of whatever day it may be asked for.
func TestStrangersDeriveOnce(t *testing.T) {
	t.Parallel()
	midnight := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		after, most time.Duration
		ages        []time.Duration
		derived     int32
	}{
		{10 * time.Minute, 0, []time.Duration{0, 9 * time.Minute, 14 * time.Minute}, 2},
		{20 * time.Minute, 0, []time.Duration{0, 15 * time.Minute}, 1},
		{10 * time.Minute, 72 * time.Hour, []time.Duration{0, 24 * time.Hour, 48 * time.Hour, 72 * time.Hour}, 4},
	} {
		now := midnight.Add(c.after)
		key := &testKey{secret: testSecret}
		config := testConfig()
		config.Credentials, config.MaxExpires = testKeys{testKeyID: key}, c.most
		config.Now = func() time.Time { return now }
		v := newVerifier(t, config)
		stranger := testSigner
		stranger.Secret = "not the secret"
		for range 5 {
			for _, age := range c.ages {
				r := newRequest(t, "GET", "/", "")
				stranger.Presign(r, nil, now.Add(-age), 7*24*time.Hour)
				got, _ := mustReceive(t, raw(t, r))
				_, err := v.Verify(got, "kms", Body(nil))
				wantRefusal(t, err, SignatureMismatch, "does not match")
			}
		}
		if n := key.derived.Load(); n != c.derived {
			t.Errorf("%s after midnight, at most %s: %d derivations, want %d", c.after, c.most, n, c.derived)
		}
	}
}

// forgetting is a key that is forgotten while it is being looked up, or while a
// signing key is derived from it.
type forgetting struct{ inLookUp, inDerivation func() }

func (f *forgetting) LookUp(context.Context, string, string) (Key, error) {
	f.inLookUp()
	return f, nil
}

func (*forgetting) Version() uint64 { return 1 }

func (f *forgetting) SigningKey(_ context.Context, scope Scope) (SigningKey, error) {
	f.inDerivation()
	return DeriveSigningKey([]byte(testSecret), scope), nil
}

// TestForgetMeanwhile: what was looked up before it was forgotten does not stay.
func TestForgetMeanwhile(t *testing.T) {
	t.Parallel()
	nothing := func() {}
	f := &forgetting{}
	c := testConfig()
	c.Credentials = f
	v := newVerifier(t, c)
	forget := func() { v.Forget(testKeyID) }
	for name, moments := range map[string][2]func(){
		"while it is looked up": {forget, nothing}, "while it is derived": {nothing, forget}, "all of them": {nothing, v.ForgetAll},
	} {
		f.inLookUp, f.inDerivation = moments[0], moments[1]
		r, body := signed(t, "POST", "/", "body")
		if _, err := v.Verify(r, "kms", Body(body)); err != nil {
			t.Fatal(err)
		}
		if n := v.keys.len(); n != 0 {
			t.Errorf("%s: %d signing keys stay", name, n)
		}
	}
	f.inLookUp, f.inDerivation = nothing, nothing
	r, body := signed(t, "POST", "/", "body")
	if _, err := v.Verify(r, "kms", Body(body)); err != nil || v.keys.len() != 1 {
		t.Errorf("not forgotten: %d signing keys stay, %v", v.keys.len(), err)
	}
}

// TestCacheIsBounded: the key that was not used for longest leaves, wiped, and
// strangers leave no keys.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := newKeyCache(3)
	id := func(i int) cacheID { return cacheID{accessKeyID: strconv.Itoa(i), scope: Scope{Day: "20260115"}} }
	var first *cachedKey
	for i := range 3 {
		c.put(id(i), &SigningKey{byte(i + 1), 31: 1}, 0)
	}
	first = entryOf(c.entries[id(1)])
	var out SigningKey
	if !c.get(id(0), &out) || out[0] != 1 {
		t.Fatalf("got %x", out[:])
	}
	c.put(id(3), &SigningKey{4}, 0)
	if c.get(id(1), &out) || !c.get(id(0), &out) || !c.get(id(3), &out) || c.len() != 3 {
		t.Error("the wrong key has left")
	}
	if first.key != (SigningKey{}) {
		t.Error("the key that left was not wiped")
	}

	v := newVerifier(t, testConfig())
	for i := range 20 {
		s := testSigner
		s.AccessKeyID = "AKIA" + strconv.Itoa(i)
		r := newRequest(t, "POST", "/", "body")
		s.Sign(r, []byte("body"), testTime)
		got, body := mustReceive(t, raw(t, r))
		_, err := v.Verify(got, "kms", Body(body))
		wantRefusal(t, err, UnknownAccessKey, "The security token included in the request is invalid.")
	}
	if n := v.keys.len(); n != 1 {
		t.Errorf("%d keys are cached for strangers, want nobody's alone", n)
	}
}

// TestConcurrent verifies, forgets and expires at once; -race is the judge.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	c := testConfig()
	c.MaxSigningKeys = 3
	keys := testKeys{}
	for i := range 8 {
		keys["AKIA"+strconv.Itoa(i)] = &testKey{secret: "secret " + strconv.Itoa(i)}
	}
	c.Credentials = keys
	v := newVerifier(t, c)
	var wg sync.WaitGroup
	for g := range 8 {
		s := sign.Signer{AccessKeyID: "AKIA" + strconv.Itoa(g), Secret: "secret " + strconv.Itoa(g), Region: "us-east-1", Service: "kms"}
		r := newRequest(t, "POST", "/", "body", "X-Amz-Target", "TrentService.Encrypt")
		s.Sign(r, []byte("body"), testTime)
		wire := raw(t, r)
		wg.Go(func() {
			for i := range 200 {
				got, body, err := receive(wire)
				if err == nil {
					_, err = v.Verify(got, "kms", Body(body))
				}
				if err != nil {
					t.Error(err)
					return
				}
				switch i % 50 {
				case 0:
					v.Forget(s.AccessKeyID)
				case 1:
					v.Expire()
				}
			}
		})
	}
	wg.Wait()
}

// TestReasons: each has a name of its own.
func TestReasons(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{"": true, "unknown reason": true}
	for _, r := range Reasons() {
		if seen[r.String()] {
			t.Errorf("reason %d is called %q", r, r)
		}
		seen[r.String()] = true
	}
	if len(seen) != 12 || Reason(0).String() != "unknown reason" || Reason(99).String() != "unknown reason" {
		t.Errorf("reasons: %v", Reasons())
	}
}

// TestConfig: what New refuses.
func TestConfig(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"no credentials":      func(c *Config) { c.Credentials = nil },
		"no region":           func(c *Config) { c.Regions = nil },
		"empty region":        func(c *Config) { c.Regions = []string{"us-east-1", ""} },
		"negative skew":       func(c *Config) { c.MaxSkew = -1 },
		"skew above an hour":  func(c *Config) { c.MaxSkew = time.Hour + 1 },
		"negative lifetime":   func(c *Config) { c.MaxExpires = -1 },
		"more than a week":    func(c *Config) { c.MaxExpires = 7*24*time.Hour + 1 },
		"negative cache size": func(c *Config) { c.MaxSigningKeys = -1 },
	} {
		c := testConfig()
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
