package sigv4

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkVerify verifies a POST as an SDK sends it, with its body's hash:
// with the signing key cached, derived each time, and for a stranger's key.
func BenchmarkVerify(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 64 << 10} {
		for _, kind := range []string{"cached", "derived", "stranger", "presigned"} {
			b.Run(fmt.Sprintf("body=%d/key=%s", size, kind), func(b *testing.B) {
				v := newVerifier(b, testConfig())
				headers := []string{
					"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "TrentService.Encrypt",
					"Amz-Sdk-Invocation-Id", "bb5dcf11-4e0b-4cf3-9b9d-1a3f0a1e2c3d", "Amz-Sdk-Request", "attempt=1; max=3",
					"Accept-Encoding", "identity",
				}
				body := strings.Repeat("x", size)
				r, data := signed(b, "POST", "/", body, headers...)
				if kind == "presigned" {
					r, data = presigned(b, "POST", "/", body, headers...)
				}
				if kind == "stranger" {
					edit(testKeyID, "AKIDSTRANGER")(r)
				}
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for b.Loop() {
					if kind == "derived" {
						v.ForgetAll()
					}
					if _, err := v.Verify(r, "kms", Body(data)); (err != nil) != (kind == "stranger") {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCheckHeader is what a door pays to refuse strangers before it reads
// their bodies.
func BenchmarkCheckHeader(b *testing.B) {
	v := newVerifier(b, testConfig())
	r, _ := signed(b, "POST", "/", "{}", "Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "TrentService.Encrypt")
	b.ReportAllocs()
	for b.Loop() {
		if err := v.CheckHeader(r, "kms"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDeriveSigningKey is what the cache saves.
func BenchmarkDeriveSigningKey(b *testing.B) {
	b.ReportAllocs()
	scope := Scope{"20260115", "us-east-1", "kms"}
	for b.Loop() {
		DeriveSigningKey([]byte(testSecret), scope)
	}
}
