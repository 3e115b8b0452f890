package grpcapi

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/proto/wirebuf"
	"github.com/keyhold/keyhold/server/kms"
)

// codec is gRPC's own with three additions. A request that does not decode is
// reported to its handler, which answers as for any bad request; gRPC by
// itself would answer INTERNAL. An answer of the core is wiped once it is
// encoded, and so are the buffers that requests and answers are encoded in, so
// that plaintexts do not wait for the garbage collector. The frames that the
// transport reads are gRPC's own, and are not wiped.
type codec struct{ encoding.CodecV2 }

// newCodec wraps the codec that the grpc package registers.
func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// request is what handlers decode into.
type request struct {
	message proto.Message
	// limit is the largest that it may be, in bytes.
	limit int
	// later is set for messages that are to be decoded when there is room for what
	// becomes of them; raw is one, to be given back to buffers.
	later bool
	raw   *[]byte
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
		return nil
	}
	r.raw = buffers.Get(data.Len())
	data.CopyTo(*r.raw)
	if !r.later {
		r.decode()
	}
	return nil
}

// decode decodes what was received, and forgets it.
func (r *request) decode() {
	if r.raw == nil {
		return
	}
	defer buffers.Put(r.raw)
	if r.refusal = checkItems(*r.raw, r.later); r.refusal == "" && proto.Unmarshal(*r.raw, r.message) != nil {
		// The decoder's words may hold parts of the request.
		r.refusal = "must be a valid message of this method"
	}
	r.raw = nil
}

// checkItems counts the items of a batch before they are made: two bytes of a
// request become seventy in memory.
func checkItems(raw []byte, batch bool) string {
	items := 0
	for batch && len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return "" // the decoder will say so
		}
		m := protowire.ConsumeFieldValue(number, kind, raw[n:])
		if m < 0 {
			return ""
		}
		raw = raw[n+m:]
		if items++; items > maxBatchItems {
			return fmt.Sprintf("items must be at most %d", maxBatchItems)
		}
	}
	return ""
}

// Marshal is encoding.CodecV2's.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	a, ok := v.(answer)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	defer kms.Wipe(a.message)
	out, err := buffers.Marshal(a.message)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return out, nil
}

// buffers are those of messages, for all connections.
var buffers wirebuf.Pool
