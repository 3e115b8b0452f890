package awsjson_test

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Whatever is written is read again as it was.
func TestDecodeWhatWasEncoded(t *testing.T) {
	enc, dec := awsjson.NewEncoder(awsjson.Options{EpochTimes: true}), awsjson.NewDecoder(awsjson.Limits{})
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, mt := range apiMessages(t) {
		if strings.HasPrefix(string(mt.Descriptor().Name()), "Batch") || optionMessage(mt.Descriptor()) {
			continue // they are not AWS's, and have what its API has not
		}
		for range 100 {
			m := mt.New()
			fill(rnd, m)
			body := enc.AppendMessage(nil, m.Interface())
			got := mt.New().Interface()
			d, err := dec.Decode(body, got)
			if err != nil {
				t.Fatalf("%s: %v\n%s", mt.Descriptor().Name(), err, body)
			}
			if len(d.UnknownValues) == 0 && !proto.Equal(m.Interface(), got) {
				t.Fatalf("%s: %v became %v", mt.Descriptor().Name(), m.Interface(), got)
			}
		}
	}
}

// optionMessage tells whether a message is about operations, not of them.
func optionMessage(md protoreflect.MessageDescriptor) bool {
	return md.ParentFile().Path() == keyholdv1.File_keyhold_v1_options_proto.Path()
}

// FuzzDecode: no body panics; what is taken is JSON, and what is no JSON is
// refused; what is taken is the same when it is written and read again.
func FuzzDecode(f *testing.F) {
	types := apiMessages(f)
	enc, dec := awsjson.NewEncoder(awsjson.Options{EpochTimes: true}), awsjson.NewDecoder(awsjson.Limits{Depth: 16})
	rnd := rand.New(rand.NewPCG(7, 8))
	for i, mt := range types {
		m := mt.New()
		fill(rnd, m)
		f.Add(uint8(i), enc.AppendMessage(nil, m.Interface()))
	}
	for _, s := range []string{`{}x`, `{"KeyId":"\ud83d\udd11","X":[1.5E9,{},null]}`, "{\"KeyId\":\"\xff\"}", `{"Tags":[{"TagKey":"a"}],"Tags":[]}`, `{"ValidTo":-1.5e-3}`} {
		for i := range types {
			f.Add(uint8(i), []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		mt := types[int(which)%len(types)]
		m := mt.New().Interface()
		d, err := dec.Decode(body, m)
		if err != nil {
			return
		}
		var object map[string]any
		if json.Unmarshal(body, &object) != nil || !utf8.Valid(body) {
			t.Fatalf("taken, and no JSON object: %q", body)
		}
		if len(d.UnknownValues) > 0 {
			return
		}
		again := mt.New().Interface()
		if _, err := dec.Decode(enc.AppendMessage(nil, m), again); err != nil || !proto.Equal(m, again) {
			t.Fatalf("%q: %v became %v (%v)", body, m, again, err)
		}
	})
}

// FuzzRoundTrip: any message that can arrive over gRPC is read as it was
// written.
func FuzzRoundTrip(f *testing.F) {
	types := apiMessages(f)
	rnd := rand.New(rand.NewPCG(9, 10))
	for i, mt := range types {
		m := mt.New()
		fill(rnd, m)
		raw, err := proto.Marshal(m.Interface())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), raw)
	}
	enc, dec := awsjson.NewEncoder(awsjson.Options{EpochTimes: true}), awsjson.NewDecoder(awsjson.Limits{Bytes: 64 << 20, Elements: 1 << 20})
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		mt := types[int(which)%len(types)]
		m := mt.New().Interface()
		if proto.Unmarshal(raw, m) != nil {
			return
		}
		body := enc.AppendMessage(nil, m)
		got := mt.New().Interface()
		d, err := dec.Decode(body, got)
		if err != nil || len(d.UnknownValues) > 0 {
			return // times out of range, enum numbers without a name
		}
		// Unknown fields are not written.
		if again := enc.AppendMessage(nil, got); string(again) != string(body) {
			t.Fatalf("%s\nbecame\n%s", body, again)
		}
	})
}
