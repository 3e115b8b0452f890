package awsapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/identity"
)

// nowhere is a response that nobody reads.
type nowhere struct {
	header http.Header
	status int
}

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) WriteHeader(status int)      { n.status = status }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkRequest is what the door costs without the network and the core: an
// Encrypt from its header to its answer, with the check of its signature, and that
// of a stranger.
func BenchmarkRequest(b *testing.B) {
	for _, size := range []int{32, 1 << 10, 4 << 10} {
		for _, who := range []string{"alice", "stranger"} {
			b.Run(fmt.Sprintf("plaintext=%d/caller=%s", size, who), func(b *testing.B) {
				blob := make([]byte, size+64)
				s := open(b, &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
					return &keyholdv1.EncryptResponse{KeyId: arnOfKey, CiphertextBlob: blob, EncryptionAlgorithm: 1}, nil
				}})
				body := fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q,"EncryptionContext":{"tenant":"42","table":"cards"}}`, arnOfKey, strings.Repeat("AAAA", size/3))
				want := http.StatusOK
				out := s.request("Encrypt", body)
				if who == "stranger" {
					s.signer.AccessKeyID, want = "AKIANOBODY", http.StatusBadRequest
				}
				s.signer.Sign(out, []byte(body), time.Now())
				r := httptest.NewRequest(http.MethodPost, "/", http.NoBody)
				r.Host, r.Header, r.ContentLength = s.address, out.Header, int64(len(body))
				reader := bytes.NewReader([]byte(body))
				w := &nowhere{header: http.Header{}}
				b.ReportAllocs()
				for b.Loop() {
					reader.Reset([]byte(body))
					r.Body = io.NopCloser(reader)
					w.status = 0
					s.ServeHTTP(w, r)
					if w.status != want && (w.status != 0 || want != http.StatusOK) {
						b.Fatal(w.status)
					}
				}
			})
		}
	}
}

const arnOfKey = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// BenchmarkHTTP is the same over a connection of its own, with a client in the same
// process: mostly net/http, on both sides.
func BenchmarkHTTP(b *testing.B) {
	for name, options := range map[string][]option{"plain": nil, "http1": {overTLS("http/1.1")}, "http2": {overTLS("h2")}} {
		b.Run(name, func(b *testing.B) {
			s := open(b, willing(), options...)
			body := fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q}`, arnOfKey, strings.Repeat("AAAA", 1024/3))
			r := s.request("Encrypt", body)
			s.signer.Sign(r, []byte(body), time.Now())
			b.ReportAllocs()
			for b.Loop() {
				r.Body, _ = r.GetBody()
				if a, err := s.try(r); err != nil || a.status != http.StatusOK {
					b.Fatalf("%d %s %v", a.status, a.body, err)
				}
			}
		})
	}
}
