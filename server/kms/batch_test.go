package kms_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

// batchOf makes a batch of requests.
func batchOf(reqs ...proto.Message) *keyholdv1.BatchRequest {
	batch := &keyholdv1.BatchRequest{}
	for _, req := range reqs {
		item := &keyholdv1.BatchItem{}
		fields := item.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if fields.Get(i).Message() == req.ProtoReflect().Descriptor() {
				item.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfMessage(req.ProtoReflect()))
			}
		}
		batch.Items = append(batch.Items, item)
	}
	return batch
}

// batch makes requests together; every result is in its place.
func (w *world) batch(reqs ...proto.Message) []*keyholdv1.BatchResult {
	w.t.Helper()
	results := do[*keyholdv1.BatchResponse](w, batchOf(reqs...)).GetResults()
	if len(results) != len(reqs) {
		w.t.Fatalf("%d results for %d items", len(results), len(reqs))
	}
	for i, r := range results {
		want := strings.TrimSuffix(string(reqs[i].ProtoReflect().Descriptor().Name()), "Request") + "Response"
		fd := r.ProtoReflect().WhichOneof(r.ProtoReflect().Descriptor().Oneofs().ByName("result"))
		if fd == nil || r.GetError() == nil && string(fd.Message().Name()) != want {
			w.t.Errorf("item %d, a %s, has the result %v", i, operationOf(reqs[i]), r)
		}
	}
	return results
}

func encryptItem(key, plaintext string) *keyholdv1.EncryptRequest {
	return &keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte(plaintext)}
}

// Every operation that a batch can carry does in it what it does alone.
func TestBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	aes, other, mac, sign := w.newAESKey(), w.newAESKey(), w.newKey(hmac256, usageMac), w.newKey(p256, usageSign)
	ec := map[string]string{"tenant": "42"}
	blob := w.encrypt(aes, []byte("x"), ec)
	r := w.batch(
		&keyholdv1.EncryptRequest{KeyId: aes, Plaintext: []byte("one"), EncryptionContext: ec},
		&keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec},
		&keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: other},
		&keyholdv1.GenerateDataKeyRequest{KeyId: other, KeySpec: 1},
		&keyholdv1.SignRequest{KeyId: sign, Message: []byte("m"), SigningAlgorithm: ecdsa256},
		&keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("m"), MacAlgorithm: macSHA256},
	)
	for i, res := range r {
		if res.GetError() != nil {
			t.Fatalf("item %d: %v", i, res.GetError())
		}
	}
	if got := w.decrypt(r[0].GetEncrypt().GetCiphertextBlob(), ec); string(got) != "one" {
		t.Errorf("Encrypt's blob opens to %q", got)
	}
	if got := r[1].GetDecrypt().GetPlaintext(); string(got) != "x" {
		t.Errorf("Decrypt opens %q", got)
	}
	if got := w.decrypt(r[2].GetReEncrypt().GetCiphertextBlob(), nil); string(got) != "x" {
		t.Errorf("ReEncrypt's blob opens to %q", got)
	}
	if k := r[3].GetGenerateDataKey(); !slices.Equal(w.decrypt(k.GetCiphertextBlob(), nil), k.GetPlaintext()) || len(k.GetPlaintext()) != 32 {
		t.Errorf("a data key of %d bytes is not its encrypted copy", len(k.GetPlaintext()))
	}
	verify := &keyholdv1.VerifyRequest{KeyId: sign, Message: []byte("m"), Signature: r[4].GetSign().GetSignature(), SigningAlgorithm: ecdsa256}
	verifyMac := &keyholdv1.VerifyMacRequest{KeyId: mac, Message: []byte("m"), Mac: r[5].GetGenerateMac().GetMac(), MacAlgorithm: macSHA256}
	r = w.batch(verify, verifyMac)
	if !r[0].GetVerify().GetSignatureValid() || !r[1].GetVerifyMac().GetMacValid() {
		t.Errorf("what a batch signed does not verify in another: %v", r)
	}
	// All that a batch can carry was in one of the two.
	if n := (&keyholdv1.BatchItem{}).ProtoReflect().Descriptor().Fields().Len(); n != 8 {
		t.Errorf("a batch can carry %d operations, 8 are tested", n)
	}
}

// A poisoned item harms no other, and is answered as it would be alone.
func TestPoisonedItems(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	aes, off, mac := w.newAESKey(), w.newAESKey(), w.newKey(hmac256, usageMac)
	w.inState(off, disabled)
	blob := w.encrypt(aes, []byte("x"), nil)
	unknown := encryptItem(aes, "x")
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 77, protowire.VarintType), 1))
	dry := encryptItem(aes, "x")
	dry.DryRun = ptr(true)
	for _, c := range []struct {
		req  proto.Message
		want kms.Code
	}{
		{encryptItem(aes, strings.Repeat("x", 4097)), kms.CodeValidation},
		{encryptItem("", ""), kms.CodeValidation},
		{unknown, kms.CodeValidation},
		{&keyholdv1.EncryptRequest{KeyId: aes, Plaintext: []byte("x"), EncryptionContext: contextOf(8193)}, kms.CodeValidation},
		{encryptItem(unknownID, "x"), kms.CodeNotFound},
		{encryptItem(arnOfForeign+"key/"+aes, "x"), kms.CodeAccessDenied},
		{encryptItem(off, "x"), kms.CodeDisabled},
		{encryptItem(mac, "x"), kms.CodeInvalidKeyUsage},
		{dry, kms.CodeDryRun},
		{&keyholdv1.DecryptRequest{CiphertextBlob: flipped(blob, 8*len(blob)-1)}, kms.CodeInvalidCiphertext},
		{&keyholdv1.DecryptRequest{CiphertextBlob: []byte("garbage")}, kms.CodeInvalidCiphertext},
		{&keyholdv1.VerifyMacRequest{KeyId: mac, Message: []byte("m"), Mac: []byte("no"), MacAlgorithm: macSHA256}, kms.CodeInvalidMac},
	} {
		alone := refuse(w, c.req, c.want)
		r := w.batch(encryptItem(aes, "before"), c.req, encryptItem(aes, "after"))
		if r[0].GetEncrypt() == nil || r[2].GetEncrypt() == nil {
			t.Errorf("beside %s: %v, %v", brief(c.req), r[0], r[2])
		}
		want := &keyholdv1.BatchError{Exception: string(alone.Code), Message: alone.Message, Temporary: alone.Unavailable}
		for _, v := range alone.Violations {
			want.Violations = append(want.Violations, &keyholdv1.BatchFieldViolation{Field: v.Field, Description: v.Description})
		}
		if d := cmp.Diff(want, r[1].GetError(), protocmp.Transform()); d != "" {
			t.Errorf("%s alone and in a batch (-alone +batch):\n%s", brief(c.req), d)
		}
	}
	// An item that says nothing, and one of an operation that is not known here.
	later := &keyholdv1.BatchItem{}
	later.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), nil))
	batch := batchOf(encryptItem(aes, "x"), encryptItem(aes, "x"), encryptItem(aes, "x"))
	batch.Items[0], batch.Items[2] = &keyholdv1.BatchItem{}, later
	r := do[*keyholdv1.BatchResponse](w, batch).GetResults()
	if r[0].GetError().GetException() != string(kms.CodeValidation) || r[1].GetEncrypt() == nil || r[2].GetError().GetException() != string(kms.CodeValidation) {
		t.Errorf("beside empty items: %v", r)
	}
	// A panic is one item's.
	boom := func(_ context.Context, call string) error {
		if call == "MAC" {
			panic("boom")
		}
		return nil
	}
	fake.before.Store(&boom)
	r = w.batch(encryptItem(aes, "x"), &keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("m"), MacAlgorithm: macSHA256}, encryptItem(aes, "x"))
	if r[0].GetEncrypt() == nil || r[2].GetEncrypt() == nil || r[1].GetError().GetException() != string(kms.CodeInternal) || strings.Contains(r[1].String(), "boom") {
		t.Errorf("beside a panic: %v", r)
	}
	if !strings.Contains(w.logs.String(), "boom") {
		t.Error("nobody learns of the panic")
	}
}

// 1 to 100 items. A batch that is refused as a whole is on the record as one.
func TestBatchLimits(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	aes := w.newAESKey()
	items := func(n int) []proto.Message {
		return slices.Repeat([]proto.Message{encryptItem(aes, "x")}, n)
	}
	for _, n := range []int{1, 100} {
		for i, r := range w.batch(items(n)...) {
			if r.GetEncrypt() == nil {
				t.Errorf("of %d: item %d: %v", n, i, r.GetError())
			}
		}
	}
	sealed := fake.count("Seal")
	for _, n := range []int{0, 101, 5000} {
		events := w.eventsOf(func() {
			if e := refuse(w, batchOf(items(n)...), kms.CodeValidation); len(e.Violations) != 1 || e.Violations[0].Field != "items" {
				t.Errorf("%d items: %v", n, e.Violations)
			}
		})
		if len(events) != 1 || events[0].EventName != "Batch" || events[0].ErrorCode != string(kms.CodeValidation) {
			t.Errorf("%d items are recorded as %+v", n, events)
		}
	}
	if n := fake.count("Seal") - sealed; n != 0 {
		t.Errorf("batches that were refused sealed %d times", n)
	}
}

// appends counts what comes to the journal.
type appends struct {
	kms.Journal
	calls, records atomic.Int64
	last           atomic.Value // of how
}

// how a record is to be kept.
type how struct {
	class      audit.Class
	durability audit.Durability
}

func (j *appends) Append(ctx context.Context, c audit.Class, d audit.Durability, p ...[]byte) (uint64, error) {
	j.calls.Add(1)
	j.records.Add(int64(len(p)))
	j.last.Store(how{c, d})
	return j.Journal.Append(ctx, c, d, p...)
}

// One event an item, one call of the journal, and so one sync, a batch.
func TestBatchRecords(t *testing.T) {
	t.Parallel()
	j := &appends{}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { j.Journal = c.Journal; c.Journal = j }))
	aes := w.newAESKey()
	blob := w.encrypt(aes, []byte("x"), nil)
	reqs := []proto.Message{encryptItem(aes, "CANARY"), encryptItem(unknownID, "CANARY"), &keyholdv1.DecryptRequest{CiphertextBlob: blob}, encryptItem(aes, "")}
	j.calls.Store(0)
	j.records.Store(0)
	events := w.eventsOf(func() { w.batch(reqs...) })
	if j.calls.Load() != 1 || j.records.Load() != int64(len(reqs)) {
		t.Errorf("%d records in %d calls of the journal, want %d in 1", j.records.Load(), j.calls.Load(), len(reqs))
	}
	if len(events) != len(reqs) {
		t.Fatalf("%d events for %d items", len(events), len(reqs))
	}
	ids := make(map[string]bool)
	for i, e := range events {
		want := kms.Code("")
		if i == 1 {
			want = kms.CodeNotFound
		}
		if i == 3 {
			want = kms.CodeValidation
			if e.ErrorCode != string(want) || e.RequestParameters != nil {
				t.Errorf("item %d is recorded as %+v", i, e)
			}
			continue
		}
		if i == 1 {
			if e.ErrorCode != string(want) || len(e.Resources) != 0 {
				t.Errorf("item %d is recorded as %+v", i, e)
			}
		} else {
			w.checkEvents(events[i:i+1], reqs[i], want)
		}
		if e.AdditionalEventData["batchItem"] != strconv.Itoa(i) || e.RequestID != alice().RequestID || ids[e.EventID] || strings.Contains(e.raw, "CANARY") {
			t.Errorf("item %d is recorded as %s", i, e.raw)
		}
		ids[e.EventID] = true
	}
	if got := events[2].AdditionalEventData["keyMaterialId"]; got != w.metadata(aes).GetCurrentKeyMaterialId() {
		t.Errorf("Decrypt's record names the material %q", got)
	}
	if _, err := audit.Verify(w.journalDir(), audit.VerifyOptions{}); err != nil {
		t.Errorf("the journal does not verify: %v", err)
	}
}

// Refusals are on disk before they are answered, in a batch as alone, also where
// other records need not be; and they may use the reserve if nothing else is
// with them.
func TestBatchRecordsRefusalsAsAlone(t *testing.T) {
	t.Parallel()
	j := &appends{}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { j.Journal, c.DataDurability = c.Journal, audit.Written; c.Journal = j }))
	good, bad := encryptItem(w.newAESKey(), "x"), encryptItem(unknownID, "x")
	for name, c := range map[string]struct {
		items []proto.Message
		want  how
	}{
		"answers":              {[]proto.Message{good, good}, how{audit.Normal, audit.Written}},
		"answers and refusals": {[]proto.Message{good, bad}, how{audit.Normal, audit.Synced}},
		"refusals":             {[]proto.Message{bad, bad}, how{audit.Protected, audit.Synced}},
	} {
		j.calls.Store(0)
		w.batch(c.items...)
		if got := j.last.Load(); got != c.want || j.calls.Load() != 1 {
			t.Errorf("%s: the last of %d appends is of %+v, want one of %+v", name, j.calls.Load(), got, c.want)
		}
	}
	refuse(w, bad, kms.CodeNotFound)
	if got, want := j.last.Load(), (how{audit.Protected, audit.Synced}); got != want {
		t.Errorf("a refusal alone is of %+v, want %+v", got, want)
	}
}

// Records that do not fit into one segment together are written all the same.
func TestBatchLargerThanASegment(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t) // segments of 256 KiB
	aes := w.newAESKey()
	big := &keyholdv1.EncryptRequest{KeyId: aes, Plaintext: []byte("x"), EncryptionContext: contextOf(8192)}
	events := w.eventsOf(func() {
		for i, r := range w.batch(slices.Repeat([]proto.Message{big}, 100)...) {
			if r.GetEncrypt() == nil {
				t.Errorf("item %d: %v", i, r.GetError())
			}
		}
	})
	if len(events) != 100 {
		t.Errorf("%d events for 100 items", len(events))
	}
}

// What is not recorded is not answered. On a full disk refusals still are.
func TestBatchWithoutJournal(t *testing.T) {
	t.Parallel()
	j := &faultyJournal{}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { j.Journal = c.Journal; c.Journal = j }))
	aes := w.newAESKey()
	reqs := []proto.Message{encryptItem(aes, "x"), encryptItem(unknownID, "x"), encryptItem(aes, "x")}
	j.failing(func([]byte) error { return audit.ErrUnavailable })
	for i, r := range w.batch(reqs...) {
		if e := r.GetError(); e.GetException() != string(kms.CodeInternal) || !e.GetTemporary() {
			t.Errorf("item %d without a journal: %v", i, r)
		}
	}
	full := &fullJournal{Journal: j.Journal}
	full.full.Store(true)
	w.cfg.Journal = full
	w.start()
	events := w.eventsOf(func() {
		r := w.batch(reqs...)
		if r[0].GetError().GetException() != string(kms.CodeInternal) || r[1].GetError().GetException() != string(kms.CodeNotFound) || r[2].GetError().GetException() != string(kms.CodeInternal) {
			t.Errorf("on a full disk: %v", r)
		}
	})
	if len(events) != 1 || events[0].ErrorCode != string(kms.CodeNotFound) || !events[0].protected {
		t.Errorf("on a full disk there are the records %+v", events)
	}
	j.failing(func([]byte) error { panic("no more ink") })
	w.cfg.Journal = j
	w.start()
	for i, r := range w.batch(reqs...) {
		if r.GetError().GetException() != string(kms.CodeInternal) {
			t.Errorf("item %d, while the journal panics: %v", i, r)
		}
	}
}
