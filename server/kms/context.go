package kms

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// maxContextBytes bounds an encryption context: the sum of the UTF-8 lengths
// of its keys and values. AWS's limit.
const maxContextBytes = 8192

// contextHashBytes is the length of a context's hash in native AAD.
const contextHashBytes = sha256.Size

// checkContext refuses what is too long. field names it in the error.
func checkContext(field string, ec map[string]string) error {
	total := 0
	for k, v := range ec {
		// The proto runtime refuses invalid UTF-8 already; other doors may not.
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return invalidField(field, "must be valid UTF-8")
		}
		total += len(k) + len(v)
	}
	if total > maxContextBytes {
		return invalidField(field, "must be at most %d bytes in all, counting keys and values; it has %d", maxContextBytes, total)
	}
	return nil
}

// contextHash returns SHA-256 over the canonical form of an encryption
// context (docs/ciphertext-format.md): the count of pairs, then each pair in
// byte order of the keys, every part behind its length, so that no two
// contexts share a form. Absent and empty are the same.
func contextHash(ec map[string]string) [contextHashBytes]byte {
	if len(ec) == 0 {
		return sha256.Sum256([]byte{0, 0, 0, 0})
	}
	keys := make([]string, 0, len(ec))
	size := 4
	for k, v := range ec {
		keys = append(keys, k)
		size += 8 + len(k) + len(v)
	}
	slices.Sort(keys)
	b := binary.BigEndian.AppendUint32(make([]byte, 0, size), uint32(len(keys)))
	for _, k := range keys {
		b = appendPart(b, k)
		b = appendPart(b, ec[k])
	}
	return sha256.Sum256(b)
}

func appendPart(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
