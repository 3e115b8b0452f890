package kms_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

const internalWords = "The request was rejected because an internal exception occurred. The request can be retried."

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	for name, spoil := range map[string]func(*kms.Config){
		"no store": func(c *kms.Config) { c.Store = nil }, "no journal": func(c *kms.Config) { c.Journal = nil },
		"no logger": func(c *kms.Config) { c.Logger = nil }, "no regions": func(c *kms.Config) { c.Regions = nil },
		"store that cannot be read": func(c *kms.Config) {
			db := &faultyDB{Store: w.db}
			db.fail("Snapshot", 1, false, errFault)
			c.Store = db
		},
	} {
		cfg := w.cfg
		spoil(&cfg)
		if s, err := kms.New(t.Context(), cfg); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOddRequests(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	before := len(w.events())
	for name, c := range map[string]struct {
		caller    *identity.Caller
		operation string
		req       proto.Message
		want      kms.Code
	}{
		"unknown operation": {alice(), "Frobnicate\x00", &keyholdv1.ListKeysRequest{}, kms.CodeUnknownOperation},
		"no operation":      {alice(), "", &keyholdv1.ListKeysRequest{}, kms.CodeUnknownOperation},
		"full name":         {alice(), "/keyhold.v1.CryptographyService/Encrypt", &keyholdv1.EncryptRequest{}, kms.CodeUnknownOperation},
		"wrong message":     {alice(), "Encrypt", &keyholdv1.DecryptRequest{}, kms.CodeInternal},
		"answer as request": {alice(), "Encrypt", &keyholdv1.EncryptResponse{}, kms.CodeInternal},
		"nobody":            {nil, "ListKeys", &keyholdv1.ListKeysRequest{}, kms.CodeInternal},
		"no principal":      {&identity.Caller{Region: testRegion}, "ListKeys", &keyholdv1.ListKeysRequest{}, kms.CodeInternal},
		"nil message":       {alice(), "Encrypt", (*keyholdv1.EncryptRequest)(nil), kms.CodeValidation},
		"no message":        {alice(), "Encrypt", nil, kms.CodeInternal},
	} {
		resp, err := w.svc.Do(t.Context(), c.caller, c.operation, c.req)
		var e *kms.Error
		if resp != nil || !errors.As(err, &e) || e.Code != c.want || len(e.Message) > 400 {
			t.Errorf("%s: %v, %v, want %s", name, resp, err, c.want)
		}
	}
	// Only what got as far as the pipeline is about somebody.
	if got := len(w.events()) - before; got != 1 {
		t.Errorf("%d events, want 1", got)
	}
}

// Requests and their secrets are not changed, and not kept.
func TestRequestsAreTheCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.newAESKey()
	req := &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("attack"), EncryptionContext: map[string]string{"a": "b"}}
	copied := proto.Clone(req)
	blob := do[*keyholdv1.EncryptResponse](w, req).GetCiphertextBlob()
	if !proto.Equal(req, copied) {
		t.Error("the request was changed")
	}
	clear(req.GetPlaintext())
	decrypt := &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: map[string]string{"a": "b"}}
	plaintext := do[*keyholdv1.DecryptResponse](w, decrypt).GetPlaintext()
	clear(blob)
	if string(plaintext) != "attack" {
		t.Errorf("the answer is %q and shares memory with a request", plaintext)
	}
}

func TestInFlightLimit(t *testing.T) {
	t.Parallel()
	const most = 5
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Limits.InFlight = most }))
	id := w.newAESKey()
	entered, release := make(chan struct{}, most+1), make(chan struct{})
	before := func(_ context.Context, call string) error {
		if call == "Seal" {
			entered <- struct{}{}
			<-release
		}
		return nil
	}
	fake.before.Store(&before)
	var wg sync.WaitGroup
	for range most {
		wg.Go(func() {
			if _, err := try[proto.Message](w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}); err != nil {
				t.Error(describe(err))
			}
		})
	}
	for range most {
		<-entered
	}
	for _, op := range w.svc.Operations() {
		refuse(w, sampleRequest(t, op), kms.CodeThrottling)
	}
	close(release)
	wg.Wait()
	fake.heal()
	// Refusals and failures leave as well.
	for range 3 * most {
		refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: unknownID}, kms.CodeNotFound)
		refuse(w, &keyholdv1.DescribeKeyRequest{}, kms.CodeValidation)
	}
	w.encrypt(id, []byte("x"), nil)
}

func TestRates(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Limits.DataPerSecond, c.Limits.ControlPerSecond = 3, 2 }))
	data, control := &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(1))}, &keyholdv1.ListKeysRequest{}
	for range 2 {
		for range 3 {
			do[proto.Message](w, data)
		}
		refuse(w, data, kms.CodeThrottling)
		for range 2 {
			do[proto.Message](w, control)
		}
		refuse(w, control, kms.CodeThrottling)
		// What step 2 refuses does not count, and another account is another.
		refuse(w, &keyholdv1.GenerateRandomRequest{}, kms.CodeValidation)
		if _, err := tryAs[proto.Message](w, mallory(), data); err != nil {
			t.Error(describe(err))
		}
		w.clock.add(time.Second)
	}
}

// A panic is one request's internal error: it is recorded, its text goes to
// nobody, and the next request finds all in order.
func TestPanics(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Limits.InFlight = 2 }))
	id, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	blob := w.encrypt(id, []byte("x"), nil)
	panics := func(_ context.Context, call string) error {
		if call == "Health" || call == "Retire" {
			return nil
		}
		panic("the key store panics about " + call)
	}
	for _, req := range []proto.Message{
		&keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, &keyholdv1.CreateKeyRequest{},
		&keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("x"), MacAlgorithm: macSHA256}, &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(1))},
	} {
		fake.before.Store(&panics)
		events := w.eventsOf(func() {
			e := refuse(w, req, kms.CodeInternal)
			if e.Message != internalWords || !strings.Contains(e.Unwrap().Error(), "the key store panics about") {
				t.Errorf("the refusal is %s", describe(e))
			}
		})
		last := events[len(events)-1]
		if last.ErrorCode != string(kms.CodeInternal) || strings.Contains(last.raw, "panics") {
			t.Errorf("recorded as %s", last.raw)
		}
		fake.heal()
	}
	w.encrypt(id, []byte("x"), nil)
	do[proto.Message](w, &keyholdv1.DisableKeyRequest{KeyId: id})
	w.newAESKey()
}

// Nothing leaves without its record, and nothing is changed whose intent could
// not be recorded.
func TestAuditFailsClosed(t *testing.T) {
	t.Parallel()
	journal := &faultyJournal{}
	w, fake := newFakeWorld(t, func(w *world) { journal.Journal = w.journal; w.cfg.Journal = journal })
	id := w.newAESKey()
	blob := w.encrypt(id, []byte("x"), nil)
	phase := func(p string) func([]byte) error {
		return func(payload []byte) error {
			if strings.Contains(string(payload), `"phase":"`+p+`"`) {
				return errFault
			}
			return nil
		}
	}
	refused := func(req proto.Message) {
		t.Helper()
		e := refuse(w, req, kms.CodeInternal)
		if !e.Unavailable || e.Message != internalWords || !errors.Is(e, errFault) {
			t.Errorf("%s: the refusal is %s", operationOf(req), describe(e))
		}
	}
	mutations := func() []proto.Message {
		return []proto.Message{
			&keyholdv1.CreateKeyRequest{}, &keyholdv1.DisableKeyRequest{KeyId: id}, &keyholdv1.EnableKeyRequest{KeyId: id}, &keyholdv1.UpdateKeyDescriptionRequest{KeyId: id, Description: ptr("new")},
			&keyholdv1.ScheduleKeyDeletionRequest{KeyId: id}, &keyholdv1.CreateAliasRequest{AliasName: "alias/new", TargetKeyId: id},
		}
	}
	for _, fail := range []func([]byte) error{phase("intent"), func([]byte) error { return errFault }} {
		journal.failing(fail)
		seen := w.stateOf(fake)
		for _, req := range mutations() {
			refused(req)
			if got := w.stateOf(fake); got != seen {
				t.Errorf("%s was carried out without its intent: %s, was %s", operationOf(req), got, seen)
			}
		}
		journal.failing(nil)
	}
	journal.failing(func([]byte) error { return errFault })
	for _, req := range []proto.Message{
		&keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, &keyholdv1.DescribeKeyRequest{KeyId: id}, &keyholdv1.ListKeysRequest{},
		&keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(1))}, &keyholdv1.DescribeKeyRequest{KeyId: unknownID}, &keyholdv1.EncryptRequest{},
		&keyholdv1.DecryptRequest{CiphertextBlob: []byte("garbage")}, &keyholdv1.DescribeKeyRequest{KeyId: arnOfForeign + "key/" + unknownID},
	} {
		refused(req)
	}
	// Where the act is done and its outcome cannot be recorded, there is no
	// answer, and what was done stays done and is coherent.
	journal.failing(phase("outcome"))
	refused(&keyholdv1.CreateKeyRequest{})
	refused(&keyholdv1.DisableKeyRequest{KeyId: id})
	journal.failing(nil)
	w.checkCoherence()
	if ids, _ := w.listKeys(nil); len(ids) != 2 || w.metadata(id).GetKeyState() != disabled {
		t.Errorf("afterwards there are %d keys and the first is %s", len(ids), w.metadata(id).GetKeyState())
	}
}

// stateOf sums up store and key store.
func (w *world) stateOf(fake *fakeStore) string {
	w.t.Helper()
	s, err := w.db.Snapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range s.Keys {
		b.WriteString(string(r.ID) + r.State.String() + r.Description + "\n")
	}
	return b.String() + strings.Repeat("a", len(s.Aliases)) + strings.Repeat("o", fake.size())
}

// When the record of an answer cannot be written, the secret in it is wiped.
func TestUnrecordedSecretsAreWiped(t *testing.T) {
	t.Parallel()
	journal := &faultyJournal{}
	fake := newFakeStore()
	keeper := &keepingStore{fakeStore: fake}
	w := buildWorld(t, keeper, func(w *world) { journal.Journal = w.journal; w.cfg.Journal = journal })
	id := w.newAESKey()
	blob := w.encrypt(id, []byte("attack at dawn"), nil)
	journal.failing(func([]byte) error { return errFault })
	refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, kms.CodeInternal)
	refuse(w, &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(32))}, kms.CodeInternal)
	refuse(w, &keyholdv1.GenerateDataKeyRequest{KeyId: id, KeySpec: 1}, kms.CodeInternal)
	w.batch(&keyholdv1.DecryptRequest{CiphertextBlob: blob}, &keyholdv1.GenerateDataKeyRequest{KeyId: id, KeySpec: 1})
	journal.failing(nil)
	do[proto.Message](w, &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: id})
	do[proto.Message](w, &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: id, KeySpec: 1})
	fake.failing("Seal", errFault)
	refuse(w, &keyholdv1.GenerateDataKeyRequest{KeyId: id, KeySpec: 1}, kms.CodeInternal)
	if len(keeper.given) != 8 {
		t.Fatalf("%d secrets were given", len(keeper.given))
	}
	for i, b := range keeper.given {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("secret %d is still in memory: %x", i, b)
		}
	}
}

// keepingStore remembers the memory of every secret that it returned.
type keepingStore struct {
	*fakeStore
	given [][]byte
}

func (k *keepingStore) Open(ctx context.Context, l kms.Locator, aad []byte, s kms.Sealed) ([]byte, error) {
	b, err := k.fakeStore.Open(ctx, l, aad, s)
	k.given = append(k.given, b)
	return b, err
}

func (k *keepingStore) Random(ctx context.Context, n int) ([]byte, error) {
	b, err := k.fakeStore.Random(ctx, n)
	k.given = append(k.given, b)
	return b, err
}

// A store that is down, slow or odd: which exception, and whether to come back.
func TestStoreErrors(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	id, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	blob := w.encrypt(id, []byte("x"), nil)
	encrypt := &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}
	decrypt := &keyholdv1.DecryptRequest{CiphertextBlob: blob}
	random := &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(1))}
	generateMac := &keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("x"), MacAlgorithm: macSHA256}
	for _, c := range []struct {
		call  string
		err   error
		req   proto.Message
		want  kms.Code
		again bool
	}{
		{"Seal", kms.ErrStoreUnavailable, encrypt, kms.CodeKeyUnavailable, true},
		{"Seal", kms.ErrKeyMissing, encrypt, kms.CodeKeyUnavailable, true},
		{"Open", kms.ErrStoreUnavailable, decrypt, kms.CodeKeyUnavailable, true},
		{"MAC", kms.ErrStoreUnavailable, generateMac, kms.CodeKeyUnavailable, true},
		{"Random", kms.ErrStoreUnavailable, random, kms.CodeInternal, true},
		{"Generate", kms.ErrStoreUnavailable, &keyholdv1.CreateKeyRequest{}, kms.CodeInternal, true},
		{"Seal", context.DeadlineExceeded, encrypt, kms.CodeDependencyTimeout, true},
		{"MAC", context.DeadlineExceeded, generateMac, kms.CodeInternal, true},
		{"Seal", context.Canceled, encrypt, kms.CodeInternal, true},
		{"Open", errors.New("CKR_GENERAL_ERROR of slot 7"), decrypt, kms.CodeInternal, false},
		{"Open", kms.ErrUnsupported, decrypt, kms.CodeInvalidKeyUsage, false},
	} {
		fake.failing(c.call, c.err)
		e := refuse(w, c.req, c.want)
		if e.Unavailable != c.again || strings.Contains(e.Message, "CKR") || !errors.Is(e, c.err) {
			t.Errorf("%s fails with %v: %s, unavailable %v", c.call, c.err, describe(e), e.Unavailable)
		}
	}
	fake.heal()
	do[proto.Message](w, decrypt)
}

// A key store that hangs costs its deadline.
func TestHangingStore(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	id := w.newAESKey()
	hang := func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	}
	fake.before.Store(&hang)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := tryIn[proto.Message](ctx, w, alice(), &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")})
	if err == nil || err.Code != kms.CodeDependencyTimeout || !err.Unavailable {
		t.Errorf("answered %v", err)
	}
	// The record is made although the caller's time is over.
	events := w.events()
	if last := events[len(events)-1]; last.ErrorCode != string(kms.CodeDependencyTimeout) {
		t.Errorf("recorded as %s", last.raw)
	}
	events = w.eventsOf(func() {
		_, err := tryIn[proto.Message](ctx, w, alice(), &keyholdv1.DisableKeyRequest{KeyId: id})
		if err == nil {
			t.Error("a change was begun after the end of its time")
		}
	})
	if len(events) != 1 || events[0].ErrorCode == "" {
		t.Errorf("recorded as %+v", events)
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	if err := w.svc.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	fake.failing("Health", errors.New("the token is asleep"))
	if err := w.svc.Ready(); err == nil || !strings.Contains(err.Error(), testRegion) || !strings.Contains(err.Error(), "asleep") {
		t.Errorf("ready says %v", err)
	}
	fake.heal()
	if err := w.journal.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.svc.Ready(); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("ready says %v", err)
	}
}

// watcher keeps what an observer is told.
type watcher struct {
	mu   sync.Mutex
	seen []string
	t    kms.Timing
}

func (o *watcher) Operation(name string, code kms.Code, total time.Duration, t kms.Timing) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, name+" "+string(code))
	o.t = t
	if total < 0 || t.Audit < 0 || t.Token < 0 || t.Queue < 0 {
		o.seen = append(o.seen, "negative time")
	}
}

func TestObserver(t *testing.T) {
	t.Parallel()
	o := &watcher{}
	w := newWorld(t, withConfig(func(c *kms.Config) { c.Observer, c.Now = o, time.Now }))
	id := w.newAESKey()
	w.encrypt(id, []byte("x"), nil)
	if o.t.Token <= 0 || o.t.Audit <= 0 {
		t.Errorf("an Encrypt took %+v", o.t)
	}
	refuse(w, &keyholdv1.EncryptRequest{KeyId: unknownID, Plaintext: []byte("x")}, kms.CodeNotFound)
	if want := "CreateKey ,Encrypt ,Encrypt NotFoundException"; strings.Join(o.seen, ",") != want {
		t.Errorf("seen %q, want %q", o.seen, want)
	}
}

// The service works with a logger that throws all away.
func TestDefaults(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Now, c.Logger = nil, slog.New(slog.DiscardHandler) }))
	before := time.Now().Add(-time.Second)
	m := w.metadata(w.newAESKey())
	if created := m.GetCreationDate().AsTime(); created.Before(before) || created.After(time.Now()) {
		t.Errorf("created %s", created)
	}
}

// A key store that comes with another public key than when the pair was made
// is not believed: somebody may have put in his own.
func TestSwappedPublicKey(t *testing.T) {
	t.Parallel()
	signer := &fakeSigner{newFakeStore()}
	w := buildWorld(t, signer)
	id := w.newKey(p256, usageSign)
	req := &keyholdv1.SignRequest{KeyId: id, Message: []byte("m"), SigningAlgorithm: ecdsa256}
	signature := do[*keyholdv1.SignResponse](w, req).GetSignature()
	verify := &keyholdv1.VerifyRequest{KeyId: id, Message: []byte("m"), Signature: signature, SigningAlgorithm: ecdsa256}
	do[proto.Message](w, verify)
	w.start()
	signer.mu.Lock()
	for _, k := range signer.keys {
		k.secret = flipped(k.secret, 200)
	}
	signer.mu.Unlock()
	refuse(w, verify, kms.CodeInternal)
	refuse(w, &keyholdv1.GetPublicKeyRequest{KeyId: id}, kms.CodeInternal)
}
