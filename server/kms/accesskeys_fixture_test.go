package kms_test

import (
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// ofAccessKeys reports whether an operation is about access keys, and so not about
// a KMS key.
func ofAccessKeys(op string) bool {
	return methods()[op].Parent().Name() == "AccessKeyService"
}

// setPrincipals makes the callers those of the configuration.
func (w *world) setPrincipals(callers ...*identity.Caller) {
	w.t.Helper()
	var bindings []identity.Binding
	for _, c := range callers {
		bindings = append(bindings, identity.Binding{Principal: c.Principal.ARN})
	}
	d, err := identity.NewDirectory(bindings)
	if err != nil {
		w.t.Fatal(err)
	}
	w.principals.Store(d)
}

// loadAccessKeys loads them from the store, as a start does.
func (w *world) loadAccessKeys() *identity.AccessKeys {
	w.t.Helper()
	return w.loadAccessKeysFrom(w.db)
}

func (w *world) loadAccessKeysFrom(store identity.AccessKeyStore) *identity.AccessKeys {
	w.t.Helper()
	keys, err := identity.NewAccessKeys(w.t.Context(), identity.AccessKeysConfig{
		Store: store, Sealer: w.sealKey.Column("access_keys", "sealed_secret"), Principals: w.principals.Load, Logger: w.cfg.Logger, Now: w.clock.Now,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return keys
}

// newKeyWorld is a world over a key store in memory, with a seal key.
func newKeyWorld(t testing.TB, options ...func(*world)) (*world, *fakeStore) {
	t.Helper()
	w, fake := newFakeWorld(t, options...)
	w.makeSealKey()
	return w, fake
}

func (w *world) makeSealKey() {
	w.t.Helper()
	if created, err := w.sealKey.Ensure(w.t.Context()); err != nil || !created {
		w.t.Fatalf("make the seal key: %v, %v", created, err)
	}
}

// another calls from alice's account, by the resource of their ARN, such as root.
func another(resource string) *identity.Caller {
	c := alice()
	p, err := identity.ParsePrincipal("arn:aws:iam::" + testAccount + ":" + resource)
	if err != nil {
		panic(err)
	}
	c.Principal = p
	return c
}

// createAccessKey makes one for alice.
func (w *world) createAccessKey() *keyholdv1.AccessKey {
	w.t.Helper()
	return do[*keyholdv1.CreateAccessKeyResponse](w, &keyholdv1.CreateAccessKeyRequest{}).GetAccessKey()
}

func (w *world) accessKeys() []*keyholdv1.AccessKeyMetadata {
	w.t.Helper()
	return do[*keyholdv1.ListAccessKeysResponse](w, &keyholdv1.ListAccessKeysRequest{}).GetAccessKeyMetadata()
}

// mayHave sets how many access keys a principal may have.
func mayHave(n int) func(*world) {
	return withConfig(func(c *kms.Config) { c.Limits.AccessKeysPerPrincipal = n })
}
