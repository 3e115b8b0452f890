package kms_test

import (
	"bytes"
	"context"
	"errors"
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

// Nobody reaches principals and keys of another account, or learns whether they
// exist.
func TestAccessKeysOfOthers(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	k := w.createAccessKey()
	for _, arn := range []string{alice().Principal.ARN, "arn:aws:iam::" + testAccount + ":root", "arn:aws:iam::" + testAccount + ":user/nobody"} {
		a := refuseAs(w, mallory(), &keyholdv1.CreateAccessKeyRequest{PrincipalArn: &arn}, kms.CodeAccessDenied)
		b := refuseAs(w, mallory(), &keyholdv1.ListAccessKeysRequest{PrincipalArn: &arn}, kms.CodeAccessDenied)
		if !strings.Contains(a.Message, "iam:CreateAccessKey") || !strings.Contains(b.Message, "iam:ListAccessKeys") {
			t.Errorf("refused with %q and %q", a.Message, b.Message)
		}
	}
	unknown := "AKIA" + strings.Repeat("Q", 16)
	for _, req := range []func(id string) proto.Message{
		func(id string) proto.Message {
			return &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: inactive}
		},
		func(id string) proto.Message { return &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id} },
		func(id string) proto.Message { return &keyholdv1.GetAccessKeyLastUsedRequest{AccessKeyId: id} },
	} {
		foreign := refuseAs(w, mallory(), req(k.GetAccessKeyId()), kms.CodeNotFound)
		none := refuseAs(w, mallory(), req(unknown), kms.CodeNotFound)
		if strings.ReplaceAll(foreign.Message, k.GetAccessKeyId(), unknown) != none.Message {
			t.Errorf("%q tells a foreign key from none: %q", foreign.Message, none.Message)
		}
	}
	if list := w.accessKeys(); len(list) != 1 || list[0].GetStatus() != active {
		t.Errorf("alice has %v", list)
	}
	for _, arn := range []string{"alice", "arn:aws:iam::1:root", "arn:aws:iam::" + testAccount + ":group/x", strings.Repeat("a", 2049)} {
		refuse(w, &keyholdv1.CreateAccessKeyRequest{PrincipalArn: &arn}, kms.CodeValidation)
	}
	nobody := "arn:aws:iam::" + testAccount + ":user/nobody"
	refuse(w, &keyholdv1.CreateAccessKeyRequest{PrincipalArn: &nobody}, kms.CodeNotFound)
	refuse(w, &keyholdv1.ListAccessKeysRequest{PrincipalArn: &nobody}, kms.CodeNotFound)
	refuse(w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: k.GetAccessKeyId()}, kms.CodeValidation)
	refuse(w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: k.GetAccessKeyId(), Status: 3}, kms.CodeValidation)
	for n, want := range map[int]kms.Code{0: kms.CodeValidation, 1: kms.CodeNotFound, 128: kms.CodeNotFound, 129: kms.CodeValidation} {
		refuse(w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: strings.Repeat("A", n)}, want)
	}
	refuse(w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: "AKIA'; DROP"}, kms.CodeValidation)
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
			case err.Code != kms.CodeLimitExceeded:
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
	const burst, perSecond = 100, 5
	w, _ := newKeyWorld(t, mayHave(1000))
	for range burst {
		w.createAccessKey()
	}
	refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeThrottling)
	w.clock.add(time.Second)
	for range perSecond {
		w.createAccessKey()
	}
	refuse(w, &keyholdv1.CreateAccessKeyRequest{}, kms.CodeThrottling)
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
			key, other := kms.NewSealKey(home, "0a0a0a0"+name[:1]), kms.NewSealKey(home, "0b0b0b0"+name[:1])
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
