package awsjson

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits bound what a Decoder takes. Zero means the default.
type Limits struct {
	// Bytes is the size of a body. Default 1 MiB.
	Bytes int
	// Depth is how deep objects and lists are in each other, those of members
	// that nobody knows included. Default 32.
	Depth int
	// Elements is how many elements all lists and maps together have, and members
	// that nobody knows. Default 10,000: an encryption context of 8,192 bytes has
	// fewer.
	Elements int
}

// Decoder reads JSON 1.1 bodies into messages. It remembers a plan for each
// message type that it has met, and nothing of a body: keep one and share it.
// It is safe for concurrent use.
type Decoder struct {
	limits Limits
	plans  sync.Map // protoreflect.MessageDescriptor -> *decodePlan; entries never change
}

// NewDecoder returns a decoder with the given limits.
func NewDecoder(l Limits) *Decoder {
	for _, d := range []struct {
		p *int
		v int
	}{{&l.Bytes, 1 << 20}, {&l.Depth, 32}, {&l.Elements, 10_000}} {
		if *d.p == 0 {
			*d.p = d.v
		}
	}
	return &Decoder{limits: l}
}

// SerializationError says that a body is not the JSON of a request at all. Its
// text holds nothing of the body. Everything else that is wrong with a request
// is a violation: ValidationException.
type SerializationError struct {
	// Reason is for the caller, in AWS's words where AWS has some.
	Reason string
	// Offset is where in the body it was found, in bytes.
	Offset int
}

func (e *SerializationError) Error() string { return e.Reason }

// Decoded is what a message cannot hold of the body that it was read from.
type Decoded struct {
	// UnknownValues are enum members that hold what the schema does not know.
	// Such a message must not be carried out: the member is as if absent.
	UnknownValues []UnknownValue
	// Empty are the paths of members that the body names, and that the message
	// shows as if they were absent: empty lists, maps, texts and blobs.
	Empty []string
}

// UnknownValue is an enum member with a value that the schema does not know.
type UnknownValue struct {
	// Path is where, in AWS's spelling, such as `keySpec` or `tags.1.member.key`.
	// For an element of a list it is that of the list.
	Path string
	// Value is the value, cut to 256 bytes.
	Value string
	// Set are the values that the schema knows.
	Set []string
	// Element is true where the value is an element of the list at Path.
	Element bool
}

// WasEmpty tells whether the body named the member at path, and left it empty.
func (d *Decoded) WasEmpty(path string) bool {
	if d == nil {
		return false
	}
	for _, p := range d.Empty {
		if p == path {
			return true
		}
	}
	return false
}

// Decode reads body into m, which it resets first. It keeps neither. The error
// is always a *SerializationError; m is then in no state to be used, and may hold
// secrets of the body.
func (d *Decoder) Decode(body []byte, m proto.Message) (*Decoded, error) {
	proto.Reset(m)
	s := decoding{d: d, body: body, out: &Decoded{}}
	s.path = s.steps[:0]
	if len(body) > d.limits.Bytes {
		return nil, &SerializationError{Reason: fmt.Sprintf("The request is larger than %d bytes.", d.limits.Bytes)}
	}
	s.space()
	if s.peek() != '{' {
		return nil, s.fail("The request is not a JSON object.")
	}
	if err := s.message(m.ProtoReflect()); err != nil {
		return nil, err
	}
	s.space()
	if s.pos != len(body) {
		return nil, s.fail("The request has something behind its JSON object.")
	}
	return s.out, nil
}

// decodePlan is what the decoder knows of a message.
type decodePlan struct {
	fields map[string]*decodeField // by member name
	n      int
}

// decodeField is what it knows of a field; of a list or a map, of its values.
type decodeField struct {
	desc      protoreflect.FieldDescriptor
	index     int
	path      string // the member's name in paths
	kind      protoreflect.Kind
	list      bool
	mapped    bool
	enum      map[string]protoreflect.EnumNumber
	set       []string
	timestamp bool
}

func (d *Decoder) plan(md protoreflect.MessageDescriptor) *decodePlan {
	if p, ok := d.plans.Load(md); ok {
		if plan, ok := p.(*decodePlan); ok {
			return plan
		}
	}
	plan := &decodePlan{fields: make(map[string]*decodeField, md.Fields().Len()), n: md.Fields().Len()}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		elem := fd
		if fd.IsMap() {
			elem = fd.MapValue()
		}
		f := &decodeField{desc: fd, index: i, path: PathName(fd), kind: elem.Kind(), list: fd.IsList(), mapped: fd.IsMap()}
		if ed := elem.Enum(); ed != nil {
			f.set = EnumNames(ed)
			f.enum = make(map[string]protoreflect.EnumNumber, len(f.set))
			for _, name := range f.set {
				f.enum[name], _ = ParseEnum(ed, name)
			}
		}
		f.timestamp = elem.Message() != nil && elem.Message().FullName() == "google.protobuf.Timestamp"
		plan.fields[MemberName(fd)] = f
	}
	d.plans.Store(md, plan)
	return plan
}

// PathName returns the name of a field in AWS's paths: the member's, with a
// small first letter.
func PathName(fd protoreflect.FieldDescriptor) string { return lowerFirst(MemberName(fd)) }

// decoding is one call of Decode.
type decoding struct {
	d        *Decoder
	body     []byte
	pos      int
	depth    int
	elements int
	path     []step
	steps    [8]step // where path begins, without an allocation
	out      *Decoded
}

// step is one part of the path to where the decoder is.
type step struct {
	name  string
	index int // of an element, from 1; 0 where it is none
}

func (s *decoding) fail(reason string) *SerializationError {
	return &SerializationError{Reason: reason, Offset: s.pos}
}

// where renders the path as AWS does: keyId, tags.1.member.tagKey.
func (s *decoding) where() string {
	var b strings.Builder
	for i, p := range s.path {
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(p.name)
		if p.index > 0 {
			b.WriteString("." + strconv.Itoa(p.index) + ".member")
		}
	}
	return b.String()
}

func (s *decoding) enter() error {
	if s.depth++; s.depth > s.d.limits.Depth {
		return s.fail("The request is nested too deeply.")
	}
	return nil
}

// twice refuses what has a name that was there before. Readers differ in which of
// the two they take, and what one of them is asked to allow, another might carry out.
func (s *decoding) twice() error { return s.fail("A name is there twice in one object.") }

func (s *decoding) count() error {
	if s.elements++; s.elements > s.d.limits.Elements {
		return s.fail("The request has too many elements.")
	}
	return nil
}

// message reads an object into m. pos is at the brace.
func (s *decoding) message(m protoreflect.Message) error {
	plan := s.d.plan(m.Descriptor())
	var few [64]bool
	seen := few[:]
	if plan.n > len(few) {
		seen = make([]bool, plan.n)
	}
	var strange names
	return s.object(func(name []byte) error {
		f := plan.fields[string(name)]
		if f == nil {
			return s.skipMember(&strange, name)
		}
		if seen[f.index] {
			return s.twice()
		}
		seen[f.index] = true
		s.path = append(s.path, step{name: f.path})
		var err error
		if s.peek() == 'n' {
			err = s.literal("null") // as if it were absent
		} else {
			err = s.field(m, f)
		}
		s.path = s.path[:len(s.path)-1]
		return err
	})
}

// field reads the value of a member.
func (s *decoding) field(m protoreflect.Message, f *decodeField) error {
	switch {
	case f.mapped:
		return s.mapField(m, f)
	case f.list:
		return s.listField(m, f)
	case f.kind == protoreflect.MessageKind:
		return s.structure(f, m.Mutable(f.desc).Message())
	}
	v, err := s.scalar(f)
	if err != nil {
		return err
	}
	if v.IsValid() {
		m.Set(f.desc, v)
		if !m.Has(f.desc) && (f.kind == protoreflect.StringKind || f.kind == protoreflect.BytesKind) {
			s.out.Empty = append(s.out.Empty, s.where())
		}
	}
	return nil
}

// structure reads a message, or the number that a timestamp is.
func (s *decoding) structure(f *decodeField, m protoreflect.Message) error {
	switch {
	case f.timestamp:
		return s.timestamp(m)
	case s.peek() != '{':
		return s.mismatch("a structure")
	}
	return s.message(m)
}

func (s *decoding) listField(m protoreflect.Message, f *decodeField) error {
	if s.peek() != '[' {
		return s.mismatch("a list")
	}
	list, n := m.Mutable(f.desc).List(), 0
	err := s.array(func() error {
		if err := s.count(); err != nil {
			return err
		}
		n++
		if s.peek() == 'n' {
			return s.fail("Null found in a list.")
		}
		if f.kind == protoreflect.MessageKind {
			s.path[len(s.path)-1].index = n
			return s.structure(f, list.AppendMutable().Message())
		}
		v, err := s.scalar(f)
		if err != nil {
			return err
		}
		if !v.IsValid() { // an unknown enum value: its place is kept
			v = list.NewElement()
		}
		list.Append(v)
		return nil
	})
	s.path[len(s.path)-1].index = 0
	if err == nil && n == 0 {
		s.out.Empty = append(s.out.Empty, s.where())
	}
	return err
}

func (s *decoding) mapField(m protoreflect.Message, f *decodeField) error {
	if s.peek() != '{' {
		return s.mismatch("a map")
	}
	// The API's maps are of strings.
	if f.kind != protoreflect.StringKind || f.desc.MapKey().Kind() != protoreflect.StringKind {
		return s.fail("A map of this kind is not supported.")
	}
	entries, n := m.Mutable(f.desc).Map(), 0
	err := s.object(func(key []byte) error {
		if err := s.count(); err != nil {
			return err
		}
		n++
		k := protoreflect.ValueOfString(string(key)).MapKey()
		if s.peek() == 'n' {
			return s.fail("Null found in a map.")
		}
		v, err := s.scalar(f)
		if err != nil {
			return err
		}
		if entries.Set(k, v); entries.Len() < n {
			return s.twice()
		}
		return nil
	})
	if err == nil && n == 0 {
		s.out.Empty = append(s.out.Empty, s.where())
	}
	return err
}
