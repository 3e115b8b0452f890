package client

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// DecryptingService is what a Decrypter calls: a Client's Crypto, or a
// Coalescer.
type DecryptingService interface {
	PublicKeyService

	// Decrypt opens a ciphertext. The plaintext belongs to the caller.
	Decrypt(ctx context.Context, req *keyholdv1.DecryptRequest, opts ...grpc.CallOption) (*keyholdv1.DecryptResponse, error)
}

// Decrypter is a crypto.Decrypter whose private RSA key is in the HSM. It may
// be used concurrently.
type Decrypter struct {
	service DecryptingService
	arn     string
	public  *rsa.PublicKey
	opts    CallOptions
}

var _ crypto.Decrypter = (*Decrypter)(nil)

// NewDecrypter fetches the public key of the KMS key, which must be of RSA with
// the usage ENCRYPT_DECRYPT. It is the key that keyID names now: where an alias
// is pointed at another key later, the Decrypter stays with its own, and calls
// its region.
func NewDecrypter(ctx context.Context, service DecryptingService, keyID string, opts CallOptions) (*Decrypter, error) {
	resp, public, err := fetchPublic(ctx, service, keyID, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT)
	if err != nil {
		return nil, fmt.Errorf("decrypter for %s: %w", keyID, err)
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("decrypter for %s: the key is a %T, not of RSA", keyID, public)
	}
	return &Decrypter{service: service, arn: resp.GetKeyId(), public: key, opts: opts}, nil
}

// Public returns an *rsa.PublicKey, for rsa.EncryptOAEP.
func (d *Decrypter) Public() crypto.PublicKey { return d.public }

// KeyID returns the ARN of the KMS key.
func (d *Decrypter) KeyID() string { return d.arn }

// Decrypt opens what rsa.EncryptOAEP made. opts must be *rsa.OAEPOptions with
// SHA-1 or SHA-256, the same for MGF1 or none, and no label: that is what the
// service does. PKCS #1 v1.5, which nil would mean to crypto/rsa, is refused.
// What does not open is ErrDecrypt. rand is not used.
func (d *Decrypter) Decrypt(_ io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	oaep, ok := opts.(*rsa.OAEPOptions)
	if !ok || oaep == nil {
		return nil, fmt.Errorf("decrypt: the options are a %T, and must be *rsa.OAEPOptions: the service does RSAES-OAEP only", opts)
	}
	alg := keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_1
	switch {
	case oaep.Hash == crypto.SHA256:
		alg = keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_RSAES_OAEP_SHA_256
	case oaep.Hash != crypto.SHA1:
		return nil, fmt.Errorf("decrypt: OAEP with %v; the service does SHA-1 and SHA-256", oaep.Hash)
	}
	if oaep.MGFHash != 0 && oaep.MGFHash != oaep.Hash {
		return nil, fmt.Errorf("decrypt: OAEP with %v and MGF1 with %v; the service uses one for both", oaep.Hash, oaep.MGFHash)
	}
	if len(oaep.Label) > 0 {
		return nil, errors.New("decrypt: OAEP with a label; the service has none")
	}
	if len(ciphertext) != d.public.Size() {
		return nil, ErrDecrypt
	}
	ctx, cancel := d.opts.Context()
	defer cancel()
	resp, err := d.service.Decrypt(inRegionOf(ctx, d.arn), &keyholdv1.DecryptRequest{KeyId: &d.arn, CiphertextBlob: ciphertext, EncryptionAlgorithm: alg})
	switch {
	case err == nil:
		return resp.GetPlaintext(), nil
	case doesNotOpen(err):
		return nil, ErrDecrypt
	}
	return nil, fmt.Errorf("decrypt: %w", err)
}
