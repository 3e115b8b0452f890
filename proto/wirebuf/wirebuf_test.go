package wirebuf_test

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/proto/wirebuf"
)

// TestWiped: an encoded message, short or long, is there until the last
// reference is gone, and not after.
func TestWiped(t *testing.T) {
	var pool wirebuf.Pool
	for _, n := range []int{1, 900, 1024, 4096, 1 << 20} {
		secret := bytes.Repeat([]byte{0xa5}, n)
		want, err := proto.Marshal(&keyholdv1.EncryptRequest{KeyId: "k", Plaintext: secret})
		if err != nil {
			t.Fatal(err)
		}
		s, err := pool.Marshal(&keyholdv1.EncryptRequest{KeyId: "k", Plaintext: secret})
		if err != nil {
			t.Fatal(err)
		}
		data := s[0].ReadOnlyData()
		s.Ref() // as gRPC does, to send it again
		s.Free()
		if !bytes.Equal(data, want) {
			t.Errorf("%d bytes: wiped while it may be sent again", n)
		}
		s.Free()
		if !bytes.Equal(data, make([]byte, len(data))) {
			t.Errorf("%d bytes: not wiped", n)
		}
	}
}

func TestMarshalRefuses(t *testing.T) {
	if s, err := new(wirebuf.Pool).Marshal(&keyholdv1.EncryptRequest{KeyId: "\xff"}); err == nil {
		t.Errorf("%d bytes of what cannot be encoded", s.Len())
	}
}

// TestGet: a buffer is as long as was asked for, zero, and no shorter for who
// had it before.
func TestGet(t *testing.T) {
	var pool wirebuf.Pool
	for _, n := range []int{0, 1, 2047, 2048, 2049, 1 << 24, 1<<24 + 1} {
		for range 3 {
			b := pool.Get(n)
			if len(*b) != n || !bytes.Equal(*b, make([]byte, n)) {
				t.Errorf("Get(%d): %d bytes, or not zero", n, len(*b))
			}
			for i := range *b {
				(*b)[i] = 0xa5
			}
			*b = (*b)[:n/2] // what was written beyond is wiped too
			pool.Put(b)
		}
	}
	odd := make([]byte, 3000)
	pool.Put(&odd) // of someone else: wiped, and not kept
}

func BenchmarkMarshal(b *testing.B) {
	for _, n := range []int{32, 4096, 400 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", n), func(b *testing.B) {
			var pool wirebuf.Pool
			m := &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: make([]byte, n)}
			b.ReportAllocs()
			for b.Loop() {
				s, err := pool.Marshal(m)
				if err != nil {
					b.Fatal(err)
				}
				s.Free()
			}
		})
	}
}
