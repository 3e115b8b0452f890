package grpcapi

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/server/kms"
)

// codec is gRPC's own with two additions. A request that does not decode is
// reported to its handler, which answers as for any bad request; gRPC by
// itself would answer INTERNAL. An answer of the core is wiped once it is
// encoded, so that plaintexts do not wait for the garbage collector.
type codec struct{ encoding.CodecV2 }

// newCodec wraps the codec that the grpc package registers.
func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// request is what handlers decode into.
type request struct {
	message proto.Message
	// limit is the largest that it may be, in bytes.
	limit int
	// refusal says what is wrong with it; empty where nothing is.
	refusal string
}

// answer is what handlers return.
type answer struct{ message proto.Message }

// Unmarshal is encoding.CodecV2's.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*request)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if n := data.Len(); n > r.limit {
		r.refusal = fmt.Sprintf("must be at most %d bytes; it has %d", r.limit, n)
	} else if c.CodecV2.Unmarshal(data, r.message) != nil {
		// The decoder's words may hold parts of the request.
		r.refusal = "must be a valid message of this method"
	}
	return nil
}

// Marshal is encoding.CodecV2's.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	a, ok := v.(answer)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	defer kms.Wipe(a.message)
	return c.CodecV2.Marshal(a.message)
}
