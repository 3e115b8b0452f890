package awsjson

import (
	"bytes"
	"encoding/base64"
	"math"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// scalar reads one value that is neither list, map nor structure. The value is
// invalid for an enum's name that the schema does not know; that is noted.
func (s *decoding) scalar(f *decodeField) (protoreflect.Value, error) {
	var none protoreflect.Value
	switch f.kind {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.EnumKind:
		if s.peek() != '"' {
			return none, s.mismatch("a String")
		}
		if f.kind == protoreflect.BytesKind {
			if t, ok := s.plain(); ok {
				return s.blob(t)
			}
		}
		t, err := s.text()
		switch {
		case err != nil:
			return none, err
		case f.kind == protoreflect.StringKind:
			return protoreflect.ValueOfString(string(t)), nil
		case f.kind == protoreflect.BytesKind:
			// It had escapes (PHP writes \/ for a slash), so t is no part of the body,
			// which others wipe.
			defer clear(t)
			return s.blob(t)
		}
		return s.enumValue(f, t), nil
	case protoreflect.BoolKind:
		switch s.peek() {
		case 't':
			return protoreflect.ValueOfBool(true), s.literal("true")
		case 'f':
			return protoreflect.ValueOfBool(false), s.literal("false")
		}
		return none, s.mismatch("a Boolean")
	case protoreflect.Int32Kind:
		d, err := s.decimal("an Integer")
		if err != nil {
			return none, err
		}
		n, ok := d.integer()
		if !ok || n < math.MinInt32 || n > math.MaxInt32 {
			return none, s.fail("NUMBER_VALUE can not be converted to an Integer")
		}
		return protoreflect.ValueOfInt32(int32(n)), nil
	}
	return none, s.fail("A member of this kind is not supported.")
}

// mismatch is the refusal of a value of the wrong type, in AWS's words.
func (s *decoding) mismatch(want string) error {
	switch c := s.peek(); {
	case c == '{':
		return s.fail("Start of structure or map found where not expected.")
	case c == '[':
		return s.fail("Start of list found where not expected.")
	case c == '"':
		return s.fail("STRING_VALUE can not be converted to " + want)
	case c == 't' || c == 'f':
		return s.fail(strings.ToUpper(map[byte]string{'t': "true", 'f': "false"}[c]) + "_VALUE can not be converted to " + want)
	case c == 'n':
		return s.fail("NULL_VALUE can not be converted to " + want)
	case c == '-' || '0' <= c && c <= '9':
		return s.fail("NUMBER_VALUE can not be converted to " + want)
	}
	return s.syntax()
}

// blob decodes base64: RFC 4648, 4, with its padding, and without line ends,
// which encoding/base64 would ignore.
func (s *decoding) blob(t []byte) (protoreflect.Value, error) {
	if bytes.IndexByte(t, '\n') >= 0 || bytes.IndexByte(t, '\r') >= 0 {
		return protoreflect.Value{}, s.fail("A blob is not valid base64.")
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(t)))
	n, err := base64.StdEncoding.Decode(out, t)
	if err != nil {
		clear(out)
		return protoreflect.Value{}, s.fail("A blob is not valid base64.")
	}
	return protoreflect.ValueOfBytes(out[:n:n]), nil
}

// maxUnknownValue bounds what is kept of a value that the schema does not know.
const maxUnknownValue = 256

func (s *decoding) enumValue(f *decodeField, t []byte) protoreflect.Value {
	if n, ok := f.enum[string(t)]; ok {
		return protoreflect.ValueOfEnum(n)
	}
	v := string(t)
	if len(v) > maxUnknownValue {
		v = strings.ToValidUTF8(v[:maxUnknownValue], "") + "…"
	}
	s.out.UnknownValues = append(s.out.UnknownValues, UnknownValue{Path: s.where(), Value: v, Set: f.set, Element: f.list})
	return protoreflect.Value{}
}

// timestamp reads seconds since 1970 with their fraction. Finer parts than
// nanoseconds are cut off.
func (s *decoding) timestamp(ts protoreflect.Message) error {
	d, err := s.decimal("a Timestamp")
	if err != nil {
		return err
	}
	sec, nanos, ok := d.seconds()
	// The range of a Timestamp: the years 1 to 9999.
	if !ok || sec < -62_135_596_800 || sec > 253_402_300_799 {
		return s.fail("NUMBER_VALUE can not be converted to a Timestamp")
	}
	fields := ts.Descriptor().Fields()
	if sec != 0 {
		ts.Set(fields.ByNumber(1), protoreflect.ValueOfInt64(sec))
	}
	if nanos != 0 {
		ts.Set(fields.ByNumber(2), protoreflect.ValueOfInt32(nanos))
	}
	return nil
}

// decimal is a number: 0.digits times ten to the power of point, without zeros
// at either end of digits.
type decimal struct {
	negative bool
	digits   []byte
	point    int
}

// maxExponent is beyond everything that is in range of anything.
const maxExponent = 100_000

// decimal reads a number. want is what is expected, for the refusal.
func (s *decoding) decimal(want string) (decimal, error) {
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		return decimal{}, s.mismatch(want)
	}
	t, err := s.number()
	if err != nil {
		return decimal{}, err
	}
	d := decimal{negative: t[0] == '-'}
	mantissa, exponent := bytes.TrimPrefix(t, []byte("-")), 0
	if i := bytes.IndexAny(mantissa, "eE"); i >= 0 {
		minus := mantissa[i+1] == '-'
		for _, c := range bytes.TrimLeft(mantissa[i+1:], "+-") {
			exponent = min(exponent*10+int(c-'0'), maxExponent)
		}
		if minus {
			exponent = -exponent
		}
		mantissa = mantissa[:i]
	}
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	digits := append(append(make([]byte, 0, len(mantissa)), whole...), fraction...)
	trimmed := bytes.TrimLeft(digits, "0")
	d.point = len(whole) - (len(digits) - len(trimmed)) + exponent
	d.digits = bytes.TrimRight(trimmed, "0")
	if len(d.digits) == 0 {
		d = decimal{}
	}
	return d, nil
}

// whole returns the whole part, where it fits.
func (d decimal) whole() (int64, bool) {
	if d.point > 18 {
		return 0, false
	}
	var n int64
	for i := range d.point { // none where it is not above 0
		n *= 10
		if i < len(d.digits) {
			n += int64(d.digits[i] - '0')
		}
	}
	return n, true
}

// integer returns the number if it is a whole one.
func (d decimal) integer() (int64, bool) {
	n, ok := d.whole()
	if d.negative {
		n = -n
	}
	return n, ok && len(d.digits) <= max(d.point, 0)
}

// seconds returns the number as a Timestamp has it: nanos count forward.
func (d decimal) seconds() (sec int64, nanos int32, ok bool) {
	sec, ok = d.whole()
	for i := range 9 {
		nanos *= 10
		if at := d.point + i; 0 <= at && at < len(d.digits) {
			nanos += int32(d.digits[at] - '0')
		}
	}
	if d.negative {
		sec = -sec
		if nanos > 0 {
			sec, nanos = sec-1, 1_000_000_000-nanos
		}
	}
	return sec, nanos, ok
}
