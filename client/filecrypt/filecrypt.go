package filecrypt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// The parameters of version 1. Another choice is another version.
const (
	dataKeyBytes = 32 // the main key, and the key of each stream
	hkdfHash     = "SHA256"
	segmentBytes = 64 << 10 // with its tag
)

// ErrDamaged means that the data does not authenticate: it was changed, cut
// off, lengthened or put together from several files. Nothing says which.
var ErrDamaged = errors.New("the data is damaged or cut off")

// DataKeyGenerator is what a Writer needs of the service. A
// client.Client's Crypto is one.
type DataKeyGenerator interface {
	// GenerateDataKey returns a new data key in the clear and encrypted under
	// the key that is asked for.
	GenerateDataKey(ctx context.Context, in *keyholdv1.GenerateDataKeyRequest, opts ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error)
}

// Decrypter is what a Reader needs of the service. A client.Client's Crypto is
// one.
type Decrypter interface {
	// Decrypt opens an encrypted data key, or fails.
	Decrypt(ctx context.Context, in *keyholdv1.DecryptRequest, opts ...grpc.CallOption) (*keyholdv1.DecryptResponse, error)
}

// WriterOptions say under what the data is encrypted.
type WriterOptions struct {
	// KeyID is the key's id, ARN, alias name or alias ARN. It encrypts the
	// data key, so it must be one of usage ENCRYPT_DECRYPT, symmetric.
	KeyID string

	// Context is the encryption context. Optional. The service binds the data
	// key to it and audits it, and it stands in the header, readable and
	// authenticated.
	Context map[string]string
}

// Writer encrypts what is written to it. It is not safe for concurrent use.
type Writer struct {
	stream io.WriteCloser
	err    error // the first; nothing is written after it
}

var _ io.WriteCloser = (*Writer)(nil)

// NewWriter asks the service for a data key, and writes the header to w. The
// Writer holds data back until a segment is full; Close writes the end. The
// caller closes w.
func NewWriter(ctx context.Context, keys DataKeyGenerator, w io.Writer, opts WriterOptions) (*Writer, error) {
	// A context that does not fit is refused before anyone is asked.
	if _, err := (&header{dataKey: []byte{0}, context: opts.Context}).marshal(); err != nil {
		return nil, err
	}
	resp, err := keys.GenerateDataKey(ctx, &keyholdv1.GenerateDataKeyRequest{
		KeyId: opts.KeyID, EncryptionContext: opts.Context, KeySpec: keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256,
	})
	if err != nil {
		return nil, fmt.Errorf("get a data key: %w", err)
	}
	defer clear(resp.GetPlaintext())
	raw, err := (&header{dataKey: resp.GetCiphertextBlob(), context: opts.Context}).marshal()
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(resp.GetPlaintext())
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	stream, err := aead.NewEncryptingWriter(w, raw)
	if err != nil {
		return nil, err
	}
	return &Writer{stream: stream}, nil
}

// newAEAD returns the AEAD of version 1 for a data key.
func newAEAD(dataKey []byte) (*subtle.AESGCMHKDF, error) {
	if len(dataKey) != dataKeyBytes {
		return nil, fmt.Errorf("the data key has %d bytes, not %d", len(dataKey), dataKeyBytes)
	}
	return subtle.NewAESGCMHKDF(dataKey, hkdfHash, dataKeyBytes, segmentBytes, 0)
}

// Write encrypts p. After an error, all that follows fails with the same one.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.stream.Write(p)
	w.err = err
	return n, err
}

// Close writes the last segment, which says that it is the last. It is for
// data that is complete: if your source failed, do not close the Writer, or
// the part that you have will pass for the whole. After an error of Write,
// Close writes nothing and returns the same error.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.err = w.stream.Close()
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("the writer is closed")
	return nil
}

// ReaderOptions say what the data must have been encrypted under.
type ReaderOptions struct {
	// KeyID is the key that the data must be encrypted under. Optional:
	// without it, any key will do that the caller may decrypt with, also one
	// of someone else who would like the data to be taken for yours.
	KeyID string

	// Context holds pairs that the data's encryption context must have. It
	// may have others. Optional: without it, any context will do.
	Context map[string]string
}

// ContextError means that the data was encrypted for something else than the
// caller wants. The service was not asked.
type ContextError struct {
	Name string // of the pair
	Want string // the value that the caller wants
	Got  string // the value of the data's context
	Has  bool   // it has such a pair
}

// Error names the pair.
func (e *ContextError) Error() string {
	if !e.Has {
		return fmt.Sprintf("the encryption context has no %q", e.Name)
	}
	return fmt.Sprintf("the encryption context has %s=%q, not %q", e.Name, e.Got, e.Want)
}

// Reader decrypts. It is not safe for concurrent use.
type Reader struct {
	stream io.Reader
	source *source
	header *header
	err    error // the first, also io.EOF; nothing is returned after it
}

// NewReader reads a header from r, and lets the service open the data key.
//
// Errors: [ErrFormat] and *[ContextError], before the service is asked;
// [ErrDamaged] and what the service says, if the header was changed; what r
// returns.
func NewReader(ctx context.Context, keys Decrypter, r io.Reader, opts ReaderOptions) (*Reader, error) {
	src := &source{r: r}
	h, raw, err := readHeader(src)
	if err != nil {
		return nil, err
	}
	for name, want := range opts.Context {
		if got, ok := h.context[name]; !ok || got != want {
			return nil, &ContextError{Name: name, Want: want, Got: got, Has: ok}
		}
	}
	req := &keyholdv1.DecryptRequest{CiphertextBlob: h.dataKey, EncryptionContext: h.context}
	if opts.KeyID != "" {
		req.KeyId = proto.String(opts.KeyID)
	}
	resp, err := keys.Decrypt(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("open the data key: %w", err)
	}
	defer clear(resp.GetPlaintext())
	aead, err := newAEAD(resp.GetPlaintext())
	if err != nil { // a ciphertext of the service, but not of a data key of ours
		return nil, ErrDamaged
	}
	stream, err := aead.NewDecryptingReader(src, raw)
	if err != nil {
		return nil, src.explain()
	}
	return &Reader{stream: stream, source: src, header: h}, nil
}

// Context returns the encryption context of the data. It is authentic once a
// Read has returned data or io.EOF.
func (r *Reader) Context() map[string]string { return r.header.context }

// Read returns data that was authenticated. It returns io.EOF after all of it;
// [ErrDamaged] if there is anything wrong; what the source returns, if that
// fails. Data before an error is authentic, but not the whole.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.stream.Read(p)
	switch {
	case err == io.EOF: // an error that wraps it is the source's, and no end
		r.err = io.EOF
	case err != nil:
		// Tink's reader would say io.EOF next, if this was the last segment.
		r.err = r.source.explain()
	}
	return n, r.err
}

// source remembers how the input failed, and lets nothing but io.EOF itself
// pass for its end: io.ReadFull and Tink take io.ErrUnexpectedEOF for it, too. So
// what a source returns must be compared by ==, since errors that it made of
// others wrap them.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = fmt.Errorf("read the encrypted data: %w", err)
		if errors.Is(err, io.EOF) { // nor may who asks a Reader's error so take it for the end
			s.err = fmt.Errorf("read the encrypted data: %v", err) //nolint:errorlint // see above
		}
		err = s.err
	}
	return n, err
}

// explain returns why the stream could not be read.
func (s *source) explain() error {
	if s.err != nil {
		return s.err
	}
	return ErrDamaged
}
