// Package tinkaead makes a KMS key of Keyhold a key-encryption key of Tink
// (https://developers.google.com/tink): for keysets that are encrypted at
// rest, and for Tink's own envelope encryption.
//
// It is a package of its own so that programs which do not use Tink need not
// have it. It ciphers in the service, each call is one request; for many or
// long messages use aead.NewKMSEnvelopeAEADWithContext over it, or
// client.Envelope.
//
// Ciphertexts are those of Encrypt (docs/ciphertext-format.md), and associated
// data travels as Tink's AWS KMS integration sends it, so that what one of them
// encrypted the other decrypts.
package tinkaead

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/grpc"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

const (
	// contextKey is the pair of the encryption context that holds the associated
	// data in hexadecimal, as tink-go-awskms has it.
	contextKey = "associatedData"

	// MaxPlaintextBytes is the service's limit.
	MaxPlaintextBytes = 4096

	// MaxAssociatedDataBytes is what fits into an encryption context of 8,192
	// bytes.
	MaxAssociatedDataBytes = (8192 - len(contextKey)) / 2
)

// Service is what an AEAD calls: a client's Crypto, or a Coalescer.
type Service interface {
	// Encrypt encrypts up to MaxPlaintextBytes.
	Encrypt(ctx context.Context, req *keyholdv1.EncryptRequest, opts ...grpc.CallOption) (*keyholdv1.EncryptResponse, error)

	// Decrypt opens what Encrypt made.
	Decrypt(ctx context.Context, req *keyholdv1.DecryptRequest, opts ...grpc.CallOption) (*keyholdv1.DecryptResponse, error)
}

// AEAD is a tink.AEAD and a tink.AEADWithContext whose key is in the HSM. It
// may be used concurrently.
type AEAD struct {
	service Service
	keyID   string
	opts    client.CallOptions
}

var (
	_ tink.AEAD            = (*AEAD)(nil)
	_ tink.AEADWithContext = (*AEAD)(nil)
)

// New returns an AEAD under the symmetric KMS key that keyID names: an id, an
// ARN or an alias. It calls nothing yet. What it encrypted can be decrypted
// under the same key only: an ARN is best where an alias might be pointed at
// another one.
func New(service Service, keyID string, opts client.CallOptions) (*AEAD, error) {
	if keyID == "" {
		return nil, errors.New("tinkaead: the key id is empty")
	}
	return &AEAD{service: service, keyID: keyID, opts: opts}, nil
}

// Encrypt is EncryptWithContext in the context of the options.
func (a *AEAD) Encrypt(plaintext, associatedData []byte) ([]byte, error) {
	ctx, cancel := a.opts.Context()
	defer cancel()
	return a.EncryptWithContext(ctx, plaintext, associatedData)
}

// EncryptWithContext encrypts 1 to MaxPlaintextBytes. The associated data, at
// most MaxAssociatedDataBytes, is not secret and stands in the audit log.
func (a *AEAD) EncryptWithContext(ctx context.Context, plaintext, associatedData []byte) ([]byte, error) {
	if n := len(plaintext); n < 1 || n > MaxPlaintextBytes {
		return nil, fmt.Errorf("encrypt: the plaintext has %d bytes; 1 to %d are possible", n, MaxPlaintextBytes)
	}
	bound, err := contextOf(associatedData)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	resp, err := a.service.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: a.keyID, Plaintext: plaintext, EncryptionContext: bound})
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return resp.GetCiphertextBlob(), nil
}

// Decrypt is DecryptWithContext in the context of the options.
func (a *AEAD) Decrypt(ciphertext, associatedData []byte) ([]byte, error) {
	ctx, cancel := a.opts.Context()
	defer cancel()
	return a.DecryptWithContext(ctx, ciphertext, associatedData)
}

// DecryptWithContext opens what was encrypted with the same associated data
// under the same key. What does not open is client.ErrDecrypt.
func (a *AEAD) DecryptWithContext(ctx context.Context, ciphertext, associatedData []byte) ([]byte, error) {
	bound, err := contextOf(associatedData)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	resp, err := a.service.Decrypt(ctx, &keyholdv1.DecryptRequest{KeyId: &a.keyID, CiphertextBlob: ciphertext, EncryptionContext: bound})
	if err == nil {
		return resp.GetPlaintext(), nil
	}
	if e, ok := client.ErrorFrom(err); ok && doesNotOpen(e) {
		return nil, client.ErrDecrypt
	}
	return nil, fmt.Errorf("decrypt: %w", err)
}

// doesNotOpen tells what the service says of a ciphertext itself.
func doesNotOpen(e *client.Error) bool {
	switch e.Exception {
	case "InvalidCiphertextException", "IncorrectKeyException":
		return true
	case "ValidationException":
		// Of a ciphertext without bytes, or with too many. Other fields at fault,
		// such as the key id, are the program's.
		return len(e.Violations) > 0 && !slices.ContainsFunc(e.Violations, func(v client.FieldViolation) bool { return v.Field != "ciphertext_blob" })
	}
	return false
}

// contextOf returns the encryption context that binds associated data.
func contextOf(associatedData []byte) (map[string]string, error) {
	if n := len(associatedData); n > MaxAssociatedDataBytes {
		return nil, fmt.Errorf("the associated data has %d bytes; at most %d are possible", n, MaxAssociatedDataBytes)
	}
	if len(associatedData) == 0 {
		return nil, nil //nolint:nilnil // no context, as tink-go-awskms has it
	}
	return map[string]string{contextKey: hex.EncodeToString(associatedData)}, nil
}
