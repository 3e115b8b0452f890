package client_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// BenchmarkCoalescer compares single calls with coalesced ones, against the
// real daemon, which syncs its audit log to disk.
func BenchmarkCoalescer(b *testing.B) {
	for _, callers := range []int{1, 2, 4, 8, 16, 32, 64, 256} {
		for _, inFlight := range []int{0, 1, 2, 4} {
			b.Run(fmt.Sprintf("callers=%d/inflight=%d", callers, inFlight), func(b *testing.B) {
				c := dialReal(b)
				call := c.Crypto.Encrypt
				if inFlight > 0 {
					co, err := client.NewCoalescer(c, client.CoalescerConfig{MaxInFlight: inFlight})
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(co.Close)
					call = co.Encrypt
				}
				req := &keyholdv1.EncryptRequest{KeyId: "alias/app", Plaintext: make([]byte, 32), EncryptionContext: map[string]string{"tenant": "42"}}
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				b.ResetTimer()
				for range callers {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							if _, err := call(context.Background(), req); err != nil {
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
}
