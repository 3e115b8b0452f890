package kms

import (
	"context"
	"fmt"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// seal encrypts under the current version of a symmetric key.
func (s *Service) seal(ctx context.Context, sub *subject, ec map[string]string, plaintext []byte) ([]byte, *KeyVersion, error) {
	ks, err := s.storeOf(sub.rec)
	if err != nil {
		return nil, nil, err
	}
	v := sub.rec.Current()
	if err := s.takeSeal(ctx, sub.entry, v); err != nil {
		return nil, nil, err
	}
	var buf [aadBytes]byte
	sealed, err := ks.Seal(ctx, v.Locator, appendAAD(buf[:0], sub.rec.ID, v.Ref, ec), plaintext)
	if err != nil {
		return nil, nil, fmt.Errorf("seal under %s: %w", sub.arn, err)
	}
	out, err := formatBlob(sub.rec.ID, v.Ref, sealed)
	return out, v, err
}

// open is the inverse of seal for the ciphertext of step 4.
func (s *Service) open(ctx context.Context, c *call, sub *subject, ec map[string]string) ([]byte, *KeyVersion, error) {
	ks, err := s.storeOf(sub.rec)
	if err != nil {
		return nil, nil, err
	}
	v := sub.rec.Version(c.blob.ref)
	if v == nil {
		return nil, nil, ErrNotAuthentic
	}
	var buf [aadBytes]byte
	plaintext, err := ks.Open(ctx, v.Locator, appendAAD(buf[:0], sub.rec.ID, v.Ref, ec), c.blob.Sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("open under %s: %w", sub.arn, err)
	}
	return plaintext, v, nil
}

// encryptWith is the encrypting half of Encrypt and ReEncrypt.
func (s *Service) encryptWith(ctx context.Context, sub *subject, alg keyholdv1.EncryptionAlgorithmSpec, ec map[string]string, plaintext []byte) ([]byte, KeyMaterialID, error) {
	if err := checkPlaintext(sub, alg, plaintext); err != nil {
		return nil, "", err
	}
	if hash := oaepHash(alg); hash != 0 {
		pub, err := s.publicKey(ctx, sub)
		if err != nil {
			return nil, "", err
		}
		out, err := pub.EncryptOAEP(hash, plaintext)
		return out, "", err
	}
	out, v, err := s.seal(ctx, sub, ec, plaintext)
	if err != nil {
		return nil, "", err
	}
	return out, v.MaterialID, nil
}

// decryptWith is the decrypting half of Decrypt and ReEncrypt.
func (s *Service) decryptWith(ctx context.Context, c *call, sub *subject, alg keyholdv1.EncryptionAlgorithmSpec, ec map[string]string) ([]byte, KeyMaterialID, error) {
	hash := oaepHash(alg)
	if hash == 0 {
		plaintext, v, err := s.open(ctx, c, sub, ec)
		if err != nil {
			return nil, "", err
		}
		return plaintext, v.MaterialID, nil
	}
	d, err := powerOf[Decrypter](s, sub.rec, "RSA decryption")
	if err != nil {
		return nil, "", err
	}
	f := factsOf(sub.rec.Spec)
	src := sourceOf(c.req)
	if len(src.blob) != f.modulusBytes {
		return nil, "", ErrNotAuthentic
	}
	plaintext, err := d.DecryptOAEP(ctx, sub.rec.Current().Locator, hash, src.blob)
	if err != nil {
		return nil, "", fmt.Errorf("decrypt under %s: %w", sub.arn, err)
	}
	return plaintext, "", nil
}

// checkCipher is step 8 for one key: the algorithm suits it, and asymmetric
// keys take no encryption context, since RSA binds none.
func checkCipher(sub *subject, alg keyholdv1.EncryptionAlgorithmSpec, contextField string, ec map[string]string) error {
	if err := checkEncryptionAlgorithm(sub.rec, alg); err != nil {
		return err
	}
	if oaepHash(alg) != 0 && len(ec) > 0 {
		return invalidField(contextField, "must be empty for asymmetric keys")
	}
	return nil
}

// checkPlaintext refuses what is too long for RSAES-OAEP (RFC 8017, 7.1.1).
// It is part of step 8 where the request holds the plaintext, so that a dry
// run does not promise what the operation refuses.
func checkPlaintext(sub *subject, alg keyholdv1.EncryptionAlgorithmSpec, plaintext []byte) error {
	hash := oaepHash(alg)
	if hash == 0 {
		return nil
	}
	f := factsOf(sub.rec.Spec)
	if most := f.modulusBytes - 2*hash.Size() - 2; len(plaintext) > most {
		return errorf(CodeValidation, "Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", awsName(alg), awsName(sub.rec.Spec), most)
	}
	return nil
}

func validEncrypt(r *keyholdv1.EncryptRequest) error {
	return checkContext("encryption_context", r.GetEncryptionContext())
}

func (s *Service) checkEncrypt(c *call, r *keyholdv1.EncryptRequest) error {
	alg := defaultAlgorithm(r.GetEncryptionAlgorithm())
	if err := checkCipher(c.key(0), alg, "encryption_context", r.GetEncryptionContext()); err != nil {
		return err
	}
	return checkPlaintext(c.key(0), alg, r.GetPlaintext())
}

func (s *Service) encrypt(ctx context.Context, c *call, r *keyholdv1.EncryptRequest) (*keyholdv1.EncryptResponse, error) {
	sub, alg := c.key(0), defaultAlgorithm(r.GetEncryptionAlgorithm())
	out, _, err := s.encryptWith(ctx, sub, alg, r.GetEncryptionContext(), r.GetPlaintext())
	if err != nil {
		return nil, err
	}
	return &keyholdv1.EncryptResponse{CiphertextBlob: out, KeyId: sub.arn, EncryptionAlgorithm: alg}, nil
}

func validDecrypt(r *keyholdv1.DecryptRequest) error {
	return checkContext("encryption_context", r.GetEncryptionContext())
}

func (s *Service) checkDecrypt(c *call, r *keyholdv1.DecryptRequest) error {
	return checkCipher(c.key(0), defaultAlgorithm(r.GetEncryptionAlgorithm()), "encryption_context", r.GetEncryptionContext())
}

func (s *Service) decrypt(ctx context.Context, c *call, r *keyholdv1.DecryptRequest) (*keyholdv1.DecryptResponse, error) {
	sub, alg := c.key(0), defaultAlgorithm(r.GetEncryptionAlgorithm())
	plaintext, material, err := s.decryptWith(ctx, c, sub, alg, r.GetEncryptionContext())
	if err != nil {
		return nil, err
	}
	if material != "" {
		c.facts = append(c.facts, audit.Member{Key: "keyMaterialId", Value: string(material)})
	}
	return &keyholdv1.DecryptResponse{KeyId: sub.arn, Plaintext: plaintext, EncryptionAlgorithm: alg, KeyMaterialId: string(material)}, nil
}

func validReEncrypt(r *keyholdv1.ReEncryptRequest) error {
	if err := checkContext("source_encryption_context", r.GetSourceEncryptionContext()); err != nil {
		return err
	}
	return checkContext("destination_encryption_context", r.GetDestinationEncryptionContext())
}

func (s *Service) checkReEncrypt(c *call, r *keyholdv1.ReEncryptRequest) error {
	if err := checkCipher(c.key(0), defaultAlgorithm(r.GetSourceEncryptionAlgorithm()), "source_encryption_context", r.GetSourceEncryptionContext()); err != nil {
		return err
	}
	return checkCipher(c.key(1), defaultAlgorithm(r.GetDestinationEncryptionAlgorithm()), "destination_encryption_context", r.GetDestinationEncryptionContext())
}

func (s *Service) reEncrypt(ctx context.Context, c *call, r *keyholdv1.ReEncryptRequest) (*keyholdv1.ReEncryptResponse, error) {
	source, destination := c.key(0), c.key(1)
	from, to := defaultAlgorithm(r.GetSourceEncryptionAlgorithm()), defaultAlgorithm(r.GetDestinationEncryptionAlgorithm())
	plaintext, opened, err := s.decryptWith(ctx, c, source, from, r.GetSourceEncryptionContext())
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	if len(plaintext) == 0 {
		// Anybody can encrypt nothing with a public key. Encrypt takes no empty
		// plaintext, and the format of symmetric ciphertexts has none.
		return nil, ErrNotAuthentic
	}
	out, sealed, err := s.encryptWith(ctx, destination, to, r.GetDestinationEncryptionContext(), plaintext)
	if err != nil {
		return nil, err
	}
	return &keyholdv1.ReEncryptResponse{
		CiphertextBlob: out, SourceKeyId: source.arn, KeyId: destination.arn,
		SourceEncryptionAlgorithm: from, DestinationEncryptionAlgorithm: to,
		SourceKeyMaterialId: string(opened), DestinationKeyMaterialId: string(sealed),
	}, nil
}
