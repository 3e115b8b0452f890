package awsjson_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func metadata() *keyholdv1.KeyMetadata {
	return &keyholdv1.KeyMetadata{
		AwsAccountId: "111122223333",
		KeyId:        "1234abcd-12ab-34cd-56ef-1234567890ab",
		Arn:          "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		CreationDate: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 250_000_000, time.UTC)),
		Enabled:      proto.Bool(false),
		Description:  proto.String(""),
		KeyUsage:     keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC,
		KeyState:     keyholdv1.KeyState_KEY_STATE_PENDING_DELETION,
		Origin:       keyholdv1.OriginType_ORIGIN_TYPE_AWS_KMS,
		KeySpec:      keyholdv1.KeySpec_KEY_SPEC_HMAC_256,
		MacAlgorithms: []keyholdv1.MacAlgorithmSpec{
			keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256,
		},
	}
}

func TestAppendMessage(t *testing.T) {
	encrypt := &keyholdv1.EncryptRequest{
		KeyId:             "alias/app",
		Plaintext:         []byte("secret"),
		EncryptionContext: map[string]string{"b": "2", "a": "1", "": "empty"},
		DryRun:            proto.Bool(true),
	}
	tests := []struct {
		name string
		opts awsjson.Options
		msg  proto.Message
		want string
	}{
		{
			"metadata",
			awsjson.Options{},
			metadata(),
			`{"AWSAccountId":"111122223333","KeyId":"1234abcd-12ab-34cd-56ef-1234567890ab",` +
				`"Arn":"arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",` +
				`"CreationDate":"2026-01-02T03:04:05.25Z","Enabled":false,"Description":"",` +
				`"KeyUsage":"GENERATE_VERIFY_MAC","KeyState":"PendingDeletion","Origin":"AWS_KMS",` +
				`"KeySpec":"HMAC_256","MacAlgorithms":["HMAC_SHA_256"]}`,
		},
		{
			"lower camel",
			awsjson.Options{LowerCamel: true},
			&keyholdv1.CreateKeyResponse{KeyMetadata: &keyholdv1.KeyMetadata{AwsAccountId: "1", Arn: "a"}},
			`{"keyMetadata":{"aWSAccountId":"1","arn":"a"}}`,
		},
		{
			"bytes, map in order",
			awsjson.Options{},
			encrypt,
			`{"KeyId":"alias/app","Plaintext":"c2VjcmV0","EncryptionContext":{"":"empty","a":"1","b":"2"},"DryRun":true}`,
		},
		{
			"redacted left out",
			awsjson.Options{OmitRedacted: true},
			encrypt,
			`{"KeyId":"alias/app","EncryptionContext":{"":"empty","a":"1","b":"2"},"DryRun":true}`,
		},
		{
			"redacted left out, other bytes kept",
			awsjson.Options{OmitRedacted: true},
			&keyholdv1.GenerateDataKeyResponse{CiphertextBlob: []byte{1}, Plaintext: []byte{2}, KeyId: "k"},
			`{"CiphertextBlob":"AQ==","KeyId":"k"}`,
		},
		{
			"all bytes left out",
			awsjson.Options{OmitBytes: true},
			&keyholdv1.GenerateDataKeyResponse{CiphertextBlob: []byte{1}, Plaintext: []byte{2}, KeyId: "k"},
			`{"KeyId":"k"}`,
		},
		{"epoch", awsjson.Options{EpochTimes: true}, &keyholdv1.KeyMetadata{CreationDate: timestamppb.New(time.Unix(1500000000, 120_000_000))}, `{"CreationDate":1500000000.12}`},
		{"emit_empty", awsjson.Options{}, &keyholdv1.ListKeysResponse{Truncated: proto.Bool(false)}, `{"Keys":[],"Truncated":false}`},
		{"other empty lists", awsjson.Options{}, &keyholdv1.CreateKeyRequest{}, `{}`},
		{"empty list of emit_empty on nil", awsjson.Options{}, (*keyholdv1.ListKeysResponse)(nil), `{"Keys":[]}`},
		{"typed nil", awsjson.Options{}, (*keyholdv1.EncryptRequest)(nil), `{}`},
		{"nil", awsjson.Options{}, nil, `null`},
		{"zero with presence", awsjson.Options{}, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(0)}, `{"NumberOfBytes":0}`},
		{"unknown enum number", awsjson.Options{}, &keyholdv1.CreateKeyRequest{KeySpec: 9999}, `{"KeySpec":"9999"}`},
		{"tag value empty but present", awsjson.Options{}, &keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "k", TagValue: proto.String("")}}}, `{"Tags":[{"TagKey":"k","TagValue":""}]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			enc := awsjson.NewEncoder(tt.opts)
			got := string(enc.AppendMessage([]byte("before "), tt.msg))
			if diff := cmp.Diff("before "+tt.want, got); diff != "" {
				t.Errorf("AppendMessage (-want +got):\n%s", diff)
			}
		})
	}
}

// A dynamic message of the same type must come out the same: its timestamps
// are of another Go type.
func TestAppendMessageDynamic(t *testing.T) {
	m := metadata()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	dyn := dynamicpb.NewMessage(m.ProtoReflect().Descriptor())
	if err := proto.Unmarshal(raw, dyn); err != nil {
		t.Fatal(err)
	}
	for _, opts := range []awsjson.Options{{}, {EpochTimes: true}} {
		enc := awsjson.NewEncoder(opts)
		want, got := string(enc.AppendMessage(nil, m)), string(enc.AppendMessage(nil, dyn))
		if want != got {
			t.Errorf("dynamic message: got %s, want %s", got, want)
		}
	}
}

func TestEpochTimes(t *testing.T) {
	tests := []struct {
		ts   *timestamppb.Timestamp
		want string
	}{
		{&timestamppb.Timestamp{}, "0"},
		{&timestamppb.Timestamp{Seconds: 1}, "1"},
		{&timestamppb.Timestamp{Nanos: 1}, "0.000000001"},
		{&timestamppb.Timestamp{Seconds: 10, Nanos: 999_999_999}, "10.999999999"},
		{&timestamppb.Timestamp{Seconds: 10, Nanos: 500_000_000}, "10.5"},
		{&timestamppb.Timestamp{Seconds: -1}, "-1"},
		{&timestamppb.Timestamp{Seconds: -1, Nanos: 750_000_000}, "-0.25"},
		{&timestamppb.Timestamp{Seconds: -2, Nanos: 750_000_000}, "-1.25"},
		{&timestamppb.Timestamp{Seconds: 5, Nanos: 1_500_000_000}, "6.5"},
		{&timestamppb.Timestamp{Seconds: 5, Nanos: -500_000_000}, "4.5"},
	}
	enc := awsjson.NewEncoder(awsjson.Options{EpochTimes: true})
	for _, tt := range tests {
		got := string(enc.AppendMessage(nil, &keyholdv1.KeyMetadata{CreationDate: tt.ts}))
		if want := `{"CreationDate":` + tt.want + `}`; got != want {
			t.Errorf("%v: got %s, want %s", tt.ts, got, want)
		}
	}
}

func TestAppendString(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", `""`},
		{"plain", `"plain"`},
		{"a\"b\\c/d", `"a\"b\\c/d"`},
		{"\n\r\t\x00\x1b[31m", `"\n\r\t\u0000\u001b[31m"`},
		{"del\x7f", `"del\u007f"`},
		{"c1\u009b31m", `"c1\u009b31m"`},
		{"\u00a0 é 漢 🔑", "\"\u00a0 é 漢 🔑\""},
		{"\u2028\u2029", `"\u2028\u2029"`},
		{"bad\xff\xc3", `"bad\ufffd\ufffd"`},
		{"\ufffd stays", "\"\ufffd stays\""},
		{"<&>", `"<&>"`},
	}
	for _, tt := range tests {
		if got := string(awsjson.AppendString(nil, tt.in)); got != tt.want {
			t.Errorf("AppendString(%q) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "a\"\\", "\x00\x7f\u0085\u2028", "\xff", "é漢🔑"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := awsjson.AppendString(nil, s)
		var got string
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%q gave %s: %v", s, out, err)
		}
		// encoding/json replaces bytes that are not UTF-8 in the same way.
		want := string([]rune(s))
		if got != want {
			t.Fatalf("%q came back as %q, want %q", s, got, want)
		}
		for _, r := range string(out) {
			if r < 0x20 || r >= 0x7f && r <= 0x9f || r == 0x2028 || r == 0x2029 {
				t.Fatalf("%q left %U unescaped", s, r)
			}
		}
	})
}

func TestEnums(t *testing.T) {
	spec := keyholdv1.KeySpec(0).Descriptor()
	state := keyholdv1.KeyState(0).Descriptor()

	if got := awsjson.EnumName(keyholdv1.KeyState_KEY_STATE_PENDING_DELETION); got != "PendingDeletion" {
		t.Errorf("EnumName = %q, want PendingDeletion", got)
	}
	if got := awsjson.EnumName(keyholdv1.KeySpec(0)); got != "" {
		t.Errorf("EnumName of unspecified = %q, want none", got)
	}
	if got := awsjson.EnumName(keyholdv1.KeySpec(777)); got != "777" {
		t.Errorf("EnumName of unknown = %q, want 777", got)
	}
	for _, name := range []string{"", "UNSPECIFIED", "KEY_SPEC_HMAC_256", "hmac_256", "HMAC_257", "1"} {
		if n, ok := awsjson.ParseEnum(spec, name); ok {
			t.Errorf("ParseEnum(%q) = %d, want refusal", name, n)
		}
	}
	for _, ed := range []protoreflect.EnumDescriptor{spec, state} {
		for _, name := range awsjson.EnumNames(ed) {
			n, ok := awsjson.ParseEnum(ed, name)
			if !ok || awsjson.ValueName(ed.Values().ByNumber(n)) != name {
				t.Errorf("ParseEnum(%q) = %d, %t: not the value of that name", name, n, ok)
			}
		}
	}
	want := []string{"Creating", "Enabled", "Disabled", "PendingDeletion", "Unavailable", "PendingImport", "PendingReplicaDeletion", "Updating"}
	if diff := cmp.Diff(want, awsjson.EnumNames(state)); diff != "" {
		t.Errorf("EnumNames (-want +got):\n%s", diff)
	}
	if strings.Contains(strings.Join(awsjson.EnumNames(spec), " "), "UNSPECIFIED") {
		t.Error("EnumNames lists the unspecified value")
	}
}

// One encoder, many goroutines, all types at first use: run with -race.
func TestConcurrentUse(t *testing.T) {
	enc := awsjson.NewEncoder(awsjson.Options{})
	want := string(awsjson.NewEncoder(awsjson.Options{}).AppendMessage(nil, metadata()))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 50 {
				if got := string(enc.AppendMessage(nil, metadata())); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAppendMessage(b *testing.B) {
	enc := awsjson.NewEncoder(awsjson.Options{LowerCamel: true, OmitRedacted: true})
	for _, bm := range []struct {
		name string
		msg  proto.Message
	}{
		{"EncryptRequest/context=3", &keyholdv1.EncryptRequest{
			KeyId: "alias/app", Plaintext: make([]byte, 1024),
			EncryptionContext: map[string]string{"a": "1", "b": "2", "c": "3"},
		}},
		{"DescribeKeyResponse", &keyholdv1.DescribeKeyResponse{KeyMetadata: metadata()}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				buf = enc.AppendMessage(buf[:0], bm.msg)
			}
		})
	}
}
