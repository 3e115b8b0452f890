package awsjson

import (
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// field is what the encoder must know about one field; for maps, kind, enum
// and timestamp are those of the value.
type field struct {
	desc      protoreflect.FieldDescriptor
	member    string // the member's name, quoted, with the colon
	kind      protoreflect.Kind
	enum      map[protoreflect.EnumNumber]string // names, quoted
	timestamp bool
	emitEmpty bool
}

// plan returns the fields of a message that are written, in the order of their
// numbers. Two goroutines may build the same plan at once; both are right.
func (e *Encoder) plan(md protoreflect.MessageDescriptor) []field {
	if p, ok := e.plans.Load(md); ok {
		if fields, ok := p.([]field); ok {
			return fields
		}
	}
	fields := make([]field, 0, md.Fields().Len())
	for i := range md.Fields().Len() {
		if f, ok := e.planField(md.Fields().Get(i)); ok {
			fields = append(fields, f)
		}
	}
	slices.SortFunc(fields, func(a, b field) int { return int(a.desc.Number()) - int(b.desc.Number()) })
	e.plans.Store(md, fields)
	return fields
}

func (e *Encoder) planField(fd protoreflect.FieldDescriptor) (field, bool) {
	elem := fd
	if fd.IsMap() {
		elem = fd.MapValue()
	}
	if e.opts.OmitBytes && elem.Kind() == protoreflect.BytesKind {
		return field{}, false
	}
	opts, _ := fd.Options().(*descriptorpb.FieldOptions)
	if e.opts.OmitRedacted && opts.GetDebugRedact() {
		return field{}, false
	}
	name := MemberName(fd)
	if e.opts.LowerCamel {
		name = lowerFirst(name)
	}
	f := field{
		desc:   fd,
		member: string(append(AppendString(nil, name), ':')),
		kind:   elem.Kind(),
	}
	switch elem.Kind() {
	case protoreflect.EnumKind:
		f.enum = enumMembers(elem.Enum())
	case protoreflect.MessageKind, protoreflect.GroupKind:
		f.timestamp = elem.Message().FullName() == "google.protobuf.Timestamp"
	}
	if fd.IsList() && opts != nil {
		f.emitEmpty, _ = proto.GetExtension(opts, keyholdv1.E_EmitEmpty).(bool)
	}
	return f, true
}

func enumMembers(ed protoreflect.EnumDescriptor) map[protoreflect.EnumNumber]string {
	members := make(map[protoreflect.EnumNumber]string, ed.Values().Len())
	for i := range ed.Values().Len() {
		v := ed.Values().Get(i)
		if _, taken := members[v.Number()]; !taken { // an alias: the first name counts
			members[v.Number()] = string(AppendString(nil, ValueName(v)))
		}
	}
	return members
}

// MemberName returns the AWS name of a field: its json_name where the schema
// states one of its own, else the PascalCase of its proto name.
func MemberName(fd protoreflect.FieldDescriptor) string {
	snake := string(fd.Name())
	// protoc fills json_name in for every field, so "has one" tells nothing:
	// only one that differs from the derived name was written by hand.
	if pascal := pascalCase(snake); fd.JSONName() == lowerFirst(pascal) || fd.JSONName() == "" {
		return pascal
	}
	return fd.JSONName()
}

// ValueName returns the AWS name of an enum value: its proto name less the
// enum's prefix, in PascalCase where the enum says so. The prefix is what
// stands before UNSPECIFIED in the name of the value 0.
func ValueName(v protoreflect.EnumValueDescriptor) string {
	name := string(v.Name())
	ed, ok := v.Parent().(protoreflect.EnumDescriptor)
	if !ok {
		return name
	}
	if zero := ed.Values().ByNumber(0); zero != nil {
		if prefix, ok := strings.CutSuffix(string(zero.Name()), "UNSPECIFIED"); ok {
			name = strings.TrimPrefix(name, prefix)
		}
	}
	if pascal, _ := proto.GetExtension(ed.Options(), keyholdv1.E_PascalValues).(bool); pascal {
		name = pascalCase(strings.ToLower(name))
	}
	return name
}

// EnumName returns the AWS name of an enum's value, such as `HMAC_256` or
// `PendingDeletion`; for the unspecified value the empty string, and for a
// number that the schema does not know its digits.
func EnumName(v protoreflect.Enum) string {
	if v.Number() == 0 {
		return ""
	}
	if d := v.Descriptor().Values().ByNumber(v.Number()); d != nil {
		return ValueName(d)
	}
	return strconv.Itoa(int(v.Number()))
}

// ParseEnum finds the value of an enum with the given AWS name. Names match
// exactly; the unspecified value has none.
func ParseEnum(ed protoreflect.EnumDescriptor, name string) (protoreflect.EnumNumber, bool) {
	for i := range ed.Values().Len() {
		if v := ed.Values().Get(i); v.Number() != 0 && ValueName(v) == name {
			return v.Number(), true
		}
	}
	return 0, false
}

// EnumNames returns the AWS names of all values but the unspecified one, in
// the order of the schema.
func EnumNames(ed protoreflect.EnumDescriptor) []string {
	names := make([]string, 0, ed.Values().Len())
	for i := range ed.Values().Len() {
		if v := ed.Values().Get(i); v.Number() != 0 {
			names = append(names, ValueName(v))
		}
	}
	return names
}

// pascalCase makes `key_id` into `KeyId`.
func pascalCase(snake string) string {
	var b strings.Builder
	up := true
	for i := range len(snake) {
		c := snake[i]
		switch {
		case c == '_':
			up = true
			continue
		case up && 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		}
		up = false
		b.WriteByte(c)
	}
	return b.String()
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
