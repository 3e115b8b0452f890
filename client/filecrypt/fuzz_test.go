package filecrypt

import (
	"bytes"
	"context"
	"io"
	"testing"

	"google.golang.org/grpc"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// FuzzHeader: what is accepted has one form, and nothing behind it is read.
func FuzzHeader(f *testing.F) {
	for _, h := range []header{
		{dataKey: []byte("k")},
		{dataKey: bytes.Repeat([]byte("k"), maxDataKeyBytes), context: map[string]string{"": "", "a": "b", "tenant": "42"}},
	} {
		raw, err := h.marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(append(raw, "stream"...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		h, raw, err := readHeader(r)
		if err != nil {
			return
		}
		if !bytes.Equal(raw, in[:len(in)-r.Len()]) {
			t.Fatalf("read %d bytes, took %d", len(in)-r.Len(), len(raw))
		}
		again, err := h.marshal()
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%x is accepted, and written as %x, %v", raw, again, err)
		}
	})
}

// fixedKey is a service that opens everything to one data key.
type fixedKey struct{}

func (fixedKey) Decrypt(context.Context, *keyholdv1.DecryptRequest, ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	return &keyholdv1.DecryptResponse{Plaintext: make([]byte, dataKeyBytes)}, nil
}

func (fixedKey) GenerateDataKey(context.Context, *keyholdv1.GenerateDataKeyRequest, ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error) {
	return &keyholdv1.GenerateDataKeyResponse{Plaintext: make([]byte, dataKeyBytes), CiphertextBlob: []byte("k")}, nil
}

// FuzzChanged: a file that was changed in any way does not open, and gives
// nothing but the beginning of its plaintext.
func FuzzChanged(f *testing.F) {
	plaintext := make([]byte, 3*segmentBytes)
	for i := range plaintext {
		plaintext[i] = byte(i ^ i>>8 ^ i>>16)
	}
	var b bytes.Buffer
	w, err := NewWriter(f.Context(), fixedKey{}, &b, WriterOptions{Context: map[string]string{"a": "b"}})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := w.Write(plaintext); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	file := b.Bytes()
	f.Add(uint32(0), uint32(1), []byte{0})
	f.Add(uint32(70), uint32(0), []byte("insertion"))
	f.Add(uint32(segmentBytes), uint32(segmentBytes), []byte{})
	f.Add(uint32(len(file)), uint32(0), []byte("behind"))
	f.Fuzz(func(t *testing.T, at, cut uint32, put []byte) {
		from := min(int(at), len(file))
		to := min(from+int(cut), len(file))
		changed := bytes.Join([][]byte{file[:from], put, file[to:]}, nil)
		r, err := NewReader(t.Context(), fixedKey{}, bytes.NewReader(changed), ReaderOptions{})
		var got []byte
		if err == nil {
			got, err = io.ReadAll(r)
		}
		if !bytes.HasPrefix(plaintext, got) {
			t.Fatalf("%d bytes that are not the beginning", len(got))
		}
		if (err == nil) != bytes.Equal(changed, file) {
			t.Fatalf("changed=%t opens with %v", !bytes.Equal(changed, file), err)
		}
	})
}
