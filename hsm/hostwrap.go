package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
)

// AES key wrap on the host, RFC 3394 and RFC 5649, for probes and tests alone: what a token answers is compared with it. No key of a caller
// ever gets here, and it is not made for secrets: nothing is wiped, and a refusal takes as long as it takes.

// errHostUnwrap: what the host was given is no wrapped key.
var errHostUnwrap = errors.New("does not unwrap")

// hostWrap wraps plaintext, of a length that the algorithm takes.
func hostWrap(alg WrapAlgorithm, key, plaintext []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if alg == AESKW {
		return hostW(block, append(bytes.Repeat([]byte{0xA6}, 8), plaintext...)), nil // RFC 3394, 2.2.3.1
	}
	s := binary.BigEndian.AppendUint32([]byte{0xA6, 0x59, 0x59, 0xA6}, uint32(len(plaintext))) // RFC 5649, 3
	s = append(s, plaintext...)
	s = append(s, make([]byte, -len(plaintext)&7)...)
	if len(s) == 16 { // RFC 5649, 4.1: one block
		block.Encrypt(s, s)
		return s, nil
	}
	return hostW(block, s), nil
}

// hostUnwrap is the inverse.
func hostUnwrap(alg WrapAlgorithm, key, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if len(wrapped)%8 != 0 || len(wrapped) < 16 || alg == AESKW && len(wrapped) < 24 {
		return nil, errHostUnwrap
	}
	s := bytes.Clone(wrapped)
	if len(s) == 16 {
		block.Decrypt(s, s)
	} else {
		hostUnW(block, s)
	}
	iv, padded := s[:8], s[8:]
	if alg == AESKW {
		if !bytes.Equal(iv, bytes.Repeat([]byte{0xA6}, 8)) {
			return nil, errHostUnwrap
		}
		return padded, nil
	}
	n := int(binary.BigEndian.Uint32(iv[4:])) // RFC 5649, 3: the three checks
	if !bytes.Equal(iv[:4], []byte{0xA6, 0x59, 0x59, 0xA6}) || n > len(padded) || n <= len(padded)-8 || !bytes.Equal(padded[n:], make([]byte, len(padded)-n)) {
		return nil, errHostUnwrap
	}
	return padded[:n], nil
}

// hostW is W of NIST SP 800-38F, 6.1: the wrapping process of RFC 3394, 2.2.1, in place, of the initial value and two or more blocks of 8 bytes.
func hostW(block cipher.Block, s []byte) []byte {
	n := len(s)/8 - 1
	b := make([]byte, 16)
	copy(b, s[:8])
	for t := 1; t <= 6*n; t++ {
		r := s[8*((t-1)%n+1):][:8]
		copy(b[8:], r)
		block.Encrypt(b, b)
		copy(r, b[8:])
		binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(b)^uint64(t))
	}
	copy(s, b[:8])
	return s
}

// hostUnW is its inverse.
func hostUnW(block cipher.Block, s []byte) {
	n := len(s)/8 - 1
	b := make([]byte, 16)
	copy(b, s[:8])
	for t := 6 * n; t >= 1; t-- {
		binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(b)^uint64(t))
		r := s[8*((t-1)%n+1):][:8]
		copy(b[8:], r)
		block.Decrypt(b, b)
		copy(r, b[8:])
	}
	copy(s, b[:8])
}
