package kms_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

func TestAliases(t *testing.T) {
	t.Parallel()
	signer := &fakeSigner{newFakeStore()}
	w := buildWorld(t, signer)
	one, two := w.newAESKey(), w.newAESKey()
	mac, sign := w.newKey(hmac256, usageMac), w.newKey(p256, usageSign)
	created := w.clock.Now().Truncate(time.Millisecond)
	w.createAlias("alias/a", one)
	if e := refuse(w, &keyholdv1.CreateAliasRequest{AliasName: "alias/a", TargetKeyId: two}, kms.CodeAlreadyExists); !strings.Contains(e.Message, arnOfTest+"alias/a") {
		t.Errorf("the refusal says %q", e.Message)
	}
	w.clock.add(time.Hour)
	do[proto.Message](w, &keyholdv1.UpdateAliasRequest{AliasName: "alias/a", TargetKeyId: two})
	list := do[*keyholdv1.ListAliasesResponse](w, &keyholdv1.ListAliasesRequest{}).GetAliases()
	if len(list) != 1 || list[0].GetTargetKeyId() != two || list[0].GetAliasArn() != arnOfTest+"alias/a" || list[0].GetAliasName() != "alias/a" ||
		!list[0].GetCreationDate().AsTime().Equal(created) || !list[0].GetLastUpdatedDate().AsTime().Equal(created.Add(time.Hour)) {
		t.Errorf("the list has %v", list)
	}
	if got := w.metadata("alias/a").GetKeyId(); got != two {
		t.Errorf("the alias names %s, want %s", got, two)
	}
	// An alias stays with its kind of key and with its usage.
	w.createAlias("alias/m", mac)
	w.createAlias("alias/s", sign)
	for alias, wrong := range map[string][]string{"alias/a": {mac, sign}, "alias/m": {one, sign}, "alias/s": {one, mac}} {
		for _, key := range wrong {
			refuse(w, &keyholdv1.UpdateAliasRequest{AliasName: alias, TargetKeyId: key}, kms.CodeValidation)
		}
	}
	refuse(w, &keyholdv1.UpdateAliasRequest{AliasName: "alias/none", TargetKeyId: one}, kms.CodeNotFound)
	refuse(w, &keyholdv1.DeleteAliasRequest{AliasName: "alias/none"}, kms.CodeNotFound)
	refuse(w, &keyholdv1.CreateAliasRequest{AliasName: "alias/b", TargetKeyId: unknownID}, kms.CodeNotFound)
	for name, reserved := range map[string]bool{
		"a": false, "alias": false, "alias/": false, "Alias/a": false, "/alias/a": false, "alias/aws/x": true, "alias/aws/": true, "alias/a:b": false, "alias:a": false,
	} {
		e := refuse(w, &keyholdv1.CreateAliasRequest{AliasName: name, TargetKeyId: one}, kms.CodeInvalidAliasName)
		if reserved && !strings.Contains(e.Message, "reserved") {
			t.Errorf("%s: the refusal says %q", name, e.Message)
		}
		refuse(w, &keyholdv1.UpdateAliasRequest{AliasName: name, TargetKeyId: one}, kms.CodeValidation)
		refuse(w, &keyholdv1.DeleteAliasRequest{AliasName: name}, kms.CodeValidation)
	}
	for _, name := range []string{"alias/aws", "alias/awsome/x", "alias/A-b_c/d/0", "alias/alias/a"} {
		w.createAlias(name, one)
		do[proto.Message](w, &keyholdv1.EncryptRequest{KeyId: name, Plaintext: []byte("x")})
		do[proto.Message](w, &keyholdv1.DeleteAliasRequest{AliasName: name})
		refuse(w, &keyholdv1.EncryptRequest{KeyId: name, Plaintext: []byte("x")}, kms.CodeNotFound)
	}
	w.start()
	if got := w.metadata("alias/a").GetKeyId(); got != two {
		t.Errorf("after a restart the alias names %s, want %s", got, two)
	}
}

// A key has at most so many aliases, also where many come at once.
func TestAliasLimit(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	one, two := w.newAESKey(), w.newAESKey()
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			try[proto.Message](w, &keyholdv1.CreateAliasRequest{AliasName: fmt.Sprintf("alias/%d", i), TargetKeyId: one})
		})
	}
	wg.Wait()
	count := func(key string) int {
		return len(do[*keyholdv1.ListAliasesResponse](w, &keyholdv1.ListAliasesRequest{KeyId: &key, Limit: ptr(int32(100))}).GetAliases())
	}
	if got := count(one); got != 50 {
		t.Errorf("the key has %d aliases, want 50", got)
	}
	w.createAlias("alias/two", two)
	refuse(w, &keyholdv1.CreateAliasRequest{AliasName: "alias/more", TargetKeyId: one}, kms.CodeLimitExceeded)
	refuse(w, &keyholdv1.UpdateAliasRequest{AliasName: "alias/two", TargetKeyId: one}, kms.CodeLimitExceeded)
	name := do[*keyholdv1.ListAliasesResponse](w, &keyholdv1.ListAliasesRequest{KeyId: &one, Limit: ptr(int32(1))}).GetAliases()[0].GetAliasName()
	do[proto.Message](w, &keyholdv1.UpdateAliasRequest{AliasName: name, TargetKeyId: one}) // stays
	do[proto.Message](w, &keyholdv1.UpdateAliasRequest{AliasName: name, TargetKeyId: two})
	w.createAlias("alias/more", one)
	if count(one) != 50 || count(two) != 2 {
		t.Errorf("the keys have %d and %d aliases", count(one), count(two))
	}
}

func TestKeyLimit(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t, withConfig(func(c *kms.Config) { c.Limits.KeysPerAccount = 2 }))
	w.newAESKey()
	w.newAESKey()
	refuse(w, &keyholdv1.CreateKeyRequest{}, kms.CodeLimitExceeded)
	// Accounts do not count for each other.
	if _, err := tryAs[proto.Message](w, mallory(), &keyholdv1.CreateKeyRequest{}); err != nil {
		t.Error(describe(err))
	}
}

// A write of an alias that fails, before or after its effect, leaves memory
// and store in agreement.
func TestAliasFaults(t *testing.T) {
	t.Parallel()
	fault := errors.New("disk I/O error of the test")
	for _, c := range []struct {
		call    string
		request func(one, two string) proto.Message
	}{
		{"InsertAlias", func(one, _ string) proto.Message {
			return &keyholdv1.CreateAliasRequest{AliasName: "alias/new", TargetKeyId: one}
		}},
		{"UpdateAlias", func(_, two string) proto.Message {
			return &keyholdv1.UpdateAliasRequest{AliasName: "alias/old", TargetKeyId: two}
		}},
		{"DeleteAlias", func(_, _ string) proto.Message { return &keyholdv1.DeleteAliasRequest{AliasName: "alias/old"} }},
	} {
		for _, persisted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s persisted=%v", c.call, persisted), func(t *testing.T) {
				db := &faultyDB{}
				w, _ := newFakeWorld(t, func(w *world) { db.Store = w.db; w.cfg.Store = db })
				one, two := w.newAESKey(), w.newAESKey()
				w.createAlias("alias/old", one)
				db.fail(c.call, 1, persisted, fault)
				_, err := try[proto.Message](w, c.request(one, two))
				if persisted != (err == nil) {
					t.Errorf("answered %v", err)
				}
				before := w.aliasView()
				w.checkCoherence()
				w.start()
				if after := w.aliasView(); after != before {
					t.Errorf("memory said %s, the store says %s", before, after)
				}
				db.heal()
				if _, err := try[proto.Message](w, c.request(one, two)); err != nil && err.Code != kms.CodeAlreadyExists && err.Code != kms.CodeNotFound {
					t.Errorf("afterwards: %s", describe(err))
				}
			})
		}
	}
}

// aliasView is all aliases as a client sees them.
func (w *world) aliasView() string {
	w.t.Helper()
	var b strings.Builder
	for _, a := range do[*keyholdv1.ListAliasesResponse](w, &keyholdv1.ListAliasesRequest{}).GetAliases() {
		fmt.Fprintf(&b, "%s=%s ", a.GetAliasName(), a.GetTargetKeyId())
	}
	return b.String()
}

// checkCoherence compares what clients see with what the store holds: the
// invariant after every fault.
func (w *world) checkCoherence() {
	w.t.Helper()
	snapshot, err := w.db.Snapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	want := make(map[string]string)
	for _, r := range snapshot.Keys {
		if r.State != creating {
			want[string(r.ID)] = fmt.Sprint(r.State, r.Description)
		}
	}
	got := make(map[string]string)
	listed, _ := w.listKeys(ptr(int32(1000)))
	for _, id := range listed {
		m := w.metadata(id)
		got[id] = fmt.Sprint(m.GetKeyState(), m.GetDescription())
	}
	if a, b := apart(want, got); len(a)+len(b) > 0 {
		w.t.Errorf("the store holds keys %v, clients see %v", a, b)
	}
	aliases := make(map[string]string)
	for _, a := range snapshot.Aliases {
		aliases[a.Name] = string(a.KeyID)
	}
	seen := make(map[string]string)
	entries, _ := w.listAliasEntries(nil, ptr(int32(100)))
	for _, a := range entries {
		seen[a.GetAliasName()] = a.GetTargetKeyId()
		if id := w.metadata(a.GetAliasName()).GetKeyId(); id != a.GetTargetKeyId() {
			w.t.Errorf("%s is listed for %s and names %s", a.GetAliasName(), a.GetTargetKeyId(), id)
		}
	}
	if a, b := apart(aliases, seen); len(a)+len(b) > 0 {
		w.t.Errorf("the store holds aliases %v, clients see %v", a, b)
	}
}

// apart returns what each of two maps has that is not the same in the other.
func apart(a, b map[string]string) (onlyA, onlyB map[string]string) {
	without := func(m, other map[string]string) map[string]string {
		m = maps.Clone(m)
		maps.DeleteFunc(m, func(k, v string) bool {
			w, ok := other[k]
			return ok && w == v
		})
		return m
	}
	return without(a, b), without(b, a)
}
