package kms_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// limit is one limit of the API: a request at it, and one beyond it.
type limit struct {
	name string
	// request makes a request of size n.
	request func(n int) proto.Message
	// least and most are accepted; least-1 and most+1 are not. least -1 means
	// that there is nothing below.
	least, most int
	field       string
	// want is the answer within the limits: "" is success.
	want kms.Code
}

func TestLimits(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	for _, l := range slices.Concat(dataLimits(w), contextLimits(w), controlLimits(w)) {
		t.Run(l.name, func(t *testing.T) { l.check(w.with(t)) })
	}
}

// dataLimits are those of requests that carry data.
func dataLimits(w *world) []limit {
	aes, mac, wrap := w.newAESKey(), w.newKey(hmac256, usageMac), w.newKey(symmetric, usageWrap)
	bytesOf := func(n int) []byte { return make([]byte, n) }
	return []limit{
		{"Encrypt plaintext", func(n int) proto.Message { return &keyholdv1.EncryptRequest{KeyId: aes, Plaintext: bytesOf(n)} }, 1, 4096, "plaintext", ""},
		{"Sign message", func(n int) proto.Message {
			return &keyholdv1.SignRequest{KeyId: aes, Message: bytesOf(n), SigningAlgorithm: pss256}
		}, 1, 4096, "message", kms.CodeInvalidKeyUsage},
		{"Verify message", func(n int) proto.Message {
			return &keyholdv1.VerifyRequest{KeyId: aes, Message: bytesOf(n), Signature: bytesOf(1), SigningAlgorithm: pss256}
		}, 1, 4096, "message", kms.CodeInvalidKeyUsage},
		{"Verify signature", func(n int) proto.Message {
			return &keyholdv1.VerifyRequest{KeyId: aes, Message: bytesOf(1), Signature: bytesOf(n), SigningAlgorithm: pss256}
		}, 1, 6144, "signature", kms.CodeInvalidKeyUsage},
		{"GenerateMac message", func(n int) proto.Message {
			return &keyholdv1.GenerateMacRequest{KeyId: mac, Message: bytesOf(n), MacAlgorithm: macSHA256}
		}, 1, 4096, "message", ""},
		{"VerifyMac message", func(n int) proto.Message {
			return &keyholdv1.VerifyMacRequest{KeyId: mac, Message: bytesOf(n), Mac: bytesOf(1), MacAlgorithm: macSHA256}
		}, 1, 4096, "message", kms.CodeInvalidMac},
		{"VerifyMac mac", func(n int) proto.Message {
			return &keyholdv1.VerifyMacRequest{KeyId: mac, Message: bytesOf(1), Mac: bytesOf(n), MacAlgorithm: macSHA256}
		}, 1, 6144, "mac", kms.CodeInvalidMac},
		{"Decrypt ciphertext", func(n int) proto.Message { return &keyholdv1.DecryptRequest{CiphertextBlob: bytesOf(n)} }, 1, 6144, "ciphertext_blob", kms.CodeInvalidCiphertext},
		{"ReEncrypt ciphertext", func(n int) proto.Message {
			return &keyholdv1.ReEncryptRequest{CiphertextBlob: bytesOf(n), DestinationKeyId: aes}
		}, 1, 6144, "ciphertext_blob", kms.CodeInvalidCiphertext},
		{"GenerateRandom", func(n int) proto.Message { return &keyholdv1.GenerateRandomRequest{NumberOfBytes: ptr(int32(n))} }, 1, 1024, "number_of_bytes", ""},
		{"GenerateDataKey", func(n int) proto.Message {
			return &keyholdv1.GenerateDataKeyRequest{KeyId: aes, NumberOfBytes: ptr(int32(n))}
		}, 1, 1024, "number_of_bytes", ""},
		{"GenerateDataKeyWithoutPlaintext", func(n int) proto.Message {
			return &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: aes, NumberOfBytes: ptr(int32(n))}
		}, 1, 1024, "number_of_bytes", ""},
		{"DeriveSharedSecret public key", func(n int) proto.Message {
			return &keyholdv1.DeriveSharedSecretRequest{KeyId: aes, KeyAgreementAlgorithm: algECDH, PublicKey: bytesOf(n)}
		}, 1, 8192, "public_key", kms.CodeInvalidKeyUsage},
		{"WrapKey plaintext", func(n int) proto.Message { return &keyholdv1.WrapKeyRequest{KeyId: wrap, PlaintextKey: bytesOf(n)} }, 1, 4096, "plaintext_key", ""},
		{"WrapKey plaintext by AES_KW", func(n int) proto.Message {
			return &keyholdv1.WrapKeyRequest{KeyId: wrap, PlaintextKey: bytesOf(n), WrappingAlgorithm: algKW}
		}, 16, 4096, "plaintext_key", ""},
		{"UnwrapKey wrapped key", func(n int) proto.Message {
			return &keyholdv1.UnwrapKeyRequest{KeyId: wrap, WrappedKey: bytesOf(n)}
		}, 1, 4104, "wrapped_key", kms.CodeInvalidCiphertext},
	}
}

// controlLimits are those of requests about keys.
func controlLimits(w *world) []limit {
	aes := w.newAESKey()
	fresh := func() string { return w.newAESKey() }
	// Two bytes a character: limits of text count characters.
	text := func(n int) string { return strings.Repeat("é", n) }
	name := func(n int) string { return "alias/" + strings.Repeat("a", n-6) }
	tags := func(n int) (out []*keyholdv1.Tag) {
		for i := range n {
			out = append(out, &keyholdv1.Tag{TagKey: fmt.Sprintf("k%d", i), TagValue: ptr("")})
		}
		return out
	}
	return []limit{
		{"ListKeys limit", func(n int) proto.Message { return &keyholdv1.ListKeysRequest{Limit: ptr(int32(n))} }, 1, 1000, "limit", ""},
		{"ListAliases limit", func(n int) proto.Message { return &keyholdv1.ListAliasesRequest{Limit: ptr(int32(n))} }, 1, 100, "limit", ""},
		{"ListKeys marker", func(n int) proto.Message {
			return &keyholdv1.ListKeysRequest{Marker: ptr(strings.Repeat("x", n))}
		}, 1, 1024, "marker", kms.CodeInvalidMarker},
		{"ListAliases marker", func(n int) proto.Message {
			return &keyholdv1.ListAliasesRequest{Marker: ptr(strings.Repeat("x", n))}
		}, 1, 1024, "marker", kms.CodeInvalidMarker},
		{"pending window", func(n int) proto.Message {
			return &keyholdv1.ScheduleKeyDeletionRequest{KeyId: fresh(), PendingWindowInDays: ptr(int32(n))}
		}, 7, 30, "pending_window_in_days", ""},
		{"CreateKey description", func(n int) proto.Message { return &keyholdv1.CreateKeyRequest{Description: text(n)} }, -1, 8192, "description", ""},
		{"UpdateKeyDescription", func(n int) proto.Message {
			return &keyholdv1.UpdateKeyDescriptionRequest{KeyId: aes, Description: ptr(text(n))}
		}, -1, 8192, "description", ""},
		{"tags", func(n int) proto.Message { return &keyholdv1.CreateKeyRequest{Tags: tags(n)} }, -1, 50, "tags", ""},
		{"tag key", func(n int) proto.Message {
			return &keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: text(n), TagValue: ptr("v")}}}
		}, 1, 128, "tags[0].tag_key", ""},
		{"tag value", func(n int) proto.Message {
			return &keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "k", TagValue: ptr(text(n))}}}
		}, -1, 256, "tags[0].tag_value", ""},
		{"CreateAlias name", func(n int) proto.Message {
			if n < 6 {
				n = 7 + n // below is tested by hand: a name of 0 to 6 characters is no alias
			}
			return &keyholdv1.CreateAliasRequest{AliasName: name(n), TargetKeyId: aes}
		}, -1, 256, "alias_name", ""},
		{"UpdateAlias name", func(n int) proto.Message {
			return &keyholdv1.UpdateAliasRequest{AliasName: strings.Repeat("a", n), TargetKeyId: aes}
		}, -1, 256, "alias_name", kms.CodeValidation},
	}
}

// contextLimits are those of encryption contexts, which count bytes.
func contextLimits(w *world) []limit {
	aes := w.newAESKey()
	bytesOf := func(n int) []byte { return make([]byte, n) }
	return []limit{
		{"context of Encrypt", func(n int) proto.Message {
			return &keyholdv1.EncryptRequest{KeyId: aes, Plaintext: bytesOf(1), EncryptionContext: contextOf(n)}
		}, -1, 8192, "encryption_context", ""},
		{"context of Decrypt", func(n int) proto.Message {
			return &keyholdv1.DecryptRequest{CiphertextBlob: bytesOf(1), EncryptionContext: contextOf(n)}
		}, -1, 8192, "encryption_context", kms.CodeInvalidCiphertext},
		{"source context of ReEncrypt", func(n int) proto.Message {
			return &keyholdv1.ReEncryptRequest{CiphertextBlob: bytesOf(1), DestinationKeyId: aes, SourceEncryptionContext: contextOf(n)}
		}, -1, 8192, "source_encryption_context", kms.CodeInvalidCiphertext},
		{"destination context of ReEncrypt", func(n int) proto.Message {
			return &keyholdv1.ReEncryptRequest{CiphertextBlob: bytesOf(1), DestinationKeyId: aes, DestinationEncryptionContext: contextOf(n)}
		}, -1, 8192, "destination_encryption_context", kms.CodeInvalidCiphertext},
		{"context of GenerateDataKey", func(n int) proto.Message {
			return &keyholdv1.GenerateDataKeyRequest{KeyId: aes, NumberOfBytes: ptr(int32(1)), EncryptionContext: contextOf(n)}
		}, -1, 8192, "encryption_context", ""},
		{"context of GenerateDataKeyWithoutPlaintext", func(n int) proto.Message {
			return &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: aes, NumberOfBytes: ptr(int32(1)), EncryptionContext: contextOf(n)}
		}, -1, 8192, "encryption_context", ""},
		{"context of GenerateDataKeyPair", func(n int) proto.Message {
			return &keyholdv1.GenerateDataKeyPairRequest{KeyId: aes, KeyPairSpec: pairP256, EncryptionContext: contextOf(n)}
		}, -1, 8192, "encryption_context", ""},
		{"context of GenerateDataKeyPairWithoutPlaintext", func(n int) proto.Message {
			return &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: aes, KeyPairSpec: pairP256, EncryptionContext: contextOf(n)}
		}, -1, 8192, "encryption_context", ""},
	}
}

// with is the world for a subtest.
func (w *world) with(t testing.TB) *world {
	c := *w
	c.t = t
	return &c
}

// contextOf returns an encryption context of n bytes, most of them in
// characters of two.
func contextOf(n int) map[string]string {
	if n <= 0 {
		return nil
	}
	ec := map[string]string{}
	half := n / 2
	ec[strings.Repeat("é", half/2)+strings.Repeat("k", half%2)] = strings.Repeat("ü", (n-half)/2) + strings.Repeat("v", (n-half)%2)
	return ec
}

func (l *limit) check(w *world) {
	for _, n := range []int{l.least, l.most} {
		if n < 0 {
			continue
		}
		if l.want == "" {
			do[proto.Message](w, l.request(n))
		} else {
			refuse(w, l.request(n), l.want)
		}
	}
	for _, n := range []int{l.least - 1, l.most + 1} {
		if n < 0 {
			continue
		}
		e := refuse(w, l.request(n), kms.CodeValidation)
		if len(e.Violations) == 0 {
			w.t.Fatalf("at %d: no field is named: %s", n, e)
		}
		v := e.Violations[0]
		if v.Field != l.field || v.Description == "" || !strings.Contains(e.Message, v.Field) {
			w.t.Errorf("at %d: the refusal is about %q (%s), want %q", n, v.Field, v.Description, l.field)
		}
		bound := l.most
		if n < l.least {
			bound = l.least
		}
		if want := fmt.Sprint(bound); !strings.Contains(v.Description, want) {
			w.t.Errorf("at %d: the refusal %q does not tell the limit %s", n, v.Description, want)
		}
	}
}

// Every field that names a key takes 2,048 characters and not one more.
func TestKeyIDLimit(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	for _, op := range w.svc.Operations() {
		req := sampleRequest(t, op)
		m := req.ProtoReflect()
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			fd := fields.Get(i)
			if !strings.HasSuffix(string(fd.Name()), "key_id") || fd.Name() == "xks_key_id" || fd.Name() == "access_key_id" { // of another form
				continue
			}
			for n, want := range map[int]bool{0: false, 2048: true, 2049: false} {
				m.Set(fd, protoreflect.ValueOfString(strings.Repeat("é", n)))
				_, err := try[proto.Message](w, req)
				refused := err != nil && err.Code == kms.CodeValidation && len(err.Violations) > 0 && err.Violations[0].Field == string(fd.Name())
				if refused == want {
					t.Errorf("%s.%s of %d characters: %v", op, fd.Name(), n, err)
				}
			}
			m.Set(fd, protoreflect.ValueOfString("x"))
		}
	}
}

// sampleRequest returns a request that passes step 2.
func sampleRequest(t testing.TB, op string) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("keyhold.v1." + op + "Request"))
	if err != nil {
		t.Fatal(err)
	}
	m := mt.New()
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		switch string(fd.Name()) {
		case "key_id", "source_key_id", "destination_key_id", "target_key_id", "wrapping_key_id":
			m.Set(fd, protoreflect.ValueOfString("00000000-0000-4000-8000-000000000000"))
		case "plaintext", "message", "ciphertext_blob", "signature", "mac", "plaintext_key", "wrapped_key", "public_key":
			m.Set(fd, protoreflect.ValueOfBytes([]byte("x")))
		case "items":
			items := m.Mutable(fd).List()
			for i, kind := 0, fd.Message().Fields(); i < kind.Len(); i++ {
				item := items.NewElement()
				item.Message().Set(kind.Get(i), protoreflect.ValueOfMessage(sampleRequest(t, strings.TrimSuffix(string(kind.Get(i).Message().Name()), "Request")).ProtoReflect()))
				items.Append(item)
			}
		case "key_agreement_algorithm", "wrapping_algorithm", "wrapping_key_spec":
			m.Set(fd, protoreflect.ValueOfEnum(1))
		case "import_token", "encrypted_key_material":
			m.Set(fd, protoreflect.ValueOfBytes([]byte("x")))
		case "grantee_principal", "retiring_principal":
			m.Set(fd, protoreflect.ValueOfString("arn:aws:iam::111122223333:root"))
		case "operations":
			m.Mutable(fd).List().Append(protoreflect.ValueOfEnum(1))
		case "grant_id", "custom_key_store_name":
			m.Set(fd, protoreflect.ValueOfString("sample"))
		case "custom_key_store_id":
			if op != "CreateKey" && op != "GenerateRandom" { // they refuse it
				m.Set(fd, protoreflect.ValueOfString("sample"))
			}
		case "policy":
			if op != "CreateKey" { // it refuses it
				m.Set(fd, protoreflect.ValueOfString("{}"))
			}
		case "replica_region", "primary_region":
			m.Set(fd, protoreflect.ValueOfString("us-west-2"))
		case "tag_keys":
			m.Mutable(fd).List().Append(protoreflect.ValueOfString("sample"))
		case "tags":
			if op == "TagResource" {
				tags := m.Mutable(fd).List()
				tags.Append(protoreflect.ValueOfMessage((&keyholdv1.Tag{TagKey: "k", TagValue: ptr("v")}).ProtoReflect()))
			}
		case "key_pair_spec":
			m.Set(fd, protoreflect.ValueOfEnum(pairP256.Number()))
		case "signing_algorithm", "mac_algorithm":
			m.Set(fd, protoreflect.ValueOfEnum(2))
		case "number_of_bytes":
			m.Set(fd, protoreflect.ValueOfInt32(16))
		case "access_key_id":
			m.Set(fd, protoreflect.ValueOfString("AKIASAMPLE"))
		case "status":
			m.Set(fd, protoreflect.ValueOfEnum(2))
		case "alias_name":
			m.Set(fd, protoreflect.ValueOfString("alias/sample"))
		case "description":
			m.Set(fd, protoreflect.ValueOfString("sample"))
		}
	}
	return m.Interface()
}

// What step 2 refuses beside lengths.
func TestValidation(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	key := w.newAESKey()
	for name, c := range map[string]struct {
		req   proto.Message
		want  kms.Code
		field string
	}{
		"both lengths of a data key":    {&keyholdv1.GenerateDataKeyRequest{KeyId: key, NumberOfBytes: ptr(int32(16)), KeySpec: 1}, kms.CodeValidation, "number_of_bytes"},
		"no length of a data key":       {&keyholdv1.GenerateDataKeyRequest{KeyId: key}, kms.CodeValidation, "number_of_bytes"},
		"both, without plaintext":       {&keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: key, NumberOfBytes: ptr(int32(16)), KeySpec: 1}, kms.CodeValidation, "number_of_bytes"},
		"no length, without plaintext":  {&keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: key}, kms.CodeValidation, "number_of_bytes"},
		"random without a number":       {&keyholdv1.GenerateRandomRequest{}, kms.CodeValidation, "number_of_bytes"},
		"unknown key spec":              {&keyholdv1.CreateKeyRequest{KeySpec: 99}, kms.CodeValidation, "key_spec"},
		"unknown key usage":             {&keyholdv1.CreateKeyRequest{KeyUsage: 99}, kms.CodeValidation, "key_usage"},
		"unknown algorithm":             {&keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x"), EncryptionAlgorithm: 99}, kms.CodeValidation, "encryption_algorithm"},
		"no signing algorithm":          {&keyholdv1.SignRequest{KeyId: key, Message: []byte("x")}, kms.CodeValidation, "signing_algorithm"},
		"unknown message type":          {&keyholdv1.SignRequest{KeyId: key, Message: []byte("x"), SigningAlgorithm: pss256, MessageType: 9}, kms.CodeValidation, "message_type"},
		"no mac algorithm":              {&keyholdv1.GenerateMacRequest{KeyId: key, Message: []byte("x")}, kms.CodeValidation, "mac_algorithm"},
		"usage missing":                 {&keyholdv1.CreateKeyRequest{KeySpec: rsa2048}, kms.CodeValidation, "key_usage"},
		"usage of an HMAC key missing":  {&keyholdv1.CreateKeyRequest{KeySpec: hmac256}, kms.CodeValidation, "key_usage"},
		"description missing":           {&keyholdv1.UpdateKeyDescriptionRequest{KeyId: key}, kms.CodeValidation, "description"},
		"tag value missing":             {&keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "k"}}}, kms.CodeValidation, "tags[0].tag_value"},
		"tag key missing":               {&keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagValue: ptr("v")}}}, kms.CodeValidation, "tags[0].tag_key"},
		"alias of strange characters":   {&keyholdv1.CreateAliasRequest{AliasName: "alias/é", TargetKeyId: key}, kms.CodeValidation, "alias_name"},
		"alias with a newline":          {&keyholdv1.CreateAliasRequest{AliasName: "alias/a\n", TargetKeyId: key}, kms.CodeValidation, "alias_name"},
		"double tag":                    {&keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "a", TagValue: ptr("")}, {TagKey: "b", TagValue: ptr("")}, {TagKey: "a", TagValue: ptr("")}}}, kms.CodeTag, ""},
		"reserved tag":                  {&keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "AwS:x", TagValue: ptr("")}}}, kms.CodeTag, ""},
		"tag key of strange characters": {&keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "a*b", TagValue: ptr("")}}}, kms.CodeTag, ""},
		"tag value with a NUL":          {&keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "a", TagValue: ptr("\x00")}}}, kms.CodeTag, ""},
		"context that is no UTF-8":      {&keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x"), EncryptionContext: map[string]string{"a": "\xff"}}, kms.CodeValidation, "encryption_context"},
	} {
		t.Run(name, func(t *testing.T) {
			e := refuse(w.with(t), c.req, c.want)
			if c.field == "" {
				return
			}
			if len(e.Violations) == 0 || e.Violations[0].Field != c.field {
				t.Errorf("the refusal is about %+v, want %q", e.Violations, c.field)
			}
		})
	}
	for _, k := range []struct {
		spec  keyholdv1.KeySpec
		usage keyholdv1.KeyUsageType
	}{
		{symmetric, usageSign},
		{0, usageSign},
		{symmetric, usageMac},
		{symmetric, usageAgree},
		{rsa2048, usageMac},
		{rsa2048, usageAgree},
		{p256, usageEncrypt},
		{p256, usageMac},
		{secp256k1, usageAgree},
		{secp256k1, usageEncrypt},
		{edwards, usageAgree},
		{edwards, usageEncrypt},
		{hmac256, usageEncrypt},
		{hmac256, usageSign},
		{hmac512, usageAgree},
	} {
		refuse(w, &keyholdv1.CreateKeyRequest{KeySpec: k.spec, KeyUsage: k.usage}, kms.CodeValidation)
	}
	// What the store cannot do is said when the key is created, by mechanism.
	if e := refuse(w, &keyholdv1.CreateKeyRequest{KeySpec: p256, KeyUsage: usageSign}, kms.CodeUnsupportedOperation); !strings.Contains(e.Message, "CKM_") {
		t.Errorf("the refusal %q does not name the mechanism", e.Message)
	}
}

// A field that this version does not know is refused and never ignored: the
// client may rely on it.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 4711, protowire.VarintType), 1)
	for _, op := range w.svc.Operations() {
		req := sampleRequest(t, op)
		req.ProtoReflect().SetUnknown(unknown)
		if e := refuse(w, req, kms.CodeValidation); !strings.Contains(e.Message, "4711") {
			t.Errorf("%s: the refusal %q does not name the field", op, e.Message)
		}
	}
	nested := &keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "a", TagValue: ptr("b")}, {TagKey: "c", TagValue: ptr("d")}}}
	nested.GetTags()[1].ProtoReflect().SetUnknown(unknown)
	if e := refuse(w, nested, kms.CodeValidation); !strings.Contains(e.Message, "tags[1].field 4711") {
		t.Errorf("the refusal %q does not name the nested field", e.Message)
	}
}

// Refusals never repeat what was sent: it may be secret.
func TestRefusalsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	key, mac := w.newAESKey(), w.newKey(hmac256, usageMac)
	const canary = "canary-of-a-secret"
	long := func(n int) []byte { return []byte(strings.Repeat(canary, n/len(canary)+1)) }
	for _, req := range []proto.Message{
		&keyholdv1.EncryptRequest{KeyId: key, Plaintext: long(4097)},
		&keyholdv1.EncryptRequest{Plaintext: long(10)},
		&keyholdv1.SignRequest{KeyId: key, Message: long(4097), SigningAlgorithm: pss256},
		&keyholdv1.SignRequest{KeyId: key, Message: long(40), MessageType: digest, SigningAlgorithm: pss256},
		&keyholdv1.GenerateMacRequest{KeyId: mac, Message: long(4097), MacAlgorithm: macSHA256},
		&keyholdv1.VerifyMacRequest{KeyId: mac, Message: long(1), Mac: long(6145), MacAlgorithm: macSHA256},
		&keyholdv1.VerifyMacRequest{KeyId: mac, Message: long(1), Mac: long(1), MacAlgorithm: macSHA256},
		&keyholdv1.VerifyRequest{KeyId: key, Message: long(1), Signature: long(6145), SigningAlgorithm: pss256},
		&keyholdv1.DecryptRequest{CiphertextBlob: long(6145)},
		&keyholdv1.DecryptRequest{CiphertextBlob: long(100)},
		&keyholdv1.DecryptRequest{KeyId: &key, CiphertextBlob: long(100)},
	} {
		_, err := try[proto.Message](w, req)
		if err == nil {
			t.Fatalf("%s succeeded", brief(req))
		}
		for _, v := range append(err.Violations, kms.Violation{Description: err.Error()}) {
			if strings.Contains(v.Description+v.Field, canary) {
				t.Errorf("%s: the refusal repeats what was sent: %s", operationOf(req), v)
			}
		}
	}
	for _, e := range w.events() {
		if strings.Contains(e.raw, canary) {
			t.Errorf("the audit record holds what was sent: %s", e.raw)
		}
	}
}
