package kms

import (
	"context"
	"fmt"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms/keypair"
)

// dataKeyPairRequest is what the two data key pair operations share.
type dataKeyPairRequest interface {
	GetEncryptionContext() map[string]string
	GetKeyPairSpec() keyholdv1.DataKeyPairSpec
}

// pairSpec returns the type of pair that is made, 0 where none is.
func pairSpec(spec keyholdv1.DataKeyPairSpec) keypair.Spec {
	switch spec {
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_RSA_2048:
		return keypair.RSA2048
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_RSA_3072:
		return keypair.RSA3072
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_RSA_4096:
		return keypair.RSA4096
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P256:
		return keypair.P256
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P384:
		return keypair.P384
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P521:
		return keypair.P521
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_SECG_P256K1:
		return keypair.Secp256k1
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_EDWARDS25519:
		return keypair.Ed25519
	case keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_UNSPECIFIED, keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_SM2:
	}
	return 0
}

func validGenerateDataKeyPair(r *keyholdv1.GenerateDataKeyPairRequest) error {
	return checkContext("encryption_context", r.GetEncryptionContext())
}

func validGenerateDataKeyPairWithoutPlaintext(r *keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest) error {
	return checkContext("encryption_context", r.GetEncryptionContext())
}

// checkDataKeyPair is step 8: a symmetric key, and a pair that can be made.
func checkDataKeyPair(c *call, r dataKeyPairRequest) error {
	if err := checkDataKey(c); err != nil {
		return err
	}
	if pairSpec(r.GetKeyPairSpec()) == 0 {
		return errorf(CodeUnsupportedOperation, "Key pairs of the spec %s are not supported.", awsName(r.GetKeyPairSpec()))
	}
	return nil
}

func (s *Service) checkGenerateDataKeyPair(c *call, r *keyholdv1.GenerateDataKeyPairRequest) error {
	return checkDataKeyPair(c, r)
}

func (s *Service) checkGenerateDataKeyPairWithoutPlaintext(c *call, r *keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest) error {
	return checkDataKeyPair(c, r)
}

// newDataKeyPair returns a pair, and its private key encrypted. It is made on
// the host: its private key leaves in the clear, now or by Decrypt, and tokens
// are made to keep private keys in.
func (s *Service) newDataKeyPair(ctx context.Context, sub *subject, r dataKeyPairRequest) (pair keypair.Pair, out []byte, material KeyMaterialID, err error) {
	if pair, err = s.pairs.Get(ctx, pairSpec(r.GetKeyPairSpec())); err != nil {
		return keypair.Pair{}, nil, "", fmt.Errorf("data key pair: %w", err)
	}
	out, v, err := s.seal(ctx, sub, r.GetEncryptionContext(), pair.PKCS8)
	if err != nil {
		pair.Wipe()
		return keypair.Pair{}, nil, "", err
	}
	return pair, out, v.MaterialID, nil
}

func (s *Service) generateDataKeyPair(ctx context.Context, c *call, r *keyholdv1.GenerateDataKeyPairRequest) (*keyholdv1.GenerateDataKeyPairResponse, error) {
	pair, out, material, err := s.newDataKeyPair(ctx, c.key(0), r)
	if err != nil {
		return nil, err
	}
	return &keyholdv1.GenerateDataKeyPairResponse{
		PrivateKeyCiphertextBlob: out, PrivateKeyPlaintext: pair.PKCS8, PublicKey: pair.SPKI,
		KeyId: c.key(0).arn, KeyPairSpec: r.GetKeyPairSpec(), KeyMaterialId: string(material),
	}, nil
}

func (s *Service) generateDataKeyPairWithoutPlaintext(ctx context.Context, c *call, r *keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest) (*keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse, error) {
	pair, out, material, err := s.newDataKeyPair(ctx, c.key(0), r)
	if err != nil {
		return nil, err
	}
	pair.Wipe()
	return &keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse{
		PrivateKeyCiphertextBlob: out, PublicKey: pair.SPKI,
		KeyId: c.key(0).arn, KeyPairSpec: r.GetKeyPairSpec(), KeyMaterialId: string(material),
	}, nil
}
