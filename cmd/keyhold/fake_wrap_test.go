package main

import (
	"bytes"
	"context"
	"crypto/sha256"

	"google.golang.org/grpc/codes"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// wrappedPrefix begins what the fake has wrapped: it hides nothing.
const wrappedPrefix = "wrapped:"

func (f *fake) WrapKey(ctx context.Context, req *keyholdv1.WrapKeyRequest) (*keyholdv1.WrapKeyResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	return &keyholdv1.WrapKeyResponse{
		KeyId: meta.GetArn(), WrappedKey: append([]byte(wrappedPrefix), req.GetPlaintextKey()...), WrappingAlgorithm: req.GetWrappingAlgorithm(),
	}, err
}

func (f *fake) UnwrapKey(ctx context.Context, req *keyholdv1.UnwrapKeyRequest) (*keyholdv1.UnwrapKeyResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	plaintext, ok := bytes.CutPrefix(req.GetWrappedKey(), []byte(wrappedPrefix))
	if !ok {
		return nil, exception(codes.InvalidArgument, "InvalidCiphertextException", "")
	}
	return &keyholdv1.UnwrapKeyResponse{KeyId: meta.GetArn(), PlaintextKey: plaintext, WrappingAlgorithm: req.GetWrappingAlgorithm()}, nil
}

// ExportKey exports the key's id.
func (f *fake) ExportKey(ctx context.Context, req *keyholdv1.ExportKeyRequest) (*keyholdv1.ExportKeyResponse, error) {
	wrapping, err := f.find(ctx, req.GetWrappingKeyId())
	if err != nil {
		return nil, err
	}
	meta, err := f.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	if meta.GetKeyCustody() != keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE {
		return nil, exception(codes.FailedPrecondition, "UnsupportedOperationException", "the key is not exportable")
	}
	return &keyholdv1.ExportKeyResponse{
		KeyId: meta.GetArn(), WrappingKeyId: wrapping.GetArn(), WrappedKey: []byte(wrappedPrefix + meta.GetKeyId()), WrappingAlgorithm: req.GetWrappingAlgorithm(),
	}, nil
}

// DeriveSharedSecret returns the hash of what it was given.
func (f *fake) DeriveSharedSecret(ctx context.Context, req *keyholdv1.DeriveSharedSecretRequest) (*keyholdv1.DeriveSharedSecretResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	sum := sha256.Sum256(req.GetPublicKey())
	return &keyholdv1.DeriveSharedSecretResponse{KeyId: meta.GetArn(), SharedSecret: sum[:], KeyAgreementAlgorithm: req.GetKeyAgreementAlgorithm()}, err
}

func (f *fake) GenerateDataKeyPair(ctx context.Context, req *keyholdv1.GenerateDataKeyPairRequest) (*keyholdv1.GenerateDataKeyPairResponse, error) {
	private := []byte("private DER")
	b, meta, err := f.seal(ctx, req.GetKeyId(), req.GetEncryptionContext(), private)
	return &keyholdv1.GenerateDataKeyPairResponse{
		KeyId: meta.GetArn(), KeyPairSpec: req.GetKeyPairSpec(), PrivateKeyCiphertextBlob: b, PrivateKeyPlaintext: private, PublicKey: []byte("public DER"),
	}, err
}

func (f *fake) GenerateDataKeyPairWithoutPlaintext(ctx context.Context, req *keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest) (*keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse, error) {
	b, meta, err := f.seal(ctx, req.GetKeyId(), req.GetEncryptionContext(), []byte("private DER"))
	return &keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse{
		KeyId: meta.GetArn(), KeyPairSpec: req.GetKeyPairSpec(), PrivateKeyCiphertextBlob: b, PublicKey: []byte("public DER"),
	}, err
}
