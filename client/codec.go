package client

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/proto/wirebuf"
)

// codec is gRPC's own, but that the buffers which requests are encoded in are
// wiped as soon as they were sent.
type codec struct{ encoding.CodecV2 }

// newCodec wraps the codec that the grpc package registers.
func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Marshal is encoding.CodecV2's.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	out, err := buffers.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return out, nil
}

// Unmarshal is encoding.CodecV2's.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(&buffers)
	defer buf.Free()
	return proto.Unmarshal(buf.ReadOnlyData(), m)
}

// buffers are those of messages, for all connections.
var buffers wirebuf.Pool
