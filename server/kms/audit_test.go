package kms_test

import (
	"encoding/base64"
	"encoding/hex"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

// everyOperation returns a request of each operation that succeeds when they
// are made in this order, on keys of the world.
func everyOperation(w *world) []proto.Message {
	w.t.Helper()
	aes, mac, sign := w.newAESKey(), w.newKey(hmac256, usageMac), w.newKey(p256, usageSign)
	ec := map[string]string{"tenant": "42"}
	blob := w.encrypt(aes, []byte("x"), ec)
	signature := do[*keyholdv1.SignResponse](w, &keyholdv1.SignRequest{KeyId: sign, Message: []byte("m"), SigningAlgorithm: ecdsa256}).GetSignature()
	tag := do[*keyholdv1.GenerateMacResponse](w, &keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("m"), MacAlgorithm: macSHA256}).GetMac()
	agree, wrap, exportable := w.newKey(p256, usageAgree), w.newKey(symmetric, usageWrap), w.newExportableKey(symmetric, usageEncrypt)
	public := do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: agree}).GetPublicKey()
	wrapped := do[*keyholdv1.WrapKeyResponse](w, &keyholdv1.WrapKeyRequest{KeyId: wrap, PlaintextKey: make([]byte, 32)}).GetWrappedKey()
	return []proto.Message{
		&keyholdv1.CreateKeyRequest{Description: "for audit", Tags: []*keyholdv1.Tag{{TagKey: "k", TagValue: ptr("v")}}},
		&keyholdv1.DescribeKeyRequest{KeyId: aes}, &keyholdv1.ListKeysRequest{Limit: ptr(int32(1))},
		&keyholdv1.UpdateKeyDescriptionRequest{KeyId: aes, Description: ptr("new")},
		&keyholdv1.CreateAliasRequest{AliasName: "alias/audit", TargetKeyId: aes}, &keyholdv1.UpdateAliasRequest{AliasName: "alias/audit", TargetKeyId: aes},
		&keyholdv1.ListAliasesRequest{KeyId: &aes},
		&keyholdv1.GetKeyPolicyRequest{KeyId: aes}, &keyholdv1.ListKeyPoliciesRequest{KeyId: aes},
		&keyholdv1.TagResourceRequest{KeyId: aes, Tags: []*keyholdv1.Tag{{TagKey: "k", TagValue: ptr("v")}}},
		&keyholdv1.ListResourceTagsRequest{KeyId: aes}, &keyholdv1.UntagResourceRequest{KeyId: aes, TagKeys: []string{"k"}},
		&keyholdv1.EncryptRequest{KeyId: "alias/audit", Plaintext: []byte("x"), EncryptionContext: ec},
		&keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec},
		&keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: aes},
		&keyholdv1.GenerateDataKeyRequest{KeyId: aes, KeySpec: 1}, &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: aes, KeySpec: 1},
		&keyholdv1.GenerateDataKeyPairRequest{KeyId: aes, KeyPairSpec: pairP256}, &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: aes, KeyPairSpec: pairP256},
		&keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(32))},
		&keyholdv1.SignRequest{KeyId: sign, Message: []byte("m"), SigningAlgorithm: ecdsa256},
		&keyholdv1.VerifyRequest{KeyId: sign, Message: []byte("m"), Signature: signature, SigningAlgorithm: ecdsa256},
		&keyholdv1.GetPublicKeyRequest{KeyId: sign},
		&keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte("m"), MacAlgorithm: macSHA256},
		&keyholdv1.VerifyMacRequest{KeyId: mac, Message: []byte("m"), Mac: tag, MacAlgorithm: macSHA256},
		&keyholdv1.DeriveSharedSecretRequest{KeyId: agree, KeyAgreementAlgorithm: algECDH, PublicKey: public},
		&keyholdv1.WrapKeyRequest{KeyId: wrap, PlaintextKey: make([]byte, 32)}, &keyholdv1.UnwrapKeyRequest{KeyId: wrap, WrappedKey: wrapped},
		&keyholdv1.ExportKeyRequest{KeyId: exportable, WrappingKeyId: wrap},
		&keyholdv1.DeleteAliasRequest{AliasName: "alias/audit"},
		&keyholdv1.DisableKeyRequest{KeyId: aes}, &keyholdv1.EnableKeyRequest{KeyId: aes},
		&keyholdv1.ScheduleKeyDeletionRequest{KeyId: aes}, &keyholdv1.CancelKeyDeletionRequest{KeyId: aes},
	}
}

// Every operation leaves its events, in CloudTrail's words: one, or for what
// changes keys an intent and an outcome.
func TestEveryOperationIsRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	covered := make(map[string]bool)
	ids := make(map[string]bool)
	for _, req := range everyOperation(w) {
		op := operationOf(req)
		covered[op] = true
		covered["Batch"] = true // TestBatchRecords
		t.Run(op, func(t *testing.T) {
			w := w.with(t)
			events := w.eventsOf(func() { do[proto.Message](w, req) })
			w.checkEvents(events, req, "")
			// A request of somebody else for the same: recorded as refused, in
			// words that tell nothing of the key.
			events = append(events, w.eventsOf(func() {
				if _, err := tryAs[proto.Message](w, mallory(), req); err == nil && strings.HasSuffix(op, "Key") && op != "CreateKey" && op != "GenerateDataKey" {
					t.Error("succeeded for somebody else")
				}
			})...)
			for _, e := range events {
				if ids[e.EventID] || len(e.EventID) != 36 {
					t.Errorf("event id %q", e.EventID)
				}
				ids[e.EventID] = true
			}
		})
	}
	for op := range methods() {
		if !ofAccessKeys(op) && covered[op] == operationSpec(op).GetUnbuilt() { // those: TestUnbuiltOperations, TestAccessKeyRecords
			t.Errorf("%s is not tested for its record, or is not built", op)
		}
	}
	if _, err := audit.Verify(w.journalDir(), audit.VerifyOptions{}); err != nil {
		t.Errorf("the journal does not verify: %v", err)
	}
}

// checkEvents checks what one request of alice left.
func (w *world) checkEvents(events []event, req proto.Message, code kms.Code) {
	w.t.Helper()
	op := operationOf(req)
	spec := operationSpec(op)
	phases := []string{""}
	if !spec.GetReadOnly() {
		phases = []string{"intent", "outcome"}
	}
	if len(events) != len(phases) {
		w.t.Fatalf("%d events, want %d", len(events), len(phases))
	}
	for i, e := range events {
		want := event{
			EventVersion: "1.11", EventTime: w.clock.Now().Truncate(time.Second), EventSource: "kms.amazonaws.com", EventName: op, AWSRegion: testRegion,
			UserIdentity: map[string]string{
				"type": "IAMUser", "principalId": alice().Principal.ARN, "arn": alice().Principal.ARN, "accountId": testAccount, "userName": "caller",
			},
			SourceIPAddress: "192.0.2.7", UserAgent: "kms-test/1", RequestID: alice().RequestID, EventID: e.EventID, ReadOnly: spec.GetReadOnly(),
			EventType: "AwsApiCall", RecipientAccountID: testAccount, EventCategory: "Management", ManagementEvent: true,
			TLSDetails:        map[string]string{"tlsVersion": "TLSv1.3", "cipherSuite": "TLS_AES_128_GCM_SHA256"},
			RequestParameters: e.RequestParameters, ResponseElements: e.ResponseElements, Resources: e.Resources, AdditionalEventData: e.AdditionalEventData,
			ErrorCode: string(code), ErrorMessage: e.ErrorMessage,
		}
		if d := cmp.Diff(want, e, cmp.AllowUnexported(event{}), cmp.FilterPath(func(p cmp.Path) bool { s := p.String(); return s == "raw" || s == "protected" }, cmp.Ignore())); d != "" {
			w.t.Errorf("event (-want +got):\n%s", d)
		}
		if e.AdditionalEventData["phase"] != phases[i] || e.AdditionalEventData["door"] != "grpc" || e.AdditionalEventData["subject"] != "spiffe://test.example/caller" {
			w.t.Errorf("additionalEventData is %v", e.AdditionalEventData)
		}
		if (e.ResponseElements != nil) != (phases[i] == "outcome" && !spec.GetEmptyBody() && code == "") && !spec.GetEmptyBody() {
			w.t.Errorf("responseElements in the %q record: %v", phases[i], e.ResponseElements)
		}
		if e.RequestParameters == nil {
			w.t.Error("no requestParameters")
		}
	}
	w.checkResources(events[len(events)-1], req)
}

// checkResources: the record names every key that the request was about.
func (w *world) checkResources(e event, req proto.Message) {
	w.t.Helper()
	want := 0
	for _, p := range operationSpec(operationOf(req)).GetPermissions() {
		if f := p.GetResourceField(); f != "" && f != "alias_name" {
			want++
		}
	}
	if operationOf(req) == "CreateKey" {
		want = 1
	}
	if len(e.Resources) != want {
		w.t.Errorf("the record names %v, want %d keys", e.Resources, want)
	}
	for _, r := range e.Resources {
		if !strings.HasPrefix(r["ARN"], arnOfTest+"key/") || r["accountId"] != testAccount || r["type"] != "AWS::KMS::Key" {
			w.t.Errorf("the record names %v", r)
		}
	}
}

// What records say of requests: names as given, the encryption context, no
// bytes.
func TestRecordedParameters(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	ec := map[string]string{"tenant": "42"}
	blob := w.encrypt(id, []byte("x"), ec)
	for _, c := range []struct {
		req  proto.Message
		want map[string]any
	}{
		{&keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), EncryptionContext: ec}, map[string]any{"keyId": id, "encryptionContext": map[string]any{"tenant": "42"}}},
		{&keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec}, map[string]any{"encryptionContext": map[string]any{"tenant": "42"}}},
		{&keyholdv1.GenerateDataKeyRequest{KeyId: id, KeySpec: 1}, map[string]any{"keyId": id, "keySpec": "AES_256"}},
		{&keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(7))}, map[string]any{"numberOfBytes": 7.0}},
	} {
		events := w.eventsOf(func() { do[proto.Message](w, c.req) })
		if d := cmp.Diff(c.want, events[0].RequestParameters); d != "" {
			t.Errorf("%s (-want +got):\n%s", operationOf(c.req), d)
		}
	}
	events := w.eventsOf(func() { do[proto.Message](w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec}) })
	if got := events[0].AdditionalEventData["keyMaterialId"]; got != w.metadata(id).GetCurrentKeyMaterialId() {
		t.Errorf("Decrypt's record names the material %q", got)
	}
	events = w.eventsOf(func() { w.newAESKey() })
	metadata, _ := events[1].ResponseElements["keyMetadata"].(map[string]any)
	if metadata["keyState"] != "Enabled" || metadata["keySpec"] != "SYMMETRIC_DEFAULT" || "arn:aws:kms:us-east-1:"+testAccount+":key/"+metadata["keyId"].(string) != events[1].Resources[0]["ARN"] {
		t.Errorf("CreateKey's record answers %v", events[1].ResponseElements)
	}
}

// Refusals are recorded at every step, with the class that may use the
// reserve; what failed step 2 is not repeated.
func TestRefusalsAreRecorded(t *testing.T) {
	t.Parallel()
	w, fake := newFakeWorld(t, withConfig(func(c *kms.Config) { c.DataDurability = audit.Written }))
	id, off := w.newAESKey(), w.newAESKey()
	w.inState(off, disabled)
	for _, c := range []struct {
		req    proto.Message
		want   kms.Code
		silent bool
	}{
		{&keyholdv1.EncryptRequest{KeyId: id, Plaintext: make([]byte, 4097), EncryptionContext: map[string]string{"a": "b"}}, kms.CodeValidation, true},
		{&keyholdv1.EncryptRequest{KeyId: unknownID, Plaintext: []byte("x")}, kms.CodeNotFound, false},
		{&keyholdv1.EncryptRequest{KeyId: arnOfForeign + "key/" + id, Plaintext: []byte("x")}, kms.CodeAccessDenied, false},
		{&keyholdv1.EncryptRequest{KeyId: off, Plaintext: []byte("x")}, kms.CodeDisabled, false},
		{&keyholdv1.SignRequest{KeyId: id, Message: []byte("x"), SigningAlgorithm: pss256}, kms.CodeInvalidKeyUsage, false},
		{&keyholdv1.DecryptRequest{CiphertextBlob: []byte("garbage")}, kms.CodeInvalidCiphertext, false},
		{&keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), DryRun: ptr(true)}, kms.CodeDryRun, false},
		{&keyholdv1.CancelKeyDeletionRequest{KeyId: id}, kms.CodeInvalidState, false},
	} {
		events := w.eventsOf(func() { refuse(w, c.req, c.want) })
		if len(events) != 1 || events[0].ErrorCode != string(c.want) || !events[0].protected {
			t.Errorf("%s: %s is recorded as %+v", operationOf(c.req), c.want, events)
			continue
		}
		if (events[0].RequestParameters == nil) != c.silent {
			t.Errorf("%s: parameters %v", c.want, events[0].RequestParameters)
		}
		if c.want == kms.CodeInvalidCiphertext && events[0].ErrorMessage != "" {
			t.Errorf("the record gives a reason: %q", events[0].ErrorMessage)
		}
	}
	fake.failing("Seal", errFault)
	events := w.eventsOf(func() { refuse(w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}, kms.CodeInternal) })
	if len(events) != 1 || events[0].ErrorCode != string(kms.CodeInternal) || strings.Contains(events[0].raw, "fault of the test") {
		t.Errorf("an internal fault is recorded as %+v", events)
	}
	fake.heal()
	// DisableKey and ScheduleKeyDeletion must stay possible on a full disk.
	for _, req := range []proto.Message{
		&keyholdv1.DisableKeyRequest{KeyId: id}, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: id}, &keyholdv1.CancelKeyDeletionRequest{KeyId: id},
	} {
		for _, e := range w.eventsOf(func() { do[proto.Message](w, req) }) {
			if !e.protected {
				t.Errorf("%s cannot use the reserve", operationOf(req))
			}
		}
	}
}

// Nothing secret is in an event, a log line or a file: neither what clients
// send nor what they get.
func TestNoSecretsOnDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const canary = "CANARY-of-plaintext-4f1d9a"
	secrets := map[string][]byte{"plaintext": []byte(canary)}
	aes, mac, sign, rsaID := w.newAESKey(), w.newKey(hmac256, usageMac), w.newKey(p256, usageSign), w.newKey(rsa2048, usageEncrypt)
	secrets["ciphertext"] = w.encrypt(aes, []byte(canary), nil)
	w.decrypt(secrets["ciphertext"], nil)
	secrets["re-encrypted"] = do[*keyholdv1.ReEncryptResponse](w, &keyholdv1.ReEncryptRequest{CiphertextBlob: secrets["ciphertext"], DestinationKeyId: aes}).GetCiphertextBlob()
	dataKey := do[*keyholdv1.GenerateDataKeyResponse](w, &keyholdv1.GenerateDataKeyRequest{KeyId: aes, KeySpec: 1})
	secrets["data key"], secrets["encrypted data key"] = dataKey.GetPlaintext(), dataKey.GetCiphertextBlob()
	secrets["random"] = do[*keyholdv1.GenerateRandomResponse](w, &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(32))}).GetPlaintext()
	secrets["mac"] = do[*keyholdv1.GenerateMacResponse](w, &keyholdv1.GenerateMacRequest{KeyId: mac, Message: []byte(canary), MacAlgorithm: macSHA256}).GetMac()
	do[proto.Message](w, &keyholdv1.VerifyMacRequest{KeyId: mac, Message: []byte(canary), Mac: secrets["mac"], MacAlgorithm: macSHA256})
	secrets["signature"] = do[*keyholdv1.SignResponse](w, &keyholdv1.SignRequest{KeyId: sign, Message: []byte(canary), SigningAlgorithm: ecdsa256}).GetSignature()
	do[proto.Message](w, &keyholdv1.VerifyRequest{KeyId: sign, Message: []byte(canary), Signature: secrets["signature"], SigningAlgorithm: ecdsa256})
	secrets["RSA ciphertext"] = do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: rsaID, Plaintext: []byte(canary), EncryptionAlgorithm: oaepSHA256}).GetCiphertextBlob()
	wrap, exportable, agree := w.newKey(symmetric, usageWrap), w.newExportableKey(hmac256, usageMac), w.newKey(p256, usageAgree)
	secrets["caller's key"] = []byte("CANARY-of-a-caller's-key-32-byte")
	secrets["wrapped key"] = do[*keyholdv1.WrapKeyResponse](w, &keyholdv1.WrapKeyRequest{KeyId: wrap, PlaintextKey: secrets["caller's key"]}).GetWrappedKey()
	do[proto.Message](w, &keyholdv1.UnwrapKeyRequest{KeyId: wrap, WrappedKey: secrets["wrapped key"]})
	secrets["exported key, wrapped"] = do[*keyholdv1.ExportKeyResponse](w, &keyholdv1.ExportKeyRequest{KeyId: exportable, WrappingKeyId: wrap}).GetWrappedKey()
	secrets["exported key"] = do[*keyholdv1.UnwrapKeyResponse](w, &keyholdv1.UnwrapKeyRequest{KeyId: wrap, WrappedKey: secrets["exported key, wrapped"]}).GetPlaintextKey()
	secrets["shared secret"] = do[*keyholdv1.DeriveSharedSecretResponse](w, &keyholdv1.DeriveSharedSecretRequest{
		KeyId: agree, KeyAgreementAlgorithm: algECDH, PublicKey: do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: agree}).GetPublicKey(),
	}).GetSharedSecret()
	w.batch(encryptItem(aes, canary), encryptItem(unknownID, canary), &keyholdv1.DecryptRequest{CiphertextBlob: secrets["ciphertext"]})
	do[proto.Message](w, &keyholdv1.DecryptRequest{KeyId: &rsaID, CiphertextBlob: secrets["RSA ciphertext"], EncryptionAlgorithm: oaepSHA256})
	// And all of it once more in requests that fail at each step.
	for _, key := range []string{unknownID, mac, arnOfForeign + "key/" + aes, strings.Repeat("x", 2049)} {
		for _, n := range []int{1, 200} {
			plaintext := []byte(strings.Repeat(canary, n))
			for _, req := range []proto.Message{
				&keyholdv1.EncryptRequest{KeyId: key, Plaintext: plaintext}, &keyholdv1.SignRequest{KeyId: key, Message: plaintext, SigningAlgorithm: ecdsa256},
				&keyholdv1.GenerateMacRequest{KeyId: key, Message: plaintext, MacAlgorithm: macSHA512}, &keyholdv1.DecryptRequest{KeyId: &key, CiphertextBlob: secrets["ciphertext"]},
				&keyholdv1.VerifyMacRequest{KeyId: key, Message: plaintext, Mac: secrets["mac"], MacAlgorithm: macSHA512},
			} {
				if _, err := try[proto.Message](w, req); err == nil {
					t.Errorf("%s succeeded", brief(req))
				}
			}
		}
	}
	refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: flipped(secrets["ciphertext"], 8*len(secrets["ciphertext"])-1)}, kms.CodeInvalidCiphertext)
	w.start()
	w.searchSecrets(secrets)
}

// searchSecrets looks for secrets, in any usual spelling, in all that the
// world has written.
func (w *world) searchSecrets(secrets map[string][]byte) {
	w.t.Helper()
	places := map[string]string{"the log": w.logs.String()}
	for _, dir := range []string{"audit", "data"} {
		err := filepath.WalkDir(filepath.Join(w.dir, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			places[dir+"/"+d.Name()] = string(b)
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if len(places) < 3 || !slices.ContainsFunc(slices.Collect(maps.Values(places)), func(s string) bool { return strings.Contains(s, "kms.amazonaws.com") }) {
		w.t.Fatalf("not all places were looked at: %d", len(places))
	}
	for name, secret := range secrets {
		for _, spelling := range []string{
			string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)), base64.StdEncoding.EncodeToString(secret), base64.RawStdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret),
		} {
			for place, content := range places {
				if strings.Contains(content, spelling) {
					w.t.Errorf("%s is in %s, as %.20q…", name, place, spelling)
				}
			}
		}
	}
}

// Whatever bytes a request holds, none of its records repeats them, whether it
// succeeds or fails: this goes by the descriptors, so that a new field is
// covered the day it is declared.
func TestRecordsHoldNoBytes(t *testing.T) {
	t.Parallel()
	signer := &fakeSigner{newFakeStore()}
	w := buildWorld(t, signer)
	keys := []string{w.newAESKey(), w.newKey(hmac256, usageMac), w.newKey(p256, usageSign), w.newKey(p256, usageAgree), w.newKey(symmetric, usageWrap)}
	const canary = "CANARY-of-bytes-in-a-request"
	covered := 0
	for op, md := range methods() {
		for i := range md.Input().Fields().Len() {
			fd := md.Input().Fields().Get(i)
			if fd.Kind() != protoreflect.BytesKind || fd.IsMap() {
				continue
			}
			covered++
			for _, key := range keys {
				req := sampleRequest(t, op)
				m := req.ProtoReflect()
				m.Set(fd, protoreflect.ValueOfBytes([]byte(canary)))
				for _, name := range []protoreflect.Name{"key_id", "destination_key_id", "wrapping_key_id"} {
					if named := md.Input().Fields().ByName(name); named != nil {
						m.Set(named, protoreflect.ValueOfString(key))
					}
				}
				for _, e := range w.eventsOf(func() { try[proto.Message](w, req) }) {
					for _, spelling := range []string{canary, hex.EncodeToString([]byte(canary)), base64.RawStdEncoding.EncodeToString([]byte(canary))} {
						if strings.Contains(e.raw, spelling) {
							t.Errorf("%s.%s is recorded: %s", op, fd.Name(), e.raw)
						}
					}
				}
			}
		}
	}
	if covered < 12 {
		t.Errorf("only %d fields hold bytes", covered)
	}
}
