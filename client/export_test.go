package client

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// NewCoalescerOver makes a Coalescer over a service that is not a connection,
// so that a test can hold the clock. Between them is what a Client has between
// its methods and its connection.
func NewCoalescerOver(service keyholdv1.CryptographyServiceClient, cfg Config, coalescing CoalescerConfig) (*Coalescer, error) {
	var err error
	if cfg.Retry, err = cfg.Retry.withDefaults(); err != nil {
		return nil, err
	}
	conn := serviceConn{service: service, retrying: retrying(cfg)}
	return newCoalescer(keyholdv1.NewCryptographyServiceClient(conn), cfg.Retry, cfg.Timeout, coalescing)
}

// MarshalRequest encodes a request as a Client does.
func MarshalRequest(m proto.Message) (mem.BufferSlice, error) { return newCodec().Marshal(m) }

// WipedItem is what is left of an item's encoded request.
func WipedItem(ctx context.Context, m proto.Message) ([]byte, error) {
	it, err := newItem(ctx, m, itemEncrypt, time.Time{})
	if err != nil {
		return nil, err
	}
	body := it.body
	it.wipe()
	return body, nil
}

// Lanes is how many regions a Coalescer remembers.
func (c *Coalescer) Lanes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lanes)
}

// serviceConn is a connection that a service is at the end of.
type serviceConn struct {
	grpc.ClientConnInterface
	service  keyholdv1.CryptographyServiceClient
	retrying grpc.UnaryClientInterceptor
}

func (c serviceConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.retrying(ctx, method, args, reply, nil, func(ctx context.Context, _ string, req, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
		switch req := req.(type) {
		case *keyholdv1.EncryptRequest:
			return answerWith(reply)(c.service.Encrypt(ctx, req, opts...))
		case *keyholdv1.DecryptRequest:
			return answerWith(reply)(c.service.Decrypt(ctx, req, opts...))
		case *keyholdv1.BatchRequest:
			return answerWith(reply)(c.service.Batch(ctx, req, opts...))
		}
		return fmt.Errorf("there is no %s here", method)
	}, opts...)
}

// answerWith takes an answer and puts it into reply, as it is: what is wiped in
// the one is wiped in the other.
func answerWith(reply any) func(proto.Message, error) error {
	return func(answer proto.Message, err error) error {
		if err != nil {
			return err
		}
		to, ok := reply.(proto.Message)
		if !ok {
			return fmt.Errorf("a reply of type %T", reply)
		}
		answer.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			to.ProtoReflect().Set(field, v)
			return true
		})
		return nil
	}
}
