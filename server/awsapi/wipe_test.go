package awsapi_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/awsapi"
	"github.com/keyhold/keyhold/server/identity"
)

// watched notes the buffers that it was read into.
type watched struct {
	r    io.Reader
	bufs [][]byte
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p[:min(len(p), 1000)])
	if n > 0 {
		w.bufs = append(w.bufs, p[:n:n])
	}
	return n, err
}

// TestBodiesAreWiped: one that grew, one that did not arrive whole, and one that is too
// large.
func TestBodiesAreWiped(t *testing.T) {
	t.Parallel()
	s := open(t, willing())
	text := bytes.Repeat([]byte("secret"), 5000)
	size := int64(len(text))
	for name, c := range map[string]struct {
		body   io.Reader
		length int64
		ok     bool
	}{
		"of unknown length":     {bytes.NewReader(text), -1, true},
		"of known length":       {bytes.NewReader(text), size, true},
		"a part":                {io.MultiReader(bytes.NewReader(text), iotest.ErrReader(io.ErrUnexpectedEOF)), 2 * size, false},
		"a part, of unknown":    {io.MultiReader(bytes.NewReader(text), iotest.ErrReader(io.ErrUnexpectedEOF)), -1, false},
		"a part of a small one": {io.MultiReader(bytes.NewReader(text[:100]), iotest.ErrReader(io.ErrUnexpectedEOF)), 200, false},
		"too large":             {bytes.NewReader(bytes.Repeat(text, 10)), -1, false},
	} {
		w := &watched{r: c.body}
		r := s.request("Encrypt", "")
		r.Body, r.ContentLength = io.NopCloser(w), c.length
		body, leave, ok := s.Read(r)
		if ok != c.ok || ok && !bytes.Equal(body, text) || !ok && body != nil || len(w.bufs) == 0 {
			t.Errorf("%s: %d bytes, %v", name, len(body), ok)
		}
		leave()
		for i, b := range w.bufs {
			if !zero(b) {
				t.Errorf("%s: part %d of the body is still there", name, i)
			}
		}
		if s.RoomTaken() {
			t.Errorf("%s: its room is still taken", name)
		}
	}
}

// TestBuffersAreWiped: of an answer, and of messages.
func TestBuffersAreWiped(t *testing.T) {
	t.Parallel()
	text := bytes.Repeat([]byte("secret"), 5000)
	var out bytes.Buffer
	secret := bytes.Clone(text)
	awsapi.WriteSecret(&out, secret)
	if !zero(secret) || !bytes.Equal(out.Bytes(), text) {
		t.Error("the answer is still there, or was not written")
	}
	var req *keyholdv1.ReEncryptRequest
	var resp *keyholdv1.DecryptResponse
	c := &core{do: func(_ context.Context, _ *identity.Caller, _ string, r proto.Message) (proto.Message, error) {
		req, _ = r.(*keyholdv1.ReEncryptRequest)
		resp = &keyholdv1.DecryptResponse{Plaintext: bytes.Clone(text)}
		return resp, nil
	}}
	s := open(t, c)
	a := s.call("ReEncrypt", `{"CiphertextBlob":"c2VjcmV0c2VjcmV0","DestinationKeyId":"k"}`)
	until(t, "the request is over", func() bool { return s.UnderWay() == 0 })
	if a.status != http.StatusOK || len(req.GetCiphertextBlob()) != 12 || !zero(req.GetCiphertextBlob()) || !zero(resp.GetPlaintext()) {
		t.Errorf("%d: request %v or answer is still there", a.status, req.GetCiphertextBlob())
	}
	// The largest answers with secrets do not outgrow their first buffer.
	for operation, m := range map[string]proto.Message{
		"Decrypt":             &keyholdv1.DecryptResponse{Plaintext: make([]byte, 6144), KeyId: strings.Repeat("k", 2048), EncryptionAlgorithm: 3},
		"GenerateDataKey":     &keyholdv1.GenerateDataKeyResponse{Plaintext: make([]byte, 1024), CiphertextBlob: make([]byte, 1100), KeyId: "k", KeyMaterialId: strings.Repeat("0", 64)},
		"GenerateDataKeyPair": &keyholdv1.GenerateDataKeyPairResponse{PrivateKeyPlaintext: make([]byte, 2400), PublicKey: make([]byte, 550), KeyPairSpec: 3},
		"GenerateRandom":      &keyholdv1.GenerateRandomResponse{Plaintext: make([]byte, 1)},
		"DeriveSharedSecret":  &keyholdv1.DeriveSharedSecretResponse{SharedSecret: make([]byte, 66), KeyId: "k", KeyAgreementAlgorithm: 1, KeyOrigin: 1},
	} {
		if n, room := len(s.Encode(operation, m)), awsapi.AnswerBytes+2*proto.Size(m); n > room {
			t.Errorf("%s: %d bytes outgrow %d", operation, n, room)
		}
	}
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
