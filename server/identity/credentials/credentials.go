// Package credentials makes the access keys of package identity what package
// sigv4 asks for: it finds the key of a signed request, derives signing keys from
// its secret, and says whose a verified request is.
//
// A secret is opened in the token when a signing key must be derived, which is once
// a day, region and service for each key, and wiped at once. In between memory
// holds the derived keys alone, each good for a day, a region and a service. Whoever
// knows the id of a key can cause that, and no more than that: neither requests
// with a wrong signature nor secrets that do not open make the token work again and
// again.
//
// A door uses it so:
//
//	keys := credentials.New(accessKeys)
//	verifier, err := sigv4.New(sigv4.Config{Credentials: keys, …})
//	keys.Forget(verifier)
//	…
//	verified, err := verifier.Verify(r, "kms", sigv4.Body(body))
//	principal, err := keys.Caller(verified)
//
// Errors of both calls that are a *sigv4.Error are refusals. All others are faults
// of the service: while the token is down they match kms.ErrStoreUnavailable, which
// must be answered as that, never as a wrong signature.
package credentials

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/sigv4"
)

// AccessKeys are identity.AccessKeys as sigv4.Credentials. All methods may be
// called concurrently.
type AccessKeys struct {
	keys        *identity.AccessKeys
	derivations *derivations
}

var _ sigv4.Credentials = (*AccessKeys)(nil)

// New returns the credentials over keys.
func New(keys *identity.AccessKeys) *AccessKeys {
	return &AccessKeys{keys: keys, derivations: newDerivations(keys.Now)}
}

// Forget makes the verifier drop the signing keys of each access key that is
// deactivated or deleted, before that is answered. It is not what refuses requests
// (LookUp and Caller do), but takes the keys out of memory.
func (c *AccessKeys) Forget(v *sigv4.Verifier) { c.keys.Watch(v.Forget) }

// LookUp implements sigv4.Credentials. Unknown, inactive and deleted keys, and those
// whose principal is gone, are all sigv4.ErrUnknownAccessKey. Nobody is asked for
// any of them, nor for a known key: it takes the same time.
func (c *AccessKeys) LookUp(_ context.Context, accessKeyID, sessionToken string) (sigv4.Key, error) {
	k, _, err := c.keys.LookUp(accessKeyID)
	switch {
	case errors.Is(err, identity.ErrAccessKeyUnusable):
		return nil, sigv4.ErrUnknownAccessKey
	case err != nil:
		return nil, err
	case sessionToken != "":
		return nil, sigv4.ErrInvalidSessionToken // all keys are long-term keys
	}
	return &key{c: c, k: k}, nil
}

// Caller returns whose a verified request is, and notes the use of the key. It
// looks again: a key that was deactivated or deleted while the request was being
// verified is refused, so that none is accepted after that was answered. It returns
// a *sigv4.Error, as Verify does, or that the key is not one of these.
func (c *AccessKeys) Caller(v sigv4.Verified) (*identity.Principal, error) {
	k, ok := v.Key.(*key)
	if !ok || k.c != c {
		return nil, fmt.Errorf("a request was verified by a key of another kind, %T", v.Key)
	}
	p, err := c.keys.Confirm(k.k, v.Scope.Region, v.Scope.Service)
	if err != nil {
		return nil, &sigv4.Error{Reason: sigv4.UnknownAccessKey, Message: "The security token included in the request is invalid."}
	}
	return p, nil
}

// key is a sigv4.Key.
type key struct {
	c *AccessKeys
	k *identity.AccessKey
}

// Version implements sigv4.Key.
func (k *key) Version() uint64 { return k.k.Generation() }

// SigningKey implements sigv4.Key.
func (k *key) SigningKey(ctx context.Context, scope sigv4.Scope) (sigv4.SigningKey, error) {
	return k.c.derivations.do(ctx, flight{generation: k.k.Generation(), scope: scope}, func(ctx context.Context, out *sigv4.SigningKey) error {
		secret, err := k.c.keys.Open(ctx, k.k)
		if err != nil {
			return err
		}
		*out = sigv4.DeriveSigningKey(secret, scope)
		secret.Wipe()
		return nil
	})
}
