package awsjson_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func newMessage(tb testing.TB, md protoreflect.MessageDescriptor) proto.Message {
	tb.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		tb.Fatal(err)
	}
	return mt.New().Interface()
}

// onTheWire makes an example's document into what would be sent: its blobs are
// placeholders, and its times are texts.
func onTheWire(t *testing.T, f *facts, structure string, doc map[string]any) map[string]any {
	t.Helper()
	var value func(m *member, v any) any
	value = func(m *member, v any) any {
		switch m.Type {
		case "blob":
			return base64.StdEncoding.EncodeToString([]byte(v.(string)))
		case "timestamp":
			s, ok := v.(string)
			if !ok {
				return v
			}
			if at, err := time.Parse(time.RFC3339, s); err == nil {
				return float64(at.Unix())
			}
			if !json.Valid([]byte(s)) {
				return 1.6e9 // one example's hour is 016
			}
			return json.Number(s)
		case "structure":
			return onTheWire(t, f, m.Name, v.(map[string]any))
		case "list":
			for i, e := range v.([]any) {
				v.([]any)[i] = value(m.Element, e)
			}
		}
		return v
	}
	for k, v := range doc {
		m := f.Structures[structure][k]
		if m == nil {
			t.Fatalf("the example's %s.%s has no facts", structure, k)
		}
		doc[k] = value(m, v)
	}
	return doc
}

// Every example of AWS's model is read, and written again as it was.
func TestExamples(t *testing.T) {
	var f facts
	readTestdata(t, "kms-facts.json", &f)
	var examples map[string][]map[string]map[string]any
	readTestdata(t, "kms-examples.json", &examples)
	dec, enc := awsjson.NewDecoder(awsjson.Limits{}), awsjson.NewEncoder(awsjson.Options{EpochTimes: true})
	methods, sides := apiMethods(), 0
	for op, list := range examples {
		for _, example := range list {
			for side, doc := range example {
				md, structure := methods[op].Input(), f.Operations[op].Input
				if side == "output" {
					md, structure = methods[op].Output(), f.Operations[op].Output
				}
				if sides++; doc == nil {
					doc = map[string]any{}
				}
				body, err := json.Marshal(onTheWire(t, &f, structure, doc))
				if err != nil {
					t.Fatal(err)
				}
				m := newMessage(t, md)
				d, err := dec.Decode(body, m)
				if err != nil || len(d.UnknownValues) > 0 || side == "input" && len(d.Empty) > 0 {
					t.Errorf("%s %s: %v, %+v\n%s", op, side, err, d, body)
					continue
				}
				var want, got any
				if err := errors.Join(json.Unmarshal(body, &want), json.Unmarshal(enc.AppendMessage(nil, m), &got)); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s %s (-example +ours):\n%s", op, side, diff)
				}
			}
		}
	}
	if sides < 100 {
		t.Errorf("%d sides of examples", sides)
	}
}

func TestDecode(t *testing.T) {
	dec := awsjson.NewDecoder(awsjson.Limits{})
	for name, tt := range map[string]struct {
		body string
		want proto.Message
	}{
		"nothing":                  {` {} `, &keyholdv1.EncryptRequest{}},
		"all kinds":                {`{"KeyId":"k","Plaintext":"aGk=","EncryptionContext":{"a":"1"},"EncryptionAlgorithm":"SYMMETRIC_DEFAULT","DryRun":false,"GrantTokens":["a","b"]}`, &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: []byte("hi"), EncryptionContext: map[string]string{"a": "1"}, EncryptionAlgorithm: 1, DryRun: proto.Bool(false), GrantTokens: []string{"a", "b"}}},
		"white space":              {"\t{\r\n \"KeyId\" : \"k\" ,\n\"DryRun\": true }\n", &keyholdv1.EncryptRequest{KeyId: "k", DryRun: proto.Bool(true)}},
		"null is absent":           {`{"KeyId":null,"DryRun":null,"GrantTokens":null,"EncryptionContext":null}`, &keyholdv1.EncryptRequest{}},
		"unknown members":          {`{"X":{"KeyId":["k",{},null,true,-1.5e+3]},"KeyId":"k","keyid":1,"keyId":"l"}`, &keyholdv1.EncryptRequest{KeyId: "k"}},
		"escapes":                  {`{"KeyId":"\"\\\/\b\f\n\r\t\u0041\u00e9\uD83D\uDD11é"}`, &keyholdv1.EncryptRequest{KeyId: "\"\\/\b\f\n\r\tA\u00e9\U0001f511é"}},
		"escaped names and base64": {`{"\u004beyId":"k","Plaintext":"\/\/\u0038="}`, &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: []byte{0xff, 0xff}}},
		"present and empty":        {`{"KeyId":"","Marker":""}`, &keyholdv1.ListAliasesRequest{KeyId: proto.String(""), Marker: proto.String("")}},
		"whole numbers":            {`{"NumberOfBytes":1.6e1}`, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(16)}},
		"the largest":              {`{"NumberOfBytes":2147483647}`, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(2147483647)}},
		"the smallest":             {`{"NumberOfBytes":-2147483648.0}`, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(-2147483648)}},
		"minus zero":               {`{"NumberOfBytes":-0e99999}`, &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(0)}},
		"tags":                     {`{"Tags":[{"TagKey":"k","TagValue":""},{}]}`, &keyholdv1.CreateKeyRequest{Tags: []*keyholdv1.Tag{{TagKey: "k", TagValue: proto.String("")}, {}}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := newMessage(t, tt.want.ProtoReflect().Descriptor())
			if _, err := dec.Decode([]byte(tt.body), got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeTimestamps(t *testing.T) {
	dec := awsjson.NewDecoder(awsjson.Limits{})
	for in, want := range map[string]*timestamppb.Timestamp{
		"0": {}, "1500000000": {Seconds: 1_500_000_000}, "1.5E9": {Seconds: 1_500_000_000},
		"1.499288695918E9": {Seconds: 1_499_288_695, Nanos: 918_000_000}, "0.25": {Nanos: 250_000_000},
		"-0.25": {Seconds: -1, Nanos: 750_000_000}, "-1": {Seconds: -1}, "1e-9": {Nanos: 1}, "1.0000000019": {Seconds: 1, Nanos: 1},
		"1e-99999999999": {}, "253402300799": {Seconds: 253_402_300_799}, "-62135596800": {Seconds: -62_135_596_800},
		"253402300800": nil, "-62135596800.5": nil, "1e99999999999": nil, `"1500000000"`: nil, "true": nil, "{}": nil,
	} {
		m := &keyholdv1.ImportKeyMaterialRequest{}
		_, err := dec.Decode([]byte(`{"ValidTo":`+in+`}`), m)
		if (err == nil) != (want != nil) {
			t.Errorf("%s: %v", in, err)
		}
		if want != nil && !proto.Equal(want, m.GetValidTo()) {
			t.Errorf("%s became %v, want %v", in, m.GetValidTo(), want)
		}
	}
}

// What is not the JSON of a request is a SerializationError, which does not
// repeat it.
func TestDecodeRefuses(t *testing.T) {
	dec := awsjson.NewDecoder(awsjson.Limits{Bytes: 4096, Depth: 8, Elements: 8})
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for body, want := range map[string]string{
		"":                                 "The request is not a JSON object.",
		"null":                             "The request is not a JSON object.",
		"[]":                               "The request is not a JSON object.",
		`"canary"`:                         "The request is not a JSON object.",
		"\ufeff{}":                         "The request is not a JSON object.",
		"{}x":                              "The request has something behind its JSON object.",
		"{}{}":                             "The request has something behind its JSON object.",
		"{":                                "Unexpected end of the request.",
		`{"KeyId"`:                         "Unexpected end of the request.",
		`{"KeyId":`:                        "Unexpected end of the request.",
		`{"KeyId":"c`:                      "Unexpected end of the request.",
		`{"KeyId":"\`:                      "Unexpected end of the request.",
		`{"KeyId":"canary",}`:              "The request is not valid JSON.",
		`{,}`:                              "The request is not valid JSON.",
		`{KeyId:"canary"}`:                 "The request is not valid JSON.",
		`{'KeyId':'canary'}`:               "The request is not valid JSON.",
		`{"KeyId":"canary" "DryRun":true}`: "The request is not valid JSON.",
		`{"KeyId":"a` + "\n" + `b"}`:       "The request is not valid JSON.",
		`{"KeyId":"\x41"}`:                 "The request is not valid JSON.",
		`{"KeyId":"\u00g0"}`:               "The request is not valid JSON.",
		`{"KeyId":"\ud83d"}`:               "The request is not valid JSON.",
		`{"KeyId":"\ud83d\u0041"}`:         "The request is not valid JSON.",
		`{"KeyId":"\udd11\ud83d"}`:         "The request is not valid JSON.",
		`{"X":"\ud83d"}`:                   "The request is not valid JSON.",
		"{\"KeyId\":\"\xff\"}":             "The request is not valid UTF-8.",
		"{\"KeyId\":\"\\n\xff\"}":          "The request is not valid UTF-8.",
		"{\"\xc3\":1}":                     "The request is not valid UTF-8.",
		`{"KeyId":12}`:                     "NUMBER_VALUE can not be converted to a String",
		`{"KeyId":true}`:                   "TRUE_VALUE can not be converted to a String",
		`{"KeyId":{}}`:                     "Start of structure or map found where not expected.",
		`{"KeyId":["canary"]}`:             "Start of list found where not expected.",
		`{"Plaintext":1}`:                  "NUMBER_VALUE can not be converted to a String",
		`{"DryRun":"true"}`:                "STRING_VALUE can not be converted to a Boolean",
		`{"DryRun":1}`:                     "NUMBER_VALUE can not be converted to a Boolean",
		`{"DryRun":tru}`:                   "The request is not valid JSON.",
		`{"DryRun":truex}`:                 "The request is not valid JSON.",
		`{"GrantTokens":"canary"}`:         "STRING_VALUE can not be converted to a list",
		`{"GrantTokens":[null]}`:           "Null found in a list.",
		`{"GrantTokens":["1","2","3","4","5","6","7","8","9"]}`: "The request has too many elements.",
		`{"EncryptionContext":[]}`:                              "Start of list found where not expected.",
		`{"EncryptionContext":{"a":1}}`:                         "NUMBER_VALUE can not be converted to a String",
		`{"EncryptionContext":{"a":null}}`:                      "Null found in a map.",
		`{"EncryptionContext":{"a":{"b":"c"}}}`:                 "Start of structure or map found where not expected.",
		`{"EncryptionAlgorithm":1}`:                             "NUMBER_VALUE can not be converted to a String",
		`{"Plaintext":"Y2FuYXJ5!"}`:                             "A blob is not valid base64.",
		`{"Plaintext":"Y2FuYXJ5c"}`:                             "A blob is not valid base64.",
		`{"Plaintext":"aGk"}`:                                   "A blob is not valid base64.",
		`{"Plaintext":"aGk=\n"}`:                                "A blob is not valid base64.",
		`{"Plaintext":"aGk=aGk="}`:                              "A blob is not valid base64.",
		`{"Plaintext":"-_=="}`:                                  "A blob is not valid base64.",
		`{"X":` + deep(8) + `}`:                                 "The request is nested too deeply.",
		`{"X":` + strings.Repeat(`{"a":`, 100):                  "The request is nested too deeply.",
		`{"X":01}`:                                              "The request is not valid JSON.",
		`{"X":.5}`:                                              "The request is not valid JSON.",
		`{"X":1.}`:                                              "The request is not valid JSON.",
		`{"X":1e}`:                                              "The request is not valid JSON.",
		`{"X":+1}`:                                              "The request is not valid JSON.",
		`{"X":-}`:                                               "The request is not valid JSON.",
		`{"X":NaN}`:                                             "The request is not valid JSON.",
		`{"X":nul}`:                                             "The request is not valid JSON.",
		`{"X":1 /* */}`:                                         "The request is not valid JSON.",
		`{"X":"` + strings.Repeat("canary", 700) + `"}`:         "The request is larger than 4096 bytes.",
	} {
		m := &keyholdv1.EncryptRequest{}
		d, err := dec.Decode([]byte(body), m)
		var wrong *awsjson.SerializationError
		if !errors.As(err, &wrong) || wrong.Reason != want || d != nil {
			t.Errorf("%.60q: %v, want %q", body, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the error repeats the body: %v", err)
		}
	}
	if _, err := dec.Decode([]byte(`{"X":`+deep(7)+`}`), &keyholdv1.EncryptRequest{}); err != nil {
		t.Errorf("as deep as may be: %v", err)
	}
	for _, n := range []string{"2147483648", "-2147483649", "1.5", "1e10", "1e-1", "0.1", "1e999999999999999999", `"16"`, "true", "[1]"} {
		if _, err := dec.Decode([]byte(`{"NumberOfBytes":`+n+`}`), &keyholdv1.GenerateRandomRequest{}); err == nil {
			t.Errorf("%s is taken for an integer", n)
		}
	}
	for _, body := range []string{`{"Tags":{}}`, `{"Tags":["x"]}`, `{"Tags":[[]]}`, `{"Tags":[1]}`, `{"Recipient":1}`, `{"Recipient":"x"}`, `{"Recipient":[]}`} {
		for _, m := range []proto.Message{&keyholdv1.CreateKeyRequest{}, &keyholdv1.DecryptRequest{}} {
			if m.ProtoReflect().Descriptor().Fields().ByName("tags") == nil != strings.Contains(body, "Recip") {
				continue
			}
			if _, err := dec.Decode([]byte(body), m); err == nil {
				t.Errorf("%s is taken", body)
			}
		}
	}
}

// A name is once in each object, however it is written and whatever the object is:
// two readers of one body must not read two requests.
func TestDecodeTwice(t *testing.T) {
	t.Parallel()
	dec := awsjson.NewDecoder(awsjson.Limits{})
	for _, tt := range []struct {
		m    proto.Message
		body string
	}{
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"a","KeyId":"b"}`},
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"a","KeyId":"a"}`},
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"a","KeyId":null}`},
		{&keyholdv1.EncryptRequest{}, `{"KeyId":null,"KeyId":"a"}`},
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"a","\u004beyId":"b"}`},
		{&keyholdv1.EncryptRequest{}, `{"Plaintext":"YQ==","Plaintext":"Yg=="}`},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionAlgorithm":"X","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`},
		{&keyholdv1.EncryptRequest{}, `{"GrantTokens":[],"GrantTokens":["a"]}`},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionContext":{"a":"1"},"EncryptionContext":{"b":"2"}}`},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionContext":{"a":"1","b":"2","a":"1"}}`},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionContext":{"é":"1","\u00e9":"2"}}`},
		{&keyholdv1.EncryptRequest{}, `{"X":1,"KeyId":"a","X":2}`},
		{&keyholdv1.EncryptRequest{}, `{"X":{"KeyId":1,"KeyId":2}}`},
		{&keyholdv1.EncryptRequest{}, `{"X":[{"":1,"":2}]}`},
		{&keyholdv1.CreateKeyRequest{}, `{"Tags":[{"TagKey":"a"},{"TagKey":"b","TagKey":"c"}]}`},
		{&keyholdv1.DecryptRequest{}, `{"Recipient":{},"Recipient":{"AttestationDocument":"AA=="}}`},
	} {
		_, err := dec.Decode([]byte(tt.body), tt.m)
		var wrong *awsjson.SerializationError
		if !errors.As(err, &wrong) || wrong.Reason != "A name is there twice in one object." {
			t.Errorf("%s: %v", tt.body, err)
		}
	}
	// Names differ in case, and one may be in many objects.
	for _, body := range []string{`{"KeyId":"a","keyId":"b","KEYID":1,"X":{"KeyId":1,"X":{"X":1}},"EncryptionContext":{"KeyId":"1","keyId":"2"}}`, `{"X":[{"a":1},{"a":1}]}`} {
		if _, err := dec.Decode([]byte(body), &keyholdv1.EncryptRequest{}); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	// As many as all elements may be, and one more.
	for n, ok := range map[int]bool{5: true, 6: false} {
		body := `{"X":1,"Y":{"a":1,"b":1},"GrantTokens":["1"` + strings.Repeat(`,"1"`, n-5) + `]}`
		if _, err := awsjson.NewDecoder(awsjson.Limits{Elements: 5}).Decode([]byte(body), &keyholdv1.EncryptRequest{}); (err == nil) != ok {
			t.Errorf("%d elements: %v", n, err)
		}
	}
}

// What a message cannot hold is told beside it.
func TestDecoded(t *testing.T) {
	dec := awsjson.NewDecoder(awsjson.Limits{})
	algorithms := []string{"SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"}
	for _, tt := range []struct {
		msg  proto.Message
		body string
		want awsjson.Decoded
	}{
		{&keyholdv1.EncryptRequest{}, `{"KeyId":"","Plaintext":"","EncryptionContext":{},"GrantTokens":[]}`, awsjson.Decoded{Empty: []string{"keyId", "plaintext", "encryptionContext", "grantTokens"}}},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionAlgorithm":"X\u001b"}`, awsjson.Decoded{UnknownValues: []awsjson.UnknownValue{{Path: "encryptionAlgorithm", Value: "X\x1b", Set: algorithms}}}},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionAlgorithm":"ENCRYPTION_ALGORITHM_SPEC_UNSPECIFIED"}`, awsjson.Decoded{UnknownValues: []awsjson.UnknownValue{{Path: "encryptionAlgorithm", Value: "ENCRYPTION_ALGORITHM_SPEC_UNSPECIFIED", Set: algorithms}}}},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionAlgorithm":""}`, awsjson.Decoded{UnknownValues: []awsjson.UnknownValue{{Path: "encryptionAlgorithm", Set: algorithms}}}},
		{&keyholdv1.CreateKeyRequest{}, `{"Tags":[{"TagKey":"a"},{"TagKey":"","TagValue":""}]}`, awsjson.Decoded{Empty: []string{"tags.2.member.tagKey"}}},
		{&keyholdv1.CreateGrantRequest{}, `{"Operations":["Decrypt","X"],"Constraints":{"EncryptionContextEquals":{}}}`, awsjson.Decoded{
			Empty:         []string{"constraints.encryptionContextEquals"},
			UnknownValues: []awsjson.UnknownValue{{Path: "operations", Value: "X", Set: awsjson.EnumNames(keyholdv1.GrantOperation(0).Descriptor()), Element: true}},
		}},
		{&keyholdv1.EncryptRequest{}, `{"EncryptionAlgorithm":"` + strings.Repeat("é", 300) + `"}`, awsjson.Decoded{UnknownValues: []awsjson.UnknownValue{{Path: "encryptionAlgorithm", Value: strings.Repeat("é", 128) + "…", Set: algorithms}}}},
	} {
		got, err := dec.Decode([]byte(tt.body), tt.msg)
		if err != nil {
			t.Errorf("%s: %v", tt.body, err)
			continue
		}
		if diff := cmp.Diff(&tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.body, diff)
		}
	}
	if (*awsjson.Decoded)(nil).WasEmpty("x") || !(&awsjson.Decoded{Empty: []string{"x"}}).WasEmpty("x") {
		t.Error("WasEmpty")
	}
}

// A body as large as a door may let in is read or refused at once.
func TestDecodeLargeBodies(t *testing.T) {
	dec := awsjson.NewDecoder(awsjson.Limits{Bytes: 11 << 20})
	const n = 10 << 20
	for name, body := range map[string]string{
		"brackets":   `{"X":` + strings.Repeat("[", n),
		"braces":     strings.Repeat(`{"X":`, n/5),
		"strangers":  `{"":1` + strings.Repeat(`,"a":{"":1}`, n/11),
		"elements":   `{"GrantTokens":[` + strings.Repeat(`"",`, n/3),
		"entries":    `{"EncryptionContext":{` + strings.Repeat(`"":"",`, n/6),
		"structures": `{"Tags":[` + strings.Repeat(`{},`, n/3),
		"quotes":     `{"X":"` + strings.Repeat(`\"`, n/2),
		"digits":     `{"X":` + strings.Repeat("1", n),
		"blob":       `{"Plaintext":"` + strings.Repeat("A", n) + `!"}`,
	} {
		for _, m := range []proto.Message{&keyholdv1.EncryptRequest{}, &keyholdv1.CreateKeyRequest{}} {
			// The blob is of a member that only one of them has.
			if _, err := dec.Decode([]byte(body), m); err == nil && (name != "blob" || m.ProtoReflect().Descriptor().Name() == "EncryptRequest") {
				t.Errorf("%s: taken", name)
			}
		}
	}
	m := &keyholdv1.EncryptRequest{}
	if _, err := dec.Decode([]byte(`{"KeyId":"`+strings.Repeat("é", n/2)+`","X":[`+strings.Repeat("1,", 1000)+`1]}`), m); err != nil || len(m.GetKeyId()) != n {
		t.Errorf("a long text: %v", err)
	}
}

// Escapes in base64, as PHP writes them.
func TestDecodeBlobs(t *testing.T) {
	t.Parallel()
	dec := awsjson.NewDecoder(awsjson.Limits{})
	for body, want := range map[string]string{
		`{"Plaintext":"\/\/8="}`:    "\xff\xff",
		`{"Plaintext":"\u0059Q=="}`: "a",
	} {
		text := []byte(body)
		var m keyholdv1.EncryptRequest
		if _, err := dec.Decode(text, &m); err != nil || string(m.GetPlaintext()) != want {
			t.Errorf("%s: %q, %v", body, m.GetPlaintext(), err)
		}
		if string(text) != body {
			t.Errorf("the body became %s", text)
		}
	}
}
