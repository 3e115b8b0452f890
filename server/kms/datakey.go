package kms

import (
	"context"
	"fmt"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// dataKeyRequest is what the two data key operations share.
type dataKeyRequest interface {
	GetEncryptionContext() map[string]string
	GetNumberOfBytes() int32
	GetKeySpec() keyholdv1.DataKeySpec
}

// validDataKey: one way to say the length, and only one.
func validDataKey(r dataKeyRequest, hasBytes bool) error {
	hasSpec := r.GetKeySpec() != keyholdv1.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED
	if hasBytes == hasSpec {
		return invalidField("number_of_bytes", "must be given where no key spec is, and only then")
	}
	return checkContext("encryption_context", r.GetEncryptionContext())
}

func validGenerateDataKey(r *keyholdv1.GenerateDataKeyRequest) error {
	return validDataKey(r, r.NumberOfBytes != nil)
}

func validGenerateDataKeyWithoutPlaintext(r *keyholdv1.GenerateDataKeyWithoutPlaintextRequest) error {
	return validDataKey(r, r.NumberOfBytes != nil)
}

func dataKeyBytes(r dataKeyRequest) int {
	switch r.GetKeySpec() {
	case keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256:
		return 32
	case keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_128:
		return 16
	case keyholdv1.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED:
	}
	return int(r.GetNumberOfBytes())
}

// checkDataKey is step 8: only symmetric keys encrypt data keys.
func checkDataKey(c *call) error {
	if r := c.key(0).rec; r.Spec != keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT {
		return errorf(CodeInvalidKeyUsage, "%s key spec is %s which is not valid for %s.", c.key(0).arn, awsName(r.Spec), c.op.name)
	}
	return nil
}

func (s *Service) checkGenerateDataKey(c *call, _ *keyholdv1.GenerateDataKeyRequest) error {
	return checkDataKey(c)
}

func (s *Service) checkGenerateDataKeyWithoutPlaintext(c *call, _ *keyholdv1.GenerateDataKeyWithoutPlaintextRequest) error {
	return checkDataKey(c)
}

// newDataKey returns random bytes from the key's own store, and their
// encrypted copy.
func (s *Service) newDataKey(ctx context.Context, sub *subject, r dataKeyRequest) (plaintext, out []byte, material KeyMaterialID, err error) {
	if plaintext, err = s.random(ctx, sub.rec.Region, dataKeyBytes(r)); err != nil {
		return nil, nil, "", err
	}
	out, v, err := s.seal(ctx, sub, r.GetEncryptionContext(), plaintext)
	if err != nil {
		clear(plaintext)
		return nil, nil, "", err
	}
	return plaintext, out, v.MaterialID, nil
}

func (s *Service) generateDataKey(ctx context.Context, c *call, r *keyholdv1.GenerateDataKeyRequest) (*keyholdv1.GenerateDataKeyResponse, error) {
	plaintext, out, material, err := s.newDataKey(ctx, c.key(0), r)
	if err != nil {
		return nil, err
	}
	return &keyholdv1.GenerateDataKeyResponse{CiphertextBlob: out, Plaintext: plaintext, KeyId: c.key(0).arn, KeyMaterialId: string(material)}, nil
}

func (s *Service) generateDataKeyWithoutPlaintext(ctx context.Context, c *call, r *keyholdv1.GenerateDataKeyWithoutPlaintextRequest) (*keyholdv1.GenerateDataKeyWithoutPlaintextResponse, error) {
	plaintext, out, material, err := s.newDataKey(ctx, c.key(0), r)
	if err != nil {
		return nil, err
	}
	clear(plaintext)
	return &keyholdv1.GenerateDataKeyWithoutPlaintextResponse{CiphertextBlob: out, KeyId: c.key(0).arn, KeyMaterialId: string(material)}, nil
}

func (s *Service) generateRandom(ctx context.Context, c *call, r *keyholdv1.GenerateRandomRequest) (*keyholdv1.GenerateRandomResponse, error) {
	b, err := s.random(ctx, c.region, int(r.GetNumberOfBytes()))
	if err != nil {
		return nil, err
	}
	return &keyholdv1.GenerateRandomResponse{Plaintext: b}, nil
}

// random reads the generator of the region's default key store.
func (s *Service) random(ctx context.Context, region Region, n int) ([]byte, error) {
	src, ok := s.regions[region].(RandomSource)
	if !ok {
		return nil, fmt.Errorf("%w: random numbers", ErrUnsupported)
	}
	b, err := src.Random(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("random bytes: %w", err)
	}
	if len(b) != n {
		return nil, fmt.Errorf("random bytes: the key store returned %d, not %d", len(b), n)
	}
	return b, nil
}
