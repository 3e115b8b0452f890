package sigv4

import (
	"crypto/sha256"
	"sync"
)

const (
	// macBlockBytes is the block of SHA-256.
	macBlockBytes = 64
	// macDataBytes is what is signed without an allocation: a string to sign has
	// about 140 bytes.
	macDataBytes = 448
)

// macRoom is where HMAC-SHA256 (FIPS 198-1) is computed. It is written out, and not
// crypto/hmac's, because that keeps the key in two pads that nobody can wipe, and
// whoever reads one has the key. Here they are wiped, and on the heap: a stack that
// grows or shrinks leaves a copy of what was on it.
//
// SHA-256 is always of a whole buffer, whose first block is the pad: so it keeps
// neither a part of it, nor the state behind it. (Of a key that is longer than a
// block, which no secret of AWS's form is, it may keep the end.)
type macRoom struct {
	out   [sha256.Size]byte // the result of sum
	key   [sha256.Size]byte // of a key that is too long
	inner [macBlockBytes + macDataBytes]byte
	outer [macBlockBytes + sha256.Size]byte
}

//nolint:gochecknoglobals // cleared memory, of nobody
var macRooms = sync.Pool{New: func() any { return new(macRoom) }}

// takeRoom returns a macRoom, which must be left.
func takeRoom() *macRoom {
	return macRooms.Get().(*macRoom) //nolint:forcetypeassert // the only type in it
}

// leave wipes the room and gives it back.
func (m *macRoom) leave() {
	*m = macRoom{}
	macRooms.Put(m)
}

// sum computes the HMAC of data into out. key may be out itself.
func (m *macRoom) sum(key, data []byte) {
	if len(key) > macBlockBytes {
		m.key = sha256.Sum256(key)
		key = m.key[:]
	}
	inner := m.inner[:]
	if len(data) > macDataBytes {
		inner = make([]byte, macBlockBytes+len(data))
	}
	for i := range macBlockBytes {
		inner[i], m.outer[i] = 0x36, 0x5c
	}
	for i, b := range key {
		inner[i] ^= b
		m.outer[i] ^= b
	}
	n := macBlockBytes + copy(inner[macBlockBytes:], data)
	hash := sha256.Sum256(inner[:n])
	copy(m.outer[macBlockBytes:], hash[:])
	m.out = sha256.Sum256(m.outer[:])
	if len(data) > macDataBytes {
		clear(inner)
	}
}
