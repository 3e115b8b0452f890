package kms_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms/keypair"
)

// BenchmarkDataKeyPair is whole requests, without a door: with a pair that is
// ready, and as the first request of its kind. SoftHSM, the journal on the
// test's disk.
//
//	go test -run '^$' -bench DataKeyPair -benchtime 30x ./server/kms
func BenchmarkDataKeyPair(b *testing.B) {
	w := newWorld(b, func(w *world) { w.cfg.Now = nil })
	key := w.newAESKey()
	for _, k := range []struct {
		spec keyholdv1.DataKeyPairSpec
		kind keypair.Spec
		full int // pairs in a full pool
	}{
		{pairRSA2048, keypair.RSA2048, 4},
		{pairRSA3072, keypair.RSA3072, 4},
		{pairRSA4096, keypair.RSA4096, 2},
		{pairP256, keypair.P256, 0},
		{pairSecp256k1, keypair.Secp256k1, 0},
	} {
		req := &keyholdv1.GenerateDataKeyPairRequest{KeyId: key, KeyPairSpec: k.spec}
		for _, pool := range []string{"warm", "cold"} {
			b.Run(fmt.Sprintf("%s/pool=%s", k.kind, pool), func(b *testing.B) {
				w := w.with(b)
				pairs := keypair.NewPool(keypair.Options{})
				w.cfg.KeyPairs = pairs
				w.start()
				var took []time.Duration
				for range b.N {
					b.StopTimer()
					if pool == "cold" {
						pairs = keypair.NewPool(keypair.Options{})
						w.cfg.KeyPairs = pairs
						w.start()
						w.encrypt(key, []byte("x"), nil) // the key becomes hot, not the pool
					} else {
						do[*keyholdv1.GenerateDataKeyPairResponse](w, req)
						eventually(b, "a full pool", func() bool { return pairs.Ready(k.kind) == k.full })
					}
					b.StartTimer()
					start := time.Now()
					do[*keyholdv1.GenerateDataKeyPairResponse](w, req)
					took = append(took, time.Since(start))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
			})
		}
	}
}
