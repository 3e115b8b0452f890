package tinkaead_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/client/internal/daemontest"
	"github.com/keyhold/keyhold/client/tinkaead"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// TestMain runs a real daemon, which tests and examples find in the
// environment.
func TestMain(m *testing.M) {
	daemon, err := daemontest.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(func(code int) {
		if err := daemon.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

func dial(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var (
	_ tinkaead.Service = keyholdv1.CryptographyServiceClient(nil)
	_ tinkaead.Service = (*client.Coalescer)(nil)
)

func newAEAD(t *testing.T, c *client.Client, keyID string) *tinkaead.AEAD {
	t.Helper()
	a, err := tinkaead.New(c.Crypto, keyID, client.CallOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAEAD(t *testing.T) {
	c := dial(t)
	a := newAEAD(t, c, "alias/app")
	plaintext := bytes.Repeat([]byte("x"), tinkaead.MaxPlaintextBytes)
	data := bytes.Repeat([]byte{0xff}, tinkaead.MaxAssociatedDataBytes)
	for _, tt := range []struct{ plaintext, data []byte }{
		{plaintext[:1], nil},
		{plaintext[:1], []byte{}},
		{plaintext, data},
	} {
		sealed, err := a.Encrypt(tt.plaintext, tt.data)
		if err != nil {
			t.Fatalf("%d bytes, associated %d: %v", len(tt.plaintext), len(tt.data), err)
		}
		if got, err := a.Decrypt(sealed, tt.data); err != nil || !bytes.Equal(got, tt.plaintext) {
			t.Errorf("%d bytes, associated %d: %x, %v", len(tt.plaintext), len(tt.data), got, err)
		}
	}
	for name, tt := range map[string]struct{ plaintext, data []byte }{
		"empty plaintext": {nil, nil}, "plaintext too long": {append(plaintext, 'x'), nil}, "associated data too long": {plaintext[:1], append(data, 0)},
	} {
		if _, err := a.Encrypt(tt.plaintext, tt.data); err == nil {
			t.Errorf("%s: it was encrypted", name)
		}
	}
	if _, err := tinkaead.New(c.Crypto, "", client.CallOptions{}); err == nil {
		t.Error("an AEAD without a key")
	}
}

func TestAEADRefuses(t *testing.T) {
	c := dial(t)
	a := newAEAD(t, c, "alias/app")
	sealed, err := a.Encrypt([]byte("attack at dawn"), []byte("tenant 42"))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, a *tinkaead.AEAD, ciphertext, data []byte) {
		t.Helper()
		if got, err := a.Decrypt(ciphertext, data); err != client.ErrDecrypt {
			t.Errorf("%s: %q, %v, want ErrDecrypt", what, got, err)
		}
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		refused(fmt.Sprint("byte ", i), a, bad, []byte("tenant 42"))
		refused(fmt.Sprint("cut to ", i), a, sealed[:i], []byte("tenant 42"))
	}
	refused("other data", a, sealed, []byte("tenant 43"))
	refused("no data", a, sealed, nil)
	refused("too long", a, make([]byte, 6145), nil)
	refused("another key", newAEAD(t, c, "alias/other"), sealed, []byte("tenant 42"))
	if _, err := a.Decrypt(sealed, make([]byte, tinkaead.MaxAssociatedDataBytes+1)); err == nil || errors.Is(err, client.ErrDecrypt) {
		t.Errorf("associated data too long: %v", err)
	}

	missing := newAEAD(t, c, "alias/nothing")
	_, encrypting := missing.Encrypt([]byte("x"), nil)
	_, decrypting := missing.Decrypt(sealed, nil)
	for _, err := range []error{encrypting, decrypting} {
		if e, ok := client.ErrorFrom(err); !ok || e.Exception != "NotFoundException" {
			t.Errorf("a key that is not there: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended, err := tinkaead.New(c.Crypto, "alias/app", client.CallOptions{BaseContext: func() context.Context { return ctx }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ended.Encrypt([]byte("x"), nil); status.Code(errors.Unwrap(err)) != codes.Canceled {
		t.Errorf("in a context that has ended: %v", err)
	}
}

// refusing is a service that finds the fields at fault.
type refusing []string

func (refusing) Encrypt(context.Context, *keyholdv1.EncryptRequest, ...grpc.CallOption) (*keyholdv1.EncryptResponse, error) {
	return nil, status.Error(codes.Unimplemented, "")
}

func (fields refusing) Decrypt(context.Context, *keyholdv1.DecryptRequest, ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	bad := &errdetails.BadRequest{}
	for _, f := range fields {
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: f})
	}
	st, err := status.New(codes.InvalidArgument, "bad").WithDetails(&errdetails.ErrorInfo{Reason: "ValidationException", Domain: client.ErrorDomain}, bad)
	if err != nil {
		return nil, err
	}
	return nil, st.Err()
}

// TestAEADValidation: a request that is bad for another reason than its
// ciphertext is not a ciphertext that does not open.
func TestAEADValidation(t *testing.T) {
	for _, tt := range []struct {
		fields []string
		opens  bool
	}{
		{[]string{"ciphertext_blob"}, false},
		{[]string{"key_id"}, true},
		{[]string{"ciphertext_blob", "key_id"}, true},
		{nil, true},
	} {
		a, err := tinkaead.New(refusing(tt.fields), "k", client.CallOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Decrypt([]byte("x"), nil)
		if e, ok := client.ErrorFrom(err); (err != client.ErrDecrypt) != tt.opens || tt.opens && (!ok || e.Exception != "ValidationException") {
			t.Errorf("%q at fault: %v", tt.fields, err)
		}
	}
	if _, err := newAEAD(t, dial(t), strings.Repeat("x", 2049)).Decrypt([]byte("x"), nil); err == nil || errors.Is(err, client.ErrDecrypt) {
		t.Errorf("a key id that is none: %v", err)
	}
}

// TestAssociatedData: it travels as Tink's integration of AWS KMS sends it.
func TestAssociatedData(t *testing.T) {
	c := dial(t)
	sealed, err := newAEAD(t, c, "alias/app").Encrypt([]byte("x"), []byte{0x00, 0xab})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Crypto.Decrypt(t.Context(), &keyholdv1.DecryptRequest{
		CiphertextBlob: sealed, EncryptionContext: map[string]string{"associatedData": "00ab"},
	}); err != nil {
		t.Error(err)
	}
}

// TestTinkKeyset: a keyset of Tink's, encrypted under the HSM's key.
func TestTinkKeyset(t *testing.T) {
	kek := newAEAD(t, dial(t), "alias/app")
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	var stored bytes.Buffer
	if err := handle.WriteWithAssociatedData(keyset.NewBinaryWriter(&stored), kek, []byte("backup")); err != nil {
		t.Fatal(err)
	}
	primitive, err := aead.New(handle)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := primitive.Encrypt([]byte("attack at dawn"), nil)
	if err != nil {
		t.Fatal(err)
	}

	again, err := keyset.ReadWithContext(t.Context(), keyset.NewBinaryReader(bytes.NewReader(stored.Bytes())), kek, []byte("backup"))
	if err != nil {
		t.Fatal(err)
	}
	if primitive, err = aead.New(again); err != nil {
		t.Fatal(err)
	}
	if got, err := primitive.Decrypt(sealed, nil); err != nil || string(got) != "attack at dawn" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(stored.Bytes())), kek, []byte("other")); err == nil {
		t.Error("the keyset opens with other associated data")
	}
}

// TestTinkEnvelope: Tink's envelope encryption under the HSM's key.
func TestTinkEnvelope(t *testing.T) {
	kek := newAEAD(t, dial(t), "alias/app")
	envelope := aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), kek)
	long := bytes.Repeat([]byte("attack at dawn"), 10_000)
	sealed, err := envelope.Encrypt(long, []byte("tenant 42"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := envelope.Decrypt(sealed, []byte("tenant 42")); err != nil || !bytes.Equal(got, long) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	sealed[20] ^= 1
	if _, err := envelope.Decrypt(sealed, []byte("tenant 42")); err == nil {
		t.Error("a changed message opens")
	}
}
