package kms_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// An operation that is declared and not built is refused to everyone alike,
// whether or not what it names exists, and leaves its record.
func TestUnbuiltOperations(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	key := w.newAESKey()
	n := 0
	for op := range methods() {
		if !operationSpec(op).GetUnbuilt() {
			continue
		}
		n++
		req := sampleRequest(t, op)
		if fd := req.ProtoReflect().Descriptor().Fields().ByName("key_id"); fd != nil {
			req.ProtoReflect().Set(fd, protoreflect.ValueOfString(key))
		}
		events := w.eventsOf(func() {
			e := refuse(w, req, kms.CodeUnsupportedOperation)
			if !strings.HasPrefix(e.Message, op+" ") || e.Unavailable {
				t.Errorf("%s: %+v", op, e)
			}
		})
		if len(events) != 1 || events[0].EventName != op || events[0].ErrorCode != string(kms.CodeUnsupportedOperation) || len(events[0].RequestParameters) == 0 && proto.Size(req) > 0 {
			t.Errorf("%s left %+v", op, events)
		}
		refuse(w, sampleRequest(t, op), kms.CodeUnsupportedOperation) // of a key that does not exist
		refuseAs(w, mallory(), req, kms.CodeUnsupportedOperation)
		if proto.Size(req) > 0 && op != "RetireGrant" && op != "DescribeCustomKeyStores" {
			mt, err := protoregistry.GlobalTypes.FindMessageByName(req.ProtoReflect().Descriptor().FullName())
			if err != nil {
				t.Fatal(err)
			}
			refuse(w, mt.New().Interface(), kms.CodeValidation)
		}
	}
	if n == 0 {
		t.Error("everything is built: this test and the option can go")
	}
}

// Secrets of operations that are not built are in no record either.
func TestUnbuiltSecretsAreNotRecorded(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	refuse(w, &keyholdv1.CreateCustomKeyStoreRequest{
		CustomKeyStoreName: "n", KeyStorePassword: ptr("canary-of-a-secret"),
		XksProxyAuthenticationCredential: &keyholdv1.XksProxyAuthenticationCredentialType{
			AccessKeyId: "CANARYCANARYCANARYCANARY", RawSecretAccessKey: "canaryOfASecret" + strings.Repeat("x", 30),
		},
	}, kms.CodeUnsupportedOperation)
	for _, e := range w.events() {
		if strings.Contains(strings.ToLower(e.raw), "canary") {
			t.Errorf("the record holds a secret: %s", e.raw)
		}
	}
}

// Every part of a request that is declared and not built is refused by name;
// none is further down, where the core does not look.
func TestUnbuiltParts(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	n := 0
	for op, md := range methods() {
		fields := md.Input().Fields()
		for i := range fields.Len() {
			fd := fields.Get(i)
			if fd.Message() != nil && !fd.IsMap() && !operationSpec(op).GetBatch() {
				noUnbuiltPart(t, fd.Message())
			}
			if operationSpec(op).GetUnbuilt() {
				continue
			}
			for _, v := range unbuiltValues(fd) {
				n++
				req := sampleRequest(t, op)
				req.ProtoReflect().Set(fd, v)
				want := awsjson.MemberName(fd) + " "
				if fd.Enum() != nil && !fd.IsList() {
					want += awsjson.ValueName(fd.Enum().Values().ByNumber(v.Enum())) + " "
				}
				if e := refuse(w, req, kms.CodeUnsupportedOperation); !strings.HasPrefix(e.Message, want) {
					t.Errorf("%s: %q does not begin with %q", op, e.Message, want)
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("%d unbuilt parts found", n)
	}
}

// unbuiltValues returns what makes a request ask for something unbuilt.
func unbuiltValues(fd protoreflect.FieldDescriptor) []protoreflect.Value {
	if proto.GetExtension(fd.Options(), keyholdv1.E_Unbuilt) == true {
		mt, _ := protoregistry.GlobalTypes.FindMessageByName(fd.ContainingMessage().FullName())
		switch m := mt.New(); {
		case fd.IsList():
			m.Mutable(fd).List().Append(protoreflect.ValueOfEnum(1))
			return []protoreflect.Value{m.Get(fd)}
		case fd.Message() != nil:
			return []protoreflect.Value{m.NewField(fd)}
		case fd.Kind() == protoreflect.BoolKind:
			return []protoreflect.Value{protoreflect.ValueOfBool(true)}
		}
		return []protoreflect.Value{protoreflect.ValueOfString("x")}
	}
	var out []protoreflect.Value
	if fd.Enum() != nil && !fd.IsList() {
		for i := range fd.Enum().Values().Len() {
			if v := fd.Enum().Values().Get(i); proto.GetExtension(v.Options(), keyholdv1.E_UnbuiltValue) == true {
				out = append(out, protoreflect.ValueOfEnum(v.Number()))
			}
		}
	}
	return out
}

func noUnbuiltPart(t *testing.T, md protoreflect.MessageDescriptor) {
	t.Helper()
	for i := range md.Fields().Len() {
		if len(unbuiltValues(md.Fields().Get(i))) > 0 {
			t.Errorf("%s is unbuilt, and the core does not look there", md.Fields().Get(i).FullName())
		}
	}
}

// What says the same as its absence is accepted, and so are grant tokens.
func TestMembersWithoutEffect(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	resp := do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{
		Origin: keyholdv1.OriginType_ORIGIN_TYPE_AWS_KMS, MultiRegion: ptr(false), BypassPolicyLockoutSafetyCheck: ptr(false),
	})
	id := resp.GetKeyMetadata().GetKeyId()
	// The longest that may be: 10 of 8,192 characters. They are too large for a
	// record, which says so and is written all the same.
	tokens := make([]string, 10)
	for i := range tokens {
		tokens[i] = strings.Repeat("\u009b", 8192)
	}
	events := w.eventsOf(func() {
		do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), GrantTokens: tokens})
	})
	if len(events) != 1 || events[0].RequestParameters["omitted"] != true || events[0].Resources[0]["ARN"] == "" {
		t.Errorf("%+v", events)
	}
	for n, want := range map[int]string{11: "at most 10"} {
		e := refuse(w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), GrantTokens: make([]string, n)}, kms.CodeValidation)
		if !strings.Contains(e.Message, want) {
			t.Errorf("%d tokens: %s", n, e.Message)
		}
	}
	refuse(w, &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x"), GrantTokens: []string{tokens[0] + "x"}}, kms.CodeValidation)
}

// KeySpec's old name is taken in its stead, and not with it.
func TestCustomerMasterKeySpec(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	for i := range keyholdv1.CustomerMasterKeySpec(0).Descriptor().Values().Len() { //nolint:staticcheck // AWS's clients still send it
		v := keyholdv1.CustomerMasterKeySpec(0).Descriptor().Values().Get(i) //nolint:staticcheck // as above
		name := awsjson.ValueName(v)
		spec := keyholdv1.KeySpec(keyholdv1.KeySpec_value["KEY_SPEC_"+name])
		old := keyholdv1.CustomerMasterKeySpec(v.Number()) //nolint:staticcheck // as above
		usage := usageEncrypt
		switch {
		case v.Number() == 0 || proto.GetExtension(v.Options(), keyholdv1.E_UnbuiltValue) == true:
			continue
		case strings.HasPrefix(name, "HMAC"):
			usage = usageMac
		case strings.HasPrefix(name, "ECC"):
			usage = usageSign
		}
		t.Run(fmt.Sprint(name), func(t *testing.T) {
			w := w.with(t)
			resp, err := try[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{CustomerMasterKeySpec: old, KeyUsage: usage}) //nolint:staticcheck // as above
			if err != nil {                                                                                                             // the fake store is AES alone: what matters is which spec it was asked for
				if err.Code != kms.CodeUnsupportedOperation {
					t.Error(describe(err))
				}
				return
			}
			if m := resp.GetKeyMetadata(); m.GetKeySpec() != spec || m.GetCustomerMasterKeySpec() != old { //nolint:staticcheck // as above
				t.Errorf("%v", m)
			}
		})
		refuse(w, &keyholdv1.CreateKeyRequest{CustomerMasterKeySpec: old, KeySpec: spec, KeyUsage: usage}, kms.CodeValidation) //nolint:staticcheck // as above
	}
}
