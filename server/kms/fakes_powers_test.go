package kms_test

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/binary"
	"fmt"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

var (
	_ kms.Wrapper = (*fakeStore)(nil)
	_ kms.Deriver = (*fakeSigner)(nil)
)

// The fake's wrapping has the shape of AES key wrap, lengths in multiples of 8,
// and is AES-GCM under a constant IV.

func (f *fakeStore) wrap(ctx context.Context, call string, l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec, plaintext []byte) ([]byte, error) {
	if err := f.enter(ctx, call); err != nil {
		return nil, err
	}
	a, err := f.aead(l)
	if err != nil {
		return nil, err
	}
	padded := binary.BigEndian.AppendUint64(nil, uint64(len(plaintext)))
	padded = append(padded, plaintext...)
	for len(padded)%8 != 0 {
		padded = append(padded, 0)
	}
	return a.Seal(nil, make([]byte, f.ivBytes), padded, []byte(alg.String())), f.leave(call)
}

func (f *fakeStore) WrapBytes(ctx context.Context, l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec, plaintext []byte) ([]byte, error) {
	return f.wrap(ctx, "WrapBytes", l, alg, plaintext)
}

func (f *fakeStore) UnwrapBytes(ctx context.Context, l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec, wrapped []byte) ([]byte, error) {
	if err := f.enter(ctx, "UnwrapBytes"); err != nil {
		return nil, err
	}
	a, err := f.aead(l)
	if err != nil {
		return nil, err
	}
	padded, err := a.Open(nil, make([]byte, f.ivBytes), wrapped, []byte(alg.String()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kms.ErrNotAuthentic, err)
	}
	return padded[8:][:binary.BigEndian.Uint64(padded)], f.leave("UnwrapBytes")
}

func (f *fakeStore) WrapKey(ctx context.Context, l kms.Locator, alg keyholdv1.WrappingAlgorithmSpec, target kms.Locator) ([]byte, error) {
	k, err := f.key(target)
	if err != nil {
		return nil, err
	}
	return f.wrap(ctx, "WrapKey", l, alg, k.secret)
}

func (f *fakeStore) CanWrap(keyholdv1.WrappingAlgorithmSpec, int) error { return nil }

func (f *fakeSigner) Derive(ctx context.Context, l kms.Locator, peerSPKI []byte) ([]byte, error) {
	if err := f.enter(ctx, "Derive"); err != nil {
		return nil, err
	}
	key, err := f.pair(l)
	if err != nil {
		return nil, err
	}
	own, err := key.ECDH()
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(peerSPKI)
	if err != nil {
		return nil, err
	}
	var peer *ecdh.PublicKey
	if peer, err = parsed.(*ecdsa.PublicKey).ECDH(); err != nil {
		return nil, err
	}
	secret, err := own.ECDH(peer)
	if err != nil {
		return nil, err
	}
	return secret, f.leave("Derive")
}
