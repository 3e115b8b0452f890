package awsjson_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// facts are what AWS's model says, derived by tools/awsfacts.
type facts struct {
	APIVersion, JSONVersion, TargetPrefix string

	Operations map[string]struct {
		Input, Output string
		Errors        []string
	}
	Structures map[string]map[string]*member
	Enums      map[string]struct {
		Values     []string
		Deprecated bool
	}
	Errors map[string]int
}

type member struct {
	Type, Name                      string
	Required, Deprecated, Sensitive bool
	Min, Max                        *int64
	Pattern                         string
	Key, Element                    *member
}

func readTestdata(tb testing.TB, name string, into any) {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		tb.Fatal(err)
	}
}

// apiMethods returns the methods of all services of the package.
func apiMethods() map[string]protoreflect.MethodDescriptor {
	out := make(map[string]protoreflect.MethodDescriptor)
	protoregistry.GlobalFiles.RangeFilesByPackage(keyholdv1.File_keyhold_v1_types_proto.Package(), func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			for ms, j := file.Services().Get(i).Methods(), 0; j < ms.Len(); j++ {
				out[string(ms.Get(j).Name())] = ms.Get(j)
			}
		}
		return true
	})
	return out
}

// comparison collects how the proto differs from the facts.
type comparison struct {
	facts facts
	found []string
	// seen are the messages and enums that were compared, requests first.
	messages map[protoreflect.FullName]string
	enums    map[protoreflect.FullName]bool
}

func (c *comparison) differ(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// TestFacts compares the proto with AWS's model, in both directions: an
// operation, member, type, enum value, constraint, required flag or error that
// is missing, misspelt or extra, and is not among the deviations, fails; and so
// does a deviation that is none.
func TestFacts(t *testing.T) {
	c := comparison{messages: map[protoreflect.FullName]string{}, enums: map[protoreflect.FullName]bool{}}
	readTestdata(t, "kms-facts.json", &c.facts)
	if len(c.facts.Operations) != 54 || c.facts.TargetPrefix != "TrentService" || c.facts.JSONVersion != "1.1" {
		t.Fatalf("%d operations of %s", len(c.facts.Operations), c.facts.TargetPrefix)
	}
	methods := apiMethods()
	for name, op := range c.facts.Operations {
		md := methods[name]
		if md == nil {
			c.differ("%s: no such operation", name)
			continue
		}
		c.operation(name, op.Output, op.Errors, md)
		// Requests first: their constraints are enforced.
		c.message(op.Input, md.Input(), true)
	}
	for name, op := range c.facts.Operations {
		if md := methods[name]; md != nil {
			c.message(op.Output, md.Output(), false)
		}
	}
	for name := range methods {
		if _, ok := c.facts.Operations[name]; !ok {
			c.differ("%s: extra operation", name)
		}
	}
	c.unreached(t)
	for _, d := range c.found {
		if deviations[d] == "" {
			t.Errorf("%s", d)
		}
	}
	for d := range deviations {
		if !slices.Contains(c.found, d) {
			t.Errorf("is listed as a deviation, and is none: %s", d)
		}
	}
}

func (c *comparison) operation(name, output string, errors []string, md protoreflect.MethodDescriptor) {
	spec, _ := proto.GetExtension(md.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
	if spec.GetEmptyBody() != (output == "") {
		c.differ("%s: empty_body is %t", name, spec.GetEmptyBody())
	}
	for _, e := range errors {
		if !slices.Contains(spec.GetErrors(), e) {
			c.differ("%s: does not declare %s", name, e)
		}
		if _, ok := c.facts.Errors[e]; !ok {
			c.differ("%s: %s has no facts", name, e)
		}
	}
	for _, e := range spec.GetErrors() {
		if !slices.Contains(errors, e) {
			c.differ("%s: declares %s", name, e)
		}
	}
	if slices.Contains(spec.GetErrors(), "UnsupportedOperationException") {
		return
	}
	fields := md.Input().Fields()
	refuses := spec.GetUnbuilt()
	for i := range fields.Len() {
		refuses = refuses || unbuilt(fields.Get(i))
	}
	if refuses {
		c.differ("%s: answers UnsupportedOperationException undeclared", name)
	}
}

// unbuilt tells whether a field, or a value of its enum, is not built.
func unbuilt(fd protoreflect.FieldDescriptor) bool {
	if proto.GetExtension(fd.Options(), keyholdv1.E_Unbuilt) == true {
		return true
	}
	if fd.Enum() == nil {
		return false
	}
	for i := range fd.Enum().Values().Len() {
		if proto.GetExtension(fd.Enum().Values().Get(i).Options(), keyholdv1.E_UnbuiltValue) == true {
			return true
		}
	}
	return false
}

// message compares a message with a structure. Constraints are compared in
// requests alone: nothing checks answers.
func (c *comparison) message(structure string, md protoreflect.MessageDescriptor, request bool) {
	if _, done := c.messages[md.FullName()]; done {
		return
	}
	c.messages[md.FullName()] = structure
	have := make(map[string]bool)
	members := c.facts.Structures[structure]
	if members == nil && structure != "" {
		c.differ("%s: no facts", structure)
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		name := awsjson.MemberName(fd)
		have[name] = true
		at := string(md.Name()) + "." + name
		if m := members[name]; m != nil {
			c.field(at, m, fd, request)
		} else {
			c.differ("%s: extra member", at)
		}
	}
	for name := range members {
		if !have[name] {
			c.differ("%s.%s: no such member", md.Name(), name)
		}
	}
}

func (c *comparison) field(at string, m *member, fd protoreflect.FieldDescriptor, request bool) {
	opts, _ := fd.Options().(*descriptorpb.FieldOptions)
	if opts.GetDeprecated() != m.Deprecated {
		c.differ("%s: deprecated is %t", at, opts.GetDeprecated())
	}
	if m.Sensitive && !opts.GetDebugRedact() {
		c.differ("%s: is sensitive and not redacted", at)
	}
	rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
	if request && required(fd, rules) != m.Required {
		c.differ("%s: required is %t", at, required(fd, rules))
	}
	switch {
	case fd.IsMap():
		if m.Type != "map" || m.Key.Type != "string" || m.Element.Type != "string" || fd.MapKey().Kind() != protoreflect.StringKind || fd.MapValue().Kind() != protoreflect.StringKind {
			c.differ("%s: is a map", at)
		}
	case fd.IsList():
		if m.Type != "list" {
			c.differ("%s: is a list", at)
			return
		}
		if request {
			c.bounds(at, m, int64OrNil(rules.GetRepeated().HasMinItems(), rules.GetRepeated().GetMinItems()), int64OrNil(rules.GetRepeated().HasMaxItems(), rules.GetRepeated().GetMaxItems()))
		}
		c.value(at+"[]", m.Element, fd, rules.GetRepeated().GetItems(), request)
	default:
		c.value(at, m, fd, rules, request)
	}
}

// required tells whether a request without the field is refused.
func required(fd protoreflect.FieldDescriptor, rules *validate.FieldRules) bool {
	implicit := !fd.HasPresence() && (rules.GetString().GetMinLen() > 0 || rules.GetString().GetLen() > 0 || rules.GetBytes().GetMinLen() > 0)
	return rules.GetRequired() || implicit
}

// value compares a single value, or an element of a list.
func (c *comparison) value(at string, m *member, fd protoreflect.FieldDescriptor, rules *validate.FieldRules, request bool) {
	types := map[protoreflect.Kind]string{
		protoreflect.StringKind: "string", protoreflect.BytesKind: "blob", protoreflect.BoolKind: "boolean",
		protoreflect.Int32Kind: "integer", protoreflect.EnumKind: "enum", protoreflect.MessageKind: "structure",
	}
	kind := types[fd.Kind()]
	if fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Timestamp" {
		kind = "timestamp"
	}
	if kind != m.Type {
		c.differ("%s: is %s, not %s", at, kind, m.Type)
		return
	}
	switch kind {
	case "enum":
		c.enum(m.Name, fd.Enum())
		if request && !rules.GetEnum().GetDefinedOnly() {
			c.differ("%s: takes values that are not defined", at)
		}
	case "structure":
		if string(fd.Message().Name()) != m.Name {
			c.differ("%s: is %s, not %s", at, fd.Message().Name(), m.Name)
		}
		c.message(m.Name, fd.Message(), request)
	case "boolean", "integer", "timestamp":
		if !fd.HasPresence() && !fd.IsList() {
			c.differ("%s: absent and zero are the same", at)
		}
	}
	if !request {
		return
	}
	str, bytes, num := rules.GetString(), rules.GetBytes(), rules.GetInt32()
	least, most := int64OrNil(str.HasMinLen(), str.GetMinLen()), int64OrNil(str.HasMaxLen(), str.GetMaxLen())
	switch {
	case str.HasLen():
		least, most = int64OrNil(true, str.GetLen()), int64OrNil(true, str.GetLen())
	case kind == "blob":
		least, most = int64OrNil(bytes.HasMinLen(), bytes.GetMinLen()), int64OrNil(bytes.HasMaxLen(), bytes.GetMaxLen())
	case kind == "integer":
		least, most = int64OrNil(num.HasGte(), num.GetGte()), int64OrNil(num.HasLte(), num.GetLte())
	}
	c.bounds(at, m, least, most)
	// RE2 spells a code point differently, and every pattern is anchored.
	want := strings.NewReplacer(`\u0009`, `\x{9}`, `\u000A`, `\x{A}`, `\u000D`, `\x{D}`, `\u0020`, `\x{20}`, `\u00FF`, `\x{FF}`).Replace(m.Pattern)
	if got := str.GetPattern(); got != want && got != "^(?:"+want+")$" || want != "" && (!strings.HasPrefix(got, "^") || !strings.HasSuffix(got, "$")) {
		c.differ("%s: pattern is %s, not %s", at, got, m.Pattern)
	}
}

func (c *comparison) bounds(at string, m *member, least, most *int64) {
	show := func(p *int64) string {
		if p == nil {
			return "none"
		}
		return fmt.Sprint(*p)
	}
	// A least length of 0 is none.
	if want := m.Min; show(least) != show(want) && (least != nil || *want != 0) {
		c.differ("%s: min is %s, not %s", at, show(least), show(want))
	}
	if show(most) != show(m.Max) {
		c.differ("%s: max is %s, not %s", at, show(most), show(m.Max))
	}
}

func int64OrNil[N uint64 | int32](has bool, n N) *int64 {
	if !has {
		return nil
	}
	v := int64(n)
	return &v
}

func (c *comparison) enum(name string, ed protoreflect.EnumDescriptor) {
	if c.enums[ed.FullName()] {
		return
	}
	c.enums[ed.FullName()] = true
	if string(ed.Name()) != name {
		c.differ("%s: is enum %s", name, ed.Name())
	}
	opts, _ := ed.Options().(*descriptorpb.EnumOptions)
	if want := c.facts.Enums[name]; opts.GetDeprecated() != want.Deprecated {
		c.differ("%s: deprecated is %t", name, opts.GetDeprecated())
	}
	names := awsjson.EnumNames(ed)
	for _, v := range c.facts.Enums[name].Values {
		if !slices.Contains(names, v) {
			c.differ("%s: no value %s", name, v)
		}
	}
	for _, v := range names {
		if !slices.Contains(c.facts.Enums[name].Values, v) {
			c.differ("%s: extra value %s", name, v)
		}
	}
}

// unreached finds messages and enums of the package that no operation of AWS's
// uses, and structures and enums of AWS's that were not compared.
func (c *comparison) unreached(t *testing.T) {
	t.Helper()
	for _, mt := range apiMessages(t) {
		md := mt.Descriptor()
		if _, ok := c.messages[md.FullName()]; !ok {
			c.differ("%s: extra message", md.Name())
		}
	}
	protoregistry.GlobalTypes.RangeEnums(func(et protoreflect.EnumType) bool {
		ed := et.Descriptor()
		if ed.ParentFile().Package() == "keyhold.v1" && !c.enums[ed.FullName()] {
			c.differ("%s: extra enum", ed.Name())
		}
		return true
	})
	compared := make(map[string]bool)
	for _, s := range c.messages {
		compared[s] = true
	}
	for s := range c.facts.Structures {
		if !compared[s] {
			t.Errorf("%s was not compared", s)
		}
	}
	for e := range c.facts.Enums {
		if !c.enums[protoreflect.FullName("keyhold.v1."+e)] {
			t.Errorf("%s was not compared", e)
		}
	}
}
