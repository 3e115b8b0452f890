package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// Where secrets of access keys are in the store; part of what binds a sealed value
// to its place, so neither is ever changed.
const (
	accessKeyTable  = "access_keys"
	accessKeyColumn = "sealed_secret"
)

// SealKeyElsewhere says what to do where values are sealed and the home token does
// not have the key: which token is the home depends on the order of regions.
const SealKeyElsewhere = "the token of the first of regions: in the configuration must have it: if their order or their tokens were changed, change that back; else restore the token that has it; if it is lost, delete the access keys (keyhold access-key delete) and run init again"

// HomeToken returns the name of the token that holds the system keys: the default
// token of the first region.
func (c *Config) HomeToken() string { return c.Regions[0].Token }

// AccessKeySealer returns what seals the secrets of access keys.
func AccessKeySealer(k *kms.SealKey) identity.Sealer {
	return k.Column(accessKeyTable, accessKeyColumn)
}

// openAccessKeys loads the access keys; the token is not asked.
func (s *Server) openAccessKeys(ctx context.Context) (err error) {
	s.sealKey = kms.NewSealKey(tokenstore.New(s.tokens[s.cfg.HomeToken()]), s.store.Instance())
	s.AccessKeys, err = identity.NewAccessKeys(ctx, identity.AccessKeysConfig{
		Store: s.store, Sealer: AccessKeySealer(s.sealKey), Principals: s.Principals, Logger: s.log,
	})
	return err
}

// Principals returns the principals of the configuration.
func (s *Server) Principals() *identity.Directory { return s.directory }

// findSealKey looks for the seal key once the home token works, and says what it
// found: nothing else would, until somebody needs it.
func (s *Server) findSealKey(ctx context.Context) {
	if s.tokens[s.cfg.HomeToken()].WaitReady(ctx) != nil {
		return
	}
	switch err := s.sealKey.Check(ctx); {
	case err == nil:
		s.log.InfoContext(ctx, "seal key found", "token", s.cfg.HomeToken(), "label", s.sealKey.Label())
	case errors.Is(err, kms.ErrKeyMissing):
		if all, err := s.store.AccessKeys(ctx); err == nil && len(all) > 0 {
			s.log.ErrorContext(ctx, "the seal key is not in the home token: access keys can be neither made nor used", "token", s.cfg.HomeToken(), "label", s.sealKey.Label(), "sealed", len(all), "hint", SealKeyElsewhere)
			return
		}
		s.log.WarnContext(ctx, "no seal key: access keys can be neither made nor used; `keyholdd init` makes it", "token", s.cfg.HomeToken(), "label", s.sealKey.Label())
	case ctx.Err() == nil:
		s.log.WarnContext(ctx, "the seal key does not work", "token", s.cfg.HomeToken(), "label", s.sealKey.Label(), "err", err)
	}
}

// EnsureSealKey makes the seal key in the home token where there is none, and
// reports what it did. It refuses where values are sealed already: a new key would
// not open them, and it would hide that theirs is lost.
func (s *Server) EnsureSealKey(ctx context.Context) (done string, err error) {
	key := s.sealKey
	var sealed int
	if key == nil { // init: nothing is open but the tokens
		var instance string
		if instance, sealed, err = sealedValues(ctx, s.cfg, s.opts); err != nil {
			return "", err
		}
		key = kms.NewSealKey(tokenstore.New(s.tokens[s.cfg.HomeToken()]), instance)
	} else {
		all, err := s.store.AccessKeys(ctx)
		if err != nil {
			return "", err
		}
		sealed = len(all)
	}
	err = key.Check(ctx)
	switch {
	case err == nil:
		return "seal key exists in the token " + s.cfg.HomeToken(), nil
	case !errors.Is(err, kms.ErrKeyMissing):
		return "", fmt.Errorf("token %s: %w", s.cfg.HomeToken(), err)
	case sealed > 0:
		return "", fmt.Errorf("token %s: the seal key %q is not in it, and %d access keys are sealed by it; hint: %s",
			s.cfg.HomeToken(), key.Label(), sealed, SealKeyElsewhere)
	}
	if _, err := key.Ensure(ctx); err != nil {
		return "", fmt.Errorf("token %s: %w", s.cfg.HomeToken(), err)
	}
	return "made the seal key in the token " + s.cfg.HomeToken(), nil
}

// sealedValues returns the installation's id, and how many values of its store are
// sealed. A store of an older schema is brought up to date, as serve would.
func sealedValues(ctx context.Context, cfg *Config, opts Options) (instance string, n int, err error) {
	o := sqlite.Options{Logger: opts.Logger, Program: "keyholdd " + opts.Version}
	r, err := sqlite.OpenReadOnly(ctx, cfg.DataDir, o)
	if errors.Is(err, sqlite.ErrOlderSchema) {
		s, err := sqlite.Open(ctx, cfg.DataDir, o)
		if err != nil {
			return "", 0, err
		}
		defer func() { _ = s.Close() }() // it was migrated, durably, when it was opened
		all, err := s.AccessKeys(ctx)
		return s.Instance(), len(all), err
	}
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = r.Close() }() // nothing was written
	all, err := r.AccessKeys(ctx)
	return r.Instance(), len(all), err
}
