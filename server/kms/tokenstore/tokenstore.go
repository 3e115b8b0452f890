// Package tokenstore makes a PKCS#11 token a key store of the core: it turns
// the core's words into those of package hsm and back, and chooses the IVs.
//
// It adds no behaviour of its own. What the token promises is said there.
package tokenstore

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// Lengths of AES-GCM as the token layer uses it (NIST SP 800-38D, 8.2).
const (
	ivBytes  = 12
	tagBytes = 16
)

// Store is one token as a key store. It may be used concurrently.
type Store struct {
	token *hsm.Token
}

var (
	_ kms.KeyStore        = (*Store)(nil)
	_ kms.Generator       = (*Store)(nil)
	_ kms.Signer          = (*Store)(nil)
	_ kms.Decrypter       = (*Store)(nil)
	_ kms.Deriver         = (*Store)(nil)
	_ kms.Wrapper         = (*Store)(nil)
	_ kms.MACer           = (*Store)(nil)
	_ kms.PublicKeySource = (*Store)(nil)
	_ kms.RandomSource    = (*Store)(nil)
	_ kms.Concurrent      = (*Store)(nil)
	_ kms.Lender          = (*Store)(nil)
)

// New returns the store of a token, whose life stays its owner's affair.
func New(token *hsm.Token) *Store { return &Store{token: token} }

// Seal is kms.KeyStore's.
func (s *Store) Seal(ctx context.Context, l kms.Locator, aad, plaintext []byte) (kms.Sealed, error) {
	k, err := s.key(l)
	if err != nil {
		return kms.Sealed{}, err
	}
	// Random 96-bit IVs: the core counts the operations of each key, so that
	// a collision stays improbable (NIST SP 800-38D, 8.3).
	iv := make([]byte, ivBytes)
	if _, err := io.ReadFull(rand.Reader, iv); err != nil {
		return kms.Sealed{}, fmt.Errorf("choose an IV: %w", err)
	}
	out, err := timed(ctx, func(ctx context.Context) ([]byte, error) { return k.Seal(ctx, iv, aad, plaintext) })
	if err != nil {
		return kms.Sealed{}, err
	}
	n := len(out) - tagBytes
	return kms.Sealed{IV: iv, Ciphertext: out[:n:n], Tag: out[n:]}, nil
}

// Open is kms.KeyStore's.
func (s *Store) Open(ctx context.Context, l kms.Locator, aad []byte, sealed kms.Sealed) ([]byte, error) {
	k, err := s.key(l)
	if err != nil {
		return nil, err
	}
	if len(sealed.Meta) != 0 || len(sealed.Tag) != tagBytes {
		return nil, kms.ErrNotAuthentic // this store never makes metadata
	}
	both := make([]byte, 0, len(sealed.Ciphertext)+tagBytes)
	both = append(append(both, sealed.Ciphertext...), sealed.Tag...)
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.Open(ctx, sealed.IV, aad, both) })
}

// Supports is kms.KeyStore's.
func (s *Store) Supports(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) error {
	hs, purpose, err := translate(spec, usage)
	if err != nil {
		return err
	}
	return asStoreError(s.token.Capabilities().CanGenerate(hs, purpose))
}

// Health is kms.KeyStore's: what the token's canary said last.
func (s *Store) Health() error {
	if err := s.token.Ready(); err != nil {
		return fmt.Errorf("%w: %w", kms.ErrStoreUnavailable, err)
	}
	return nil
}

// Generate is kms.Generator's. The token layer proves custody by reading it
// back, and that the key works, before it says so.
func (s *Store) Generate(ctx context.Context, l kms.Locator, exportable bool) (kms.Generated, error) {
	spec, purpose, err := translate(l.Spec, l.Usage)
	if err != nil {
		return kms.Generated{}, err
	}
	a, err := timed(ctx, func(ctx context.Context) (*hsm.Attestation, error) {
		return s.token.Generate(ctx, hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: l.ID, Label: l.Label, Exportable: exportable})
	})
	if err != nil {
		return kms.Generated{}, err
	}
	made := kms.Generated{Custody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED, PublicKey: a.PublicKey}
	if a.Extractable || !a.NeverExtractable { // what the token says, not what was asked for
		made.Custody = keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE
	}
	return made, nil
}

// Destroy is kms.Generator's.
func (s *Store) Destroy(ctx context.Context, l kms.Locator) error {
	return asStoreError(s.token.Destroy(ctx, l.ID, l.Label))
}

// Retire is kms.Generator's.
func (s *Store) Retire(l kms.Locator) {
	if k, err := s.key(l); err == nil {
		k.Release()
	}
}

// Inventory is kms.Generator's.
func (s *Store) Inventory(ctx context.Context) ([]kms.StoredObject, error) {
	objects, err := s.token.Objects(ctx)
	if err != nil {
		return nil, asStoreError(err)
	}
	out := make([]kms.StoredObject, 0, len(objects))
	for _, o := range objects {
		out = append(out, kms.StoredObject{ID: o.ID, Label: o.Label, Public: o.Class != hsm.ClassSecretKey && o.Class != hsm.ClassPrivateKey})
	}
	return out, nil
}

// Sign is kms.Signer's.
func (s *Store) Sign(ctx context.Context, l kms.Locator, alg keyholdv1.SigningAlgorithmSpec, input []byte) ([]byte, error) {
	k, err := s.key(l)
	if err != nil {
		return nil, err
	}
	a, ok := kms.SignatureAlgorithm(alg)
	if !ok {
		return nil, fmt.Errorf("%w: %s", kms.ErrUnsupported, awsjson.EnumName(alg))
	}
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.Sign(ctx, a, input) })
}

// CanSign is kms.Signer's.
func (s *Store) CanSign(spec keyholdv1.KeySpec, alg keyholdv1.SigningAlgorithmSpec) error {
	hs, _, err := translate(spec, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY)
	if err != nil {
		return err
	}
	name := awsjson.EnumName(alg)
	if len(s.token.Capabilities().Specs) == 0 {
		return fmt.Errorf("%w: the token has not been probed yet", kms.ErrStoreUnavailable)
	}
	if p := s.token.Capabilities().Operation(hs, name); !p.OK {
		return fmt.Errorf("%w: %s with %s: %s", kms.ErrUnsupported, name, hs, p.Why)
	}
	return nil
}

// DecryptOAEP is kms.Decrypter's.
func (s *Store) DecryptOAEP(ctx context.Context, l kms.Locator, hash crypto.Hash, ciphertext []byte) ([]byte, error) {
	k, err := s.key(l)
	if err != nil {
		return nil, err
	}
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.DecryptOAEP(ctx, hash, ciphertext) })
}

// Derive is kms.Deriver's.
func (s *Store) Derive(ctx context.Context, l kms.Locator, peerSPKI []byte) ([]byte, error) {
	k, err := s.key(l)
	if err != nil {
		return nil, err
	}
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.ECDH(ctx, peerSPKI) })
}

// MAC is kms.MACer's.
func (s *Store) MAC(ctx context.Context, l kms.Locator, message []byte) ([]byte, error) {
	k, err := s.key(l)
	if err != nil {
		return nil, err
	}
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.MAC(ctx, message) })
}

// PublicKey is kms.PublicKeySource's.
func (s *Store) PublicKey(ctx context.Context, l kms.Locator) ([]byte, error) {
	k, err := s.key(l)
	if err != nil {
		return nil, err
	}
	return timed(ctx, k.PublicKey)
}

// Random is kms.RandomSource's.
func (s *Store) Random(ctx context.Context, n int) ([]byte, error) {
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return s.token.Random(ctx, n) })
}

// Concurrency is kms.Concurrent's: the sessions that do cryptography.
func (s *Store) Concurrency() int { return s.token.MaxSessions() }

// Lend is kms.Lender's: what is lent is a session.
func (s *Store) Lend(ctx context.Context, run func(ctx context.Context)) bool {
	return s.token.Lend(ctx, run)
}

func (s *Store) key(l kms.Locator) (*hsm.Key, error) {
	spec, purpose, err := translate(l.Spec, l.Usage)
	if err != nil {
		return nil, err
	}
	return s.token.Key(spec, purpose, l.ID), nil
}

// translate gives the token layer's names of a key spec and a usage.
func translate(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) (hsm.KeySpec, hsm.Purpose, error) {
	hs, ok := keySpecs[spec]
	if !ok {
		return 0, 0, fmt.Errorf("%w: key spec %s", kms.ErrUnsupported, spec)
	}
	switch usage {
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT:
		if hs == hsm.AES256 {
			return hs, hsm.PurposeSeal, nil
		}
		return hs, hsm.PurposeDecrypt, nil
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY:
		return hs, hsm.PurposeSign, nil
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC:
		return hs, hsm.PurposeMAC, nil
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_KEY_AGREEMENT:
		return hs, hsm.PurposeDerive, nil
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP:
		return hs, hsm.PurposeWrap, nil
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_UNSPECIFIED:
	}
	return 0, 0, fmt.Errorf("%w: key usage %s", kms.ErrUnsupported, usage)
}

// keySpecs is never changed.
var keySpecs = map[keyholdv1.KeySpec]hsm.KeySpec{
	keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT:     hsm.AES256,
	keyholdv1.KeySpec_KEY_SPEC_RSA_2048:              hsm.RSA2048,
	keyholdv1.KeySpec_KEY_SPEC_RSA_3072:              hsm.RSA3072,
	keyholdv1.KeySpec_KEY_SPEC_RSA_4096:              hsm.RSA4096,
	keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256:         hsm.P256,
	keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P384:         hsm.P384,
	keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P521:         hsm.P521,
	keyholdv1.KeySpec_KEY_SPEC_ECC_SECG_P256K1:       hsm.Secp256k1,
	keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_EDWARDS25519: hsm.Ed25519,
	keyholdv1.KeySpec_KEY_SPEC_HMAC_224:              hsm.HMAC224,
	keyholdv1.KeySpec_KEY_SPEC_HMAC_256:              hsm.HMAC256,
	keyholdv1.KeySpec_KEY_SPEC_HMAC_384:              hsm.HMAC384,
	keyholdv1.KeySpec_KEY_SPEC_HMAC_512:              hsm.HMAC512,
}

// timed runs a call of the token, adds its times to the request's and
// translates its error.
func timed[T any](ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	var t hsm.Timing
	out, err := call(hsm.WithTiming(ctx, &t))
	if total := kms.TimingFrom(ctx); total != nil {
		total.Queue += t.Queue
		total.Token += t.Token
	}
	return out, asStoreError(err)
}

// asStoreError gives the core's name of a token's error. Ends of the context
// and faults that have no name pass through.
func asStoreError(err error) error {
	if err == nil {
		return nil
	}
	for _, pair := range []struct{ from, to error }{
		{hsm.ErrLoanOver, kms.ErrLoanOver},
		{hsm.ErrAuthentication, kms.ErrNotAuthentic},
		{hsm.ErrUnavailable, kms.ErrStoreUnavailable},
		{hsm.ErrKeyNotFound, kms.ErrKeyMissing},
		{hsm.ErrUnsupported, kms.ErrUnsupported},
		{hsm.ErrNotExtractable, kms.ErrUnsupported},
	} {
		if errors.Is(err, pair.from) {
			return fmt.Errorf("%w: %w", pair.to, err)
		}
	}
	return err
}
