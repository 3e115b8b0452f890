package identity

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// AccessKeysConfig is what AccessKeys are made of. All fields are required but
// those that are marked.
type AccessKeysConfig struct {
	Store  AccessKeyStore
	Sealer Sealer
	// Principals has the principals as of now. A key whose principal is not among
	// them is not usable.
	Principals func() *Directory
	Logger     *slog.Logger
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
}

// AccessKeys are the long-term access keys of principals. They are all in memory,
// with their secrets as they are stored, sealed: a secret is in the clear only
// while something is derived from it (Open), and when it is made.
//
// What Create, SetActive and Delete have changed holds for every look-up that
// begins after they return. Their ctx bounds the waiting for the store; what it has
// begun is finished, and known when they return. All methods may be called
// concurrently.
type AccessKeys struct {
	cfg AccessKeysConfig

	keys sync.Map // id -> *AccessKey
	// generation gives each state of a key a number of its own.
	generation atomic.Uint64

	// writes has room for the one who changes something, store and memory together
	// (takeTurn). A channel and no mutex: who waits for it obeys its deadline even
	// while the database hangs. Nobody waits for a token meanwhile.
	writes chan struct{}

	// mu guards what is below it. Nobody waits for anything while holding it.
	mu sync.Mutex
	// byPrincipal has the ids of each principal's keys.
	byPrincipal map[string][]string
	watchers    []func(id string)
}

// AccessKey is an access key as of one moment. It is never changed.
type AccessKey struct {
	rec        AccessKeyRecord
	generation uint64
	uses       *uses // of all states of the key
}

// ID returns the access key id.
func (k *AccessKey) ID() string { return k.rec.ID }

// Generation is a number that no other state of this or another key has had in
// this process: it is another one when the key is activated again.
func (k *AccessKey) Generation() uint64 { return k.generation }

// NewAccessKeys loads all records. It asks no token.
func NewAccessKeys(ctx context.Context, cfg AccessKeysConfig) (*AccessKeys, error) {
	if cfg.Store == nil || cfg.Sealer == nil || cfg.Principals == nil || cfg.Logger == nil {
		return nil, errors.New("identity: Store, Sealer, Principals and Logger must be given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &AccessKeys{cfg: cfg, writes: make(chan struct{}, 1), byPrincipal: make(map[string][]string)}
	records, err := cfg.Store.AccessKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("load access keys: %w", err)
	}
	lost := 0
	for _, r := range records {
		a.put(r)
		if cfg.Principals().Principal(r.Principal) == nil {
			lost++
		}
	}
	if lost > 0 {
		cfg.Logger.WarnContext(ctx, "access keys belong to principals that are not configured, and are not usable", "count", lost)
	}
	return a, nil
}

// Watch makes changed be told the id of each key that was deactivated or deleted,
// before the operation is answered. changed must return soon and not call back.
func (a *AccessKeys) Watch(changed func(id string)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watchers = append(a.watchers, changed)
}

// takeTurn waits until no other change is under way, until ctx ends.
func (a *AccessKeys) takeTurn(ctx context.Context) (release func(), err error) {
	select {
	case a.writes <- struct{}{}:
		return func() { <-a.writes }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to change access keys: %w", ctx.Err())
	}
}

// put makes a record visible. The caller has the turn, but in NewAccessKeys.
func (a *AccessKeys) put(r *AccessKeyRecord) {
	k := &AccessKey{rec: *r}
	old := a.get(r.ID)
	if old != nil && old.rec.Active && r.Active && bytes.Equal(old.rec.SealedSecret, r.SealedSecret) {
		k.generation = old.generation // it was usable all the time: requests under way go on
	} else {
		k.generation = a.generation.Add(1)
	}
	if old != nil {
		k.uses = old.uses
	} else {
		k.uses = &uses{last: r.LastUse}
		a.mu.Lock()
		a.byPrincipal[r.Principal] = append(a.byPrincipal[r.Principal], r.ID)
		a.mu.Unlock()
	}
	a.keys.Store(r.ID, k)
	if !r.Active {
		a.tell(r.ID)
	}
}

// remove takes a key out of memory. The caller has the turn.
func (a *AccessKeys) remove(id string) {
	if k := a.get(id); k != nil {
		a.keys.Delete(id)
		a.mu.Lock()
		ids := slices.DeleteFunc(a.byPrincipal[k.rec.Principal], func(s string) bool { return s == id })
		a.byPrincipal[k.rec.Principal] = ids
		if len(ids) == 0 {
			delete(a.byPrincipal, k.rec.Principal)
		}
		a.mu.Unlock()
	}
	a.tell(id)
}

// tell tells the watchers.
func (a *AccessKeys) tell(id string) {
	a.mu.Lock()
	watchers := slices.Clone(a.watchers)
	a.mu.Unlock()
	for _, w := range watchers {
		w(id)
	}
}

func (a *AccessKeys) get(id string) *AccessKey {
	v, ok := a.keys.Load(id)
	if !ok {
		return nil
	}
	return v.(*AccessKey) //nolint:forcetypeassert // the only type stored
}

// LookUp returns the key of a request that is being authenticated, and whose it
// is. ErrAccessKeyUnusable. It takes no lock and asks nobody.
func (a *AccessKeys) LookUp(id string) (*AccessKey, *Principal, error) {
	k := a.get(id)
	if k == nil || !k.rec.Active {
		return nil, nil, ErrAccessKeyUnusable
	}
	p := a.cfg.Principals().Principal(k.rec.Principal)
	if p == nil {
		return nil, nil, ErrAccessKeyUnusable
	}
	return k, p, nil
}

// Confirm returns whose the key is, once a request was found to be signed with it,
// and notes the use. A key that was deactivated or deleted since LookUp is
// ErrAccessKeyUnusable: verifying takes its time.
func (a *AccessKeys) Confirm(k *AccessKey, region, service string) (*Principal, error) {
	now, p, err := a.LookUp(k.rec.ID)
	if err != nil || now.generation != k.generation {
		return nil, ErrAccessKeyUnusable
	}
	k.uses.note(a.cfg.Now(), region, service)
	return p, nil
}

// Open returns the key's secret, which the caller wipes. Its errors are the
// Sealer's.
func (a *AccessKeys) Open(ctx context.Context, k *AccessKey) (Secret, error) {
	secret, err := a.cfg.Sealer.Open(ctx, k.rec.SealedFor(), k.rec.SealedSecret)
	if err != nil {
		return nil, fmt.Errorf("access key %s: %w", k.rec.ID, err)
	}
	return secret, nil
}

// Now is the clock.
func (a *AccessKeys) Now() time.Time { return a.cfg.Now() }

// Principal returns the principal of an ARN as of now, or nil where there is none.
func (a *AccessKeys) Principal(arn string) *Principal { return a.cfg.Principals().Principal(arn) }

// Record returns what is known of a key, its last use as of now. ErrNoAccessKey.
func (a *AccessKeys) Record(id string) (*AccessKeyRecord, error) {
	k := a.get(id)
	if k == nil {
		return nil, ErrNoAccessKey
	}
	return k.record(), nil
}

func (k *AccessKey) record() *AccessKeyRecord {
	r := k.rec
	r.LastUse = k.uses.get()
	return &r
}

// List returns a principal's keys, the oldest first.
func (a *AccessKeys) List(principal string) []*AccessKeyRecord {
	a.mu.Lock()
	ids := slices.Clone(a.byPrincipal[principal])
	a.mu.Unlock()
	list := make([]*AccessKeyRecord, 0, len(ids))
	for _, id := range ids {
		if k := a.get(id); k != nil { // it may be gone since
			list = append(list, k.record())
		}
	}
	slices.SortFunc(list, func(x, y *AccessKeyRecord) int {
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return strings.Compare(x.ID, y.ID)
	})
	return list
}

// Create makes an active key with a new secret for a principal that has less than
// most keys, active or not. id is a NewAccessKeyID. The secret is returned this
// once; the caller wipes it. ErrTooManyAccessKeys, ErrAccessKeyExists, and what
// the Sealer returns.
func (a *AccessKeys) Create(ctx context.Context, p *Principal, id string, most int) (*AccessKeyRecord, Secret, error) {
	if err := a.room(p, most); err != nil {
		return nil, nil, err
	}
	secret := NewSecret()
	r, err := a.insert(ctx, p, id, secret, most)
	if err != nil {
		secret.Wipe()
		return nil, nil, err
	}
	return r, secret, nil
}

func (a *AccessKeys) room(p *Principal, most int) error {
	a.mu.Lock()
	n := len(a.byPrincipal[p.ARN])
	a.mu.Unlock()
	if n >= most {
		return fmt.Errorf("%w: %d, and %d are possible", ErrTooManyAccessKeys, n, most)
	}
	return nil
}

func (a *AccessKeys) insert(ctx context.Context, p *Principal, id string, secret Secret, most int) (*AccessKeyRecord, error) {
	r := &AccessKeyRecord{ID: id, Principal: p.ARN, Active: true}
	sealed, err := a.cfg.Sealer.Seal(ctx, r.SealedFor(), secret)
	if err != nil {
		return nil, err
	}
	release, err := a.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := a.room(p, most); err != nil { // others were as fast
		return nil, err
	}
	r.Created, r.SealedSecret = a.cfg.Now().UTC().Truncate(time.Second), sealed
	err = a.cfg.Store.InsertAccessKey(ctx, r)
	switch {
	case err == nil:
		a.put(r)
		return r, nil
	case errors.Is(err, ErrAccessKeyExists), errors.Is(err, ErrNotBegun):
		return nil, err
	}
	stored, readErr := a.reread(ctx, id)
	if stored == nil || string(stored.SealedSecret) != string(sealed) {
		return nil, fmt.Errorf("create access key: %w", errors.Join(err, readErr))
	}
	return stored, nil // it is there after all
}

// reread brings what the store holds of a key into memory and returns it, or nil
// where there is none: after a failed write its effect is not known. What cannot
// be read is not usable until it can; therefore it is read also where ctx has ended.
// The caller has the turn.
func (a *AccessKeys) reread(ctx context.Context, id string) (*AccessKeyRecord, error) {
	r, err := a.cfg.Store.AccessKey(context.WithoutCancel(ctx), id)
	switch {
	case err == nil:
		a.put(r)
		return r, nil
	case errors.Is(err, ErrNoAccessKey):
		a.remove(id)
		return nil, nil
	}
	if k := a.get(id); k != nil {
		doubt := k.rec
		doubt.Active = false
		a.put(&doubt)
	}
	return nil, fmt.Errorf("read the access key again: %w", err)
}

// SetActive activates or deactivates a key. When it returns nil for false, no
// LookUp finds the key usable any more. ErrNoAccessKey.
func (a *AccessKeys) SetActive(ctx context.Context, id string, active bool) error {
	release, err := a.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	k := a.get(id)
	if k == nil {
		return ErrNoAccessKey
	}
	next := k.rec
	next.Active = active
	// Also where memory says that it is so: memory is in doubt after a failure, and
	// the answer is about what is durable.
	err = a.cfg.Store.UpdateAccessKey(ctx, &next)
	if errors.Is(err, ErrAccessKeyChanged) { // memory was behind
		if fresh, readErr := a.reread(ctx, id); readErr == nil && fresh != nil {
			next = *fresh
			next.Active = active
			err = a.cfg.Store.UpdateAccessKey(ctx, &next)
		}
	}
	switch {
	case err == nil:
		a.put(&next)
		return nil
	case errors.Is(err, ErrNoAccessKey):
		a.remove(id)
		return ErrNoAccessKey
	case errors.Is(err, ErrNotBegun):
		return err
	}
	stored, readErr := a.reread(ctx, id)
	if stored == nil || stored.Active != active {
		return fmt.Errorf("update access key: %w", errors.Join(err, readErr))
	}
	return nil // it was changed after all
}

// Delete removes a key for good. When it returns nil, no LookUp finds it any more.
// ErrNoAccessKey.
func (a *AccessKeys) Delete(ctx context.Context, id string) error {
	release, err := a.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	if a.get(id) == nil {
		return ErrNoAccessKey
	}
	err = a.cfg.Store.DeleteAccessKey(ctx, id)
	switch {
	case err == nil:
		a.remove(id)
		return nil
	case errors.Is(err, ErrNoAccessKey):
		a.remove(id)
		return ErrNoAccessKey
	case errors.Is(err, ErrNotBegun):
		return err
	}
	stored, readErr := a.reread(ctx, id)
	if stored != nil || readErr != nil {
		return fmt.Errorf("delete access key: %w", errors.Join(err, readErr))
	}
	return nil // it is gone after all
}

// Has tells whether a principal has an active key of that id and secret.
func (a *AccessKeys) Has(ctx context.Context, p *Principal, id string, secret Secret) bool {
	k := a.get(id)
	if k == nil || k.rec.Principal != p.ARN || !k.rec.Active {
		return false
	}
	have, err := a.Open(ctx, k)
	defer have.Wipe()
	return err == nil && subtle.ConstantTimeCompare(have, secret) == 1
}

// Import makes an active key with an id and a secret of somebody's choice, for
// development, without regard to how many keys the principal has. A key of that id
// is replaced, and one of the id replaces, if that is the principal's, is deleted.
// The secret stays the caller's. ErrInvalidAccessKey.
func (a *AccessKeys) Import(ctx context.Context, p *Principal, id string, secret Secret, replaces string) error {
	if err := errors.Join(CheckAccessKeyID(id), checkSecret(secret)); err != nil {
		return err
	}
	for _, old := range []string{id, replaces} {
		if k := a.get(old); k == nil || old != id && k.rec.Principal != p.ARN {
			continue
		}
		if err := a.Delete(ctx, old); err != nil && !errors.Is(err, ErrNoAccessKey) {
			return err
		}
	}
	_, err := a.insert(ctx, p, id, secret, math.MaxInt)
	return err
}
