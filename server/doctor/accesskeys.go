package doctor

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
)

// accessKeys looks for the seal key in the home token, opens the secret of each
// access key with it, and looks for keys of principals that are gone.
func (e *exam) accessKeys(ctx context.Context) {
	if e.reader == nil || !e.records.read {
		for _, name := range []string{"seal-key", "access-keys"} {
			e.skip(name, "", "the store could not be read")
		}
		return
	}
	keys, err := e.reader.AccessKeys(ctx)
	if err != nil {
		fact, remedy := hint(err, "restore the database from a backup")
		e.fail("access-keys", e.reader.Path(), fact, remedy)
		return
	}
	e.sealKey(ctx, keys)
	e.orphanedAccessKeys(keys)
}

func (e *exam) sealKey(ctx context.Context, keys []*identity.AccessKeyRecord) {
	const name = "seal-key"
	home := e.cfg.HomeToken()
	var p *patient
	for _, other := range e.patients {
		if other.name == home && other.objects != nil {
			p = other
		}
	}
	if p == nil {
		e.skip(name, home, "the objects of the token "+home+" are not known")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.opts.Timeout)
	defer cancel()
	key := kms.NewSealKey(tokenstore.New(p.token), e.reader.Instance())
	switch err := key.Check(ctx); {
	case errors.Is(err, kms.ErrKeyMissing) && len(keys) == 0:
		e.warn(name, home, "there is no seal key, so that no access key can be made", "run `keyholdd init --config "+e.opts.ConfigFile+"`")
		return
	case errors.Is(err, kms.ErrKeyMissing):
		e.fail(name, home, fmt.Sprintf("the seal key %q is not in the token, and %s sealed by it: none of them can be used", key.Label(), count(len(keys), "access key")),
			server.SealKeyElsewhere)
		return
	case err != nil:
		e.fail(name, home, cause(err), "the token logs in but does not work: look at its own logs")
		return
	}
	var closed []string
	sealer := server.AccessKeySealer(key)
	for _, k := range keys {
		secret, err := sealer.Open(ctx, k.SealedFor(), k.SealedSecret)
		clear(secret)
		if err != nil {
			closed = append(closed, fmt.Sprintf("%s of %s: %s", k.ID, k.Principal, cause(err)))
		}
	}
	if len(closed) > 0 {
		e.add(Check{
			Name: name, Subject: home, Status: Fail, Details: closed,
			Fact:   fmt.Sprintf("the secrets of %s do not open: they were changed, exchanged, or sealed by another key", count(len(closed), "access key")),
			Remedy: "find out who wrote to the database or the token; delete these access keys and make new ones",
		})
		return
	}
	e.ok(name, home, fmt.Sprintf("%q sealed and opened in the token, and opens the secrets of %s", key.Label(), count(len(keys), "access key")))
}

// orphanedAccessKeys warns of keys that would come alive again with a principal of
// that name.
func (e *exam) orphanedAccessKeys(keys []*identity.AccessKeyRecord) {
	known := make(map[string]bool)
	for _, p := range e.cfg.Principals {
		known[p.ARN] = true
	}
	active := 0
	var lost []string
	for _, k := range keys {
		if k.Active {
			active++
		}
		if !known[k.Principal] {
			lost = append(lost, k.ID+" of "+k.Principal)
		}
	}
	if len(lost) > 0 {
		e.add(Check{
			Name: "access-keys", Status: Warn, Details: lost,
			Fact:   fmt.Sprintf("%s of principals that are not in the configuration: not usable now, but again as soon as a principal of that name is", count(len(lost), "access key")),
			Remedy: "delete them: keyhold access-key delete ID",
		})
		return
	}
	e.ok("access-keys", "", fmt.Sprintf("%s, %d active, all of principals of the configuration", count(len(keys), "access key"), active))
}
