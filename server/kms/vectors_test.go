package kms

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// hexBytes is bytes that are written in hexadecimal.
type hexBytes []byte

// UnmarshalText is encoding.TextUnmarshaler's.
func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// ciphertextVectors is testdata/ciphertext-vectors.json, which another
// implementation wrote; docs/ciphertext-format.md describes the fields.
type ciphertextVectors struct {
	Vectors []struct {
		Name      string
		Key       hexBytes          `json:"key_hex"`
		KeyID     KeyID             `json:"key_id"`
		Ref       hexBytes          `json:"ref_hex"`
		IV        hexBytes          `json:"iv_hex"`
		Context   map[string]string `json:"context"`
		Plaintext hexBytes          `json:"plaintext_hex"`
		AAD       hexBytes          `json:"aad_hex"`
		Blob      hexBytes          `json:"blob_hex"`
	}
	Negative []struct {
		Name    string
		Stage   string
		Key     hexBytes          `json:"key_hex"`
		Context map[string]string `json:"context"`
		Blob    hexBytes          `json:"blob_hex"`
	}
}

func readVectors(t testing.TB) ciphertextVectors {
	t.Helper()
	text, err := os.ReadFile("testdata/ciphertext-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v ciphertextVectors
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Vectors) == 0 || len(v.Negative) == 0 {
		t.Fatal("the file holds no vectors")
	}
	return v
}

// vectorGCM is the standard library's AES-GCM, in the place of a token.
func vectorGCM(t *testing.T, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm
}

// vectorOpen opens a parsed ciphertext as a store does that makes no metadata.
func vectorOpen(t *testing.T, key []byte, b *blob, context map[string]string) ([]byte, bool) {
	t.Helper()
	gcm := vectorGCM(t, key)
	if len(b.Meta) != 0 || len(b.IV) != gcm.NonceSize() {
		return nil, false
	}
	sealed := append(bytes.Clone(b.Ciphertext), b.Tag...)
	plaintext, err := gcm.Open(nil, b.IV, sealed, appendAAD(nil, b.keyID, b.ref, context))
	return plaintext, err == nil
}

func TestCiphertextVectors(t *testing.T) {
	for _, v := range readVectors(t).Vectors {
		t.Run(v.Name, func(t *testing.T) {
			if err := checkContext("encryption_context", v.Context); err != nil {
				t.Fatalf("checkContext: %v", err)
			}
			ref := Ref(v.Ref)
			aad := appendAAD(nil, v.KeyID, ref, v.Context)
			if !bytes.Equal(aad, v.AAD) || len(aad) != aadBytes {
				t.Fatalf("AAD is %x, want %x", aad, v.AAD)
			}
			sealed := vectorGCM(t, v.Key).Seal(nil, v.IV, v.Plaintext, aad)
			n := len(sealed) - tagBytes
			made, err := formatBlob(v.KeyID, ref, Sealed{IV: v.IV, Ciphertext: sealed[:n], Tag: sealed[n:]})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(made, v.Blob) {
				t.Fatalf("blob is %x, want %x", made, v.Blob)
			}
			if got := len(made) - len(v.Plaintext); got != 63 {
				t.Errorf("the overhead is %d bytes, want 63", got)
			}
			parsed, err := parseBlob(v.Blob)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.keyID != v.KeyID || parsed.ref != ref {
				t.Errorf("parsed key id %s and ref %s, want %s and %s", parsed.keyID, parsed.ref, v.KeyID, ref)
			}
			if plaintext, ok := vectorOpen(t, v.Key, parsed, v.Context); !ok || !bytes.Equal(plaintext, v.Plaintext) {
				t.Errorf("opens as %x (%t), want %x", plaintext, ok, v.Plaintext)
			}
		})
	}
}

func TestCiphertextVectorsRefused(t *testing.T) {
	for _, v := range readVectors(t).Negative {
		t.Run(v.Stage+": "+v.Name, func(t *testing.T) {
			parsed, err := parseBlob(v.Blob)
			switch v.Stage {
			case "parse":
				if err == nil {
					t.Errorf("parses as %+v", parsed)
				}
			case "open":
				if err != nil {
					t.Fatalf("does not parse: %v", err)
				}
				if _, ok := vectorOpen(t, v.Key, parsed, v.Context); ok {
					t.Error("opens")
				}
			default:
				t.Fatalf("unknown stage %q", v.Stage)
			}
		})
	}
}
