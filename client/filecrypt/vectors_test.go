package filecrypt_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// vector is a file with all that went into it. Keys, nonces and files are hex.
type vector struct {
	Comment          string            `json:"comment"`
	DataKey          string            `json:"data_key"`
	EncryptedDataKey string            `json:"encrypted_data_key"`
	Context          map[string]string `json:"context"`
	Salt             string            `json:"salt"`
	NoncePrefix      string            `json:"nonce_prefix"`
	Plaintext        string            `json:"plaintext"`
	PlaintextRepeat  int               `json:"plaintext_repeat"` // so many times
	File             string            `json:"file,omitempty"`
	FileSHA256       string            `json:"file_sha256"`
}

// write makes a file as docs/file-format.md says, by other means than the
// package: no Tink in here.
func write(t testing.TB, dataKey, blob []byte, names []string, context map[string]string, salt, prefix, plaintext []byte) []byte {
	t.Helper()
	part := func(b []byte, s string) []byte {
		return append(append(b, byte(len(s)>>8), byte(len(s))), s...)
	}
	head := part([]byte(magicLine), string(blob))
	head = append(head, byte(len(names)>>8), byte(len(names)))
	for _, name := range names {
		head = part(part(head, name), context[name])
	}
	key, err := hkdf.Key(sha256.New, dataKey, salt, string(head), 32)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	file := append(append(append(head, streamHeader), salt...), prefix...)
	size := firstPlain
	for i := uint32(0); ; i++ {
		last := len(plaintext) <= size
		n := min(size, len(plaintext))
		nonce := binary.BigEndian.AppendUint32(slices.Clone(prefix), i)
		if last {
			nonce = append(nonce, 1)
		} else {
			nonce = append(nonce, 0)
		}
		file = gcm.Seal(file, nonce, plaintext[:n], nil)
		if last {
			return file
		}
		plaintext, size = plaintext[n:], plain
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// workedExample returns the bytes of a page's listing: of each line, what stands
// before the column of explanations.
func workedExample(page string) string {
	_, listing, _ := strings.Cut(page, "```\n")
	listing, _, _ = strings.Cut(listing, "```")
	var b strings.Builder
	for line := range strings.Lines(listing) {
		bytes, _, _ := strings.Cut(line, "    ")
		b.WriteString(strings.ReplaceAll(bytes, " ", ""))
	}
	return b.String()
}

// The files of the vectors open, and an implementation from the documentation
// alone writes the same.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/file-format.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := 0
	for _, v := range vectors {
		t.Run(v.Comment, func(t *testing.T) {
			names := make([]string, 0, len(v.Context))
			for name := range v.Context {
				names = append(names, name)
			}
			slices.Sort(names)
			plaintext := bytes.Repeat([]byte(v.Plaintext), v.PlaintextRepeat)
			file := write(t, unhex(t, v.DataKey), unhex(t, v.EncryptedDataKey), names, v.Context, unhex(t, v.Salt), unhex(t, v.NoncePrefix), plaintext)
			sum := sha256.Sum256(file)
			if got := hex.EncodeToString(sum[:]); got != v.FileSHA256 {
				t.Errorf("the file's SHA-256 is %s, want %s", got, v.FileSHA256)
			}
			if v.File != "" {
				if got := hex.EncodeToString(file); got != v.File {
					t.Errorf("the file is %s", got)
				}
				if workedExample(string(page)) == v.File {
					documented++
				}
			}
			s := service{keys: map[string]dataKey{string(unhex(t, v.EncryptedDataKey)): {unhex(t, v.DataKey), v.Context}}}
			if got, err := s.open(t.Context(), bytes.NewReader(file)); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(plaintext))
			}
		})
	}
	if documented != 1 {
		t.Errorf("docs/file-format.md shows %d of the vectors, want its worked example to be one", documented)
	}
}
