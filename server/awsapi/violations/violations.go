// Package violations says what is wrong with a request in AWS's words:
//
//	1 validation error detected: Value at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1
//
// It is for the aws door. The constraints are the proto's and the core checks
// them; what they are called here is derived from their rules and from the
// fields' names, so that no operation has words of its own.
//
// No value of a request is repeated, but names that an enum does not know: AWS
// repeats some others, which may be secret.
package violations

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keyhold/keyhold/proto/awsjson"
	"github.com/keyhold/keyhold/server/kms"
)

// maxShown bounds how many violations are spelt out. The number that AWS's text
// begins with is that of all.
const maxShown = 50

// Message returns AWS's text for a ValidationException about req. d is what the
// decoder told of it, err what kms.Service answered with: Do, or
// CheckConstraints where d has unknown values. Either may be nil. A text of the
// core's own, which is about no member, is returned as it is. The result is empty
// if there is no violation at all.
func Message(req proto.Message, d *awsjson.Decoded, err error) string {
	texts := Texts(req, d, err)
	if len(texts) == 0 {
		var e *kms.Error
		if errors.As(err, &e) {
			return e.Message
		}
		return ""
	}
	plural := "s"
	if len(texts) == 1 {
		plural = ""
	}
	return fmt.Sprintf("%d validation error%s detected: %s", len(texts), plural, strings.Join(texts[:min(len(texts), maxShown)], "; "))
}

// Texts returns each violation in AWS's words, as Message takes them.
func Texts(req proto.Message, d *awsjson.Decoded, err error) []string {
	var found list
	if d != nil {
		for _, u := range d.UnknownValues {
			found.unknownValue(u)
		}
	}
	var declared *protovalidate.ValidationError
	var e *kms.Error
	switch {
	case errors.As(err, &declared):
		for _, v := range declared.Violations {
			found.declared(req.ProtoReflect().Descriptor(), d, v)
		}
	case errors.As(err, &e):
		for _, v := range e.Violations {
			path := corePath(v.Field)
			found.add(path, "Value at '%s' failed to satisfy constraint: Member %s", path, v.Description)
		}
	}
	return found.texts
}

// list collects texts; about what is absent or unknown there is only one.
type list struct {
	texts []string
	// said are the paths about which nothing more is to be said.
	said []string
}

func (l *list) add(path, format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(l.said, path) && !slices.Contains(l.texts, text) {
		l.texts = append(l.texts, text)
	}
}

// last adds what makes every other violation of the path beside the point.
func (l *list) last(path, format string, args ...any) {
	l.add(path, format, args...)
	l.said = append(l.said, path)
}

func (l *list) unknownValue(u awsjson.UnknownValue) {
	set := "Member must satisfy enum value set: [" + strings.Join(u.Set, ", ") + "]"
	if u.Element {
		l.last(u.Path, "Value '[%s]' at '%s' failed to satisfy constraint: Member must satisfy constraint: [%s]", u.Value, u.Path, set)
		return
	}
	l.last(u.Path, "Value '%s' at '%s' failed to satisfy constraint: %s", u.Value, u.Path, set)
}

// declared adds a violation that protovalidate found.
func (l *list) declared(md protoreflect.MessageDescriptor, d *awsjson.Decoded, v *protovalidate.Violation) {
	path, fd, element := awsPath(md, v)
	if fd == nil {
		l.add(path, "Value at '%s' failed to satisfy constraint: Member %s", path, v.Proto.GetMessage())
		return
	}
	rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
	switch {
	case element:
		// Elements are not told apart, and all that they must be is said.
		all := strings.Join(constraints(rules.GetRepeated().GetItems(), fd), ", ")
		l.last(path, "Value at '%s' failed to satisfy constraint: Member must satisfy constraint: [%s]", path, all)
	case missing(d, path, fd, v):
		l.last(path, "Value at '%s' failed to satisfy constraint: Member must not be null", path)
	default:
		l.add(path, "Value at '%s' failed to satisfy constraint: %s", path, constraint(v, rules, fd))
	}
}

// missing tells whether a violation is about a member that was not there at
// all. A message shows an empty text or blob as if it were absent.
func missing(d *awsjson.Decoded, path string, fd protoreflect.FieldDescriptor, v *protovalidate.Violation) bool {
	if d.WasEmpty(path) {
		return false
	}
	if v.Proto.GetRuleId() == "required" {
		return true
	}
	if fd.HasPresence() || fd.IsList() || fd.IsMap() || !v.FieldValue.IsValid() {
		return false
	}
	switch fd.Kind() {
	case protoreflect.StringKind:
		return v.FieldValue.String() == ""
	case protoreflect.BytesKind:
		return len(v.FieldValue.Bytes()) == 0
	}
	return false
}

// constraint says the rule that was broken.
func constraint(v *protovalidate.Violation, rules *validate.FieldRules, fd protoreflect.FieldDescriptor) string {
	all := constraints(rules, fd)
	var kinds []string
	switch id := v.Proto.GetRuleId(); {
	case strings.HasSuffix(id, ".min_len"):
		kinds = []string{longEnough}
	case strings.HasSuffix(id, ".max_len"), id == "repeated.max_items":
		kinds = []string{shortEnough}
	case id == "string.len":
		kinds = []string{longEnough}
		if n := uint64(len([]rune(v.FieldValue.String()))); n > rules.GetString().GetLen() {
			kinds = []string{shortEnough}
		}
	case id == "required", id == "repeated.min_items": // an empty list or text
		return longEnough + "1"
	case strings.HasSuffix(id, ".pattern"):
		kinds = []string{ofPattern}
	case strings.HasPrefix(id, "int32."):
		kinds = []string{largeEnough}
		if n := rules.GetInt32(); n.HasLte() && v.FieldValue.Int() > int64(n.GetLte()) {
			kinds = []string{smallEnough}
		}
	case strings.HasPrefix(id, "enum."):
		kinds = []string{ofSet}
	}
	for _, c := range all {
		for _, k := range kinds {
			if strings.HasPrefix(c, k) {
				return c
			}
		}
	}
	return "Member " + v.Proto.GetMessage()
}

// How AWS's constraints begin.
const (
	shortEnough = "Member must have length less than or equal to "
	longEnough  = "Member must have length greater than or equal to "
	ofPattern   = "Member must satisfy regular expression pattern: "
	largeEnough = "Member must have value greater than or equal to "
	smallEnough = "Member must have value less than or equal to "
	ofSet       = "Member must satisfy enum value set: "
)

// constraints returns all constraints of a value, in the order that AWS lists
// those of an element in.
func constraints(rules *validate.FieldRules, fd protoreflect.FieldDescriptor) []string {
	var out []string
	add := func(has bool, kind string, n any) {
		if has {
			out = append(out, kind+fmt.Sprint(n))
		}
	}
	s, b, n, r := rules.GetString(), rules.GetBytes(), rules.GetInt32(), rules.GetRepeated()
	add(r.HasMaxItems(), shortEnough, r.GetMaxItems())
	add(s.HasLen(), shortEnough, s.GetLen())
	add(s.HasLen(), longEnough, s.GetLen())
	add(s.HasMaxLen(), shortEnough, s.GetMaxLen())
	add(s.HasMinLen(), longEnough, s.GetMinLen())
	add(s.HasPattern(), ofPattern, awsPattern(s.GetPattern()))
	add(b.HasMaxLen(), shortEnough, b.GetMaxLen())
	add(b.HasMinLen(), longEnough, b.GetMinLen())
	add(n.HasLte(), smallEnough, n.GetLte())
	add(n.HasGte(), largeEnough, n.GetGte())
	if fd.Enum() != nil && rules.GetEnum().GetDefinedOnly() {
		out = append(out, ofSet+"["+strings.Join(awsjson.EnumNames(fd.Enum()), ", ")+"]")
	}
	return out
}

// awsPattern spells a pattern as AWS does: less the anchors that were put
// around it, and with its code points in AWS's form.
func awsPattern(re2 string) string {
	if inner, ok := strings.CutPrefix(re2, "^(?:"); ok {
		if inner, ok := strings.CutSuffix(inner, ")$"); ok {
			re2 = inner
		}
	}
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(re2, `\x{`)
		digits, rest, closed := strings.Cut(after, "}")
		if !ok || !closed {
			return b.String() + re2
		}
		b.WriteString(before + `\u` + strings.Repeat("0", max(0, 4-len(digits))) + digits)
		re2 = rest
	}
}

// awsPath renders the path of a violation as AWS does, and finds its field. For
// an element of a list that is no structure both are those of the list.
func awsPath(md protoreflect.MessageDescriptor, v *protovalidate.Violation) (path string, fd protoreflect.FieldDescriptor, element bool) {
	elements := v.Proto.GetField().GetElements()
	var b strings.Builder
	for i, e := range elements {
		if md == nil {
			return b.String(), nil, false
		}
		fd = md.Fields().ByNumber(protoreflect.FieldNumber(e.GetFieldNumber()))
		if fd == nil {
			return b.String(), nil, false
		}
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(awsjson.PathName(fd))
		md = fd.Message()
		if e.HasIndex() {
			if i == len(elements)-1 {
				return b.String(), fd, true
			}
			fmt.Fprintf(&b, ".%d.member", e.GetIndex()+1)
		}
	}
	return b.String(), fd, false
}

// corePath does the same for a path in the core's spelling, tags[3].tag_key, of
// which it knows the names alone.
func corePath(field string) string {
	parts := strings.Split(field, ".")
	for i, p := range parts {
		name, index, _ := strings.Cut(p, "[")
		parts[i] = pathName(name)
		var n int
		if _, err := fmt.Sscanf(index, "%d]", &n); err == nil {
			parts[i] += fmt.Sprintf(".%d.member", n+1)
		}
	}
	return strings.Join(parts, ".")
}

// pathName makes key_id into keyId.
func pathName(snake string) string {
	parts := strings.Split(snake, "_")
	for i := range parts {
		if i > 0 && parts[i] != "" {
			parts[i] = strings.ToUpper(parts[i][:1]) + parts[i][1:]
		}
	}
	return strings.Join(parts, "")
}
