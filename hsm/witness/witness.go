// Package witness lets an independent program look at a token that Keyhold
// uses: crypto11 (github.com/ThalesIgnite/crypto11), which shares nothing with
// package hsm but the PKCS#11 library. It checks in both directions that what
// one makes the other finds by CKA_ID, uses, and agrees with about the result.
//
// crypto11 wants to own C_Initialize, panics when sealing fails, and heals
// nothing, so it runs in a child process of its own: [Run] is the parent and
// [Main] the child, which a program calls for a hidden subcommand. The PIN
// travels over the child's standard input, never in arguments or environment.
//
// The witness makes keys of its own in the token, named "keyhold-witness", and
// the parent destroys them all again, also those of a child that died. It
// never touches other keys. It does not look at Ed25519 and secp256k1, which
// crypto11 does not know.
package witness

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Label is the CKA_LABEL of all keys that a witness makes.
const Label = "keyhold-witness"

// maxMessageBytes bounds what goes between parent and child.
const maxMessageBytes = 1 << 20

// A Report says what a witness saw.
type Report struct {
	Checks   []Check
	Duration time.Duration
}

// OK reports whether nothing disagreed. Checks that the token's abilities ruled
// out do not count.
func (r Report) OK() bool {
	for _, c := range r.Checks {
		if c.Err != "" {
			return false
		}
	}
	return len(r.Checks) > 0
}

// A Check is one thing that was looked at. It agreed when Err and Skipped are
// both empty.
type Check struct {
	Name    string // such as "AES key made by keyhold: crypto11 opens what keyhold sealed"
	Err     string `json:",omitempty"` // what disagreed
	Skipped string `json:",omitempty"` // why it could not be looked at
}

// request is what the parent tells the child. What is nil is left out.
type request struct {
	Module string
	Serial string
	Ours   []subject // keys that exist
	Theirs []subject // keys that the child is to make
}

// kind is a type of key that both know.
type kind string

const (
	kindAES  kind = "AES"
	kindRSA  kind = "RSA"
	kindP256 kind = "P-256"
)

// subject is one key, and what is to be done with it.
type subject struct {
	Kind kind
	ID   []byte

	// AES: what keyhold sealed, and the IV under which crypto11 is to seal.
	IV, AAD, Plaintext, Sealed, NextIV []byte `json:",omitempty"`
	// Pairs: the public key that keyhold sees, what it signed, and its signature.
	SPKI, Digest, Signature []byte `json:",omitempty"`
}

// answer is what the child says: one for each subject, in their order.
type answer struct {
	Err    string `json:",omitempty"` // nothing could be done at all
	Ours   []finding
	Theirs []finding
}

// finding is what the child did with one subject.
type finding struct {
	Err       string `json:",omitempty"` // what went wrong, by check
	Opened    bool   // AES: what keyhold sealed opens and is the same; pairs: keyhold's signature verifies and the public key is the same
	Refused   bool   // AES: with other AAD it does not open
	Sealed    []byte `json:",omitempty"`
	SPKI      []byte `json:",omitempty"`
	Signature []byte `json:",omitempty"`
}

// writeFrame writes a length and the bytes.
func writeFrame(w io.Writer, b []byte) error {
	if err := binary.Write(w, binary.BigEndian, uint32(len(b))); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// readFrame reads what writeFrame wrote.
func readFrame(r io.Reader) ([]byte, error) {
	var n uint32
	if err := binary.Read(r, binary.BigEndian, &n); err != nil {
		return nil, fmt.Errorf("read length: %w", err)
	}
	if n > maxMessageBytes {
		return nil, fmt.Errorf("message of %d bytes, at most %d", n, maxMessageBytes)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	return b, nil
}

func writeJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, b)
}

func readJSON(r io.Reader, v any) error {
	b, err := readFrame(r)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
