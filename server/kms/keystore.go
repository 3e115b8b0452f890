package kms

import (
	"context"
	"crypto"
	"errors"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Errors that a KeyStore answers with, possibly wrapped. Context errors pass
// through as they are. Everything else is an internal fault.
var (
	// ErrNotAuthentic: a sealed value or an RSA ciphertext does not open. No
	// reason is given, and none may be derived from timing.
	ErrNotAuthentic = errors.New("does not open")
	// ErrStoreUnavailable: the key store cannot work now.
	ErrStoreUnavailable = errors.New("key store unavailable")
	// ErrKeyMissing: the store works, and the object is not in it.
	ErrKeyMissing = errors.New("key material not found in the key store")
	// ErrLoanOver: the call cannot be done under this Lend; it may be made again
	// without.
	ErrLoanOver = errors.New("not under a loan")
	// ErrUnsupported: the store cannot do it; the text names the mechanism.
	ErrUnsupported = errors.New("not supported by the key store")
)

// Sealed is what sealing returns and opening takes. IV is 12 to 16 bytes,
// Meta at most 20, Tag 16.
type Sealed struct {
	IV, Meta, Ciphertext, Tag []byte
}

// KeyStore is where key material lives and does its work. The core assumes
// nothing of how: a PKCS#11 token, an external proxy.
//
// A store may have the powers Generator, Signer, MACer, Decrypter, Deriver,
// Wrapper, Concurrent, Lender and RandomSource as well; the core finds out by type assertion and answers
// UnsupportedOperationException where one is missing.
//
// All methods of all powers may be called concurrently and obey ctx: they
// return at its end even where the store hangs. Inputs are not changed and
// not kept after the return; outputs belong to the caller.
type KeyStore interface {
	// Seal encrypts with AES-256-GCM and a tag of 128 bits. aad is not empty.
	Seal(ctx context.Context, l Locator, aad, plaintext []byte) (Sealed, error)

	// Open is the inverse. ErrNotAuthentic.
	Open(ctx context.Context, l Locator, aad []byte, s Sealed) ([]byte, error)

	// Supports returns nil where the store can hold such a key and do with it
	// what the usage says, ErrStoreUnavailable where that is not known yet,
	// else ErrUnsupported naming the mechanism.
	Supports(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) error

	// Health returns nil where the store works as far as it knows, else why
	// not, in words for an operator. It does not block.
	Health() error
}

// Generator makes and destroys key material.
type Generator interface {
	// Generate makes the material at l: never extractable, or if it is to be
	// exportable, extractable by wrapping only. When it returns nil the material
	// is durable, and what it returned has been proven. When it returns an error
	// nothing is left behind, as far as the store lets it be known.
	Generate(ctx context.Context, l Locator, exportable bool) (Generated, error)

	// Destroy removes the material, durably. ErrKeyMissing where none is.
	Destroy(ctx context.Context, l Locator) error

	// Retire drops what the store keeps ready for fast use of l, after the
	// operations that use it now have ended. The material stays.
	Retire(l Locator)

	// Inventory lists all objects in the store, ours or not.
	Inventory(ctx context.Context) ([]StoredObject, error)
}

// Generated is what a key store proved about material that it made.
type Generated struct {
	Custody keyholdv1.KeyCustodyType
	// PublicKey is the DER of the SubjectPublicKeyInfo whose private half has
	// signed, decrypted or agreed with it; nil for secret keys.
	PublicKey []byte
}

// StoredObject is one object of an inventory. A key pair is two.
type StoredObject struct {
	ID    []byte
	Label string
	// Public is true for what is not key material that is secret: public
	// keys, certificates, data.
	Public bool
}

// Signer makes signatures.
type Signer interface {
	// Sign signs input: a digest of the algorithm's length, or for
	// ED25519_SHA_512 the message. ECDSA signatures are DER.
	Sign(ctx context.Context, l Locator, alg keyholdv1.SigningAlgorithmSpec, input []byte) ([]byte, error)

	// CanSign returns nil where the algorithm is proven to work with such
	// keys, ErrStoreUnavailable where that is not known yet, else
	// ErrUnsupported naming the mechanism.
	CanSign(spec keyholdv1.KeySpec, alg keyholdv1.SigningAlgorithmSpec) error
}

// PublicKeySource knows the public half of its key pairs.
type PublicKeySource interface {
	// PublicKey returns the DER of the SubjectPublicKeyInfo. The caller does
	// not change it.
	PublicKey(ctx context.Context, l Locator) ([]byte, error)
}

// Decrypter does RSAES-OAEP.
type Decrypter interface {
	// DecryptOAEP opens an RSA ciphertext; hash is SHA-1 or SHA-256 and
	// serves MGF1 as well; the label is empty. ErrNotAuthentic.
	DecryptOAEP(ctx context.Context, l Locator, hash crypto.Hash, ciphertext []byte) ([]byte, error)
}

// Deriver agrees on secrets.
type Deriver interface {
	// Derive returns the x coordinate, with its leading zeros, that the private
	// key and the peer's public key agree on. peerSPKI is the DER of a
	// SubjectPublicKeyInfo on the key's own curve, checked by the caller.
	Derive(ctx context.Context, l Locator, peerSPKI []byte) ([]byte, error)
}

// Wrapper wraps keys by AES key wrap (RFC 3394, RFC 5649) inside the store.
type Wrapper interface {
	// WrapBytes wraps the caller's bytes under the key at l.
	WrapBytes(ctx context.Context, l Locator, alg keyholdv1.WrappingAlgorithmSpec, plaintext []byte) ([]byte, error)
	// UnwrapBytes is the inverse. ErrNotAuthentic.
	UnwrapBytes(ctx context.Context, l Locator, alg keyholdv1.WrappingAlgorithmSpec, wrapped []byte) ([]byte, error)
	// WrapKey wraps the material at target, which must be exportable, under
	// the key at l. The material does not leave the store in the clear.
	WrapKey(ctx context.Context, l Locator, alg keyholdv1.WrappingAlgorithmSpec, target Locator) ([]byte, error)
	// CanWrap returns nil where n bytes can be wrapped so, ErrStoreUnavailable
	// where that is not known yet, else ErrUnsupported saying why not.
	CanWrap(alg keyholdv1.WrappingAlgorithmSpec, n int) error
}

// MACer computes HMACs.
type MACer interface {
	// MAC returns the full HMAC of message; the hash follows from l.Spec.
	MAC(ctx context.Context, l Locator, message []byte) ([]byte, error)
}

// Concurrent says how much it does at once.
type Concurrent interface {
	// Concurrency returns how many calls the store does at the same time, 1 or
	// more; others wait.
	Concurrency() int
}

// Lender makes many short calls in a row cheaper.
type Lender interface {
	// Lend calls run, on another goroutine, with a context under which calls of
	// the store need not wait for a place and cost less; run may use it on that
	// goroutine only. What cannot be done so is ErrLoanOver, and run must return
	// then. Lend returns true when run has returned, or when ctx has ended while a
	// call of run hangs. That call fails if it ever comes back, and so do all
	// later ones: run must not touch, after a call has failed, what the caller of
	// Lend goes on using. Lend returns false when there is no place to lend; run
	// has not been called then, and will not be.
	Lend(ctx context.Context, run func(ctx context.Context)) bool
}

// RandomSource has a random number generator of its own.
type RandomSource interface {
	// Random returns n bytes, 1 to 1,024.
	Random(ctx context.Context, n int) ([]byte, error)
}
