package kms

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"

	"github.com/keyhold/keyhold/server/identity"
)

// AccountID is an account: 12 decimal digits.
type AccountID = identity.AccountID

// Region is a region's name, such as us-east-1.
type Region string

// KeyID is a KMS key's id: a UUID in its canonical lower-case form.
type KeyID string

// keyIDBytes is the length of a key id in a ciphertext and in native AAD.
const keyIDBytes = 16

// newKeyID returns a random (version 4) id read from r.
func newKeyID(r io.Reader) (KeyID, error) {
	id, err := uuid.NewRandomFromReader(r)
	if err != nil {
		return "", fmt.Errorf("make a key id: %w", err)
	}
	return KeyID(id.String()), nil
}

// bytes returns the 16 bytes of the id, or false where id is no canonical
// UUID. Keys of other shapes (multi-region ids) come with their operations.
func (id KeyID) bytes() ([keyIDBytes]byte, bool) {
	if len(id) != 36 || strings.ToLower(string(id)) != string(id) {
		return [keyIDBytes]byte{}, false
	}
	u, err := uuid.Parse(string(id))
	return u, err == nil
}

func keyIDFromBytes(b [keyIDBytes]byte) KeyID { return KeyID(uuid.UUID(b).String()) }

// refBytes is the length of a Ref.
const refBytes = 16

// Ref names one version of a key's material in ciphertexts. It is random, so
// that it tells nothing and cannot collide between installations.
type Ref [refBytes]byte

func newRef(r io.Reader) (Ref, error) {
	var ref Ref
	if r == nil {
		r = rand.Reader
	}
	if _, err := io.ReadFull(r, ref[:]); err != nil {
		return Ref{}, fmt.Errorf("make a ref: %w", err)
	}
	return ref, nil
}

// String returns the ref as 32 hexadecimal digits.
func (r Ref) String() string { return hex.EncodeToString(r[:]) }

// KeyMaterialID is the id that the API shows for one version of a key's
// material: 64 hexadecimal digits.
type KeyMaterialID string

// generatedMaterialID derives the shown id of material that the token
// generated. It tells nothing about the material.
func generatedMaterialID(id KeyID, ref Ref) KeyMaterialID {
	h := sha256.New()
	io.WriteString(h, "keyhold key material\x00"+string(id)+"\x00")
	h.Write(ref[:])
	return KeyMaterialID(hex.EncodeToString(h.Sum(nil)))
}

// keyARN returns the ARN of a key.
func keyARN(region Region, account AccountID, id KeyID) string {
	return "arn:aws:kms:" + string(region) + ":" + string(account) + ":key/" + string(id)
}

// aliasARN returns the ARN of an alias; name begins with "alias/".
func aliasARN(region Region, account AccountID, name string) string {
	return "arn:aws:kms:" + string(region) + ":" + string(account) + ":" + name
}
