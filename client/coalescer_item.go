package client

import (
	"container/list"
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// item is a call that waits or is in a batch.
type item struct {
	// ended is the Err of the caller's context.
	ended    func() error
	deadline time.Time
	// body is the encoded BatchItem. It may hold a plaintext, and is wiped when it
	// is not needed any more. A long one is in a buffer of the pool.
	body   []byte
	pooled *[]byte

	place *list.Element // in the queue, or nil
	batch *batch        // the one it is in, or nil
	gone  bool          // the caller has left

	// turn is closed when the caller must go on: flight is set if it may send
	// the call itself, else it is done. What follows is fixed by then.
	turn      chan struct{}
	flight    *flight
	result    *keyholdv1.BatchResult
	requestID string
	err       error // of the whole batch
	late      bool  // oneAttempt's, of the whole batch
}

// The kinds of items: their fields in a BatchItem. They are never changed.
var (
	itemEncrypt         = itemField("encrypt")
	itemDecrypt         = itemField("decrypt")
	itemReEncrypt       = itemField("re_encrypt")
	itemGenerateDataKey = itemField("generate_data_key")
	itemSign            = itemField("sign")
	itemVerify          = itemField("verify")
	itemGenerateMac     = itemField("generate_mac")
	itemVerifyMac       = itemField("verify_mac")
)

func itemField(name protoreflect.Name) protowire.Number {
	return (*keyholdv1.BatchItem)(nil).ProtoReflect().Descriptor().Fields().ByName(name).Number()
}

var errNotEncoded = errors.New("the request cannot be encoded")

// newItem encodes a call, whose size is known, since its request belongs to the
// caller, who may leave before it is sent.
func newItem(ctx context.Context, in proto.Message, kind protowire.Number, deadline time.Time) (*item, error) {
	opts := proto.MarshalOptions{UseCachedSize: true}
	size := opts.Size(in)
	it := &item{ended: ctx.Err, deadline: deadline, turn: make(chan struct{})}
	body := it.buffer(protowire.SizeTag(kind) + protowire.SizeBytes(size))
	body = protowire.AppendTag(body, kind, protowire.BytesType)
	body = protowire.AppendVarint(body, uint64(size))
	body, err := opts.MarshalAppend(body, in)
	if err != nil {
		it.wipe()
		return nil, errNotEncoded
	}
	it.body = body
	return it, nil
}

// buffer returns an empty one for a body of the size.
func (it *item) buffer(size int) []byte {
	if size <= maxOwnBytes {
		it.body = make([]byte, 0, size)
	} else {
		it.pooled = buffers.Get(size)
		it.body = (*it.pooled)[:0]
	}
	return it.body
}

// wipe forgets the body.
func (it *item) wipe() {
	if it.pooled != nil {
		buffers.Put(it.pooled)
	} else {
		clear(it.body[:cap(it.body)])
	}
	it.body, it.pooled = nil, nil
}

// encodeBatch makes a BatchRequest of encoded items, and wipes them. What is in
// a message's unknown fields is sent as it is. When it was sent, the buffer goes
// back to the pool.
func encodeBatch(items []*item) (*keyholdv1.BatchRequest, *[]byte) {
	const field = 1 // BatchRequest.items
	size := 0
	for _, it := range items {
		size += protowire.SizeTag(field) + protowire.SizeBytes(len(it.body))
	}
	buf := buffers.Get(size)
	b := (*buf)[:0]
	for _, it := range items {
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendBytes(b, it.body)
		it.wipe()
	}
	req := new(keyholdv1.BatchRequest)
	req.ProtoReflect().SetUnknown(b)
	return req, buf
}

// wipeResult forgets the secrets of an answer that nobody waits for.
func wipeResult(r *keyholdv1.BatchResult) {
	clear(r.GetDecrypt().GetPlaintext())
	clear(r.GetGenerateDataKey().GetPlaintext())
	clear(r.GetGenerateMac().GetMac())
}

// itemError is the status that the item's call alone would have ended with.
func itemError(e *keyholdv1.BatchError, requestID string) error {
	code, message := codes.Code(e.GetGrpcStatus()), e.GetMessage()
	if code == codes.OK {
		code = codes.Unknown
	}
	if message == "" {
		message = e.GetException()
	}
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: e.GetException(), Domain: ErrorDomain, Metadata: map[string]string{requestIDKey: requestID}},
	}
	if len(e.GetViolations()) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range e.GetViolations() {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.GetField(), Description: v.GetDescription()})
		}
		details = append(details, bad)
	}
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return status.Error(code, message)
	}
	return st.Err()
}
