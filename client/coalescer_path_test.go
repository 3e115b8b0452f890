package client_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// instant answers at once, or as soon as whoever else is ready has run.
type instant struct {
	keyholdv1.CryptographyServiceClient
	answer  *keyholdv1.EncryptResponse
	results []*keyholdv1.BatchResult
}

func (s instant) Encrypt(context.Context, *keyholdv1.EncryptRequest, ...grpc.CallOption) (*keyholdv1.EncryptResponse, error) {
	runtime.Gosched()
	return s.answer, nil
}

func (s instant) Batch(_ context.Context, in *keyholdv1.BatchRequest, _ ...grpc.CallOption) (*keyholdv1.BatchResponse, error) {
	n := 0
	for b := in.ProtoReflect().GetUnknown(); len(b) > 0; n++ {
		b = b[protowire.ConsumeFieldValue(1, protowire.BytesType, b[1:])+1:]
	}
	runtime.Gosched()
	return &keyholdv1.BatchResponse{Results: s.results[:n]}, nil
}

// BenchmarkCoalescerPath measures what a Coalescer itself costs, without a
// connection. With -cpu 1 the time is CPU time.
func BenchmarkCoalescerPath(b *testing.B) {
	s := instant{answer: &keyholdv1.EncryptResponse{CiphertextBlob: make([]byte, 95)}}
	for range 100 {
		s.results = append(s.results, &keyholdv1.BatchResult{Result: &keyholdv1.BatchResult_Encrypt{Encrypt: s.answer}})
	}
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			c, err := client.NewCoalescerOver(s, client.Config{Timeout: 30 * time.Second}, client.CoalescerConfig{})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(c.Close)
			req := &keyholdv1.EncryptRequest{KeyId: "alias/app", Plaintext: make([]byte, 32), EncryptionContext: map[string]string{"tenant": "42"}}
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, err := c.Encrypt(context.Background(), req); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
