package kms_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

// TestManyViolations: what is wrong in a request a hundred thousand times must
// not become an answer of megabytes.
func TestManyViolations(t *testing.T) {
	w, _ := newFakeWorld(t)
	tags := make([]*keyholdv1.Tag, 100_000)
	for i := range tags {
		tags[i] = &keyholdv1.Tag{}
	}
	err := refuse(w, &keyholdv1.CreateKeyRequest{Tags: tags}, kms.CodeValidation)
	if len(err.Violations) != 1 || err.Violations[0].Field != "tags" || len(err.Message) > 200 {
		t.Errorf("%d violations in %d bytes, want the one of tags", len(err.Violations), len(err.Message))
	}
	// As many as may be are looked at one by one.
	err = refuse(w, &keyholdv1.CreateKeyRequest{Tags: tags[:50]}, kms.CodeValidation)
	if len(err.Violations) < 50 || len(err.Message) > 16<<10 {
		t.Errorf("%d violations in %d bytes, want one for each of 50 tags", len(err.Violations), len(err.Message))
	}
}

// TestListsAreBounded: every list of a request declares its longest length,
// which checkLists enforces; without one nothing would be accepted.
func TestListsAreBounded(t *testing.T) {
	for _, sd := range kms.Services() {
		for i := range sd.Methods().Len() {
			fields := sd.Methods().Get(i).Input().Fields()
			for j := range fields.Len() {
				fd := fields.Get(j)
				if !fd.IsList() {
					continue
				}
				if rules, err := protovalidate.ResolveFieldRules(fd); err != nil || rules.GetRepeated().GetMaxItems() == 0 {
					t.Errorf("%s has no max_items (%v)", fd.FullName(), err)
				}
			}
		}
	}
}

// hangingDB is a store whose leases hang until they are told to go on.
type hangingDB struct {
	kms.Store
	entered, release chan struct{}
}

func (d *hangingDB) LeaseSeals(ctx context.Context, ref kms.Ref, n, limit uint64) (uint64, uint64, error) {
	d.entered <- struct{}{}
	<-d.release
	return d.Store.LeaseSeals(ctx, ref, n, limit)
}

// TestLeaseObeysDeadline: who waits for the lease, the one who asked for it or
// another, returns when its time is over; what was leased then is not lost.
func TestLeaseObeysDeadline(t *testing.T) {
	db := &hangingDB{entered: make(chan struct{}), release: make(chan struct{})}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { db.Store = c.Store; c.Store = db; c.LeaseSeals = 80 }))
	id := do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{}).GetKeyMetadata().GetKeyId()
	req := func() *keyholdv1.EncryptRequest {
		return &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}
	}
	ask := func(ctx context.Context) <-chan *kms.Error {
		answer := make(chan *kms.Error, 1)
		go func() { _, err := tryIn[proto.Message](ctx, w, alice(), req()); answer <- err }()
		return answer
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := ask(ctx)
	<-db.entered
	cancel()
	stay := ask(t.Context())
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for want, left := range map[error]<-chan *kms.Error{context.Canceled: first, context.DeadlineExceeded: ask(ctx)} {
		select {
		case err := <-left:
			if err == nil || !errors.Is(err, want) {
				t.Errorf("a request ended with %v, want %v", err, want)
			}
		case <-time.After(3 * time.Second):
			t.Errorf("a request waits for the database beyond its time, want %v", want)
		}
	}
	close(db.release) // a second lease would be stuck at entered
	if err := <-stay; err != nil {
		t.Error(describe(err))
	}
	stored, err := w.db.Key(t.Context(), kms.KeyID(id))
	if err != nil {
		t.Fatal(err)
	}
	if count, err := w.db.SealCount(t.Context(), stored.Current().Ref); err != nil || count != 80 {
		t.Errorf("%d seals were leased, %v, want one lease of 80", count, err)
	}
}

// TestHangingLeasesAreBounded: while the database hangs, no more of it is asked
// than requests may be under way, however many come and leave.
func TestHangingLeasesAreBounded(t *testing.T) {
	const most = 2
	db := &hangingDB{entered: make(chan struct{}, 100), release: make(chan struct{})}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { db.Store = c.Store; c.Store = db; c.Limits.InFlight = most }))
	var ids []string
	for range 3 * most {
		ids = append(ids, w.newAESKey())
	}
	for _, id := range ids {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if _, err := tryIn[proto.Message](ctx, w, alice(), &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("refused with %v", err)
		}
		cancel()
	}
	if n := len(db.entered); n > most {
		t.Errorf("%d leases hang, want at most %d", n, most)
	}
	close(db.release)
	for _, id := range ids {
		w.encrypt(id, []byte("x"), nil)
	}
}

// panickingDB panics when it is asked for a lease, as long as it is told to.
type panickingDB struct {
	kms.Store
	calm atomic.Bool
}

func (d *panickingDB) LeaseSeals(ctx context.Context, ref kms.Ref, n, limit uint64) (uint64, uint64, error) {
	if !d.calm.Load() {
		panic("a fault of the test")
	}
	return d.Store.LeaseSeals(ctx, ref, n, limit)
}

// TestPanicInLease: it is one request's error, and the key goes on.
func TestPanicInLease(t *testing.T) {
	db := &panickingDB{}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { db.Store = c.Store; c.Store = db }))
	id := w.newAESKey()
	for range 2 {
		if e := refuse(w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}, kms.CodeInternal); !strings.Contains(describe(e), "a fault of the test") {
			t.Errorf("refused with %s", describe(e))
		}
	}
	db.calm.Store(true)
	w.encrypt(id, []byte("x"), nil)
}

// LastTick hangs as well.
func (d *hangingDB) LastTick(ctx context.Context) (time.Time, error) {
	d.entered <- struct{}{}
	<-d.release
	return d.Store.LastTick(ctx)
}

// TestHangingStoreIsWatchable: what metrics and readiness read answers while
// the store hangs.
func TestHangingStoreIsWatchable(t *testing.T) {
	db := &hangingDB{entered: make(chan struct{}), release: make(chan struct{})}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { db.Store = c.Store; c.Store = db }))
	maintained := make(chan struct{})
	go func() { w.svc.Maintain(t.Context()); close(maintained) }()
	<-db.entered
	// A deadlock here ends the test run with a stack.
	if w.svc.ClockHeld() || w.svc.Ready() != nil || len(w.svc.KeyCounts()) != 0 || len(w.svc.Orphans()) != 0 {
		t.Error("held, not ready, or not empty")
	}
	close(db.release)
	<-maintained
}

// slowJournal holds appends back.
type slowJournal struct {
	kms.Journal
	entered, release chan struct{}
}

func (j *slowJournal) Append(ctx context.Context, c audit.Class, d audit.Durability, p ...[]byte) (uint64, error) {
	j.entered <- struct{}{}
	<-j.release
	return j.Journal.Append(ctx, c, d, p...)
}

// TestInFlightCountsTheWaitForTheJournal: a request is under way until its
// record is durable.
func TestInFlightCountsTheWaitForTheJournal(t *testing.T) {
	j := &slowJournal{entered: make(chan struct{}, 16), release: make(chan struct{})}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { j.Journal = c.Journal; c.Journal = j; c.Limits.InFlight = 1 }))
	results := make(chan *kms.Error, 2)
	request := func() {
		_, err := try[proto.Message](w, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(8)})
		results <- err
	}
	go request()
	<-j.entered
	go request()
	<-j.entered // the record of the second, whatever became of it
	close(j.release)
	throttled := 0
	for range 2 {
		if err := <-results; err != nil && err.Code == kms.CodeThrottling {
			throttled++
		}
	}
	if throttled != 1 {
		t.Errorf("%d of 2 requests were throttled with in_flight 1, want 1", throttled)
	}
}

// TestNoAttemptWhileTheTokenIsAway: keys that are due wait for their token
// without a record for each minute, which would fill the journal's reserve.
func TestNoAttemptWhileTheTokenIsAway(t *testing.T) {
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.ClockConfirmed = func() bool { return true } }))
	id := do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{}).GetKeyMetadata().GetKeyId()
	do[*keyholdv1.ScheduleKeyDeletionResponse](w, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id, PendingWindowInDays: proto.Int32(7)})
	w.clock.add(8 * 24 * time.Hour)
	fake.failing("Health", kms.ErrStoreUnavailable)
	if events := w.eventsOf(func() { w.svc.Maintain(t.Context()) }); len(events) != 0 {
		t.Errorf("%d records while the token is away", len(events))
	}
	fake.heal()
	events := w.eventsOf(func() { w.svc.Maintain(t.Context()) })
	if len(events) != 2 || events[0].protected || !events[1].protected {
		t.Errorf("deletion left %d records, want an intent, and an outcome that may use the reserve", len(events))
	}
	refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: id}, kms.CodeNotFound)
}

// fullJournal has only its reserve left once it is told so.
type fullJournal struct {
	kms.Journal
	full atomic.Bool
}

func (j *fullJournal) Append(ctx context.Context, c audit.Class, d audit.Durability, p ...[]byte) (uint64, error) {
	if c == audit.Normal && j.full.Load() {
		return 0, audit.ErrFull
	}
	n, err := j.Journal.Append(ctx, c, d, p...)
	if strings.Contains(string(p[0]), `"phase":"intent"`) {
		j.full.Store(true) // the disk fills up right after an intent
	}
	return n, err
}

// TestOutcomeUsesTheReserve: a change whose intent was the last record that
// found room is answered and recorded as what it was.
func TestOutcomeUsesTheReserve(t *testing.T) {
	j := &fullJournal{}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { j.Journal = c.Journal; c.Journal = j }))
	events := w.eventsOf(func() { do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{}) })
	if len(events) != 2 || events[1].ErrorCode != "" || !events[1].protected {
		t.Errorf("%d records, want intent and outcome", len(events))
	}
	// Nothing new begins.
	before := len(w.events())
	refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeInternal)
	for _, e := range w.events()[before:] {
		if e.ErrorCode == "" {
			t.Errorf("recorded on a full disk: %s", e.raw)
		}
	}
}

// TestLargestRecords: the largest requests that are valid fit into a record,
// with the answer that repeats them.
func TestLargestRecords(t *testing.T) {
	w, _ := newFakeWorld(t)
	text := strings.Repeat("\x01", 8192) // six bytes each in JSON
	var tags []*keyholdv1.Tag
	for i := range 50 {
		tags = append(tags, &keyholdv1.Tag{TagKey: fmt.Sprintf("%s%02d", strings.Repeat("\U00020000", 126), i), TagValue: proto.String(strings.Repeat("\U00020000", 256))})
	}
	id := do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{Description: text, Tags: tags}).GetKeyMetadata().GetKeyId()
	ec := map[string]string{"": text}
	blob := do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), EncryptionContext: ec}).GetCiphertextBlob()
	do[*keyholdv1.ReEncryptResponse](w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: id, SourceEncryptionContext: ec, DestinationEncryptionContext: ec})
	for _, e := range w.events() {
		// server.Config refuses segments in which less would fit.
		if len(e.raw) > 200<<10 {
			t.Errorf("%s left a record of %d bytes", e.EventName, len(e.raw))
		}
	}
}

// TestMalformed: what a door could not decode is refused on the record, and
// without a record it is not answered as a refusal.
func TestMalformed(t *testing.T) {
	j := &faultyJournal{}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { j.Journal = c.Journal; c.Journal = j }))
	code := func(err error) kms.Code {
		t.Helper()
		var e *kms.Error
		if !errors.As(err, &e) {
			t.Fatalf("%v is a %T", err, err)
		}
		return e.Code
	}
	for _, operation := range w.svc.Operations() {
		events := w.eventsOf(func() {
			if got := code(w.svc.Malformed(t.Context(), alice(), operation, "is garbage")); got != kms.CodeValidation {
				t.Errorf("%s: %s", operation, got)
			}
		})
		if len(events) != 1 || events[0].EventName != operation || events[0].ErrorCode != string(kms.CodeValidation) || events[0].RequestParameters != nil {
			t.Errorf("%s left %+v", operation, events)
		}
	}
	j.failing(func([]byte) error { return audit.ErrUnavailable })
	if got := code(w.svc.Malformed(t.Context(), alice(), "Encrypt", "is garbage")); got != kms.CodeInternal {
		t.Errorf("without a journal: %s", got)
	}
	j.failing(nil)
	for _, err := range []error{w.svc.Malformed(t.Context(), nil, "Encrypt", "is garbage"), w.svc.Malformed(t.Context(), alice(), "Nothing", "is garbage")} {
		if got := code(err); got != kms.CodeInternal {
			t.Errorf("by nobody or for nothing: %s", got)
		}
	}
}

// TestNothingIsEncryptedForALostKey: the public half is on the host, and what
// it encrypts could never be decrypted once the private half is gone.
func TestNothingIsEncryptedForALostKey(t *testing.T) {
	w := newWorld(t)
	id := w.newKey(rsa2048, usageEncrypt)
	req := &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), EncryptionAlgorithm: oaepSHA256}
	do[*keyholdv1.EncryptResponse](w, req)
	rec, err := w.db.Key(t.Context(), kms.KeyID(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cfg.Regions[testRegion].(kms.Generator).Destroy(t.Context(), rec.Current().Locator); err != nil {
		t.Fatal(err)
	}
	if _, err := w.svc.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	refuse(w, req, kms.CodeKeyUnavailable)
}

// TestPanicWhileRecording: what cannot be recorded is not answered, and one
// request's record does not end the process.
func TestPanicWhileRecording(t *testing.T) {
	j := &faultyJournal{}
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { j.Journal = c.Journal; c.Journal = j }))
	j.failing(func([]byte) error { panic("no more ink") })
	refuse(w, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(8)}, kms.CodeInternal)
	refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeInternal)
	if fake.size() != 0 {
		t.Error("a key was made off the record")
	}
	j.failing(nil)
	do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{})
}

// TestKeyLimitCountsWhatIsBeingMade: keys that are made at the same time stay
// within the limit together.
func TestKeyLimitCountsWhatIsBeingMade(t *testing.T) {
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Limits.KeysPerAccount = 1 }))
	entered, release := make(chan struct{}), make(chan error)
	hang := func(_ context.Context, call string) error {
		if call != "Generate" {
			return nil
		}
		entered <- struct{}{}
		return <-release
	}
	fake.before.Store(&hang)
	first := make(chan *kms.Error, 1)
	create := func() {
		go func() { _, err := try[proto.Message](w, &keyholdv1.CreateKeyRequest{}); first <- err }()
		<-entered
	}
	create()
	refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeLimitExceeded)
	// One that came to nothing gives its place back.
	release <- kms.ErrStoreUnavailable
	if err := <-first; err == nil {
		t.Fatal("the first key was made")
	}
	create()
	release <- nil
	if err := <-first; err != nil {
		t.Fatal(describe(err))
	}
	refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeLimitExceeded)
}

// TestFailingRefillsAhead: while the store does not give a lease, not every
// encryption asks it, and fills the log.
func TestFailingRefillsAhead(t *testing.T) {
	db := &faultyDB{}
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { db.Store = c.Store; c.Store = db; c.LeaseSeals = 80 }))
	id := do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{}).GetKeyMetadata().GetKeyId()
	encrypt := func(n int) {
		for range n {
			do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")})
		}
	}
	encrypt(60) // twenty are left
	db.fail("LeaseSeals", 1000, false, errors.New("disk I/O error"))
	for round := range 3 {
		before := db.count("LeaseSeals")
		eventually(t, "a refill ahead of need", func() bool {
			if db.count("LeaseSeals") > before {
				return true
			}
			encrypt(1) // the last attempt may not have ended when the first of these ran
			return false
		})
		eventually(t, "its failure", func() bool { return strings.Count(w.logs.String(), "not renewed") == round+1 })
		encrypt(1)
		if n := db.count("LeaseSeals") - before; n != 1 {
			t.Errorf("%d refills were tried in no time", n)
		}
		w.clock.add(time.Second)
	}
	w.svc.Close()
	if n := strings.Count(w.logs.String(), "not renewed"); n != 3 {
		t.Errorf("%d lines were logged, want 3", n)
	}
}
