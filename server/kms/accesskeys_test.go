package kms_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
)

const (
	active   = keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_ACTIVE
	inactive = keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_INACTIVE
)

// The life of an access key, over the token. Its secret is in the one answer and
// nowhere else: not in a record, a log line or a file of the installation.
func TestAccessKeyLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.makeSealKey()
	k := w.createAccessKey()
	if !regexp.MustCompile(`^AKIA[A-Z2-7]{16}$`).MatchString(k.GetAccessKeyId()) || !regexp.MustCompile(`^[A-Za-z0-9+/]{40}$`).Match(k.GetSecretAccessKey()) {
		t.Errorf("id %q, a secret of %d bytes", k.GetAccessKeyId(), len(k.GetSecretAccessKey()))
	}
	if k.GetPrincipalArn() != alice().Principal.ARN || k.GetStatus() != active || !k.GetCreateDate().AsTime().Equal(w.clock.Now().Truncate(time.Second)) {
		t.Errorf("made %v", k)
	}
	id := k.GetAccessKeyId()
	secret := slices.Clone(k.GetSecretAccessKey())
	for _, status := range []keyholdv1.AccessKeyStatus{inactive, inactive, active, active} {
		do[proto.Message](w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: status})
		if list := w.accessKeys(); len(list) != 1 || list[0].GetStatus() != status || list[0].GetAccessKeyId() != id {
			t.Errorf("listed %v, want %v", list, status)
		}
		_, p, err := w.cfg.AccessKeys.LookUp(id)
		if usable := err == nil && p.ARN == alice().Principal.ARN; usable != (status == active) {
			t.Errorf("LookUp of a key that is %v: %v, %v", status, p, err)
		}
	}
	opened, _, err := w.cfg.AccessKeys.LookUp(id)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.cfg.AccessKeys.Open(t.Context(), opened); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("the sealed secret opens to another one: %v", err)
	}
	w.wantNowhere(secret)

	// A restart finds it.
	w.cfg.AccessKeys = w.loadAccessKeys()
	w.start()
	again, _, err := w.cfg.AccessKeys.LookUp(id)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.cfg.AccessKeys.Open(t.Context(), again); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("after a restart: %v", err)
	}
	do[proto.Message](w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id})
	refuse(w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id}, kms.CodeNotFound)
	if _, _, err := w.cfg.AccessKeys.LookUp(id); !errors.Is(err, identity.ErrAccessKeyUnusable) || len(w.accessKeys()) != 0 {
		t.Errorf("after the deletion: %v", err)
	}
	if keys, err := w.db.AccessKeys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("the store has %v, %v", keys, err)
	}
}

// wantNowhere looks for a secret in everything that the installation wrote.
func (w *world) wantNowhere(secret []byte) {
	w.t.Helper()
	looked := 0
	err := filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, secret) {
			w.t.Errorf("%s has the secret", path)
		}
		looked++
		return err
	})
	if err != nil || looked < 2 {
		w.t.Fatalf("%d files, %v", looked, err)
	}
	if strings.Contains(w.logs.String(), string(secret)) {
		w.t.Error("the log has the secret")
	}
}

// What records say: which key, whose, and nothing of the secret. An intent comes
// before each change and names the key.
func TestAccessKeyRecords(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	var id string
	for _, c := range []struct {
		phases []string
		req    func() proto.Message
	}{
		{[]string{"intent", "outcome"}, func() proto.Message {
			return &keyholdv1.CreateAccessKeyRequest{PrincipalArn: ptr(alice().Principal.ARN)}
		}},
		{[]string{""}, func() proto.Message { return &keyholdv1.ListAccessKeysRequest{} }},
		{[]string{"intent", "outcome"}, func() proto.Message { return &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: inactive} }},
		{[]string{""}, func() proto.Message { return &keyholdv1.GetAccessKeyLastUsedRequest{AccessKeyId: id} }},
		{[]string{"intent", "outcome"}, func() proto.Message { return &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id} }},
	} {
		req := c.req()
		var secret []byte
		events := w.eventsOf(func() {
			resp := do[proto.Message](w, req)
			if r, ok := resp.(*keyholdv1.CreateAccessKeyResponse); ok {
				id, secret = r.GetAccessKey().GetAccessKeyId(), r.GetAccessKey().GetSecretAccessKey()
			}
		})
		if len(events) != len(c.phases) {
			t.Fatalf("%s left %d events", operationOf(req), len(events))
		}
		for i, e := range events {
			if e.EventSource != "iam.amazonaws.com" || e.EventName != operationOf(req) || e.AdditionalEventData["phase"] != c.phases[i] || e.ErrorCode != "" {
				t.Errorf("event %s", e.raw)
			}
			if operationOf(req) != "ListAccessKeys" && (e.AdditionalEventData["accessKeyId"] != id || e.AdditionalEventData["principalArn"] != alice().Principal.ARN) {
				t.Errorf("the %s record of %s says %v", c.phases[i], e.EventName, e.AdditionalEventData)
			}
			if secret != nil && strings.Contains(e.raw, string(secret)) || strings.Contains(e.raw, "ecretAccessKey") {
				t.Errorf("the record has the secret, or its name: %s", e.raw)
			}
		}
		if secret != nil {
			made, _ := events[1].ResponseElements["accessKey"].(map[string]any)
			if made["accessKeyId"] != id || made["status"] != "Active" || made["principalArn"] != alice().Principal.ARN {
				t.Errorf("CreateAccessKey's record answers %v", events[1].ResponseElements)
			}
		}
	}
}

// The record of an import names the key, whose it is, and which one it replaces.
func TestImportIsRecorded(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	for _, c := range []struct{ id, replaces string }{{"AKIANEW1", ""}, {"AKIANEW2", "AKIANEW1"}} {
		events := w.eventsOf(func() {
			if err := w.svc.ImportAccessKey(t.Context(), alice().Principal.ARN, c.id, identity.Secret("a-secret-of-their-choice"), c.replaces); err != nil {
				t.Fatal(err)
			}
		})
		if len(events) != 2 {
			t.Fatalf("%d events", len(events))
		}
		for i, phase := range []string{"intent", "outcome"} {
			d := events[i].AdditionalEventData
			if events[i].EventName != "ImportAccessKey" || d["phase"] != phase || d["accessKeyId"] != c.id || d["principalArn"] != alice().Principal.ARN || d["replacesAccessKeyId"] != c.replaces {
				t.Errorf("event %s", events[i].raw)
			}
			if strings.Contains(events[i].raw, "their-choice") {
				t.Error("the record has the secret")
			}
		}
	}
}

// A record names the access key that signed the request.
func TestSignedRequestsAreRecorded(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	signed := alice()
	signed.AccessKeyID = "AKIA1"
	events := w.eventsOf(func() {
		if _, err := tryAs[proto.Message](w, signed, &keyholdv1.ListKeysRequest{}); err != nil {
			t.Error(describe(err))
		}
	})
	if len(events) != 1 || events[0].UserIdentity["accessKeyId"] != "AKIA1" {
		t.Errorf("recorded %+v", events)
	}
}

// A principal that leaves the configuration takes its keys' use along at once. They
// can still be listed and deleted, and come back with it.
func TestAccessKeysOfPrincipalThatIsGone(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	k := w.createAccessKey()
	id := k.GetAccessKeyId()
	w.setPrincipals(mallory())
	if _, _, err := w.cfg.AccessKeys.LookUp(id); !errors.Is(err, identity.ErrAccessKeyUnusable) {
		t.Errorf("LookUp: %v", err)
	}
	refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeNotFound)
	if list := w.accessKeys(); len(list) != 1 {
		t.Errorf("listed %v", list)
	}
	w.loadAccessKeys()
	if !strings.Contains(w.logs.String(), "principals that are not configured") {
		t.Error("a start says nothing of it")
	}
	w.setPrincipals(alice(), mallory())
	if _, _, err := w.cfg.AccessKeys.LookUp(id); err != nil {
		t.Errorf("LookUp: %v", err)
	}
	w.setPrincipals(mallory())
	do[proto.Message](w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id})
}

// The limit holds at n and n+1, counts inactive keys, and holds for 64 at once.
func TestAccessKeyLimit(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	var mu sync.Mutex
	var made []string
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			resp, err := try[*keyholdv1.CreateAccessKeyResponse](w, &keyholdv1.CreateAccessKeyRequest{})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made = append(made, resp.GetAccessKey().GetAccessKeyId())
			case err.Code != kms.CodeLimitExceeded && err.Code != kms.CodeThrottling: // of what an account seals
				t.Error(describe(err))
			}
		})
	}
	wg.Wait()
	if len(made) != 2 || len(w.accessKeys()) != 2 {
		t.Fatalf("made %v, listed %v", made, w.accessKeys())
	}
	do[proto.Message](w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: made[0], Status: inactive})
	if e := refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeLimitExceeded); e.Message != "Cannot exceed quota for AccessKeysPerUser: 2" {
		t.Errorf("refused with %q", e.Message)
	}
	// Another principal has its own.
	if _, err := tryAs[proto.Message](w, mallory(), &keyholdv1.CreateAccessKeyRequest{}); err != nil {
		t.Error(describe(err))
	}
	do[proto.Message](w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: made[0]})
	w.clock.add(time.Minute)
	w.createAccessKey()
	if keys, err := w.db.AccessKeys(t.Context()); err != nil || len(keys) != 3 {
		t.Errorf("the store has %d, %v", len(keys), err)
	}
}

// What seals is bounded in time, which keeps the seal key below 2^32 seals: so many
// at once, then so many a second.
func TestAccessKeyRate(t *testing.T) {
	t.Parallel()
	const burst, perSecond, accountBurst = 100, 5, 10
	w, _ := newKeyWorld(t, mayHave(1000))
	callers := []*identity.Caller{alice(), mallory()}
	for i := range 12 {
		callers = append(callers, callerOf(fmt.Sprintf("2222333344%02d", i)))
	}
	w.setPrincipals(callers...)
	create := func(c *identity.Caller, times int) {
		t.Helper()
		for range times {
			if _, err := tryAs[proto.Message](w, c, &keyholdv1.CreateAccessKeyRequest{}); err != nil {
				t.Fatalf("%s: %s", c.Principal.ARN, describe(err))
			}
		}
	}
	// No account keeps another waiting.
	create(alice(), accountBurst)
	for range 2 * burst {
		e := refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeThrottling)
		if !strings.Contains(e.Message, "an account may make 1 access key per second, and 10 at once") {
			t.Fatalf("refused with %q", e.Message)
		}
	}
	create(mallory(), accountBurst)
	w.clock.add(time.Second)
	create(alice(), 1)
	refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeThrottling)
	// All of them together have less than each of them could.
	w.clock.add(time.Minute)
	for i := range burst / accountBurst {
		create(callers[i], accountBurst)
	}
	last, other := callers[len(callers)-1], callers[len(callers)-2]
	refuseAs(w, last, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeThrottling)
	w.clock.add(time.Second)
	create(last, perSecond)
	e := refuseAs(w, other, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeThrottling)
	if !strings.Contains(e.Message, "5 access keys per second") {
		t.Errorf("refused with %q", e.Message)
	}
	if years := float64(1<<32) / perSecond / (365.25 * 24 * 3600); years < 25 {
		t.Errorf("2^32 seals take %.1f years", years)
	}
}

// Faults of the token: nothing is made, and what is said is that it may be tried
// again; without a seal key, what to do.
func TestAccessKeyFaults(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	e := refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeUnsupportedOperation)
	if !strings.Contains(e.Message, "keyholdd init") || e.Unavailable {
		t.Errorf("without a seal key: %+v", e)
	}
	w.makeSealKey()
	fake.failing("Seal", kms.ErrStoreUnavailable)
	if e := refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeKeyUnavailable); !e.Unavailable {
		t.Errorf("with the token down: %+v", e)
	}
	fake.failing("Seal", context.DeadlineExceeded)
	refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeDependencyTimeout)
	if keys, err := w.db.AccessKeys(t.Context()); err != nil || len(keys) != 0 || len(w.accessKeys()) != 0 {
		t.Errorf("the store has %v, %v", keys, err)
	}
	fake.heal()
	k := w.createAccessKey()
	// Deactivating and deleting need no token.
	fake.failing("Open", kms.ErrStoreUnavailable)
	fake.failing("Seal", kms.ErrStoreUnavailable)
	do[proto.Message](w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: k.GetAccessKeyId(), Status: inactive})
	do[proto.Message](w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: k.GetAccessKeyId()})
}

// A sealed value opens where it was sealed, by the key that sealed it, unchanged.
func TestSealKey(t *testing.T) {
	t.Parallel()
	for name, ks := range map[string]func() kms.KeyStore{
		"token": func() kms.KeyStore { return tokenstore.New(sharedToken(t)) },
		"fake":  func() kms.KeyStore { return newFakeStore() },
	} {
		t.Run(name, func(t *testing.T) {
			home := ks()
			// The token is one for all runs of the test.
			key, other := kms.NewSealKey(home, hex.EncodeToString(randomBytes(4))), kms.NewSealKey(home, hex.EncodeToString(randomBytes(4)))
			if err := key.Check(t.Context()); !errors.Is(err, kms.ErrKeyMissing) {
				t.Errorf("Check without a key: %v", err)
			}
			for _, k := range []*kms.SealKey{key, other} {
				for i, want := range []bool{true, false} {
					if created, err := k.Ensure(t.Context()); err != nil || created != want {
						t.Fatalf("Ensure %d: %v, %v", i, created, err)
					}
				}
			}
			column := key.Column("access_keys", "sealed_secret")
			for _, n := range []int{0, 1, 40, 4096} {
				plaintext := bytes.Repeat([]byte("s"), n)
				sealed, err := column.Seal(t.Context(), "row", plaintext)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := column.Open(t.Context(), "row", sealed); err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("%d bytes: %v", n, err)
				}
				if len(sealed) != 1+4+12+n+16 {
					t.Errorf("%d bytes are sealed to %d", n, len(sealed))
				}
			}
			sealed, err := column.Seal(t.Context(), "row", []byte("secret"))
			if err != nil {
				t.Fatal(err)
			}
			refuse := func(what string, want error, c *kms.SealedColumn, row string, sealed []byte) {
				t.Helper()
				if got, err := c.Open(t.Context(), row, sealed); !errors.Is(err, want) || got != nil {
					t.Errorf("%s: %q, %v", what, got, err)
				}
			}
			refuse("another row", kms.ErrNotAuthentic, column, "wor", sealed)
			refuse("another column", kms.ErrNotAuthentic, key.Column("access_keys", "secret"), "row", sealed)
			refuse("another table", kms.ErrNotAuthentic, key.Column("access_key", "ssealed_secret"), "row", sealed)
			refuse("another installation", kms.ErrNotAuthentic, other.Column("access_keys", "sealed_secret"), "row", sealed)
			for i := range sealed {
				changed := slices.Clone(sealed)
				changed[i] ^= 1
				want := kms.ErrNotAuthentic
				if i >= 1 && i < 5 {
					want = kms.ErrKeyMissing // another version, which is not there
				}
				if i > 1 && i < 4 && name == "token" {
					continue // each look for a key that is not there searches the token
				}
				refuse("a changed byte", want, column, "row", changed)
			}
			for n := range len(sealed) {
				if n == 0 || n > len(sealed)-3 || n == 32 || n == 33 {
					refuse("a shorter value", kms.ErrNotAuthentic, column, "row", sealed[:n])
				}
			}
			if name == "fake" {
				empty := kms.NewSealKey(newFakeStore(), "0a0a0a0f")
				refuse("a copied database, without the token", kms.ErrKeyMissing, empty.Column("access_keys", "sealed_secret"), "row", sealed)
				if _, err := empty.Ensure(t.Context()); err != nil {
					t.Fatal(err)
				}
				refuse("a new key under the old name", kms.ErrNotAuthentic, empty.Column("access_keys", "sealed_secret"), "row", sealed)
			}
		})
	}
}

// What cannot be recorded does not happen; what was done and cannot be recorded is
// not answered, and can be found and deleted.
func TestAccessKeysWithoutJournal(t *testing.T) {
	t.Parallel()
	var journal *faultyJournal
	w, _ := newKeyWorld(t, func(w *world) {
		journal = &faultyJournal{Journal: w.journal}
		w.cfg.Journal = journal
	})
	failing := func(phase string) {
		journal.failing(func(payload []byte) error {
			if bytes.Contains(payload, []byte(`"phase":"`+phase+`"`)) {
				return errors.New("the disk is on fire")
			}
			return nil
		})
	}
	failing("intent")
	if e := refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeInternal); !e.Unavailable || len(w.accessKeys()) != 0 {
		t.Errorf("without an intent: %+v, %v", e, w.accessKeys())
	}
	failing("outcome")
	refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeInternal)
	list := w.accessKeys()
	if len(list) != 1 {
		t.Fatalf("without an outcome: %v", list)
	}
	// The deactivation holds though nobody could be told.
	refuse(w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: list[0].GetAccessKeyId(), Status: inactive}, kms.CodeInternal)
	journal.failing(nil)
	if list := w.accessKeys(); list[0].GetStatus() != inactive {
		t.Errorf("after a deactivation without an outcome: %v", list)
	}
	do[proto.Message](w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: list[0].GetAccessKeyId()})
}
