package kms

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// validate is step 2: what the proto declares, then what it cannot.
func (s *Service) validate(c *call) error {
	if err := s.checkConstraints(c.op, c.req); err != nil {
		return err
	}
	if err := c.op.refuseUnbuilt(c.req); err != nil {
		return err
	}
	if c.op.valid != nil {
		if err := c.op.valid(c.req); err != nil {
			return err
		}
	}
	c.validated = true
	return nil
}

// checkConstraints is the part of step 2 that the proto declares.
func (s *Service) checkConstraints(op *operation, req proto.Message) error {
	// The items of a batch are looked into one by one, each by its own call.
	nested := !op.spec.GetBatch() && slices.ContainsFunc(op.nested, req.ProtoReflect().Has)
	if field := unknownField(req.ProtoReflect(), "", nested); field != "" {
		return invalidField(field, "is not known to this version of the service")
	}
	if err := checkLists(op.lists, req.ProtoReflect()); err != nil {
		return err
	}
	if err := s.validator.Validate(req); err != nil {
		return asViolations(err)
	}
	return nil
}

// CheckConstraints returns what the proto's constraints say against a request,
// nil or an *Error, and does nothing else: a door that found violations of its
// own while it decoded wants all of them in one answer, whose record Malformed
// makes. What Do is given needs no CheckConstraints before it.
//
// The error's cause is a *protovalidate.ValidationError where it is about
// declared constraints. It holds values of the request: it is not for logs.
func (s *Service) CheckConstraints(operation string, req proto.Message) error {
	op := s.ops[operation]
	if op == nil || req == nil || req.ProtoReflect().Descriptor() != op.input {
		return internalError(fmt.Errorf("the constraints of %q were asked for with something else", clip(operation)))
	}
	return s.checkConstraints(op, req)
}

// boundedList is a list of a request, with its declared length.
type boundedList struct {
	fd   protoreflect.FieldDescriptor
	most uint64
}

// checkLists enforces the declared lengths of lists before anything looks at
// their elements: each element has violations of its own, and a request full of
// empty ones would be answered with megabytes.
func checkLists(lists []boundedList, m protoreflect.Message) error {
	for _, l := range lists {
		if !m.Has(l.fd) {
			continue
		}
		if v := m.Get(l.fd); uint64(v.List().Len()) > l.most {
			e := invalidField(string(l.fd.Name()), "must have at most %d elements; it has %d", l.most, v.List().Len())
			e.cause = tooManyItems(l, v)
			return e
		}
	}
	return nil
}

// tooManyItems is what protovalidate would have said of a list.
func tooManyItems(l boundedList, v protoreflect.Value) *protovalidate.ValidationError {
	name, number, id := string(l.fd.Name()), int32(l.fd.Number()), "repeated.max_items"
	return &protovalidate.ValidationError{Violations: []*protovalidate.Violation{{
		Proto: validate.Violation_builder{
			RuleId: &id,
			Field: validate.FieldPath_builder{Elements: []*validate.FieldPathElement{
				validate.FieldPathElement_builder{FieldName: &name, FieldNumber: &number}.Build(),
			}}.Build(),
		}.Build(),
		FieldDescriptor: l.fd, FieldValue: v, RuleValue: protoreflect.ValueOfUint64(l.most),
	}}}
}

// asViolations turns protovalidate's answer into ours. Values are never part
// of it: they may be secret.
func asViolations(err error) error {
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		return internalError(fmt.Errorf("validate: %w", err))
	}
	// The cause is for doors that have words of their own for violations.
	e := &Error{Code: CodeValidation, cause: invalid}
	texts := make([]string, 0, len(invalid.Violations))
	for _, v := range invalid.Violations {
		d := Violation{Field: protovalidate.FieldPathString(v.Proto.GetField()), Description: v.Proto.GetMessage()}
		e.Violations = append(e.Violations, d)
		texts = append(texts, d.Field+": "+d.Description)
	}
	e.Message = strings.Join(texts, "; ")
	return e
}

// unknownField finds what the client sent and this version does not know. A
// field that is silently ignored may be one that the client relies on.
// Without nested, m has no lists and no messages to look into.
func unknownField(m protoreflect.Message, path string, nested bool) string {
	if len(m.GetUnknown()) > 0 {
		n, _, _ := protowire.ConsumeTag(m.GetUnknown())
		return fmt.Sprintf("%sfield %d", path, n)
	}
	if !nested {
		return ""
	}
	found := ""
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				if found = unknownField(v.List().Get(i).Message(), fmt.Sprintf("%s%s[%d].", path, fd.Name(), i), true); found != "" {
					return false
				}
			}
		default:
			found = unknownField(v.Message(), path+string(fd.Name())+".", true)
		}
		return found == ""
	})
	return found
}

// requestMessages returns one message of every request type.
func requestMessages(ops map[string]*operation) []proto.Message {
	var out []proto.Message
	for _, op := range ops {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(op.input.FullName())
		if err != nil {
			panic("kms: generated code lacks " + string(op.input.FullName()))
		}
		out = append(out, mt.New().Interface())
	}
	return out
}
