package kms_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// stateRow is a row of AWS's table "Key states of KMS keys"
// (docs.aws.amazon.com/kms/latest/developerguide/key-state.html): the answer
// in each state, "" for success.
type stateRow struct {
	name                       string
	enabled, disabled, pending kms.Code
	request                    func(*stateKeys) proto.Message
}

// stateKeys are one key of each usage in the state under test, and an enabled
// one beside them.
type stateKeys struct {
	aes, mac, sign, other    string
	agree, wrap, exportable  string
	wrapped, spki            []byte
	blob, otherBlob          []byte
	alias, movable, freshOne string
}

const (
	isDisabled = kms.CodeDisabled
	isPending  = kms.CodeInvalidState
	notPending = kms.CodeInvalidState
)

var stateTable = []stateRow{
	// The items of a batch answer for themselves.
	{"Batch", "", "", "", func(k *stateKeys) proto.Message { return batchOf(encryptItem(k.aes, "x")) }},
	{"CancelKeyDeletion", notPending, notPending, "", func(k *stateKeys) proto.Message { return &keyholdv1.CancelKeyDeletionRequest{KeyId: k.aes} }},
	{"CreateAlias", "", "", isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.CreateAliasRequest{AliasName: k.freshOne, TargetKeyId: k.aes}
	}},
	{"CreateKey", "", "", "", func(*stateKeys) proto.Message { return &keyholdv1.CreateKeyRequest{} }},
	{"Decrypt", "", isDisabled, isPending, func(k *stateKeys) proto.Message { return &keyholdv1.DecryptRequest{CiphertextBlob: k.blob} }},
	{"DeleteAlias", "", "", "", func(k *stateKeys) proto.Message { return &keyholdv1.DeleteAliasRequest{AliasName: k.alias} }},
	{"DeriveSharedSecret", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.DeriveSharedSecretRequest{KeyId: k.agree, KeyAgreementAlgorithm: algECDH, PublicKey: k.spki}
	}},
	{"DescribeKey", "", "", "", func(k *stateKeys) proto.Message { return &keyholdv1.DescribeKeyRequest{KeyId: k.aes} }},
	{"DisableKey", "", "", isPending, func(k *stateKeys) proto.Message { return &keyholdv1.DisableKeyRequest{KeyId: k.aes} }},
	{"EnableKey", "", "", isPending, func(k *stateKeys) proto.Message { return &keyholdv1.EnableKeyRequest{KeyId: k.aes} }},
	{"Encrypt", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.EncryptRequest{KeyId: k.aes, Plaintext: []byte("x")}
	}},
	{"ExportKey", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.ExportKeyRequest{KeyId: k.exportable, WrappingKeyId: k.wrap}
	}},
	{"GenerateDataKey", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.GenerateDataKeyRequest{KeyId: k.aes, NumberOfBytes: ptr(int32(16))}
	}},
	{"GenerateDataKeyPair", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.GenerateDataKeyPairRequest{KeyId: k.aes, KeyPairSpec: pairEd25519}
	}},
	{"GenerateDataKeyPairWithoutPlaintext", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: k.aes, KeyPairSpec: pairEd25519}
	}},
	{"GenerateDataKeyWithoutPlaintext", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: k.aes, NumberOfBytes: ptr(int32(16))}
	}},
	{"GenerateMac", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.GenerateMacRequest{KeyId: k.mac, Message: []byte("x"), MacAlgorithm: macSHA256}
	}},
	{"GenerateRandom", "", "", "", func(*stateKeys) proto.Message { return &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(1))} }},
	{"GetPublicKey", "", isDisabled, isPending, func(k *stateKeys) proto.Message { return &keyholdv1.GetPublicKeyRequest{KeyId: k.sign} }},
	{"ListAliases", "", "", "", func(k *stateKeys) proto.Message { return &keyholdv1.ListAliasesRequest{KeyId: &k.aes} }},
	{"ListKeys", "", "", "", func(*stateKeys) proto.Message { return &keyholdv1.ListKeysRequest{} }},
	{"ReEncrypt from", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.ReEncryptRequest{CiphertextBlob: k.blob, DestinationKeyId: k.other}
	}},
	{"ReEncrypt to", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.ReEncryptRequest{CiphertextBlob: k.otherBlob, DestinationKeyId: k.aes}
	}},
	{"ScheduleKeyDeletion", "", "", isPending, func(k *stateKeys) proto.Message { return &keyholdv1.ScheduleKeyDeletionRequest{KeyId: k.aes} }},
	{"Sign", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.SignRequest{KeyId: k.sign, Message: []byte("x"), SigningAlgorithm: ecdsa256}
	}},
	{"UnwrapKey", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.UnwrapKeyRequest{KeyId: k.wrap, WrappedKey: k.wrapped}
	}},
	// AWS: an alias may leave a key that is pending deletion, and not go to one.
	{"GetKeyPolicy", "", "", "", func(k *stateKeys) proto.Message { return &keyholdv1.GetKeyPolicyRequest{KeyId: k.aes} }},
	{"ListKeyPolicies", "", "", "", func(k *stateKeys) proto.Message { return &keyholdv1.ListKeyPoliciesRequest{KeyId: k.aes} }},
	{"ListResourceTags", "", "", "", func(k *stateKeys) proto.Message { return &keyholdv1.ListResourceTagsRequest{KeyId: k.aes} }},
	{"TagResource", "", "", isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.TagResourceRequest{KeyId: k.aes, Tags: []*keyholdv1.Tag{{TagKey: "k", TagValue: ptr("v")}}}
	}},
	{"UntagResource", "", "", isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.UntagResourceRequest{KeyId: k.aes, TagKeys: []string{"k"}}
	}},
	{"UpdateAlias from", "", "", "", func(k *stateKeys) proto.Message {
		return &keyholdv1.UpdateAliasRequest{AliasName: k.alias, TargetKeyId: k.other}
	}},
	{"UpdateAlias to", "", "", isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.UpdateAliasRequest{AliasName: k.movable, TargetKeyId: k.aes}
	}},
	{"UpdateKeyDescription", "", "", isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.UpdateKeyDescriptionRequest{KeyId: k.aes, Description: ptr("new")}
	}},
	{"Verify", kms.CodeInvalidSignature, isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.VerifyRequest{KeyId: k.sign, Message: []byte("x"), Signature: []byte("x"), SigningAlgorithm: ecdsa256}
	}},
	{"VerifyMac", kms.CodeInvalidMac, isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.VerifyMacRequest{KeyId: k.mac, Message: []byte("x"), Mac: []byte("x"), MacAlgorithm: macSHA256}
	}},
	{"WrapKey", "", isDisabled, isPending, func(k *stateKeys) proto.Message {
		return &keyholdv1.WrapKeyRequest{KeyId: k.wrap, PlaintextKey: make([]byte, 32)}
	}},
}

func TestKeyStates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	covered := make(map[string]bool)
	other := w.newAESKey()
	otherBlob := w.encrypt(other, []byte("x"), nil)
	for _, row := range stateTable {
		covered[strings.Fields(row.name)[0]] = true
	}
	for op := range methods() {
		if !ofAccessKeys(op) && covered[op] == operationSpec(op).GetUnbuilt() {
			t.Errorf("%s is not in the table of key states, or is and is not built", op)
		}
	}
	for _, state := range []keyholdv1.KeyState{enabled, disabled, pending} {
		keys := &stateKeys{aes: w.newAESKey(), mac: w.newKey(hmac256, usageMac), sign: w.newKey(p256, usageSign), other: other, otherBlob: otherBlob, alias: "alias/of", movable: "alias/movable", freshOne: "alias/fresh"}
		keys.blob = w.encrypt(keys.aes, []byte("x"), nil)
		keys.agree, keys.wrap, keys.exportable = w.newKey(p256, usageAgree), w.newKey(symmetric, usageWrap), w.newExportableKey(symmetric, usageEncrypt)
		keys.spki = do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: keys.agree}).GetPublicKey()
		keys.wrapped = do[*keyholdv1.WrapKeyResponse](w, &keyholdv1.WrapKeyRequest{KeyId: keys.wrap, PlaintextKey: make([]byte, 32)}).GetWrappedKey()
		for _, row := range stateTable {
			t.Run(state.String()+"/"+row.name, func(t *testing.T) { w.with(t).checkState(keys, &row, state) })
		}
	}
}

// checkState puts the keys into the state, makes one request, and puts them
// back.
func (w *world) checkState(k *stateKeys, row *stateRow, state keyholdv1.KeyState) {
	w.createAlias(k.alias, k.aes)
	w.createAlias(k.movable, k.other)
	ids := []string{k.aes, k.mac, k.sign, k.agree, k.wrap}
	for _, id := range ids {
		w.inState(id, state)
	}
	want := map[keyholdv1.KeyState]kms.Code{enabled: row.enabled, disabled: row.disabled, pending: row.pending}[state]
	req := row.request(k)
	if want == "" {
		do[proto.Message](w, req)
	} else {
		e := refuse(w, req, want)
		words := map[kms.Code]string{kms.CodeDisabled: " is disabled.", kms.CodeInvalidState: " is pending deletion."}[want]
		if state != pending && want == kms.CodeInvalidState {
			words = " is not pending deletion."
		}
		if words != "" && (!strings.HasPrefix(e.Message, arnOfTest+"key/") || !strings.HasSuffix(e.Message, words)) {
			w.t.Errorf("the refusal says %q, want the key's ARN and %q", e.Message, words)
		}
	}
	for _, id := range ids {
		if w.metadata(id).GetKeyState() == pending {
			do[proto.Message](w, &keyholdv1.CancelKeyDeletionRequest{KeyId: id})
		}
		do[proto.Message](w, &keyholdv1.EnableKeyRequest{KeyId: id})
	}
	for _, a := range do[*keyholdv1.ListAliasesResponse](w, &keyholdv1.ListAliasesRequest{}).GetAliases() {
		do[proto.Message](w, &keyholdv1.DeleteAliasRequest{AliasName: a.GetAliasName()})
	}
}

// What changes of state show and leave.
func TestStateChanges(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t)
	id := w.newAESKey()
	m := w.metadata(id)
	if !m.GetEnabled() || m.GetDeletionDate() != nil {
		t.Errorf("a new key shows %v", m)
	}
	w.inState(id, disabled)
	if m = w.metadata(id); m.GetEnabled() || m.GetKeyState() != disabled {
		t.Errorf("a disabled key shows %v", m)
	}
	if fake.count("Retire") == 0 {
		t.Error("a disabled key is still kept ready")
	}
	retired := fake.count("Retire")
	resp := do[*keyholdv1.ScheduleKeyDeletionResponse](w, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id})
	want := w.clock.Now().Truncate(time.Millisecond).Add(30 * 24 * time.Hour)
	if resp.GetPendingWindowInDays() != 30 || !resp.GetDeletionDate().AsTime().Equal(want) || resp.GetKeyState() != pending || resp.GetKeyId() != arnOfTest+"key/"+id {
		t.Errorf("ScheduleKeyDeletion answers %v", resp)
	}
	if m = w.metadata(id); m.GetEnabled() || !m.GetDeletionDate().AsTime().Equal(want) || m.GetKeyState() != pending {
		t.Errorf("a key pending deletion shows %v", m)
	}
	if fake.count("Retire") == retired {
		t.Error("a key pending deletion is still kept ready")
	}
	if got := do[*keyholdv1.CancelKeyDeletionResponse](w, &keyholdv1.CancelKeyDeletionRequest{KeyId: id}).GetKeyId(); got != arnOfTest+"key/"+id {
		t.Errorf("CancelKeyDeletion answers %q", got)
	}
	// AWS: after a cancellation the key is disabled, whatever it was before.
	if m = w.metadata(id); m.GetKeyState() != disabled || m.GetDeletionDate() != nil {
		t.Errorf("after the cancellation the key shows %v", m)
	}
	do[proto.Message](w, &keyholdv1.EnableKeyRequest{KeyId: id})
	do[proto.Message](w, &keyholdv1.UpdateKeyDescriptionRequest{KeyId: id, Description: ptr("something")})
	do[proto.Message](w, &keyholdv1.UpdateKeyDescriptionRequest{KeyId: id, Description: ptr("")})
	w.start()
	if m = w.metadata(id); m.GetKeyState() != enabled || m.Description == nil || m.GetDescription() != "" {
		t.Errorf("after a restart the key shows %v", m)
	}
	counts := w.svc.KeyCounts()
	if counts["Enabled"] != 1 || len(counts) != 1 {
		t.Errorf("counts %v", counts)
	}
}

// A key whose material is missing from the store is unavailable, and healthy
// again once it is back.
func TestMissingMaterial(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.MaintenanceInterval = time.Millisecond }))
	id, gone := w.newAESKey(), w.newAESKey()
	blob := w.encrypt(gone, []byte("x"), nil)
	stored, err := w.db.Key(t.Context(), kms.KeyID(gone))
	if err != nil {
		t.Fatal(err)
	}
	fake.mu.Lock()
	key := fake.keys[string(stored.Current().Locator.ID)]
	delete(fake.keys, string(stored.Current().Locator.ID))
	fake.mu.Unlock()
	orphans, err := w.svc.Reconcile(t.Context())
	if err != nil || len(orphans) != 1 || orphans[0].Kind != kms.OrphanRecord || string(orphans[0].KeyID) != gone {
		t.Fatalf("orphans %v, %v", orphans, err)
	}
	if m := w.metadata(gone); m.GetKeyState() != unavailable || m.GetEnabled() {
		t.Errorf("the key shows %v", m)
	}
	if w.metadata(id).GetKeyState() != enabled {
		t.Error("another key is not available")
	}
	dry := true
	for _, req := range []proto.Message{
		&keyholdv1.EncryptRequest{KeyId: gone, Plaintext: []byte("x")}, &keyholdv1.DecryptRequest{CiphertextBlob: blob},
		&keyholdv1.EncryptRequest{KeyId: gone, Plaintext: []byte("x"), DryRun: &dry},
	} {
		if e := refuse(w, req, kms.CodeKeyUnavailable); !e.Unavailable {
			t.Errorf("%s: not marked as unavailable", operationOf(req))
		}
	}
	if err := w.svc.CleanUp(t.Context(), orphans[0]); err == nil {
		t.Error("a record that somebody may miss was cleaned up")
	}
	// The running service looks again while a key misses its material.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.svc.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	looked := fake.count("Inventory")
	eventually(t, "two more looks", func() bool { return fake.count("Inventory") >= looked+2 })
	fake.mu.Lock()
	fake.keys[string(stored.Current().Locator.ID)] = key
	fake.mu.Unlock()
	eventually(t, "the key is available", func() bool { return w.metadata(gone).GetKeyState() == enabled })
	if w.metadata(gone).GetKeyState() != enabled || string(w.decrypt(blob, nil)) != "x" {
		t.Error("the key is back and does not work")
	}
}
