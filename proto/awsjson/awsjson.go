// Package awsjson writes and reads the messages of keyhold.v1 as JSON in the
// spelling of the AWS KMS API: the aws door speaks it (JSON 1.1), and audit
// records and the command line say the same thing with the same words.
//
// What both directions hold to:
//
//   - A member's name is the PascalCase of the proto field (`key_id` becomes
//     `KeyId`), or the field's json_name where the schema gives one of its own
//     (`AWSAccountId`). Names match exactly.
//   - An enum is its value's name less the type's prefix, in PascalCase where
//     the enum bears the option pascal_values.
//   - Bytes are base64 with padding (RFC 4648, 4). 64-bit integers are
//     numbers, not strings as in protojson: AWS does it so.
//   - Timestamp is a number of seconds (Options.EpochTimes); any other
//     well-known type is an ordinary message.
//
// What the [Encoder] promises:
//
//   - What is absent is left out, and so are empty lists and maps, except
//     lists that bear the option emit_empty. An enum's number that the schema
//     does not know is written as a string of digits, so that the member keeps
//     its type. Unknown fields and extensions are not written.
//   - Output is deterministic: members in the order of the field numbers, map
//     entries in the order of their keys.
//   - It is always valid JSON (RFC 8259). Control characters, C1 controls and
//     U+2028 and U+2029 are escaped, so that output is safe for a terminal
//     and is one line. Bytes that are not UTF-8 become U+FFFD.
//
// What the [Decoder] promises:
//
//   - What is not the JSON of a request is a [SerializationError]: bad syntax,
//     something behind the object, text that is not UTF-8 or has half a
//     surrogate pair, a value of the wrong type, a number out of range or with a
//     fraction where none may be, bad base64 (padding is required; line ends are
//     refused; the unused bits of the last character are not looked at), a name
//     that is twice in one object, more than the [Limits] allow. It never panics,
//     and its error holds nothing of the body.
//   - Members that the schema does not know are ignored, as AWS does; their
//     syntax is checked. null is as if the member were absent; in a list or a map
//     it is refused.
//   - Whatever the message cannot hold is in [Decoded]: enum values that the
//     schema does not know, which are violations, not errors, and which members
//     were there and empty.
//   - It keeps nothing of a body.
package awsjson

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Options choose among spellings. The zero value is the AWS wire format with
// RFC 3339 times.
type Options struct {
	// EpochTimes writes timestamps as a number of seconds since 1970, as the
	// AWS JSON 1.1 protocol does, instead of an RFC 3339 string in UTC.
	EpochTimes bool

	// LowerCamel writes member names with a small first letter, as
	// CloudTrail's requestParameters and responseElements have them (`keyId`,
	// and indeed `aWSAccountId`).
	LowerCamel bool

	// OmitRedacted leaves out fields that bear debug_redact: secrets, and
	// messages given to be signed.
	OmitRedacted bool

	// OmitBytes leaves out fields of type bytes, also lists and maps of them.
	OmitBytes bool
}

// Encoder writes messages in one spelling. It remembers a plan for each
// message type that it has met, so keep one and share it: it is safe for
// concurrent use.
type Encoder struct {
	opts  Options
	plans sync.Map // protoreflect.MessageDescriptor -> []field; entries never change
}

// NewEncoder returns an encoder for the spelling that opts describe.
func NewEncoder(opts Options) *Encoder {
	return &Encoder{opts: opts}
}

// AppendMessage appends the JSON object of m to dst and returns the extended
// slice. It does not keep m or dst. A typed nil gives `{}`, a nil interface
// `null`.
func (e *Encoder) AppendMessage(dst []byte, m proto.Message) []byte {
	if m == nil {
		return append(dst, "null"...)
	}
	return e.appendMessage(dst, m.ProtoReflect())
}

// AppendAnswer appends the body of an answer of the AWS protocol: nothing at all
// for operations that answer without one.
func (e *Encoder) AppendAnswer(dst []byte, method protoreflect.MethodDescriptor, resp proto.Message) []byte {
	op, _ := proto.GetExtension(method.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
	if op.GetEmptyBody() {
		return dst
	}
	return e.AppendMessage(dst, resp)
}

func (e *Encoder) appendMessage(dst []byte, m protoreflect.Message) []byte {
	dst = append(dst, '{')
	first := true
	for _, f := range e.plan(m.Descriptor()) {
		if !f.emitEmpty && !m.Has(f.desc) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, f.member...)
		v := m.Get(f.desc)
		switch {
		case f.desc.IsMap():
			dst = e.appendMap(dst, f, v.Map())
		case f.desc.IsList():
			dst = e.appendList(dst, f, v.List())
		default:
			dst = e.appendValue(dst, f, v)
		}
	}
	return append(dst, '}')
}

func (e *Encoder) appendList(dst []byte, f field, list protoreflect.List) []byte {
	dst = append(dst, '[')
	for i := range list.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = e.appendValue(dst, f, list.Get(i))
	}
	return append(dst, ']')
}

// appendMap writes the entries in the order of their keys' text, which for the
// API's only key type, string, is byte order.
func (e *Encoder) appendMap(dst []byte, f field, m protoreflect.Map) []byte {
	type entry struct {
		key   string
		value protoreflect.Value
	}
	entries := make([]entry, 0, m.Len())
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		entries = append(entries, entry{k.String(), v})
		return true
	})
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })

	dst = append(dst, '{')
	for i, en := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendString(dst, en.key)
		dst = append(dst, ':')
		dst = e.appendValue(dst, f, en.value)
	}
	return append(dst, '}')
}

// appendValue writes one value of the field's element type.
func (e *Encoder) appendValue(dst []byte, f field, v protoreflect.Value) []byte {
	switch f.kind {
	case protoreflect.StringKind:
		return AppendString(dst, v.String())
	case protoreflect.BytesKind:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, v.Bytes())
		return append(dst, '"')
	case protoreflect.BoolKind:
		return strconv.AppendBool(dst, v.Bool())
	case protoreflect.EnumKind:
		if quoted, ok := f.enum[v.Enum()]; ok {
			return append(dst, quoted...)
		}
		dst = append(dst, '"')
		dst = strconv.AppendInt(dst, int64(v.Enum()), 10)
		return append(dst, '"')
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if f.timestamp {
			return e.appendTimestamp(dst, v.Message())
		}
		return e.appendMessage(dst, v.Message())
	case protoreflect.FloatKind:
		return appendFloat(dst, v.Float(), 32)
	case protoreflect.DoubleKind:
		return appendFloat(dst, v.Float(), 64)
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind,
		protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return strconv.AppendUint(dst, v.Uint(), 10)
	default: // the signed integers
		return strconv.AppendInt(dst, v.Int(), 10)
	}
}

func (e *Encoder) appendTimestamp(dst []byte, m protoreflect.Message) []byte {
	ts, ok := m.Interface().(*timestamppb.Timestamp)
	if !ok {
		// A dynamic message: same fields, other Go type.
		fields := m.Descriptor().Fields()
		ts = &timestamppb.Timestamp{
			Seconds: m.Get(fields.ByNumber(1)).Int(),
			Nanos:   int32(m.Get(fields.ByNumber(2)).Int()), // an int32 field
		}
	}
	if e.opts.EpochTimes {
		return appendEpoch(dst, ts)
	}
	dst = append(dst, '"')
	dst = ts.AsTime().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"')
}

// appendEpoch writes seconds and their fraction exactly, without exponent and
// without trailing zeros. A timestamp before 1970 has a positive fraction that
// counts forward (timestamp.proto), hence the detour over one signed value.
func appendEpoch(dst []byte, ts *timestamppb.Timestamp) []byte {
	sec, nanos := ts.GetSeconds(), int64(ts.GetNanos())
	if nanos < 0 || nanos > 999_999_999 { // not valid; AsTime normalises
		t := ts.AsTime()
		sec, nanos = t.Unix(), int64(t.Nanosecond())
	}
	if sec < 0 && nanos > 0 {
		sec, nanos = sec+1, int64(time.Second)-nanos
		if sec == 0 {
			dst = append(dst, '-')
		}
	}
	dst = strconv.AppendInt(dst, sec, 10)
	if nanos == 0 {
		return dst
	}
	dst = append(dst, '.')
	for div := int64(100_000_000); nanos > 0; div /= 10 {
		dst = append(dst, byte('0'+nanos/div))
		nanos %= div
	}
	return dst
}

// appendFloat spells what JSON has no number for as AWS and protojson do.
func appendFloat(dst []byte, v float64, bits int) []byte {
	switch {
	case math.IsNaN(v):
		return append(dst, `"NaN"`...)
	case math.IsInf(v, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(v, -1):
		return append(dst, `"-Infinity"`...)
	}
	return strconv.AppendFloat(dst, v, 'g', -1, bits)
}
