package violations_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi/violations"
	"github.com/keyhold/keyhold/server/kms"
)

func newMessage(tb testing.TB, md protoreflect.MessageDescriptor) proto.Message {
	tb.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		tb.Fatal(err)
	}
	return mt.New().Interface()
}

// texts decodes and validates a body as the door and the core do.
func texts(tb testing.TB, m proto.Message, body string) (*awsjson.Decoded, error) {
	tb.Helper()
	d, err := awsjson.NewDecoder(awsjson.Limits{}).Decode([]byte(body), m)
	if err != nil {
		tb.Fatalf("%.80s: %v", body, err)
	}
	return d, protovalidate.Validate(m)
}

func TestMessage(t *testing.T) {
	t.Parallel()
	const one, at = "1 validation error detected: ", " failed to satisfy constraint: "
	for _, tt := range []struct {
		msg        proto.Message
		body, want string
	}{
		{&keyholdv1.DescribeKeyRequest{}, `{"KeyId":"k"}`, ""},
		{&keyholdv1.DescribeKeyRequest{}, `{"KeyId":""}`, one + "Value at 'keyId'" + at + "Member must have length greater than or equal to 1"},
		{&keyholdv1.DescribeKeyRequest{}, `{}`, one + "Value at 'keyId'" + at + "Member must not be null"},
		{&keyholdv1.DescribeKeyRequest{}, `{"KeyId":null}`, one + "Value at 'keyId'" + at + "Member must not be null"},
		{&keyholdv1.DescribeKeyRequest{}, `{"KeyId":"` + strings.Repeat("x", 2049) + `"}`, one + "Value at 'keyId'" + at + "Member must have length less than or equal to 2048"},
		{&keyholdv1.EncryptRequest{}, `{}`, "2 validation errors detected: Value at 'keyId'" + at + "Member must not be null; Value at 'plaintext'" + at + "Member must not be null"},
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"k","Plaintext":""}`, one + "Value at 'plaintext'" + at + "Member must have length greater than or equal to 1"},
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"k","Plaintext":"AA==","EncryptionAlgorithm":"AES"}`, one + "Value 'AES' at 'encryptionAlgorithm'" + at + "Member must satisfy enum value set: [SYMMETRIC_DEFAULT, RSAES_OAEP_SHA_1, RSAES_OAEP_SHA_256, SM2PKE]"},
		{&keyholdv1.SignRequest{}, `{"KeyId":"k","Message":"AA=="}`, one + "Value at 'signingAlgorithm'" + at + "Member must not be null"},
		{&keyholdv1.GenerateMacRequest{}, `{"KeyId":"k","Message":"AA==","MacAlgorithm":""}`, one + "Value '' at 'macAlgorithm'" + at + "Member must satisfy enum value set: [HMAC_SHA_224, HMAC_SHA_256, HMAC_SHA_384, HMAC_SHA_512]"},
		{&keyholdv1.DeleteAliasRequest{}, `{"AliasName":""}`, "2 validation errors detected: Value at 'aliasName'" + at + "Member must have length greater than or equal to 1; Value at 'aliasName'" + at + "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{&keyholdv1.DeleteAliasRequest{}, `{}`, one + "Value at 'aliasName'" + at + "Member must not be null"},
		{&keyholdv1.ListKeysRequest{}, `{"Limit":0,"Marker":"\u0100"}`, "2 validation errors detected: Value at 'limit'" + at + "Member must have value greater than or equal to 1; Value at 'marker'" + at + `Member must satisfy regular expression pattern: [\u0020-\u00FF]*`},
		{&keyholdv1.ListKeysRequest{}, `{"Limit":1001}`, one + "Value at 'limit'" + at + "Member must have value less than or equal to 1000"},
		{&keyholdv1.PutKeyPolicyRequest{}, `{"KeyId":"k","Policy":"\u0007"}`, one + "Value at 'policy'" + at + `Member must satisfy regular expression pattern: [\u0009\u000A\u000D\u0020-\u00FF]+`},
		{&keyholdv1.CreateKeyRequest{}, `{"Tags":[{"TagKey":"k","TagValue":""},{"TagKey":""}]}`, "2 validation errors detected: Value at 'tags.2.member.tagKey'" + at + "Member must have length greater than or equal to 1; Value at 'tags.2.member.tagValue'" + at + "Member must not be null"},
		{&keyholdv1.DescribeKeyRequest{}, `{"KeyId":"k","GrantTokens":["","a",""]}`, one + "Value at 'grantTokens'" + at + "Member must satisfy constraint: [Member must have length less than or equal to 8192, Member must have length greater than or equal to 1]"},
		{&keyholdv1.UntagResourceRequest{}, `{"KeyId":"k","TagKeys":[]}`, one + "Value at 'tagKeys'" + at + "Member must have length greater than or equal to 1"},
		{&keyholdv1.UntagResourceRequest{}, `{"KeyId":"k"}`, one + "Value at 'tagKeys'" + at + "Member must not be null"},
		{&keyholdv1.CreateGrantRequest{}, `{"KeyId":"k","GranteePrincipal":"p","Operations":["Decrypt","X"]}`, one + "Value '[X]' at 'operations'" + at + "Member must satisfy constraint: [Member must satisfy enum value set: [" + strings.Join(awsjson.EnumNames(keyholdv1.GrantOperation(0).Descriptor()), ", ") + "]]"},
		{&keyholdv1.DeleteImportedKeyMaterialRequest{}, `{"KeyId":"k","KeyMaterialId":"aa"}`, one + "Value at 'keyMaterialId'" + at + "Member must have length greater than or equal to 64"},
		{&keyholdv1.DeleteImportedKeyMaterialRequest{}, `{"KeyId":"k","KeyMaterialId":"` + strings.Repeat("a", 65) + `"}`, one + "Value at 'keyMaterialId'" + at + "Member must have length less than or equal to 64"},
		{&keyholdv1.UpdateKeyDescriptionRequest{}, `{"KeyId":"k"}`, one + "Value at 'description'" + at + "Member must not be null"},
		{&keyholdv1.UpdateKeyDescriptionRequest{}, `{"KeyId":"k","Description":""}`, ""},
		{&keyholdv1.GenerateRandomRequest{}, `{}`, one + "Value at 'numberOfBytes'" + at + "Member must not be null"},
		{&keyholdv1.CreateCustomKeyStoreRequest{}, `{"CustomKeyStoreName":"n","XksProxyUriPath":"/kms/xks/vX","XksProxyAuthenticationCredential":{}}`, "3 validation errors detected: Value at 'xksProxyUriPath'" + at + `Member must satisfy regular expression pattern: ^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$; ` +
			"Value at 'xksProxyAuthenticationCredential.accessKeyId'" + at + "Member must not be null; Value at 'xksProxyAuthenticationCredential.rawSecretAccessKey'" + at + "Member must not be null"},
	} {
		d, err := texts(t, tt.msg, tt.body)
		if got := violations.Message(tt.msg, d, err); got != tt.want {
			t.Errorf("%.100s:\n%s\nwant\n%s", tt.body, got, tt.want)
		}
	}
}

// What the core says in its own words.
func TestMessageOfTheCore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&kms.Error{Code: kms.CodeValidation, Message: "KeyUsage X is not compatible with KeySpec Y."}, "KeyUsage X is not compatible with KeySpec Y."},
		{&kms.Error{Code: kms.CodeValidation, Message: "m", Violations: []kms.Violation{{Field: "tags[3].tag_key", Description: "must be given"}}}, "1 validation error detected: Value at 'tags.4.member.tagKey' failed to satisfy constraint: Member must be given"},
		{errors.New("else"), ""},
		{nil, ""},
	} {
		if got := violations.Message(&keyholdv1.CreateKeyRequest{}, nil, tt.err); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

// The paths are made of the proto's names: no member of a request may have a
// name that they do not give, and nothing that is checked may be without words.
func TestEveryConstraintHasWords(t *testing.T) {
	t.Parallel()
	dec, checked := awsjson.NewDecoder(awsjson.Limits{Bytes: 1 << 24}), 0
	for _, sd := range kms.Services() {
		for i := range sd.Methods().Len() {
			md := sd.Methods().Get(i).Input()
			if sd.Methods().Get(i).Name() == "Batch" {
				continue
			}
			for j := range md.Fields().Len() {
				fd := md.Fields().Get(j)
				path := awsjson.PathName(fd)
				for _, edge := range edges(fd) {
					checked++
					m := newMessage(t, md)
					body, err := json.Marshal(map[string]any{awsjson.MemberName(fd): edge.value})
					if err != nil {
						t.Fatal(err)
					}
					d, err := dec.Decode(body, m)
					if err != nil {
						t.Fatalf("%s: %v", fd.FullName(), err)
					}
					want := fmt.Sprintf("Value at '%s' failed to satisfy constraint: %s", path, edge.constraint)
					got := violations.Texts(m, d, protovalidate.Validate(m))
					if slices.Contains(got, want) != edge.broken {
						t.Errorf("%s: broken %t, said %q, want %q", fd.FullName(), edge.broken, got, want)
					}
					for _, text := range got {
						if !regexp.MustCompile(`^Value at '[a-zA-Z0-9.]+' failed to satisfy constraint: Member must (not be null|have (length|value) (less|greater) than or equal to \d+|satisfy (constraint|regular expression pattern|enum value set): .+)$`).MatchString(text) {
							t.Errorf("%s: %q is not in AWS's words", fd.FullName(), text)
						}
					}
				}
			}
		}
	}
	if checked < 300 {
		t.Errorf("%d edges checked", checked)
	}
}

type edge struct {
	value      any
	constraint string
	broken     bool
}

// edges are the values at which the constraints of a field begin to hold.
func edges(fd protoreflect.FieldDescriptor) []edge {
	rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
	var out []edge
	both := func(value func(n int) any, kind string, n int, outside int) {
		text := fmt.Sprintf("Member must have %s equal to %d", kind, n)
		out = append(out, edge{value(n), text, false})
		if n+outside > 0 || fd.Kind() == protoreflect.Int32Kind { // an empty one: of TestMessage
			out = append(out, edge{value(n + outside), text, true})
		}
	}
	text := func(n int) any { return strings.Repeat("a", n) }
	blob := func(n int) any { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	number := func(n int) any { return n }
	items := func(n int) any {
		switch {
		case fd.Message() != nil:
			return slices.Repeat([]any{map[string]any{"TagKey": "k", "TagValue": "v"}}, n)
		case fd.Enum() != nil:
			return slices.Repeat([]any{awsjson.EnumNames(fd.Enum())[0]}, n)
		}
		return slices.Repeat([]any{"x"}, n)
	}
	s, b, i, r := rules.GetString(), rules.GetBytes(), rules.GetInt32(), rules.GetRepeated()
	if s.HasLen() {
		both(text, "length greater than or", int(s.GetLen()), -1)
		both(text, "length less than or", int(s.GetLen()), 1)
	}
	if s.HasMinLen() {
		both(text, "length greater than or", int(s.GetMinLen()), -1)
	}
	if s.HasMaxLen() {
		both(text, "length less than or", int(s.GetMaxLen()), 1)
	}
	if b.HasMaxLen() {
		both(blob, "length less than or", int(b.GetMaxLen()), 1)
	}
	if i.HasGte() {
		both(number, "value greater than or", int(i.GetGte()), -1)
		both(number, "value less than or", int(i.GetLte()), 1)
	}
	if r.HasMaxItems() {
		both(items, "length less than or", int(r.GetMaxItems()), 1)
	}
	return out
}

// No value is repeated but an enum's name, whatever is wrong with it.
func TestNothingIsRepeated(t *testing.T) {
	t.Parallel()
	const canary = "canary\\u0007-of-a-secret"
	secret := strings.Repeat(canary, 400)
	b64 := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("canary", 1200)))
	for _, tt := range []struct {
		msg  proto.Message
		body string
	}{
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"` + secret + `","Plaintext":"` + b64 + `","GrantTokens":["` + secret + `"]}`},
		{&keyholdv1.CreateCustomKeyStoreRequest{}, `{"CustomKeyStoreName":"` + secret + `","KeyStorePassword":"` + secret + `","XksProxyAuthenticationCredential":{"RawSecretAccessKey":"` + secret + `","AccessKeyId":"` + secret + `"}}`},
		{&keyholdv1.CreateKeyRequest{}, `{"Policy":"` + secret + `","Tags":[{"TagKey":"` + secret + `","TagValue":"` + secret + `"}],"XksKeyId":"` + secret + `"}`},
	} {
		d, err := texts(t, tt.msg, tt.body)
		if got := violations.Message(tt.msg, d, err); got == "" || strings.Contains(got, "canary") {
			t.Errorf("%T: %.200s", tt.msg, got)
		}
	}
}

// A request full of wrong elements is not answered with megabytes.
func TestManyViolations(t *testing.T) {
	t.Parallel()
	body := `{"Operations":[` + strings.TrimSuffix(strings.Repeat(`"X",`, 5000), ",") + `]}`
	m := &keyholdv1.CreateGrantRequest{}
	d, err := texts(t, m, body)
	if got := violations.Message(m, d, err); len(got) > 4096 || !strings.Contains(got, "Value '[X]' at 'operations'") {
		t.Errorf("%d bytes: %.300s", len(got), got)
	}
	tags := `{"Tags":[` + strings.TrimSuffix(strings.Repeat(`{},`, 5000), ",") + `]}`
	many := &keyholdv1.CreateKeyRequest{}
	d, err = texts(t, many, tags)
	if got := violations.Message(many, d, err); len(got) > 16<<10 || !strings.HasPrefix(got, "100") {
		t.Errorf("%d bytes: %.300s", len(got), got)
	}
}

// BenchmarkEncrypt is what the codec and the constraints cost a request: decode,
// validate, and encode the answer.
func BenchmarkEncrypt(b *testing.B) {
	body, err := json.Marshal(map[string]any{
		"KeyId": "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", "Plaintext": make([]byte, 1024),
		"EncryptionContext": map[string]string{"purpose": "test", "tenant": "one", "object": "42"}, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
	})
	if err != nil {
		b.Fatal(err)
	}
	validator, err := protovalidate.New(protovalidate.WithMessages(&keyholdv1.EncryptRequest{}), protovalidate.WithDisableLazy())
	if err != nil {
		b.Fatal(err)
	}
	dec, enc := awsjson.NewDecoder(awsjson.Limits{}), awsjson.NewEncoder(awsjson.Options{EpochTimes: true})
	resp := &keyholdv1.EncryptResponse{CiphertextBlob: make([]byte, 1024+64), KeyId: "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", EncryptionAlgorithm: 1}
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		req := &keyholdv1.EncryptRequest{}
		if _, err := dec.Decode(body, req); err != nil {
			b.Fatal(err)
		}
		if err := validator.Validate(req); err != nil {
			b.Fatal(err)
		}
		out = enc.AppendMessage(out[:0], resp)
	}
}
