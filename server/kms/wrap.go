package kms

import (
	"context"
	"fmt"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// semiblockBytes is the unit of AES key wrap (RFC 3394, 2.2).
const semiblockBytes = 8

// defaultWrapping gives the algorithm that absent means.
func defaultWrapping(alg keyholdv1.WrappingAlgorithmSpec) keyholdv1.WrappingAlgorithmSpec {
	if alg == keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_UNSPECIFIED {
		return keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP
	}
	return alg
}

// validWrapKey: RFC 3394 wraps two or more whole semiblocks.
func validWrapKey(r *keyholdv1.WrapKeyRequest) error {
	n := len(r.GetPlaintextKey())
	if r.GetWrappingAlgorithm() == keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW && (n < 2*semiblockBytes || n%semiblockBytes != 0) {
		return invalidField("plaintext_key", "must be a multiple of 8 bytes, 16 or more, for AES_KW; it has %d", n)
	}
	return nil
}

// canBeWrapped tells whether a wrapped key has a length that its algorithm
// makes: RFC 5649 makes 16 bytes or more, RFC 3394 24 or more.
func canBeWrapped(alg keyholdv1.WrappingAlgorithmSpec, wrapped []byte) bool {
	least := 2 * semiblockBytes
	if alg == keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW {
		least = 3 * semiblockBytes
	}
	return len(wrapped) >= least && len(wrapped)%semiblockBytes == 0
}

// checkWrapping is step 8: what the store has not proven is refused here, so
// that a dry run does not promise it.
func (s *Service) checkWrapping(r *KeyRecord, alg keyholdv1.WrappingAlgorithmSpec, n int) error {
	w, err := powerOf[Wrapper](s, r, "key wrapping")
	if err != nil {
		return err
	}
	return w.CanWrap(alg, n)
}

func (s *Service) checkWrapKey(c *call, r *keyholdv1.WrapKeyRequest) error {
	return s.checkWrapping(c.key(0).rec, defaultWrapping(r.GetWrappingAlgorithm()), len(r.GetPlaintextKey()))
}

func (s *Service) wrapKey(ctx context.Context, c *call, r *keyholdv1.WrapKeyRequest) (*keyholdv1.WrapKeyResponse, error) {
	sub, alg := c.key(0), defaultWrapping(r.GetWrappingAlgorithm())
	w, err := powerOf[Wrapper](s, sub.rec, "key wrapping")
	if err != nil {
		return nil, err
	}
	out, err := w.WrapBytes(ctx, sub.rec.Current().Locator, alg, r.GetPlaintextKey())
	if err != nil {
		return nil, fmt.Errorf("wrap under %s: %w", sub.arn, err)
	}
	return &keyholdv1.WrapKeyResponse{KeyId: sub.arn, WrappedKey: out, WrappingAlgorithm: alg}, nil
}

func (s *Service) checkUnwrapKey(c *call, _ *keyholdv1.UnwrapKeyRequest) error {
	_, err := powerOf[Wrapper](s, c.key(0).rec, "key wrapping")
	return err
}

func (s *Service) unwrapKey(ctx context.Context, c *call, r *keyholdv1.UnwrapKeyRequest) (*keyholdv1.UnwrapKeyResponse, error) {
	sub, alg := c.key(0), defaultWrapping(r.GetWrappingAlgorithm())
	if !canBeWrapped(alg, r.GetWrappedKey()) {
		return nil, ErrNotAuthentic
	}
	w, err := powerOf[Wrapper](s, sub.rec, "key wrapping")
	if err != nil {
		return nil, err
	}
	out, err := w.UnwrapBytes(ctx, sub.rec.Current().Locator, alg, r.GetWrappedKey())
	if err != nil {
		return nil, fmt.Errorf("unwrap under %s: %w", sub.arn, err)
	}
	return &keyholdv1.UnwrapKeyResponse{KeyId: sub.arn, PlaintextKey: out, WrappingAlgorithm: alg}, nil
}

// checkExportKey is step 8. A key leaves only if it was created so, and only
// under a key that cannot leave itself: otherwise it would be as safe as the
// weakest key in a chain that nobody sees whole.
func (s *Service) checkExportKey(c *call, r *keyholdv1.ExportKeyRequest) error {
	key, wrapping := c.key(0), c.key(1)
	switch {
	case wrapping.rec.Usage != keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP:
		return errorf(CodeInvalidKeyUsage, "%s key usage is %s which is not valid for wrapping.", wrapping.arn, awsName(wrapping.rec.Usage))
	case key.rec.Current().Custody != keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE:
		return errorf(CodeInvalidKeyUsage, "%s custody is %s: only keys that were created EXPORTABLE can leave their token.", key.arn, awsName(key.rec.Current().Custody))
	case wrapping.rec.Current().Custody != keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED:
		return errorf(CodeInvalidKeyUsage, "%s custody is %s: a key is exported only under a GENERATED one.", wrapping.arn, awsName(wrapping.rec.Current().Custody))
	case key.rec.KeyStore != wrapping.rec.KeyStore:
		return errorf(CodeUnsupportedOperation, "%s and %s are in different key stores; a key is wrapped where it is.", key.arn, wrapping.arn)
	}
	return s.checkWrapping(wrapping.rec, defaultWrapping(r.GetWrappingAlgorithm()), factsOf(key.rec.Spec).secretBytes)
}

func (s *Service) exportKey(ctx context.Context, c *call, r *keyholdv1.ExportKeyRequest) (*keyholdv1.ExportKeyResponse, error) {
	key, wrapping, alg := c.key(0), c.key(1), defaultWrapping(r.GetWrappingAlgorithm())
	w, err := powerOf[Wrapper](s, wrapping.rec, "key wrapping")
	if err != nil {
		return nil, err
	}
	out, err := w.WrapKey(ctx, wrapping.rec.Current().Locator, alg, key.rec.Current().Locator)
	if err != nil {
		return nil, fmt.Errorf("wrap %s under %s: %w", key.arn, wrapping.arn, err)
	}
	return &keyholdv1.ExportKeyResponse{KeyId: key.arn, WrappingKeyId: wrapping.arn, WrappedKey: out, WrappingAlgorithm: alg}, nil
}
