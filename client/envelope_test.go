package client_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// fakeKeys is a service of data keys. It keeps what it handed out, so that a
// test can see whether it was wiped. What it promises, the tests against the
// real service show of that one.
type fakeKeys struct {
	// before is called first, with the call's context; its error is the answer.
	before func(context.Context) error

	mu                   sync.Mutex
	generates, decrypts  int
	keys                 map[string]fakeKey // by encrypted data key
	handed               [][]byte
	generateID, openedID []string
}

type fakeKey struct {
	secret []byte
	keyID  string
	bound  map[string]string
}

func (f *fakeKeys) begin(ctx context.Context, count *int) error {
	f.mu.Lock()
	*count++
	f.mu.Unlock()
	if f.before != nil {
		return f.before(ctx)
	}
	return nil
}

func (f *fakeKeys) GenerateDataKey(ctx context.Context, req *keyholdv1.GenerateDataKeyRequest, _ ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error) {
	if err := f.begin(ctx, &f.generates); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.GetKeySpec() != keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256 {
		return nil, failure(codes.InvalidArgument, "ValidationException")
	}
	edk := fmt.Sprintf("edk %d", len(f.keys))
	secret := bytes.Repeat([]byte{byte(len(f.keys) + 1)}, 32)
	if f.keys == nil {
		f.keys = map[string]fakeKey{}
	}
	f.keys[edk] = fakeKey{bytes.Clone(secret), req.GetKeyId(), maps.Clone(req.GetEncryptionContext())}
	f.handed, f.generateID = append(f.handed, secret), append(f.generateID, req.GetKeyId())
	return &keyholdv1.GenerateDataKeyResponse{CiphertextBlob: []byte(edk), Plaintext: secret}, nil
}

func (f *fakeKeys) Decrypt(ctx context.Context, req *keyholdv1.DecryptRequest, _ ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	if err := f.begin(ctx, &f.decrypts); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k, ok := f.keys[string(req.GetCiphertextBlob())]
	switch {
	case !ok || !maps.Equal(k.bound, req.GetEncryptionContext()):
		return nil, failure(codes.InvalidArgument, "InvalidCiphertextException")
	case req.KeyId != nil && req.GetKeyId() != k.keyID:
		return nil, failure(codes.InvalidArgument, "IncorrectKeyException")
	}
	secret := bytes.Clone(k.secret)
	f.handed, f.openedID = append(f.handed, secret), append(f.openedID, req.GetKeyId())
	return &keyholdv1.DecryptResponse{Plaintext: secret}, nil
}

// live counts the data keys that were handed out and are not wiped.
func (f *fakeKeys) live() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, secret := range f.handed {
		if !bytes.Equal(secret, make([]byte, len(secret))) {
			n++
		}
	}
	return n
}

func newEnvelope(t *testing.T, svc client.DataKeyService, cfg client.EnvelopeConfig) *client.Envelope {
	t.Helper()
	if cfg.KeyID == "" {
		cfg.KeyID = "alias/app"
	}
	e, err := client.NewEnvelope(svc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func seal(t *testing.T, e *client.Envelope, plaintext string, ec map[string]string) []byte {
	t.Helper()
	message, err := e.Encrypt(t.Context(), []byte(plaintext), ec)
	if err != nil {
		t.Fatal(err)
	}
	return message
}

func TestEnvelope(t *testing.T) {
	f := &fakeKeys{}
	e := newEnvelope(t, f, client.EnvelopeConfig{EncryptionContext: map[string]string{"app": "mail"}})
	for _, plaintext := range []string{"", "x", strings.Repeat("attack at dawn", 10_000)} {
		ec := map[string]string{"tenant": "42"}
		message := seal(t, e, plaintext, ec)
		got, err := e.Decrypt(t.Context(), message, ec)
		if err != nil || string(got) != plaintext {
			t.Errorf("%d bytes: opened to %d bytes, %v", len(plaintext), len(got), err)
		}
		if diff := cmp.Diff(map[string]string{"tenant": "42"}, ec); diff != "" {
			t.Errorf("the caller's context has changed:\n%s", diff)
		}
	}
	if f.generates != 3 || f.decrypts != 3 {
		t.Errorf("%d and %d calls, want 3 and 3: there is no cache", f.generates, f.decrypts)
	}
	if n := f.live(); n != 0 {
		t.Errorf("%d data keys were not wiped", n)
	}
	if diff := cmp.Diff(map[string]string{"app": "mail", "tenant": "42"}, f.keys["edk 0"].bound); diff != "" {
		t.Errorf("the service was told another context (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"alias/app", "alias/app", "alias/app"}, f.openedID); diff != "" {
		t.Errorf("keys that must have made the message (-want +got):\n%s", diff)
	}
	if a, b := seal(t, e, "x", nil), seal(t, e, "x", nil); bytes.Equal(a[len(a)-60:], b[len(b)-60:]) {
		t.Error("two messages have the same id, IV or ciphertext")
	}
}

// TestEnvelopeKey: a message of another key opens only where that is wanted.
func TestEnvelopeKey(t *testing.T) {
	f := &fakeKeys{}
	message := seal(t, newEnvelope(t, f, client.EnvelopeConfig{KeyID: "alias/other"}), "x", nil)
	if _, err := newEnvelope(t, f, client.EnvelopeConfig{}).Decrypt(t.Context(), message, nil); err != client.ErrDecrypt {
		t.Errorf("another key's message: %v", err)
	}
	if got, err := newEnvelope(t, f, client.EnvelopeConfig{AnyKey: true}).Decrypt(t.Context(), message, nil); err != nil || string(got) != "x" {
		t.Errorf("with AnyKey: %q, %v", got, err)
	}
}

// TestEnvelopeTampering: whatever is changed, the answer is one.
func TestEnvelopeTampering(t *testing.T) {
	f := &fakeKeys{}
	for _, cache := range []client.CacheConfig{{}, {MaxAge: 1 << 40}} {
		e := newEnvelope(t, f, client.EnvelopeConfig{Cache: cache})
		ec := map[string]string{"tenant": "42"}
		message := seal(t, e, "attack at dawn", ec)
		refused := func(what string, m []byte, ec map[string]string) {
			t.Helper()
			if got, err := e.Decrypt(t.Context(), m, ec); err != client.ErrDecrypt || got != nil {
				t.Errorf("%s: %q, %v, want nothing and ErrDecrypt", what, got, err)
			}
		}
		for i := range message {
			for _, mask := range []byte{0x01, 0x80, 0xff} {
				bad := bytes.Clone(message)
				bad[i] ^= mask
				refused(fmt.Sprintf("byte %d changed by %02x", i, mask), bad, ec)
			}
			refused(fmt.Sprintf("cut to %d", i), message[:i], ec)
			refused(fmt.Sprintf("without the first %d", i+1), message[i+1:], ec)
		}
		refused("one byte more", append(bytes.Clone(message), 0), ec)
		for _, other := range []map[string]string{nil, {"tenant": "43"}, {"tenant": "42", "x": ""}, {"tenan": "t42"}, {"Tenant": "42"}} {
			refused(fmt.Sprint("context ", other), message, other)
		}
		if got, err := e.Decrypt(t.Context(), message, ec); err != nil || string(got) != "attack at dawn" {
			t.Errorf("unchanged: %q, %v", got, err)
		}
	}
}

// TestEnvelopeForeignDataKey: a ciphertext that opens, but to no data key.
func TestEnvelopeForeignDataKey(t *testing.T) {
	f := &fakeKeys{}
	e := newEnvelope(t, f, client.EnvelopeConfig{})
	message := seal(t, e, "x", nil)
	for _, n := range []int{0, 16, 31, 33} {
		f.keys["edk 0"] = fakeKey{secret: bytes.Repeat([]byte{7}, n), keyID: "alias/app"}
		if _, err := e.Decrypt(t.Context(), message, nil); err != client.ErrDecrypt {
			t.Errorf("a data key of %d bytes: %v", n, err)
		}
	}
	if n := f.live(); n != 0 {
		t.Errorf("%d data keys were not wiped", n)
	}
}

// odd answers GenerateDataKey with what it should not.
type odd struct {
	fakeKeys
	resp *keyholdv1.GenerateDataKeyResponse
}

func (o *odd) GenerateDataKey(context.Context, *keyholdv1.GenerateDataKeyRequest, ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error) {
	return o.resp, nil
}

func TestEnvelopeRefusesOddDataKeys(t *testing.T) {
	for _, n := range []struct {
		edk, secret int
		ok          bool
	}{{0, 32, false}, {1, 32, true}, {6144, 32, true}, {6145, 32, false}, {60, 31, false}, {60, 33, false}, {60, 0, false}} {
		o := &odd{resp: &keyholdv1.GenerateDataKeyResponse{CiphertextBlob: make([]byte, n.edk), Plaintext: bytes.Repeat([]byte{7}, n.secret)}}
		_, err := newEnvelope(t, o, client.EnvelopeConfig{}).Encrypt(t.Context(), nil, nil)
		if (err == nil) != n.ok {
			t.Errorf("%d bytes, encrypted %d: %v", n.secret, n.edk, err)
		}
		if !bytes.Equal(o.resp.GetPlaintext(), make([]byte, n.secret)) {
			t.Errorf("%d bytes, encrypted %d: not wiped", n.secret, n.edk)
		}
	}
}

func TestEnvelopeLimits(t *testing.T) {
	f := &fakeKeys{}
	e := newEnvelope(t, f, client.EnvelopeConfig{EncryptionContext: map[string]string{"fixed": "1"}})
	full := strings.Repeat("v", 8192-len("fixed1")-len("k"))
	for _, tt := range []struct {
		name  string
		ec    map[string]string
		works bool
	}{
		{"longest context", map[string]string{"k": full}, true},
		{"context too long", map[string]string{"k": full + "v"}, false},
		{"the configuration's own pair again", map[string]string{"fixed": "1"}, true},
		{"another value of it", map[string]string{"fixed": "2"}, false},
		{"not UTF-8", map[string]string{"k": "\xff"}, false},
	} {
		message, err := e.Encrypt(t.Context(), []byte("x"), tt.ec)
		if (err == nil) != tt.works {
			t.Errorf("encrypt, %s: %v", tt.name, err)
		}
		if tt.works {
			_, err = e.Decrypt(t.Context(), message, tt.ec)
		} else {
			_, err = e.Decrypt(t.Context(), seal(t, e, "x", nil), tt.ec)
		}
		if (err == nil) != tt.works || errors.Is(err, client.ErrDecrypt) {
			t.Errorf("decrypt, %s: %v", tt.name, err)
		}
	}

	longest := make([]byte, client.MaxEnvelopePlaintextBytes+1)
	if _, err := e.Encrypt(t.Context(), longest, nil); err == nil {
		t.Error("a message of MaxEnvelopePlaintextBytes+1 was encrypted")
	}
	message, err := e.Encrypt(t.Context(), longest[:client.MaxEnvelopePlaintextBytes], nil)
	if err != nil {
		t.Fatalf("a message of MaxEnvelopePlaintextBytes: %v", err)
	}
	if got, err := e.Decrypt(t.Context(), message, nil); err != nil || len(got) != client.MaxEnvelopePlaintextBytes {
		t.Errorf("a message of MaxEnvelopePlaintextBytes: %d bytes, %v", len(got), err)
	}
	calls := f.decrypts
	if _, err := e.Decrypt(t.Context(), append(message, 0), nil); err != client.ErrDecrypt || f.decrypts != calls {
		t.Errorf("a message that is too long: %v, %d more calls", err, f.decrypts-calls)
	}
}

func TestNewEnvelopeRefuses(t *testing.T) {
	for _, cfg := range []client.EnvelopeConfig{
		{},
		{KeyID: "k", EncryptionContext: map[string]string{"k": strings.Repeat("v", 8192)}},
		{KeyID: "k", Cache: client.CacheConfig{MaxAge: -1}},
		{KeyID: "k", Cache: client.CacheConfig{MaxAge: 1, MaxMessages: -1}},
		{KeyID: "k", Cache: client.CacheConfig{MaxAge: 1, MaxMessages: 1<<32 + 1}},
		{KeyID: "k", Cache: client.CacheConfig{MaxAge: 1, MaxBytes: -1}},
		{KeyID: "k", Cache: client.CacheConfig{MaxAge: 1, Capacity: -1}},
		{KeyID: "k", Cache: client.CacheConfig{MaxAge: 1, Capacity: 1<<20 + 1}},
		{KeyID: "k", Cache: client.CacheConfig{MaxMessages: 1}},
	} {
		if _, err := client.NewEnvelope(&fakeKeys{}, cfg); err == nil {
			t.Errorf("NewEnvelope takes %+v", cfg)
		}
	}
	if _, err := client.NewEnvelope(&fakeKeys{}, client.EnvelopeConfig{KeyID: "k", Cache: client.CacheConfig{
		MaxAge: 1, MaxMessages: 1 << 32, Capacity: 1 << 20,
	}}); err != nil {
		t.Errorf("the largest limits: %v", err)
	}
}

// TestEnvelopeServiceErrors: what is no fault of the message is told.
func TestEnvelopeServiceErrors(t *testing.T) {
	f := &fakeKeys{}
	e := newEnvelope(t, f, client.EnvelopeConfig{})
	message := seal(t, e, "x", nil)
	f.before = func(context.Context) error { return failure(codes.PermissionDenied, "AccessDeniedException") }
	_, encrypting := e.Encrypt(t.Context(), nil, nil)
	_, decrypting := e.Decrypt(t.Context(), message, nil)
	for _, err := range []error{encrypting, decrypting} {
		if e, ok := client.ErrorFrom(err); !ok || e.Exception != "AccessDeniedException" || e.RequestID != "r-err" || errors.Is(err, client.ErrDecrypt) {
			t.Errorf("%v, want the service's own error", err)
		}
	}
}

// vectorFile is testdata/envelope-vectors.json; docs/envelope-format.md
// explains it.
type vectorFile struct {
	Vectors []struct {
		Name       string
		DataKey    string `json:"data_key_hex"`
		EDK        string `json:"edk_hex"`
		Context    map[string]string
		Plaintext  string `json:"plaintext_hex"`
		MessageHex string `json:"message_hex"`
	}
	Negative []struct {
		Name, Stage string
		DataKey     string `json:"data_key_hex"`
		Context     map[string]string
		MessageHex  string `json:"message_hex"`
	}
}

func readVectors(tb testing.TB) vectorFile {
	tb.Helper()
	b, err := os.ReadFile("testdata/envelope-vectors.json")
	if err != nil {
		tb.Fatal(err)
	}
	var v vectorFile
	if err := json.Unmarshal(b, &v); err != nil {
		tb.Fatal(err)
	}
	if len(v.Vectors) == 0 || len(v.Negative) == 0 {
		tb.Fatal("there are no vectors")
	}
	return v
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// anyEDK opens every encrypted data key to one data key.
type anyEDK struct {
	fakeKeys
	secret []byte
	asked  [][]byte
}

func (a *anyEDK) Decrypt(_ context.Context, req *keyholdv1.DecryptRequest, _ ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	a.asked = append(a.asked, req.GetCiphertextBlob())
	return &keyholdv1.DecryptResponse{Plaintext: bytes.Clone(a.secret)}, nil
}

// TestEnvelopeVectors opens what another implementation wrote.
func TestEnvelopeVectors(t *testing.T) {
	file := readVectors(t)
	for _, v := range file.Vectors {
		svc := &anyEDK{secret: unhex(t, v.DataKey)}
		got, err := newEnvelope(t, svc, client.EnvelopeConfig{}).Decrypt(t.Context(), unhex(t, v.MessageHex), v.Context)
		if err != nil || hex.EncodeToString(got) != v.Plaintext {
			t.Errorf("%s: %x, %v, want %s", v.Name, got, err, v.Plaintext)
		}
		if len(svc.asked) != 1 || hex.EncodeToString(svc.asked[0]) != v.EDK {
			t.Errorf("%s: asked to open %x, want %s", v.Name, svc.asked, v.EDK)
		}
	}
	for _, v := range file.Negative {
		svc := &anyEDK{secret: unhex(t, v.DataKey)}
		got, err := newEnvelope(t, svc, client.EnvelopeConfig{}).Decrypt(t.Context(), unhex(t, v.MessageHex), v.Context)
		if err != client.ErrDecrypt || got != nil {
			t.Errorf("%s: %x, %v, want ErrDecrypt", v.Name, got, err)
		}
		if parsed := len(svc.asked) > 0; parsed != (v.Stage == "open") {
			t.Errorf("%s: the service was asked: %t, want stage %s", v.Name, parsed, v.Stage)
		}
	}
}

// FuzzEnvelopeDecrypt: no bytes make the parser fail otherwise than by
// ErrDecrypt, and what parses has exactly the parts that the format says.
func FuzzEnvelopeDecrypt(f *testing.F) {
	file := readVectors(f)
	for _, v := range file.Vectors {
		f.Add(unhex(f, v.MessageHex))
	}
	for _, v := range file.Negative {
		f.Add(unhex(f, v.MessageHex))
	}
	secret := unhex(f, file.Vectors[0].DataKey)
	f.Fuzz(func(t *testing.T, message []byte) {
		svc := &anyEDK{secret: secret}
		e := newEnvelope(t, svc, client.EnvelopeConfig{})
		given := bytes.Clone(message)
		plaintext, err := e.Decrypt(t.Context(), message, nil)
		if err != nil && err != client.ErrDecrypt {
			t.Fatal(err)
		}
		if !bytes.Equal(given, message) {
			t.Fatal("the message was changed")
		}
		for _, edk := range svc.asked {
			n := int(message[1])<<8 | int(message[2])
			if message[0] != 1 || n < 1 || n > 6144 || !bytes.Equal(edk, message[3:3+n]) || len(message) < 3+n+32+12+16 {
				t.Fatalf("parsed with an encrypted data key of %d bytes", n)
			}
			if err == nil && len(plaintext) != len(message)-(3+n+32+12+16) {
				t.Fatalf("opened to %d bytes", len(plaintext))
			}
		}
	})
}
