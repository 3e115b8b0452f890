package awsjson_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// apiMessages returns the types of all requests, responses and their parts.
func apiMessages(tb testing.TB) []protoreflect.MessageType {
	tb.Helper()
	var types []protoreflect.MessageType
	pkg := keyholdv1.File_keyhold_v1_types_proto.Package()
	protoregistry.GlobalFiles.RangeFilesByPackage(pkg, func(file protoreflect.FileDescriptor) bool {
		for i := range file.Messages().Len() {
			mt, err := protoregistry.GlobalTypes.FindMessageByName(file.Messages().Get(i).FullName())
			if err != nil {
				tb.Fatal(err)
			}
			types = append(types, mt)
		}
		return true
	})
	if len(types) < 40 {
		tb.Fatalf("found %d message types, want at least 40", len(types))
	}
	return types
}

// checkAgainstProtojson compares the encoder with protobuf-go's own encoder:
// its output, with members and enum values renamed by translate, must be the
// same JSON value.
func checkAgainstProtojson(t *testing.T, enc *awsjson.Encoder, m proto.Message) {
	t.Helper()
	out := enc.AppendMessage(nil, m)
	var got any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%s: not JSON: %v\n%s", m.ProtoReflect().Descriptor().Name(), err, out)
	}
	ref, err := protojson.MarshalOptions{UseProtoNames: true, AllowPartial: true}.Marshal(m)
	if err != nil {
		return // protojson refuses bad UTF-8 and timestamps out of range
	}
	var parsed map[string]any
	if err := json.Unmarshal(ref, &parsed); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(translate(m.ProtoReflect().Descriptor(), parsed)), got); diff != "" {
		t.Fatalf("%s (-protojson +awsjson):\n%s", m.ProtoReflect().Descriptor().Name(), diff)
	}
}

// sentEmpty are the lists that AWS sends even when they are empty.
var sentEmpty = []string{
	"ListKeysResponse.Keys", "ListAliasesResponse.Aliases", "ListGrantsResponse.Grants", "ListRetirableGrantsResponse.Grants",
	"ListKeyPoliciesResponse.PolicyNames", "ListResourceTagsResponse.Tags", "ListKeyRotationsResponse.Rotations",
	"DescribeCustomKeyStoresResponse.CustomKeyStores", "ReplicateKeyResponse.ReplicaTags", "MultiRegionConfiguration.ReplicaKeys",
	"ListAccessKeysResponse.AccessKeyMetadata",
}

// translate renames a message as protojson writes it, by rules of its own:
// the facts of the API, not the code under test.
func translate(md protoreflect.MessageDescriptor, in map[string]any) map[string]any {
	out := map[string]any{}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		name := ""
		for part := range strings.SplitSeq(string(fd.Name()), "_") {
			name += strings.ToUpper(part[:1]) + part[1:]
		}
		if fd.Name() == "aws_account_id" {
			name = "AWSAccountId"
		}
		v, present := in[string(fd.Name())]
		if !present {
			if slices.Contains(sentEmpty, string(md.Name())+"."+name) {
				out[name] = []any{}
			}
			continue
		}
		if list, ok := v.([]any); ok {
			for i := range list {
				list[i] = translateValue(fd, list[i])
			}
			out[name] = list
			continue
		}
		out[name] = translateValue(fd, v)
	}
	return out
}

func translateValue(fd protoreflect.FieldDescriptor, v any) any {
	switch {
	case fd.IsMap():
		return v // maps of the API are string to string
	case fd.Kind() == protoreflect.EnumKind:
		if n, ok := v.(float64); ok {
			return strconv.Itoa(int(n))
		}
		name := v.(string)
		prefix := strings.TrimSuffix(string(fd.Enum().Values().Get(0).Name()), "UNSPECIFIED")
		name = strings.TrimPrefix(name, prefix)
		if slices.Contains([]string{"KeyState", "GrantOperation", "KeyLastUsageTrackingOperation", "AccessKeyStatus"}, string(fd.Enum().Name())) {
			pascal := ""
			for part := range strings.SplitSeq(name, "_") {
				pascal += part[:1] + strings.ToLower(part[1:])
			}
			name = pascal
		}
		return name
	case fd.Kind() == protoreflect.MessageKind && fd.Message().Name() == "Timestamp":
		// protojson pads fractions to 3, 6 or 9 digits.
		s := strings.TrimSuffix(v.(string), "Z")
		if strings.Contains(s, ".") {
			s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
		}
		return s + "Z"
	case fd.Kind() == protoreflect.MessageKind:
		return translate(fd.Message(), v.(map[string]any))
	}
	return v
}

// fill sets about two thirds of a message's fields to random values.
func fill(rnd *rand.Rand, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	if m.Descriptor().FullName() == "google.protobuf.Timestamp" {
		m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(rnd.Int64N(4_000_000_000)-1_000_000_000))
		m.Set(fields.ByName("nanos"), protoreflect.ValueOfInt32(rnd.Int32N(1_000_000_000)))
		return
	}
	for i := range fields.Len() {
		fd := fields.Get(i)
		if rnd.IntN(3) == 0 {
			continue
		}
		switch {
		case fd.IsMap():
			for range rnd.IntN(5) {
				m.Mutable(fd).Map().Set(
					protoreflect.ValueOfString(randomText(rnd)).MapKey(),
					protoreflect.ValueOfString(randomText(rnd)))
			}
		case fd.IsList():
			for range rnd.IntN(4) {
				list := m.Mutable(fd).List()
				if fd.Kind() == protoreflect.MessageKind {
					fill(rnd, list.AppendMutable().Message())
				} else {
					list.Append(randomValue(rnd, fd))
				}
			}
		case fd.Kind() == protoreflect.MessageKind:
			fill(rnd, m.Mutable(fd).Message())
		default:
			m.Set(fd, randomValue(rnd, fd))
		}
	}
}

func randomValue(rnd *rand.Rand, fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(randomText(rnd))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(randomText(rnd)))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rnd.IntN(2) == 0)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(rnd.Int32() - rnd.Int32())
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(1 + rnd.IntN(fd.Enum().Values().Len()+1)))
	default:
		panic("the API has got a field of kind " + fd.Kind().String() + ": teach the test about it")
	}
}

func randomText(rnd *rand.Rand) string {
	const alphabet = "abc-_/:=\"\\\n\t\x00\x1b\u0080\u009f\u00e9\u2028\u6f22\U0001f511"
	runes := []rune(alphabet)
	text := make([]rune, rnd.IntN(12))
	for i := range text {
		text[i] = runes[rnd.IntN(len(runes))]
	}
	return string(text)
}

func TestAgainstProtojson(t *testing.T) {
	enc := awsjson.NewEncoder(awsjson.Options{})
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, mt := range apiMessages(t) {
		t.Run(string(mt.Descriptor().Name()), func(t *testing.T) {
			for range 200 {
				m := mt.New()
				fill(rnd, m)
				checkAgainstProtojson(t, enc, m.Interface())
			}
		})
	}
}

// Any message that can arrive on the wire comes out as valid JSON, the same
// each time, and without its secrets when these are not wanted.
func FuzzAppendMessage(f *testing.F) {
	types := apiMessages(f)
	rnd := rand.New(rand.NewPCG(3, 4))
	for i, mt := range types {
		m := mt.New()
		fill(rnd, m)
		raw, err := proto.Marshal(m.Interface())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), raw)
	}
	enc := awsjson.NewEncoder(awsjson.Options{})
	audit := awsjson.NewEncoder(awsjson.Options{EpochTimes: true, LowerCamel: true, OmitRedacted: true, OmitBytes: true})
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		m := types[int(which)%len(types)].New().Interface()
		if proto.Unmarshal(raw, m) != nil {
			return
		}
		checkAgainstProtojson(t, enc, m)
		first := audit.AppendMessage(nil, m)
		if !json.Valid(first) {
			t.Fatalf("not JSON: %s", first)
		}
		if second := audit.AppendMessage(nil, m); string(first) != string(second) {
			t.Fatalf("two spellings of one message:\n%s\n%s", first, second)
		}
	})
}
