package kms_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
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

// BenchmarkBatch is batches of 100 encryptions of 1 KiB, audit synced; one at a
// time and eight at once. cpu-µs/op and ns/op are per batch: a hundredth is an
// item's.
func BenchmarkBatch(b *testing.B) {
	w := newWorld(b, func(w *world) { w.cfg.DataDurability = audit.Synced; w.cfg.Now = nil })
	req := &keyholdv1.BatchRequest{}
	item := &keyholdv1.EncryptRequest{KeyId: w.newAESKey(), Plaintext: randomBytes(1024)}
	for range 100 {
		req.Items = append(req.Items, &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Encrypt{Encrypt: item}})
	}
	for _, parallel := range []int{1, 8} {
		b.Run(fmt.Sprintf("batches=%d", parallel), func(b *testing.B) { benchmarkAt(b, w.svc, req, false, parallel) })
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
	benchmarkAt(b, svc, req, fails, 8*runtime.GOMAXPROCS(0))
}

// benchmarkAt makes the request from so many goroutines.
func benchmarkAt(b *testing.B, svc *kms.Service, req proto.Message, fails bool, parallel int) {
	caller, op := alice(), operationOf(req)
	for range 10 { // the key becomes hot
		svc.Do(b.Context(), caller, op, req)
	}
	b.ReportAllocs()
	before := cpuTime(b)
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var group sync.WaitGroup
	for range parallel {
		group.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := svc.Do(b.Context(), caller, op, req); (err != nil) != fails {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
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
