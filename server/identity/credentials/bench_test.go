package credentials_test

import (
	"testing"
	"time"

	"github.com/keyhold/keyhold/server/sigv4"
)

// BenchmarkLookUp is what a request costs beyond its signature: finding its key, and
// finding whose it is.
func BenchmarkLookUp(b *testing.B) {
	w := newWorld(b)
	alice := w.create("alice")
	r, body := w.request(alice, false)
	v, err := w.verifier.Verify(r, "kms", sigv4.Body(body))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.creds.LookUp(b.Context(), alice.AccessKeyID, ""); err != nil {
			b.Fatal(err)
		}
		if _, err := w.creds.Caller(v); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSigningKey is what the first request of a day costs beyond that: opening
// the secret in the token, and deriving.
func BenchmarkSigningKey(b *testing.B) {
	w := newWorld(b)
	alice := w.create("alice")
	k, err := w.creds.LookUp(b.Context(), alice.AccessKeyID, "")
	if err != nil {
		b.Fatal(err)
	}
	scope := sigv4.Scope{Day: time.Now().UTC().Format("20060102"), Region: region, Service: "kms"}
	for b.Loop() {
		if _, err := k.SigningKey(b.Context(), scope); err != nil {
			b.Fatal(err)
		}
	}
}
