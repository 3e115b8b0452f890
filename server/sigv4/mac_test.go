package sigv4

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"testing"
)

// TestMAC is crypto/hmac's, for keys and data of all lengths around the block.
func TestMAC(t *testing.T) {
	t.Parallel()
	lengths := []int{0, 1, 31, 32, 63, 64, 65, 127, 128, 260}
	for _, k := range lengths {
		for _, n := range append(lengths, macDataBytes-1, macDataBytes, macDataBytes+1, 10_000) {
			key, data := bytes.Repeat([]byte{0xa5, 1}, k)[:k], bytes.Repeat([]byte{7, 0}, n)[:n]
			h := hmac.New(sha256.New, key)
			h.Write(data)
			room := takeRoom()
			if *room != (macRoom{}) {
				t.Error("the room was not wiped")
			}
			room.sum(key, data)
			if !hmac.Equal(room.out[:], h.Sum(nil)) {
				t.Errorf("a key of %d bytes, %d bytes of data: got %x", k, n, room.out)
			}
			room.leave()
		}
	}
	room := takeRoom()
	defer room.leave()
	room.sum([]byte("key"), []byte("data"))
	h := hmac.New(sha256.New, room.out[:])
	h.Write([]byte("more data"))
	if room.sum(room.out[:], []byte("more data")); !hmac.Equal(room.out[:], h.Sum(nil)) {
		t.Errorf("with its own result as the key: got %x", room.out)
	}
}
