package kms_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

// BenchmarkDo is whole requests of the data plane, without a door: 1 KiB,
// SoftHSM, the journal on the test's disk.
//
//	go test -run '^$' -bench Do -benchmem ./server/kms
func BenchmarkDo(b *testing.B) {
	for _, d := range []audit.Durability{audit.Synced, audit.Written} {
		w := newWorld(b, func(w *world) { w.cfg.DataDurability = d; w.cfg.Now = nil })
		aes, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
		ec := map[string]string{"tenant": "42", "purpose": "backup"}
		payload := randomBytes(1024)
		blob := w.encrypt(aes, payload, ec)
		for name, req := range map[string]proto.Message{
			"encrypt":     &keyholdv1.EncryptRequest{KeyId: aes, Plaintext: payload, EncryptionContext: ec},
			"decrypt":     &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec},
			"mac":         &keyholdv1.GenerateMacRequest{KeyId: mac, Message: payload, MacAlgorithm: macSHA256},
			"bad decrypt": &keyholdv1.DecryptRequest{CiphertextBlob: flipped(blob, len(blob)*8-1), EncryptionContext: ec},
		} {
			b.Run(fmt.Sprintf("%s/audit=%s", name, d), func(b *testing.B) { benchmark(b, w.svc, req, name == "bad decrypt") })
		}
	}
}

// BenchmarkCore is BenchmarkDo/encrypt without token and disk: what the
// pipeline itself costs.
func BenchmarkCore(b *testing.B) {
	w, _ := newFakeWorld(b, func(w *world) { w.cfg.Journal = noJournal{}; w.cfg.Now = nil })
	w.cfg.Journal = noJournal{}
	id := w.newAESKey()
	benchmark(b, w.svc, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: randomBytes(1024), EncryptionContext: map[string]string{"tenant": "42", "purpose": "backup"}}, false)
}

func benchmark(b *testing.B, svc *kms.Service, req proto.Message, fails bool) {
	caller, op := alice(), operationOf(req)
	for range 10 { // the key becomes hot
		svc.Do(b.Context(), caller, op, req)
	}
	b.ReportAllocs()
	b.SetParallelism(8)
	before := cpuTime(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := svc.Do(b.Context(), caller, op, req); (err != nil) != fails {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpuTime is what this process has used: on a busy machine the figure to
// compare.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// noJournal takes everything and keeps nothing.
type noJournal struct{}

func (noJournal) Append(context.Context, audit.Class, audit.Durability, ...[]byte) (uint64, error) {
	return 0, nil
}

func (noJournal) Healthy() error { return nil }
