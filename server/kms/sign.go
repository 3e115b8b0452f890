package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/keyhold/keyhold/hsm/pubkey"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// SignatureAlgorithm returns the name that signing on the host and in tokens
// has for an algorithm.
func SignatureAlgorithm(alg keyholdv1.SigningAlgorithmSpec) (pubkey.Algorithm, bool) {
	a, ok := signatureAlgorithms[alg]
	return a, ok
}

// signatureAlgorithms is never changed.
var signatureAlgorithms = map[keyholdv1.SigningAlgorithmSpec]pubkey.Algorithm{
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_256:        pubkey.RSAPSSSHA256,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_384:        pubkey.RSAPSSSHA384,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_512:        pubkey.RSAPSSSHA512,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_256: pubkey.RSAPKCS1SHA256,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_384: pubkey.RSAPKCS1SHA384,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_512: pubkey.RSAPKCS1SHA512,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256:             pubkey.ECDSASHA256,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_384:             pubkey.ECDSASHA384,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_512:             pubkey.ECDSASHA512,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_SHA_512:           pubkey.Ed25519SHA512,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_PH_SHA_512:        pubkey.Ed25519phSHA512,
}

// signRequest is what Sign and Verify share.
type signRequest interface {
	GetMessage() []byte
	GetMessageType() keyholdv1.MessageType
	GetSigningAlgorithm() keyholdv1.SigningAlgorithmSpec
}

// validSignature checks what does not depend on the key: Ed25519 takes the
// message itself, Ed25519ph its digest, and a digest has its algorithm's
// length.
func validSignature(r signRequest) error {
	alg, digest := r.GetSigningAlgorithm(), r.GetMessageType() == keyholdv1.MessageType_MESSAGE_TYPE_DIGEST
	hash := signatureAlgorithms[alg].Hash()
	switch {
	case digest && hash == 0:
		return invalidField("message_type", "must be RAW for %s", awsName(alg))
	case !digest && alg == keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_PH_SHA_512:
		return invalidField("message_type", "must be DIGEST for %s", awsName(alg))
	case digest && len(r.GetMessage()) != hash.Size():
		return invalidField("message", "must be a digest of %d bytes for %s; it has %d", hash.Size(), awsName(alg), len(r.GetMessage()))
	}
	return nil
}

func validSign(r *keyholdv1.SignRequest) error     { return validSignature(r) }
func validVerify(r *keyholdv1.VerifyRequest) error { return validSignature(r) }

// signatureInput returns what the algorithm signs: the digest, or for Ed25519
// the message.
func signatureInput(r signRequest) []byte {
	hash := signatureAlgorithms[r.GetSigningAlgorithm()].Hash()
	if hash == 0 || r.GetMessageType() == keyholdv1.MessageType_MESSAGE_TYPE_DIGEST {
		return r.GetMessage()
	}
	h := hash.New()
	h.Write(r.GetMessage())
	return h.Sum(nil)
}

// checkSignature is step 8 for both.
func (s *Service) checkSignature(c *call, alg keyholdv1.SigningAlgorithmSpec) error {
	r := c.key(0).rec
	if !slices.Contains(signingAlgorithms(r.Spec, r.Usage), alg) {
		return errorf(CodeInvalidKeyUsage, "Algorithm %s is incompatible with key spec %s.", awsName(alg), awsName(r.Spec))
	}
	return nil
}

func (s *Service) checkSign(c *call, r *keyholdv1.SignRequest) error {
	if err := s.checkSignature(c, r.GetSigningAlgorithm()); err != nil {
		return err
	}
	// What the store has not proven is refused here and not when it signs, so
	// that a dry run does not promise it.
	signer, err := s.signerOf(c.key(0).rec)
	if err != nil {
		return err
	}
	return signer.CanSign(c.key(0).rec.Spec, r.GetSigningAlgorithm())
}

func (s *Service) signerOf(r *KeyRecord) (Signer, error) {
	return powerOf[Signer](s, r, "signatures")
}

func (s *Service) checkVerify(c *call, r *keyholdv1.VerifyRequest) error {
	return s.checkSignature(c, r.GetSigningAlgorithm())
}

func (s *Service) sign(ctx context.Context, c *call, r *keyholdv1.SignRequest) (*keyholdv1.SignResponse, error) {
	sub := c.key(0)
	signer, err := s.signerOf(sub.rec)
	if err != nil {
		return nil, err
	}
	sig, err := signer.Sign(ctx, sub.rec.Current().Locator, r.GetSigningAlgorithm(), signatureInput(r))
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", sub.arn, err)
	}
	return &keyholdv1.SignResponse{KeyId: sub.arn, Signature: sig, SigningAlgorithm: r.GetSigningAlgorithm()}, nil
}

func (s *Service) verify(ctx context.Context, c *call, r *keyholdv1.VerifyRequest) (*keyholdv1.VerifyResponse, error) {
	pub, err := s.publicKey(ctx, c.key(0))
	if err != nil {
		return nil, err
	}
	err = pub.Verify(signatureAlgorithms[r.GetSigningAlgorithm()], signatureInput(r), r.GetSignature())
	switch {
	case errors.Is(err, pubkey.ErrSignature):
		return nil, errorf(CodeInvalidSignature, "")
	case err != nil:
		return nil, fmt.Errorf("verify with %s: %w", c.key(0).arn, err)
	}
	valid := true
	return &keyholdv1.VerifyResponse{KeyId: c.key(0).arn, SignatureValid: &valid, SigningAlgorithm: r.GetSigningAlgorithm()}, nil
}

func (s *Service) checkGetPublicKey(c *call, _ *keyholdv1.GetPublicKeyRequest) error {
	r := c.key(0).rec
	if f := factsOf(r.Spec); f.kind != kindAsymmetric {
		return errorf(CodeUnsupportedOperation, "%s key spec is %s which is not valid for GetPublicKey.", c.key(0).arn, awsName(r.Spec))
	}
	return nil
}

func (s *Service) getPublicKey(ctx context.Context, c *call, _ *keyholdv1.GetPublicKeyRequest) (*keyholdv1.GetPublicKeyResponse, error) {
	sub := c.key(0)
	pub, err := s.publicKey(ctx, sub)
	if err != nil {
		return nil, err
	}
	return &keyholdv1.GetPublicKeyResponse{
		KeyId: sub.arn, PublicKey: bytes.Clone(pub.SPKI()), KeySpec: sub.rec.Spec, KeyUsage: sub.rec.Usage,
		EncryptionAlgorithms:   encryptionAlgorithms(sub.rec.Spec, sub.rec.Usage),
		SigningAlgorithms:      s.offeredSigning(sub.rec),
		KeyAgreementAlgorithms: agreementAlgorithms(sub.rec.Usage),
		CustomerMasterKeySpec:  legacySpec(sub.rec.Spec), //nolint:staticcheck // AWS still sends it
	}, nil
}

// offeredSigning returns the signing algorithms of the key, without those that
// its store cannot do. While the store has not been reached yet, that is not
// known of any.
func (s *Service) offeredSigning(r *KeyRecord) []keyholdv1.SigningAlgorithmSpec {
	algs := signingAlgorithms(r.Spec, r.Usage)
	signer, ok := s.regions[r.Region].(Signer)
	if !ok {
		return algs
	}
	return slices.DeleteFunc(slices.Clone(algs), func(a keyholdv1.SigningAlgorithmSpec) bool {
		return errors.Is(signer.CanSign(r.Spec, a), ErrUnsupported)
	})
}

// publicKey returns the key's public half, read from the key store once.
func (s *Service) publicKey(ctx context.Context, sub *subject) (*pubkey.Key, error) {
	if p := sub.entry.public.Load(); p != nil {
		return p, nil
	}
	src, err := powerOf[PublicKeySource](s, sub.rec, "public keys")
	if err != nil {
		return nil, err
	}
	spki, err := src.PublicKey(ctx, sub.rec.Current().Locator)
	if err != nil {
		return nil, fmt.Errorf("public key of %s: %w", sub.arn, err)
	}
	if !bytes.Equal(spki, sub.rec.Current().PublicKey) {
		return nil, fmt.Errorf("public key of %s: the key store has another one than when the key was made", sub.arn)
	}
	p, err := pubkey.Parse(spki)
	if err != nil {
		return nil, fmt.Errorf("public key of %s: %w", sub.arn, err)
	}
	sub.entry.public.Store(p)
	return p, nil
}
