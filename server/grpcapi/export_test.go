package grpcapi

import (
	"net"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// EncodedAndFreed encodes and decodes a message as the door does and returns the
// buffers that it was in, after they were given back.
func EncodedAndFreed(t *testing.T, m proto.Message) map[string][]byte {
	t.Helper()
	wire, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	encoded, err := newCodec().Marshal(answer{proto.Clone(m)})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range encoded {
		out["the answer"] = b.ReadOnlyData()
	}
	encoded.Free()
	req := request{message: m.ProtoReflect().New().Interface(), limit: len(wire), later: true}
	if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, &req); err != nil {
		t.Fatal(err)
	}
	out["the request"] = *req.raw
	req.decode()
	if req.refusal != "" {
		t.Fatal(req.refusal)
	}
	return out
}

// RefuseConnection is what a handshake that fails does.
func (s *Server) RefuseConnection(from net.Addr, err error) { s.refuseConnection(from, err) }
