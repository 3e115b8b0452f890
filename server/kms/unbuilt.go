package kms

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// The proto declares AWS's whole API. What of it is not built bears an option
// that says so, and is refused here, once, for every door: a member that was
// ignored might be the one that the caller relies on.

// unbuiltPart is a field of a request that is not built, or that has values
// that are not.
type unbuiltPart struct {
	fd     protoreflect.FieldDescriptor
	member string
	values map[protoreflect.EnumNumber]string // nil: the field as a whole
}

// unbuiltParts finds them by the proto's options. It looks at the fields of
// the request itself: a test holds that none is further down.
func unbuiltParts(md protoreflect.MessageDescriptor) []unbuiltPart {
	var out []unbuiltPart
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		p := unbuiltPart{fd: fd, member: awsjson.MemberName(fd)}
		if proto.GetExtension(fd.Options(), keyholdv1.E_Unbuilt) == true {
			out = append(out, p)
			continue
		}
		if fd.Enum() == nil || fd.IsList() {
			continue
		}
		for j := range fd.Enum().Values().Len() {
			if v := fd.Enum().Values().Get(j); proto.GetExtension(v.Options(), keyholdv1.E_UnbuiltValue) == true {
				if p.values == nil {
					p.values = make(map[protoreflect.EnumNumber]string)
				}
				p.values[v.Number()] = awsjson.ValueName(v)
			}
		}
		if p.values != nil {
			out = append(out, p)
		}
	}
	return out
}

// refuse returns the refusal of a request that asks for the part.
func (p *unbuiltPart) refuse(m protoreflect.Message) error {
	if !m.Has(p.fd) {
		return nil
	}
	v := m.Get(p.fd)
	switch {
	case p.values != nil:
		if name, ok := p.values[v.Enum()]; ok {
			return errorf(CodeUnsupportedOperation, "%s %s is not supported by this service.", p.member, name)
		}
		return nil
	case p.fd.Kind() == protoreflect.BoolKind && !p.fd.IsList() && !v.Bool():
		return nil // what its absence says
	}
	return errorf(CodeUnsupportedOperation, "%s is not supported by this service.", p.member)
}

// refuseUnbuilt refuses a request that asks for anything that is not built.
func (op *operation) refuseUnbuilt(req proto.Message) error {
	for i := range op.unbuilt {
		if err := op.unbuilt[i].refuse(req.ProtoReflect()); err != nil {
			return err
		}
	}
	return nil
}

// errUnbuilt is the answer to an operation that is not built.
func errUnbuilt(op *operation) *Error {
	return errorf(CodeUnsupportedOperation, "%s is not supported by this service.", op.name)
}
