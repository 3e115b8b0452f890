// Package vectors reads the Wycheproof test vectors (github.com/c2sp/wycheproof)
// for tests. It promises that a file that is missing, empty or not understood
// fails the test: vectors that silently do not run prove nothing.
package vectors

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

// Bytes is a byte string that the vectors write in hexadecimal.
type Bytes []byte

// UnmarshalText decodes hexadecimal.
func (b *Bytes) UnmarshalText(text []byte) error {
	out := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(out, text); err != nil {
		return err
	}
	*b = out
	return nil
}

// A Case is what every test vector has.
type Case struct {
	ID      int      `json:"tcId"`
	Comment string   `json:"comment"`
	Flags   []string `json:"flags"`
	Result  string   `json:"result"`
}

// Valid reports whether an implementation must accept, and Invalid whether it
// must refuse; neither holds for the "acceptable" ones.
func (c Case) Valid() bool { return c.Result == "valid" }

// Invalid is explained at Valid.
func (c Case) Invalid() bool { return c.Result == "invalid" }

// Has reports whether the vector bears the flag.
func (c Case) Has(flag string) bool {
	for _, f := range c.Flags {
		if f == flag {
			return true
		}
	}
	return false
}

// String names the vector in failures.
func (c Case) String() string { return fmt.Sprintf("tcId %d (%s, %v)", c.ID, c.Comment, c.Flags) }

// Load returns the test groups of a file of testvectors_v1, decoded into the
// caller's type G, whose Tests the caller declares too.
func Load[G any](t testing.TB, name string) []G {
	t.Helper()
	content, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatalf("read vectors: %v", err)
	}
	var file struct {
		NumberOfTests int `json:"numberOfTests"`
		TestGroups    []G `json:"testGroups"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		t.Fatalf("decode vectors %s: %v", name, err)
	}
	if file.NumberOfTests == 0 || len(file.TestGroups) == 0 {
		t.Fatalf("vectors %s hold no tests", name)
	}
	return file.TestGroups
}

// SignatureGroup fits the files of all signature algorithms.
type SignatureGroup struct {
	PublicKeyDER Bytes `json:"publicKeyDer"`
	SaltBytes    int   `json:"sLen"`
	Tests        []struct {
		Case
		Message   Bytes `json:"msg"`
		Signature Bytes `json:"sig"`
	} `json:"tests"`
}

// ECDHGroup fits the ecdh files with ASN.1 public keys.
type ECDHGroup struct {
	Tests []struct {
		Case
		Public  Bytes `json:"public"`
		Private Bytes `json:"private"`
		Shared  Bytes `json:"shared"`
	} `json:"tests"`
}

// OAEPGroup fits the rsa_oaep files.
type OAEPGroup struct {
	KeyBits int    `json:"keySize"`
	Hash    string `json:"sha"`
	MGFHash string `json:"mgfSha"`
	PKCS8   Bytes  `json:"privateKeyPkcs8"`
	Tests   []struct {
		Case
		Message    Bytes `json:"msg"`
		Ciphertext Bytes `json:"ct"`
		Label      Bytes `json:"label"`
	} `json:"tests"`
}

// AEADGroup fits the aes_gcm file; sizes are in bits.
type AEADGroup struct {
	KeyBits int `json:"keySize"`
	IVBits  int `json:"ivSize"`
	TagBits int `json:"tagSize"`
	Tests   []struct {
		Case
		Key        Bytes `json:"key"`
		IV         Bytes `json:"iv"`
		AAD        Bytes `json:"aad"`
		Message    Bytes `json:"msg"`
		Ciphertext Bytes `json:"ct"`
		Tag        Bytes `json:"tag"`
	} `json:"tests"`
}

// WrapGroup fits the aes_wrap and aes_kwp files; sizes are in bits.
type WrapGroup struct {
	KeyBits int `json:"keySize"`
	Tests   []struct {
		Case
		Key        Bytes `json:"key"`
		Message    Bytes `json:"msg"`
		Ciphertext Bytes `json:"ct"`
	} `json:"tests"`
}

// MACGroup fits the hmac files; sizes are in bits.
type MACGroup struct {
	KeyBits int `json:"keySize"`
	TagBits int `json:"tagSize"`
	Tests   []struct {
		Case
		Key     Bytes `json:"key"`
		Message Bytes `json:"msg"`
		Tag     Bytes `json:"tag"`
	} `json:"tests"`
}
