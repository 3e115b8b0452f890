package tokenstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// WrapBytes is kms.Wrapper's.
func (s *Store) WrapBytes(ctx context.Context, l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec, plaintext []byte) ([]byte, error) {
	k, a, err := s.wrapping(l, alg)
	if err != nil {
		return nil, err
	}
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.WrapBytes(ctx, a, plaintext) })
}

// UnwrapBytes is kms.Wrapper's.
func (s *Store) UnwrapBytes(ctx context.Context, l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec, wrapped []byte) ([]byte, error) {
	k, a, err := s.wrapping(l, alg)
	if err != nil {
		return nil, err
	}
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.UnwrapBytes(ctx, a, wrapped) })
}

// WrapKey is kms.Wrapper's.
func (s *Store) WrapKey(ctx context.Context, l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec, target kms.Locator) ([]byte, error) {
	k, a, err := s.wrapping(l, alg)
	if err != nil {
		return nil, err
	}
	of, err := s.key(target)
	if err != nil {
		return nil, err
	}
	return timed(ctx, func(ctx context.Context) ([]byte, error) { return k.WrapKey(ctx, a, of) })
}

// CanWrap is kms.Wrapper's.
func (s *Store) CanWrap(alg keyholdv1.WrappingAlgorithmSpec, n int) error {
	a, err := wrapAlgorithm(alg)
	if err != nil {
		return err
	}
	err = s.token.Capabilities().CanWrap(a, n)
	if errors.Is(err, hsm.ErrInvalidInput) {
		return fmt.Errorf("%w: %w", kms.ErrUnsupported, err) // a length that the algorithm has not
	}
	return asStoreError(err)
}

func (s *Store) wrapping(l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec) (*hsm.Key, hsm.WrapAlgorithm, error) {
	a, err := wrapAlgorithm(alg)
	if err != nil {
		return nil, 0, err
	}
	k, err := s.key(l)
	return k, a, err
}

// wrapAlgorithm gives the token layer's name of an algorithm.
func wrapAlgorithm(alg keyholdv1.WrappingAlgorithmSpec) (hsm.WrapAlgorithm, error) {
	switch alg {
	case keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP:
		return hsm.AESKWP, nil
	case keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW:
		return hsm.AESKW, nil
	case keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_UNSPECIFIED:
	}
	return 0, fmt.Errorf("%w: wrapping algorithm %q", kms.ErrUnsupported, awsjson.EnumName(alg))
}
