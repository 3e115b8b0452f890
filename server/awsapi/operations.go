package awsapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi/violations"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// codeSerialization is AWS's code for a body that is no request.
const codeSerialization = "SerializationException"

// answerBytes is more than the names and punctuation of an answer with a secret
// take; base64 makes 4 bytes of 3.
const answerBytes = 512

// operation is one operation of the AWS KMS API.
type operation struct {
	name   string
	method protoreflect.MethodDescriptor
	input  protoreflect.MessageType
}

// findOperations returns the operations of the AWS KMS API by X-Amz-Target.
// Extensions are not among them.
func findOperations() (map[string]*operation, error) {
	all := make(map[string]*operation)
	for _, sd := range kms.Services() {
		for i := range sd.Methods().Len() {
			md := sd.Methods().Get(i)
			if spec, _ := proto.GetExtension(md.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation); spec.GetExtension() {
				continue
			}
			input, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
			if err != nil {
				return nil, fmt.Errorf("awsapi: method %s: %w", md.FullName(), err)
			}
			all[targetPrefix+string(md.Name())] = &operation{name: string(md.Name()), method: md, input: input}
		}
	}
	return all, nil
}

// codec is what bodies are read and written with.
type codec struct {
	decoder *awsjson.Decoder
	encoder *awsjson.Encoder
}

func newCodec() codec {
	return codec{awsjson.NewDecoder(awsjson.Limits{Bytes: maxBodyBytes}), awsjson.NewEncoder(awsjson.Options{EpochTimes: true})}
}

// serve is one request from its body to the answer's. On a failure the answer is
// nil. The answer may be secret, and is the caller's to wipe.
func (s *Server) serve(ctx context.Context, caller *identity.Caller, op *operation, body []byte) ([]byte, *failure) {
	req := op.input.New().Interface()
	defer kms.Wipe(req)
	decoded, err := s.codec.decoder.Decode(body, req)
	var garbage *awsjson.SerializationError
	if errors.As(err, &garbage) {
		if err := s.cfg.Core.Malformed(ctx, caller, op.name, "must be the JSON of a request"); temporary(err) {
			return nil, s.failed(ctx, op.name, caller.RequestID, err)
		}
		return nil, &failure{status: http.StatusBadRequest, code: codeSerialization, message: garbage.Reason}
	}
	if err != nil {
		return nil, s.failed(ctx, op.name, caller.RequestID, err)
	}
	var resp proto.Message
	if len(decoded.UnknownValues) > 0 {
		// The core would take the member for absent. All that is wrong is one answer.
		wrong := violations.Message(req, decoded, s.cfg.Core.CheckConstraints(op.name, req))
		if err := s.cfg.Core.Malformed(ctx, caller, op.name, "has members with values that are not known"); temporary(err) {
			return nil, s.failed(ctx, op.name, caller.RequestID, err)
		}
		return nil, &failure{status: http.StatusBadRequest, code: string(kms.CodeValidation), message: wrong}
	}
	if resp, err = s.cfg.Core.Do(ctx, caller, op.name, req); err != nil {
		f := s.failed(ctx, op.name, caller.RequestID, err)
		if f.code == string(kms.CodeValidation) {
			f.message = violations.Message(req, decoded, err)
		}
		return nil, f
	}
	defer kms.Wipe(resp)
	return s.encode(op, resp), nil
}

// encode writes an answer. Those with a secret in them fit into the first buffer,
// so that none of it is left in one that was outgrown.
func (s *Server) encode(op *operation, resp proto.Message) []byte {
	buf := make([]byte, 0, answerBytes+2*proto.Size(resp))
	answer := s.codec.encoder.AppendAnswer(buf, op.method, resp)
	if len(answer) > cap(buf) {
		clear(buf[:cap(buf)])
	}
	return answer
}

// temporary tells whether a refusal was not even recorded, and must be answered as
// that.
func temporary(err error) bool {
	var e *kms.Error
	return errors.As(err, &e) && (e.Code == kms.CodeInternal || e.Code == kms.CodeThrottling)
}
