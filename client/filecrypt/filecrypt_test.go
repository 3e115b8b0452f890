package filecrypt_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/client/filecrypt"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

var (
	_ filecrypt.DataKeyGenerator = client.Client{}.Crypto
	_ filecrypt.Decrypter        = client.Client{}.Crypto
)

// Lengths in a file of version 1, as docs/file-format.md gives them.
const (
	magicLine    = "keyhold-file v1\n"
	segment      = 65536
	streamHeader = 40
	tag          = 16
	firstPlain   = segment - streamHeader - tag
	plain        = segment - tag
)

// service stands for the server. It knows each data key that it made.
type service struct {
	keys    map[string]dataKey // by the encrypted data key
	calls   int
	dataKey []byte // to hand out, else random ones
	blob    []byte // the encrypted one, else random ones
	err     error
	request *keyholdv1.DecryptRequest // the last
}

type dataKey struct {
	plaintext []byte
	context   map[string]string
}

var errInvalid = errors.New("InvalidCiphertextException")

func (s *service) GenerateDataKey(_ context.Context, req *keyholdv1.GenerateDataKeyRequest, _ ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error) {
	s.calls++
	if s.err != nil {
		return nil, s.err
	}
	if req.GetKeySpec() != keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256 {
		return nil, errors.New("not AES_256")
	}
	key, blob := s.dataKey, s.blob
	if key == nil {
		key = []byte(rand.Text() + rand.Text())[:32]
	}
	if blob == nil {
		blob = []byte("encrypted data key " + rand.Text())
	}
	if s.keys == nil {
		s.keys = map[string]dataKey{}
	}
	s.keys[string(blob)] = dataKey{key, maps.Clone(req.GetEncryptionContext())}
	return &keyholdv1.GenerateDataKeyResponse{Plaintext: bytes.Clone(key), CiphertextBlob: blob, KeyId: req.GetKeyId()}, nil
}

func (s *service) Decrypt(_ context.Context, req *keyholdv1.DecryptRequest, _ ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	s.calls++
	s.request = req
	key, ok := s.keys[string(req.GetCiphertextBlob())]
	if s.err != nil {
		return nil, s.err
	}
	if !ok || !maps.Equal(key.context, req.GetEncryptionContext()) {
		return nil, errInvalid
	}
	return &keyholdv1.DecryptResponse{Plaintext: bytes.Clone(key.plaintext)}, nil
}

func (s *service) seal(t testing.TB, plaintext []byte, pairs map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := filecrypt.NewWriter(t.Context(), s, &b, filecrypt.WriterOptions{KeyID: "alias/app", Context: pairs})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := w.Write(plaintext); err != nil || n != len(plaintext) {
		t.Fatal(n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// open returns what could be read before the error, which is nil at the end of
// the data.
func (s *service) open(ctx context.Context, r io.Reader) ([]byte, error) {
	er, err := filecrypt.NewReader(ctx, s, r, filecrypt.ReaderOptions{})
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(er)
	// Whoever goes on after an error gets the same again.
	if n, again := er.Read(make([]byte, 10)); n != 0 || again == nil || err != nil && again.Error() != err.Error() {
		return got, fmt.Errorf("after %w: %d bytes and %w", err, n, again)
	}
	return got, err
}

// pattern has no two segments that are the same.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

var pairs = map[string]string{"tenant": "42", "purpose": "backup", "": "empty name", "empty": ""}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{
		0, 1, 15, 16, firstPlain - 1, firstPlain, firstPlain + 1, segment,
		firstPlain + plain - 1, firstPlain + plain, firstPlain + plain + 1, firstPlain + 3*plain, 1 << 20,
	} {
		for _, context := range []map[string]string{nil, pairs} {
			var s service
			want := pattern(n)
			sealed := s.seal(t, want, context)
			if n > 16 && bytes.Contains(sealed, want[:16]) {
				t.Errorf("%d bytes: the plaintext shows", n)
			}
			for name, r := range map[string]io.Reader{
				"whole": bytes.NewReader(sealed), "data with EOF": iotest.DataErrReader(bytes.NewReader(sealed)), "half": iotest.HalfReader(bytes.NewReader(sealed)),
			} {
				if got, err := s.open(t.Context(), r); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %s: %d bytes, %v", n, name, len(got), err)
				}
			}
			if n <= 16 {
				if got, err := s.open(t.Context(), iotest.OneByteReader(bytes.NewReader(sealed))); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, byte by byte: %d bytes, %v", n, len(got), err)
				}
			}
		}
	}
}

// Data that comes in pieces makes the same file as in one.
func TestWriteInPieces(t *testing.T) {
	var s service
	want := pattern(3*segment + 7)
	for _, size := range []int{1000, firstPlain, segment, 100_000} {
		var b bytes.Buffer
		w, err := filecrypt.NewWriter(t.Context(), &s, &b, filecrypt.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for rest := want; len(rest) > 0; {
			n := min(size, len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.open(t.Context(), &b); err != nil || !bytes.Equal(got, want) {
			t.Errorf("pieces of %d: %d bytes, %v", size, len(got), err)
		}
	}
}

// Two files of the same data share nothing but the first line and the context.
func TestFilesHaveTheirOwnKeys(t *testing.T) {
	var s service
	a, b := s.seal(t, pattern(100), nil), s.seal(t, pattern(100), nil)
	if s.calls != 2 || bytes.Equal(a[len(a)-100:], b[len(b)-100:]) {
		t.Errorf("%d data keys for two files", s.calls)
	}
}

// sealed is a file of four segments, the last one short, and where its parts
// begin.
func sealed(t testing.TB, s *service) (file, want []byte, starts []int) {
	want = pattern(firstPlain + 2*plain + 1000)
	file = s.seal(t, want, pairs)
	start := len(file) - (3*segment + 1000 + tag)
	return file, want, []int{start, start + streamHeader, start + segment, start + 2*segment, start + 3*segment, len(file)}
}

// refused wants an error, and no plaintext that is not where it belongs.
func refused(t *testing.T, s *service, name string, file, want []byte) {
	t.Helper()
	got, err := s.open(t.Context(), bytes.NewReader(file))
	switch {
	case err == nil:
		t.Errorf("%s: no error, %d bytes", name, len(got))
	case !errors.Is(err, filecrypt.ErrDamaged) && !errors.Is(err, filecrypt.ErrFormat) && !errors.Is(err, errInvalid):
		t.Errorf("%s: %v", name, err)
	case !bytes.HasPrefix(want, got):
		t.Errorf("%s: %d bytes that are not the beginning of the plaintext", name, len(got))
	case len(got) == len(want):
		t.Errorf("%s: all of the plaintext came out before the error", name)
	}
}

func TestFlippedBits(t *testing.T) {
	var s service
	file, want, starts := sealed(t, &s)
	var at []int
	for i := range starts[1] { // each byte of both headers
		at = append(at, i)
	}
	for i, start := range starts[1 : len(starts)-1] {
		end := starts[i+2]
		at = append(at, start, start+1, (start+end)/2, end-tag-1, end-tag, end-1)
	}
	for _, i := range at {
		for _, bit := range []byte{0x01, 0x80} {
			file[i] ^= bit
			refused(t, &s, fmt.Sprintf("byte %d of %d, bit %#x", i, len(file), bit), file, want)
			file[i] ^= bit
		}
	}
	if _, err := s.open(t.Context(), bytes.NewReader(file)); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func TestTruncated(t *testing.T) {
	var s service
	file, want, starts := sealed(t, &s)
	var at []int
	for i := range starts[1] {
		at = append(at, i)
	}
	for _, start := range starts {
		at = append(at, start-tag-1, start-tag, start-1, start, min(start+1, len(file)-1), min(start+tag, len(file)-1), start-500)
	}
	for _, n := range at {
		if n >= 0 && n < len(file) {
			refused(t, &s, fmt.Sprintf("the first %d of %d bytes", n, len(file)), file[:n], want)
		}
	}
}

func TestRearranged(t *testing.T) {
	var s service
	file, want, starts := sealed(t, &s)
	part := func(i int) []byte { return file[starts[i]:starts[i+1]] }
	other := s.seal(t, pattern(len(want)), pairs)
	// Another stream under the same data key: its salt makes the difference.
	sameKey := &service{dataKey: s.keys[string(s.lastBlob(t, file))].plaintext, blob: s.lastBlob(t, file)}
	twin := sameKey.seal(t, want, pairs)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	head := file[:starts[1]]
	for name, changed := range map[string][]byte{
		"a byte behind it":              join(file, []byte{0}),
		"a tag behind it":               join(file, make([]byte, tag)),
		"itself behind it":              join(file, file),
		"its last segment twice":        join(file, part(4)),
		"two segments swapped":          join(head, part(1), part(3), part(2), part(4)),
		"the first and second swapped":  join(head, part(2), part(1), part(3), part(4)),
		"a segment twice":               join(head, part(1), part(2), part(2), part(3), part(4)),
		"a segment left out":            join(head, part(1), part(3), part(4)),
		"the first left out":            join(head, part(2), part(3), part(4)),
		"the last left out":             join(head, part(1), part(2), part(3)),
		"nothing but the last":          join(head, part(4)),
		"a segment of another file":     join(head, part(1), other[starts[2]:starts[3]], part(3), part(4)),
		"another file's stream":         join(file[:starts[0]], other[starts[0]:]),
		"a segment of its twin":         join(head, part(1), twin[starts[2]:starts[3]], part(3), part(4)),
		"its stream under another line": join([]byte("keyhold-file v2\n"), file[len(magicLine):]),
	} {
		refused(t, &s, name, changed, want)
	}
}

// lastBlob reads the encrypted data key out of a file.
func (s *service) lastBlob(t *testing.T, file []byte) []byte {
	t.Helper()
	for blob := range s.keys {
		if bytes.Contains(file, []byte(blob)) {
			return []byte(blob)
		}
	}
	t.Fatal("no data key of this service")
	return nil
}

// What is no file of ours is refused before the service is asked.
func TestFormatError(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"", "not a file that Keyhold encrypted"},
		{"keyhold", "not a file"},
		{"PK\x03\x04 something else altogether", "not a file"},
		{"keyhold-file v2\nwhatever", `the file's version is "2"`},
		{"keyhold-file v1\r\n", "not a file"},
		{magicLine, "its header is damaged"},
		{magicLine + "\x00\x00", "its header is damaged"},
		{magicLine + "\xff\xff", "its header is damaged"},
		{magicLine + "\x00\x01k\x00\x02\x00\x01b\x00\x00\x00\x01a\x00\x00", "its header is damaged"},
		{magicLine + "\x00\x01k\x00\x02\x00\x01a\x00\x00\x00\x01a\x00\x00", "its header is damaged"},
		{magicLine + "\x00\x01k\x00\x01\x00\x01\xff\x00\x00", "its header is damaged"},
	} {
		var s service
		_, err := s.open(t.Context(), strings.NewReader(tt.file))
		if !errors.Is(err, filecrypt.ErrFormat) || !strings.Contains(err.Error(), tt.want) || s.calls != 0 {
			t.Errorf("%q: %v, %d calls; want %q", tt.file, err, s.calls, tt.want)
		}
	}
}

// The header holds what the service allows and not a byte more.
func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		name string
		blob int
		pair int
		ok   bool
	}{
		{"the largest", 6144, 8192, true},
		{"a data key too long", 6145, 1, false},
		{"a context too long", 1, 8193, false},
	} {
		s := service{blob: bytes.Repeat([]byte{'k'}, tt.blob)}
		context := map[string]string{"name": strings.Repeat("v", max(0, tt.pair-4))}
		var b bytes.Buffer
		w, err := filecrypt.NewWriter(t.Context(), &s, &b, filecrypt.WriterOptions{Context: context})
		if (err == nil) != tt.ok {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if !tt.ok {
			if b.Len() > 0 {
				t.Errorf("%s: %d bytes were written", tt.name, b.Len())
			}
			continue
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.open(t.Context(), &b); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	var s service
	if _, err := filecrypt.NewWriter(t.Context(), &s, io.Discard, filecrypt.WriterOptions{Context: map[string]string{"a": "\xff"}}); err == nil || s.calls != 0 {
		t.Errorf("a context that is not UTF-8: %v, %d calls", err, s.calls)
	}
}

func TestContext(t *testing.T) {
	for _, tt := range []struct {
		want map[string]string
		says string // empty: it opens
	}{
		{nil, ""},
		{map[string]string{"tenant": "42"}, ""},
		{map[string]string{"tenant": "42", "purpose": "backup"}, ""},
		{map[string]string{"tenant": "43"}, `has tenant="42", not "43"`},
		{map[string]string{"tenant": ""}, `has tenant="42", not ""`},
		{map[string]string{"tenant": "42", "color": ""}, `has no "color"`},
	} {
		var s service
		file := s.seal(t, []byte("x"), map[string]string{"tenant": "42", "purpose": "backup"})
		r, err := filecrypt.NewReader(t.Context(), &s, bytes.NewReader(file), filecrypt.ReaderOptions{Context: tt.want, KeyID: "alias/app"})
		if tt.says != "" {
			var ce *filecrypt.ContextError
			if !errors.As(err, &ce) || !strings.Contains(err.Error(), tt.says) || s.calls != 1 {
				t.Errorf("%v: %v, %d calls", tt.want, err, s.calls)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", tt.want, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != "x" {
			t.Errorf("%v: %q, %v", tt.want, got, err)
		}
		if r.Context()["purpose"] != "backup" || s.request.GetKeyId() != "alias/app" {
			t.Errorf("context %v, key %q", r.Context(), s.request.GetKeyId())
		}
	}
}

// What the service says comes through, and nothing is written before.
func TestServiceFails(t *testing.T) {
	refusal := errors.New("DisabledException")
	var s service
	file := s.seal(t, []byte("x"), nil)
	s.err = refusal
	var b bytes.Buffer
	if _, err := filecrypt.NewWriter(t.Context(), &s, &b, filecrypt.WriterOptions{}); !errors.Is(err, refusal) || b.Len() > 0 {
		t.Errorf("NewWriter: %v, %d bytes", err, b.Len())
	}
	if _, err := s.open(t.Context(), bytes.NewReader(file)); !errors.Is(err, refusal) {
		t.Errorf("NewReader: %v", err)
	}
	for _, n := range []int{0, 16, 31, 33} {
		s := service{dataKey: make([]byte, n)}
		if _, err := filecrypt.NewWriter(t.Context(), &s, &b, filecrypt.WriterOptions{}); err == nil || b.Len() > 0 {
			t.Errorf("a data key of %d bytes: %v, %d bytes", n, err, b.Len())
		}
		s.keys = map[string]dataKey{"k": {plaintext: make([]byte, n)}}
		if _, err := s.open(t.Context(), strings.NewReader(magicLine+"\x00\x01k\x00\x00")); !errors.Is(err, filecrypt.ErrDamaged) {
			t.Errorf("a file with a data key of %d bytes: %v", n, err)
		}
	}
}

// A source that fails is no damaged file, whatever its error.
func TestSourceFails(t *testing.T) {
	var s service
	file, want, starts := sealed(t, &s)
	for _, cause := range []error{
		errors.New("device is gone"), io.ErrUnexpectedEOF,
		fmt.Errorf("connection reset: %w", io.EOF), fmt.Errorf("body: %w", io.ErrUnexpectedEOF),
	} {
		for _, n := range []int{0, 3, len(magicLine) + 1, starts[0] - 1, starts[0], starts[0] + 3, starts[1], starts[2] - 1, starts[3] + 5, starts[4], len(file)} {
			got, err := s.open(t.Context(), io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(cause)))
			ok := errors.Is(err, cause) || errors.Is(cause, io.EOF) && err != nil && strings.Contains(err.Error(), cause.Error())
			if !ok || errors.Is(err, io.EOF) || !bytes.HasPrefix(want, got) {
				t.Errorf("after %d bytes: %d bytes, %v", n, len(got), err)
			}
		}
	}
}

// A connection that breaks in the middle of a segment must not pass for the end
// of the data, whatever its error wraps.
func TestSourceWrapsEOF(t *testing.T) {
	var s service
	file := s.seal(t, pattern(300_000), nil)
	cause := fmt.Errorf("connection reset: %w", io.EOF)
	got, err := s.open(t.Context(), io.MultiReader(bytes.NewReader(file[:200_000]), iotest.ErrReader(cause)))
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, filecrypt.ErrDamaged) || !strings.Contains(err.Error(), "connection reset") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// failAfter fails after n bytes, and counts what is written to it later.
type failAfter struct{ left, late int }

func (w *failAfter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		w.late++
		return 0, errors.New("disk is full")
	}
	return len(p), nil
}

// After an error a Writer writes nothing more: a part must not pass for the
// whole.
func TestWriterFails(t *testing.T) {
	var s service
	for _, room := range []int{0, 10, 100, segment, 2 * segment} {
		dst := &failAfter{left: room}
		w, err := filecrypt.NewWriter(t.Context(), &s, dst, filecrypt.WriterOptions{})
		if err == nil {
			_, err = w.Write(pattern(3 * segment))
		}
		if err == nil || dst.late != 1 {
			t.Fatalf("room for %d: %v, %d writes too many", room, err, dst.late)
		}
		if w == nil {
			continue
		}
		_, again := w.Write([]byte("x"))
		if closeErr := w.Close(); again == nil || closeErr == nil || dst.late != 1 {
			t.Errorf("room for %d: then %v and %v, %d writes", room, again, closeErr, dst.late)
		}
	}
	w, err := filecrypt.NewWriter(t.Context(), &s, io.Discard, filecrypt.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a closed writer writes")
	}
}
