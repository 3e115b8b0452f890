package kms_test

import (
	"errors"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// A key in a key store that is not attached is unavailable and stays; so does
// a key of a region that is not served any more.
func TestDetachedStores(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, fake, withConfig(func(c *kms.Config) { c.Regions[otherRegion] = fake }))
	id, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	blob := w.encrypt(id, []byte("x"), nil)
	there := alice()
	there.Region = otherRegion
	made, err := tryAs[*keyholdv1.CreateKeyResponse](w, there, &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(describe(err))
	}
	w.svc.Maintain(t.Context())
	for _, c := range []struct {
		caller string
		id     string
	}{{testRegion, id}, {testRegion, mac}, {otherRegion, made.GetKeyMetadata().GetKeyId()}} {
		r, err := w.db.Key(t.Context(), kms.KeyID(c.id))
		if err != nil {
			t.Fatal(err)
		}
		if c.caller == testRegion {
			r.KeyStore = "cks-1234567890abcdef0"
		} else {
			r.State, r.PendingWindowDays, r.DeletionDate = pending, 7, w.clock.Now().Add(time.Minute).UTC().Truncate(time.Millisecond)
		}
		if err := w.db.UpdateKey(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	delete(w.cfg.Regions, otherRegion)
	w.start()
	for _, req := range []proto.Message{
		&keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, &keyholdv1.GenerateDataKeyRequest{KeyId: id, KeySpec: 1},
		&keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("x"), MacAlgorithm: macSHA256}, &keyholdv1.VerifyMacRequest{KeyId: mac, Message: []byte("x"), Mac: []byte("x"), MacAlgorithm: macSHA256},
	} {
		if e := refuse(w, req, kms.CodeKeyUnavailable); !e.Unavailable {
			t.Errorf("%s: not marked as unavailable", operationOf(req))
		}
	}
	refuseAs(w, there, &keyholdv1.DescribeKeyRequest{KeyId: made.GetKeyMetadata().GetKeyId()}, kms.CodeAccessDenied)
	w.schedule(id, 7)
	w.pass(8 * day)
	if fake.size() != 3 || w.metadata(id).GetKeyState() != pending {
		t.Errorf("%d of 3 objects are left", fake.size())
	}
	if orphans, err := w.svc.Reconcile(t.Context()); err != nil || len(orphans) != 0 {
		t.Errorf("keys of detached stores are called orphans: %+v, %v", orphans, err)
	}
}

// Without randomness there is no key, and nothing is left of the attempt.
func TestNoRandomness(t *testing.T) {
	t.Parallel()
	for n := range 2 { // key id, ref
		w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Rand = shortRandom(n * 16) }))
		e := refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeInternal)
		if !errors.Is(e, errFault) {
			t.Errorf("refused with %s", describe(e))
		}
		if fake.size() != 0 {
			t.Error("a key was made")
		}
		w.checkCoherence()
	}
}

// shortRandom gives so many bytes and fails then.
func shortRandom(n int) *limitedReader { return &limitedReader{left: n} }

type limitedReader struct{ left int }

func (r *limitedReader) Read(b []byte) (int, error) {
	if r.left < len(b) {
		return iotest.ErrReader(errFault).Read(b)
	}
	r.left -= len(b)
	return cryptoRand{}.Read(b)
}

// Reconciliation that cannot read one side changes nothing.
func TestReconcileFaults(t *testing.T) {
	t.Parallel()
	w, fake, db := crashWorld(t)
	id := w.newAESKey()
	fake.failing("Inventory", errFault)
	if _, err := w.svc.Reconcile(t.Context()); !errors.Is(err, errFault) {
		t.Errorf("without an inventory: %v", err)
	}
	fake.heal()
	db.fail("DeleteKey", 1, false, errFault)
	fake.failing("Generate", errFault)
	refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeInternal) // its intent stays
	fake.heal()
	db.fail("Key", 1, false, errFault)
	if _, err := w.svc.Reconcile(t.Context()); !errors.Is(err, errFault) {
		t.Errorf("without records: %v", err)
	}
	db.fail("Snapshot", 1, true, errFault)
	orphan := kms.Orphan{Kind: kms.OrphanObject, Region: testRegion, ObjectID: []byte("x"), Label: "keyhold:" + w.db.Instance() + ":x"}
	if err := w.svc.CleanUp(t.Context(), orphan); !errors.Is(err, errFault) {
		t.Errorf("cleaned up without a look at the records: %v", err)
	}
	if got := w.metadata(id).GetKeyState(); got != enabled {
		t.Errorf("the key is %s", got)
	}
}
