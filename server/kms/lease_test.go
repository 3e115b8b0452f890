package kms_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// limitedDB lowers the limit of seals and keeps every lease that was given
// out.
type limitedDB struct {
	kms.Store
	limit uint64

	mu     sync.Mutex
	leases [][2]uint64 // start and end
	asked  atomic.Int64
	fail   atomic.Pointer[error]
}

func (d *limitedDB) LeaseSeals(ctx context.Context, ref kms.Ref, n, limit uint64) (uint64, uint64, error) {
	d.asked.Add(1)
	if limit != 1<<32 {
		return 0, 0, errors.New("the core asks for another limit than 2^32")
	}
	if err := d.fail.Load(); err != nil {
		return 0, 0, *err
	}
	start, granted, err := d.Store.LeaseSeals(ctx, ref, n, d.limit)
	if err == nil && granted > 0 {
		d.mu.Lock()
		d.leases = append(d.leases, [2]uint64{start, start + granted})
		d.mu.Unlock()
	}
	return start, granted, err
}

func newLeaseWorld(t testing.TB, limit, block uint64) (*world, *fakeStore, *limitedDB) {
	db := &limitedDB{limit: limit}
	w, fake := newFakeWorld(t, func(w *world) { db.Store = w.db; w.cfg.Store, w.cfg.LeaseSeals = db, block })
	return w, fake, db
}

// sealing are all operations that seal, each once.
func sealing(key string, blob []byte) []proto.Message {
	return []proto.Message{
		&keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x")},
		&keyholdv1.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: key},
		&keyholdv1.GenerateDataKeyRequest{KeyId: key, KeySpec: 1},
		&keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: key, KeySpec: 1},
	}
}

// At the limit every operation that seals is refused; what only opens goes on.
func TestSealLimit(t *testing.T) {
	t.Parallel()
	for _, block := range []uint64{1, 2, 3, 5, 8, 64} {
		w, fake, db := newLeaseWorld(t, 17, block)
		key, other := w.newAESKey(), w.newAESKey()
		blob := w.encrypt(key, []byte("x"), nil)
		for done := 1; done < 17; done++ {
			do[proto.Message](w, sealing(key, blob)[done%4])
		}
		if got := fake.count("Seal"); got != 17 {
			t.Errorf("blocks of %d: %d seals, want 17", block, got)
		}
		for _, req := range sealing(key, blob) {
			e := refuse(w, req, kms.CodeInvalidState)
			if !strings.Contains(e.Message, "2^32") || !strings.Contains(e.Message, key) {
				t.Errorf("the refusal says %q", e.Message)
			}
		}
		if got := fake.count("Seal"); got != 17 {
			t.Errorf("blocks of %d: %d seals after the limit", block, got)
		}
		if string(w.decrypt(blob, nil)) != "x" {
			t.Error("it does not decrypt any more")
		}
		do[proto.Message](w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: other})
		// Refusals do not ask the database each time.
		asked := db.asked.Load()
		for range 50 {
			refuse(w, sealing(key, blob)[0], kms.CodeInvalidState)
		}
		if got := db.asked.Load(); got != asked {
			t.Errorf("50 refusals asked the database %d times", got-asked)
		}
	}
}

// Many at once take exactly what there is, and none is refused before.
func TestSealLimitConcurrent(t *testing.T) {
	t.Parallel()
	for _, block := range []uint64{1, 3, 16} {
		const limit, callers, each = 200, 16, 25
		w, fake, _ := newLeaseWorld(t, limit, block)
		key := w.newAESKey()
		var ok, refused atomic.Int64
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range each {
					_, err := try[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x")})
					switch {
					case err == nil:
						ok.Add(1)
					case err.Code == kms.CodeInvalidState:
						refused.Add(1)
					default:
						t.Error(describe(err))
					}
				}
			})
		}
		wg.Wait()
		if ok.Load() != limit || ok.Load() != fake.count("Seal") {
			t.Errorf("blocks of %d: %d seals in the store for %d answers, limit %d", block, fake.count("Seal"), ok.Load(), limit)
		}
		if ok.Load()+refused.Load() != callers*each {
			t.Errorf("%d answers and %d refusals of %d requests", ok.Load(), refused.Load(), callers*each)
		}
	}
}

// None is told of 2^32 while the store still has something to give.
func TestNoFalseSealLimit(t *testing.T) {
	t.Parallel()
	w, _, _ := newLeaseWorld(t, 1<<32, 1)
	key := w.newAESKey()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				if _, err := try[proto.Message](w, &keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x")}); err != nil {
					t.Error(describe(err))
				}
			}
		})
	}
	wg.Wait()
}

// A restart loses the rest of a block and never gives it out again.
func TestLeasesOverRestarts(t *testing.T) {
	t.Parallel()
	w, fake, db := newLeaseWorld(t, 1<<32, 10)
	key := w.newAESKey()
	stored, err := w.db.Key(t.Context(), kms.KeyID(key))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		for range 4 {
			w.encrypt(key, []byte("x"), nil)
		}
		w.start()
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	var end uint64
	for _, l := range db.leases {
		if l[0] != end {
			t.Errorf("a lease begins at %d, the one before ended at %d", l[0], end)
		}
		end = l[1]
	}
	count, err := w.db.SealCount(t.Context(), stored.Current().Ref)
	if err != nil || count != end || count < uint64(fake.count("Seal")) || len(db.leases) < 5 {
		t.Errorf("counted %d (%v) in %d leases to %d, sealed %d", count, err, len(db.leases), end, fake.count("Seal"))
	}
}

// The data plane asks the database once a block.
func TestLeasesAreRare(t *testing.T) {
	t.Parallel()
	w, _, db := newLeaseWorld(t, 1<<32, 1000)
	key := w.newAESKey()
	blob := w.encrypt(key, []byte("x"), nil)
	for range 500 {
		w.encrypt(key, []byte("x"), nil)
		w.decrypt(blob, nil)
	}
	if got := db.asked.Load(); got != 1 {
		t.Errorf("501 seals of a block of 1000 asked the database %d times", got)
	}
}

// Without the database there is no lease and no seal; what was leased before
// still seals, and all goes on when it is back.
func TestLeaseFaults(t *testing.T) {
	t.Parallel()
	w, fake, db := newLeaseWorld(t, 1<<32, 4)
	key := w.newAESKey()
	blob := w.encrypt(key, []byte("x"), nil)
	gone := errors.New("disk I/O error of the test")
	db.fail.Store(&gone)
	refused := 0
	for range 8 {
		_, err := try[proto.Message](w, &keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x")})
		if err == nil {
			continue
		}
		if refused++; err.Code != kms.CodeInternal || strings.Contains(err.Message, "disk") {
			t.Errorf("refused with %s", describe(err))
		}
	}
	if refused != 5 || fake.count("Seal") != 4 {
		t.Errorf("%d refusals and %d seals, want 5 and 4", refused, fake.count("Seal"))
	}
	if string(w.decrypt(blob, nil)) != "x" {
		t.Error("it does not decrypt")
	}
	db.fail.Store(nil)
	w.encrypt(key, []byte("x"), nil)
}

// Past 2^31 an operator is warned.
func TestSealAlarm(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { c.LeaseSeals = 1 << 31 }))
	key := w.newAESKey()
	w.encrypt(key, []byte("x"), nil)
	if strings.Contains(w.logs.String(), "2^31") {
		t.Error("warned at 2^31 already")
	}
	w.start()
	w.encrypt(key, []byte("x"), nil)
	if !strings.Contains(w.logs.String(), "encrypted more than 2^31 times") {
		t.Error("not warned past 2^31")
	}
	w.start()
	refuse(w, &keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x")}, kms.CodeInvalidState)
}
