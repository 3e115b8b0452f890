package client

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf8"
)

// MaxEnvelopePlaintextBytes is the longest plaintext of an Envelope: 64 MiB. All
// of it is in memory, since no byte is given out before the tag was checked.
const MaxEnvelopePlaintextBytes = 64 << 20

// The format of docs/envelope-format.md.
const (
	messageVersion = 1
	messageIDBytes = 32
	ivBytes        = 12
	tagBytes       = 16
	dataKeyBytes   = 32
	// maxEDKBytes is the longest ciphertext that the service takes.
	maxEDKBytes = 6144
	// keyInfo separates the keys that are derived here from all others.
	keyInfo = "keyhold envelope v1"

	// maxContextBytes is the service's limit: the sum of the lengths of keys and
	// values.
	maxContextBytes = 8192
)

// dataKey is a data key in both forms. Whoever made it wipes the secret.
type dataKey struct{ edk, secret []byte }

// message is a parsed message. Its parts are slices of the whole.
type message struct {
	// header is everything before the IV.
	header []byte
	edk    []byte
	id     []byte
	// sealed is IV, ciphertext and tag.
	sealed []byte
}

func appendHeader(b, edk, id []byte) []byte {
	b = append(b, messageVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(edk)))
	b = append(b, edk...)
	return append(b, id...)
}

// parseMessage accepts what appendHeader and a sealed text of possible length
// make, and nothing else.
func parseMessage(b []byte) (message, bool) {
	const fixed = 1 + 2
	if len(b) < fixed || b[0] != messageVersion {
		return message{}, false
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	headerBytes := fixed + n + messageIDBytes
	if n == 0 || n > maxEDKBytes || len(b) < headerBytes+ivBytes+tagBytes || len(b) > headerBytes+ivBytes+MaxEnvelopePlaintextBytes+tagBytes {
		return message{}, false
	}
	return message{header: b[:headerBytes:headerBytes], edk: b[fixed : fixed+n : fixed+n], id: b[fixed+n : headerBytes], sealed: b[headerBytes:]}, true
}

// sealMessage makes a message with a key of its own, derived from k.
func sealMessage(k dataKey, canonical, plaintext []byte) ([]byte, error) {
	id := make([]byte, messageIDBytes)
	_, _ = rand.Read(id) // never fails
	aead, err := messageAEAD(k.secret, id)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, 1+2+len(k.edk)+messageIDBytes+ivBytes+len(plaintext)+tagBytes)
	out = appendHeader(out, k.edk, id)
	return aead.Seal(out, nil, plaintext, slices.Concat(out, canonical)), nil //nolint:gosec // it makes a random IV itself
}

// openMessage returns ErrDecrypt if the message is not as it was made.
func openMessage(k dataKey, m message, canonical []byte) ([]byte, error) {
	aead, err := messageAEAD(k.secret, m.id)
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, nil, m.sealed, slices.Concat(m.header, canonical))
	if err != nil {
		return nil, ErrDecrypt
	}
	return plaintext, nil
}

// messageAEAD is AES-256-GCM under the message's own key. The IV, random, is
// the first part of what it seals.
func messageAEAD(secret, id []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, id, keyInfo, dataKeyBytes)
	if err != nil {
		return nil, fmt.Errorf("derive the message's key: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("message's key: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// canonicalContext returns the one form of an encryption context, or what is
// wrong with it: the count of pairs, then the pairs in byte order of their
// keys, each part behind its length.
func canonicalContext(ec map[string]string) ([]byte, error) {
	keys := make([]string, 0, len(ec))
	total := 0
	for k, v := range ec {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, fmt.Errorf("encryption context: the pair of %q is not valid UTF-8", k)
		}
		keys = append(keys, k)
		total += len(k) + len(v)
	}
	if total > maxContextBytes {
		return nil, fmt.Errorf("encryption context: %d bytes, keys and values together; at most %d are possible", total, maxContextBytes)
	}
	slices.Sort(keys)
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+8*len(keys)+total), uint32(len(keys)))
	for _, k := range keys {
		b = appendPart(b, k)
		b = appendPart(b, ec[k])
	}
	return b, nil
}

func appendPart[T string | []byte](b []byte, part T) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
	return append(b, part...)
}
