// Package wirebuf is the buffers that messages of the API are encoded in, on both
// ends of a connection. A Pool wipes a buffer as soon as gRPC gives it back, so
// that plaintexts do not wait for the garbage collector, or for the next message.
// gRPC's own pool clears a buffer when it is needed again, which may be never.
//
// What it does not reach: what TLS and the system have copied.
package wirebuf

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

const (
	// minClass makes the smallest buffers 2 KiB: mem.NewBuffer does not count the
	// users of one with 1 KiB or less, and never gives it back.
	minClass = 11
	// maxClass makes the largest that are kept 16 MiB.
	maxClass = 24
)

// Pool is a mem.BufferPool. It may be used concurrently. The zero value is ready.
type Pool struct {
	byClass [maxClass + 1]sync.Pool // of *[]byte with a capacity of 1 << i
}

var _ mem.BufferPool = (*Pool)(nil)

// Get returns a buffer of so many bytes, which are zero.
func (p *Pool) Get(length int) *[]byte {
	class := max(minClass, bits.Len(uint(max(length, 1)-1)))
	if class > maxClass {
		b := make([]byte, length)
		return &b
	}
	b, ok := p.byClass[class].Get().(*[]byte)
	if !ok {
		made := make([]byte, length, 1<<class)
		return &made
	}
	*b = (*b)[:length]
	return b
}

// Put wipes a buffer, all of its capacity, and keeps it.
func (p *Pool) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	if class := bits.Len(uint(cap(*b))) - 1; class >= minClass && class <= maxClass && cap(*b) == 1<<class {
		p.byClass[class].Put(b)
	}
}

// Marshal encodes m into a buffer of the pool. It goes back there, and is wiped,
// when the last who has a reference frees it: gRPC holds one as long as it may
// have to send the message again.
func (p *Pool) Marshal(m proto.Message) (mem.BufferSlice, error) {
	buf := p.Get(proto.Size(m))
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buf)[:0], m)
	if err != nil {
		p.Put(buf)
		return nil, err
	}
	*buf = out
	return mem.BufferSlice{mem.NewBuffer(buf, p)}, nil
}
