package kms

import (
	"errors"
)

// The ciphertext of symmetric keys, docs/ciphertext-format.md:
//
//	format ‖ key id ‖ Ref ‖ len(IV) ‖ IV ‖ len(meta) ‖ meta ‖ ciphertext ‖ tag
//	1        16       16    1         12…16 1         0…20
const (
	blobFormat    = 1
	blobHeadBytes = 1 + keyIDBytes + refBytes + 1
	minIVBytes    = 12
	maxIVBytes    = 16
	maxMetaBytes  = 20
	tagBytes      = 16
	maxBlobBytes  = 6144
)

// errBlob is the one reason why a ciphertext does not parse. It is not told.
var errBlob = errors.New("malformed ciphertext")

// blob is a parsed ciphertext. Its slices point into the parsed bytes.
type blob struct {
	keyID KeyID
	ref   Ref
	Sealed
}

// parseBlob parses what appendBlob wrote and nothing else: parsing and
// formatting again is the identity.
func parseBlob(b []byte) (*blob, error) {
	if len(b) > maxBlobBytes || len(b) < blobHeadBytes || b[0] != blobFormat {
		return nil, errBlob
	}
	p := &blob{keyID: keyIDFromBytes([keyIDBytes]byte(b[1 : 1+keyIDBytes]))}
	b = b[1+keyIDBytes:]
	copy(p.ref[:], b)
	b = b[refBytes:]
	var ok bool
	if p.IV, b, ok = takePart(b, minIVBytes, maxIVBytes); !ok {
		return nil, errBlob
	}
	if p.Meta, b, ok = takePart(b, 0, maxMetaBytes); !ok {
		return nil, errBlob
	}
	// Nothing was ever encrypted to an empty ciphertext: plaintexts have at
	// least one byte.
	if len(b) < 1+tagBytes {
		return nil, errBlob
	}
	p.Ciphertext, p.Tag = b[:len(b)-tagBytes], b[len(b)-tagBytes:]
	return p, nil
}

// takePart takes a part behind its one-byte length from b.
func takePart(b []byte, least, most int) (part, rest []byte, ok bool) {
	if len(b) < 1 {
		return nil, nil, false
	}
	n := int(b[0])
	if n < least || n > most || len(b) < 1+n {
		return nil, nil, false
	}
	return b[1 : 1+n], b[1+n:], true
}

// formatBlob returns the ciphertext. The parts have the lengths that KeyStore
// promises; a store that breaks its promise is an internal fault.
func formatBlob(id KeyID, ref Ref, s Sealed) ([]byte, error) {
	raw, ok := id.bytes()
	size := blobHeadBytes + len(s.IV) + 1 + len(s.Meta) + len(s.Ciphertext) + len(s.Tag)
	switch {
	case !ok:
		return nil, errors.New("format ciphertext: the key id is no UUID")
	case len(s.IV) < minIVBytes || len(s.IV) > maxIVBytes || len(s.Meta) > maxMetaBytes || len(s.Tag) != tagBytes || len(s.Ciphertext) == 0 || size > maxBlobBytes:
		return nil, errors.New("format ciphertext: the key store returned parts of lengths that it may not")
	}
	b := make([]byte, 0, size)
	b = append(b, blobFormat)
	b = append(b, raw[:]...)
	b = append(b, ref[:]...)
	b = append(b, byte(len(s.IV)))
	b = append(b, s.IV...)
	b = append(b, byte(len(s.Meta)))
	b = append(b, s.Meta...)
	b = append(b, s.Ciphertext...)
	return append(b, s.Tag...), nil
}

// aadBytes is the fixed length of native AAD.
const aadBytes = 2 + 1 + keyIDBytes + refBytes + contextHashBytes

// appendAAD appends the additional authenticated data of a native ciphertext.
// FF FF cannot begin what the external key store framing makes, so one key
// may serve both without mixing them up.
func appendAAD(dst []byte, id KeyID, ref Ref, ec map[string]string) []byte {
	raw, _ := id.bytes()
	h := contextHash(ec)
	dst = append(dst, 0xFF, 0xFF, blobFormat)
	dst = append(dst, raw[:]...)
	dst = append(dst, ref[:]...)
	return append(dst, h[:]...)
}
