package grpcapi

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// requestIDHeader is the response metadata that names the request, as it is
// in the audit record.
const requestIDHeader = "keyhold-request-id"

// serviceDescs builds gRPC's view of the services from the descriptors.
func serviceDescs() ([]*grpc.ServiceDesc, error) {
	var out []*grpc.ServiceDesc
	for _, sd := range kms.Services() {
		d := &grpc.ServiceDesc{ServiceName: string(sd.FullName()), HandlerType: (*any)(nil), Metadata: sd.ParentFile().Path()}
		for i := range sd.Methods().Len() {
			md := sd.Methods().Get(i)
			input, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
			if err != nil {
				return nil, fmt.Errorf("grpcapi: method %s: %w", md.FullName(), err)
			}
			d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: string(md.Name()), Handler: handler(md, input)})
		}
		out = append(out, d)
	}
	return out, nil
}

// handler serves one method: authenticate, decode, call, encode.
func handler(md protoreflect.MethodDescriptor, input protoreflect.MessageType) grpc.MethodHandler {
	operation, limit := string(md.Name()), maxRequestBytes
	spec, _ := proto.GetExtension(md.Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
	if spec.GetBatch() {
		limit = maxBatchBytes
	}
	return func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		s := srv.(*Server) //nolint:forcetypeassert // what New registered
		requestID := uuid.NewString()
		_ = grpc.SetHeader(ctx, metadata.Pairs(requestIDHeader, requestID)) // fails only after the headers were sent

		// Step 1: authenticate.
		caller, err := s.authenticate(ctx, requestID)
		if err != nil {
			return nil, err
		}
		req := request{message: input.New().Interface(), limit: limit, later: spec.GetBatch()}
		if err := decode(&req); err != nil {
			return nil, err // larger than maxReceiveBytes, or the client has gone
		}
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, maxRequestTime)
			defer cancel()
		}
		defer s.admit(ctx, &req)()
		defer kms.Wipe(req.message)
		if req.refusal != "" {
			return nil, s.failure(ctx, operation, requestID, s.cfg.Core.Malformed(ctx, caller, operation, req.refusal))
		}
		resp, err := s.cfg.Core.Do(ctx, caller, operation, req.message)
		if err != nil {
			return nil, s.failure(ctx, operation, requestID, err)
		}
		if batch, ok := resp.(*keyholdv1.BatchResponse); ok {
			setStatuses(batch)
		}
		return answer{resp}, nil
	}
}

// admit decodes a message that was to be decoded later, when there is room for it.
// The room is given back by leave.
func (s *Server) admit(ctx context.Context, req *request) (leave func()) {
	if req.raw == nil {
		return func() {}
	}
	n := int64(len(*req.raw))
	if s.batchRoom.Acquire(ctx, n) != nil {
		buffers.Put(req.raw)
		req.raw, req.refusal = nil, "was not read in its time: too many batches are under way"
		return func() {}
	}
	req.decode()
	return func() { s.batchRoom.Release(n) }
}
