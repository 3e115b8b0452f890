package kms

import (
	"context"
	"fmt"

	"github.com/keyhold/keyhold/hsm/pubkey"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// checkDeriveSharedSecret is step 8: the peer's key is a point of the key's own
// curve. Both are checked here, before any key store sees the point: a point
// elsewhere would give the private key away bit by bit.
func (s *Service) checkDeriveSharedSecret(c *call, r *keyholdv1.DeriveSharedSecretRequest) error {
	sub := c.key(0)
	peer, err := pubkey.Parse(r.GetPublicKey())
	if err != nil {
		return invalidField("public_key", "must be the DER of a SubjectPublicKeyInfo with a point of the key's curve")
	}
	own, err := pubkey.Parse(sub.rec.Current().PublicKey)
	if err != nil {
		return fmt.Errorf("public key of %s: %w", sub.arn, err)
	}
	if peer.Kind() != own.Kind() {
		return invalidField("public_key", "must be on the key's own curve, %s; it is on %s", own.Kind(), peer.Kind())
	}
	_, err = powerOf[Deriver](s, sub.rec, "key agreement")
	return err
}

func (s *Service) deriveSharedSecret(ctx context.Context, c *call, r *keyholdv1.DeriveSharedSecretRequest) (*keyholdv1.DeriveSharedSecretResponse, error) {
	sub := c.key(0)
	d, err := powerOf[Deriver](s, sub.rec, "key agreement")
	if err != nil {
		return nil, err
	}
	secret, err := d.Derive(ctx, sub.rec.Current().Locator, r.GetPublicKey())
	if err != nil {
		return nil, fmt.Errorf("derive with %s: %w", sub.arn, err)
	}
	return &keyholdv1.DeriveSharedSecretResponse{
		KeyId: sub.arn, SharedSecret: secret, KeyAgreementAlgorithm: r.GetKeyAgreementAlgorithm(),
		KeyOrigin: keyholdv1.OriginType_ORIGIN_TYPE_AWS_KMS,
	}, nil
}
