package kms

import (
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/keyhold/keyhold/hsm/pubkey"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// keyring holds every key and alias in memory. The data plane reads nothing
// else, and reconciliation hardly. Look-ups by id and by alias take no lock; lists
// and changes do.
//
// Every change goes to the store first and comes here with the revision that
// the store gave it; older revisions never replace newer ones, so changes may
// arrive in any order.
type keyring struct {
	keys    sync.Map // KeyID -> *entry
	aliases sync.Map // aliasKey -> *AliasRecord

	mu sync.RWMutex
	// scopes has the sorted ids and alias names of each account and region.
	// Guarded by mu; what is listed is in keys or aliases.
	scopes map[scope]*scopeIndex
	// creating has the records in CREATING, those that are being made and those
	// that were left behind: nothing finds them but reconciliation. Guarded by mu.
	creating map[KeyID]struct{}
}

type scope struct {
	account AccountID
	region  Region
}

type aliasKey struct {
	scope
	name string
}

// scopeIndex is what lists page through.
type scopeIndex struct {
	keyIDs  []KeyID
	aliases []string
	// making counts keys that are being made and not listed yet.
	making int
}

// entry is one key in memory. The record is replaced as a whole.
//
// An installation may have a hundred thousand: each allocation of an entry, and
// each pointer in it, is more for the garbage collector to look at, over and over.
type entry struct {
	rec atomic.Pointer[KeyRecord]
	arn string
	// aliases has the sorted names of the key's aliases. Guarded by keyring.mu.
	aliases []string

	// removed is set when the key is gone. Who has the turn of writes reads and
	// sets it.
	removed bool

	mu sync.Mutex
	// writes serialises changes of the record, store and memory together, so
	// that memory sees them in the store's order. takeTurn makes and takes it.
	// Guarded by mu.
	writes turn
	// leases has the sealing budget of each version that has sealed: of one, mostly.
	// Guarded by mu.
	leases []*sealLease
	// public is the public key, once it was read.
	public atomic.Pointer[pubkey.Key]
	// missing is set while reconciliation knows that the token lacks the
	// material.
	missing atomic.Bool
}

func newKeyring(s *Snapshot) *keyring {
	k := &keyring{scopes: make(map[scope]*scopeIndex), creating: make(map[KeyID]struct{})}
	for _, r := range s.Keys {
		k.putLocked(r, false)
	}
	for _, a := range s.Aliases {
		if e := k.key(a.KeyID); e != nil {
			a.KeyID = e.rec.Load().ID // the same string once, not twice
		}
		k.putAliasLocked(a, false)
	}
	for _, ix := range k.scopes {
		slices.Sort(ix.keyIDs)
		slices.Sort(ix.aliases)
	}
	k.each(func(e *entry) { slices.Sort(e.aliases) })
	return k
}

// key returns the entry, or nil. Keys in CREATING are not found.
func (k *keyring) key(id KeyID) *entry {
	v, ok := k.keys.Load(id)
	if !ok {
		return nil
	}
	return v.(*entry) //nolint:forcetypeassert // the only type stored
}

// alias returns the record, or nil.
func (k *keyring) alias(account AccountID, region Region, name string) *AliasRecord {
	v, ok := k.aliases.Load(aliasKey{scope{account, region}, name})
	if !ok {
		return nil
	}
	return v.(*AliasRecord) //nolint:forcetypeassert // the only type stored
}

// put makes r visible, unless something newer is.
func (k *keyring) put(r *KeyRecord) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.putLocked(r, true)
}

func (k *keyring) putLocked(r *KeyRecord, sorted bool) {
	if r.State == keyholdv1.KeyState_KEY_STATE_CREATING {
		k.creating[r.ID] = struct{}{}
		return
	}
	delete(k.creating, r.ID)
	if e := k.key(r.ID); e != nil {
		if e.rec.Load().Revision < r.Revision {
			e.rec.Store(r)
		}
		return
	}
	e := &entry{arn: r.ARN()}
	e.rec.Store(r)
	k.keys.Store(r.ID, e)
	ix := k.index(scope{r.Account, r.Region})
	ix.keyIDs = insert(ix.keyIDs, r.ID, sorted)
}

// remove forgets a key and its aliases.
func (k *keyring) remove(r *KeyRecord) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.creating, r.ID)
	e := k.key(r.ID)
	if e == nil {
		return
	}
	sc := scope{r.Account, r.Region}
	ix := k.index(sc)
	for _, name := range slices.Clone(e.aliases) {
		k.removeAliasLocked(sc, name)
	}
	k.keys.Delete(r.ID)
	ix.keyIDs = without(ix.keyIDs, r.ID)
}

// putAlias makes a visible, unless something newer is.
func (k *keyring) putAlias(a *AliasRecord) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.putAliasLocked(a, true)
}

func (k *keyring) putAliasLocked(a *AliasRecord, sorted bool) {
	e := k.key(a.KeyID)
	if e == nil {
		return // the key was deleted meanwhile, and its aliases with it
	}
	sc := scope{a.Account, a.Region}
	ix := k.index(sc)
	old := k.alias(a.Account, a.Region, a.Name)
	switch {
	case old == nil:
		ix.aliases = insert(ix.aliases, a.Name, sorted)
	case old.Revision >= a.Revision:
		return
	default:
		k.key(old.KeyID).dropAlias(a.Name)
	}
	e.aliases = insert(e.aliases, a.Name, sorted)
	k.aliases.Store(aliasKey{sc, a.Name}, a)
}

// removeAlias forgets an alias.
func (k *keyring) removeAlias(a *AliasRecord) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removeAliasLocked(scope{a.Account, a.Region}, a.Name)
}

func (k *keyring) removeAliasLocked(sc scope, name string) {
	a := k.alias(sc.account, sc.region, name)
	if a == nil {
		return
	}
	ix := k.index(sc)
	ix.aliases = without(ix.aliases, name)
	k.key(a.KeyID).dropAlias(name)
	k.aliases.Delete(aliasKey{sc, name})
}

// dropAlias takes an alias off the key's list. The caller holds keyring.mu. An
// alias that the ring knows has its key there.
func (e *entry) dropAlias(name string) { e.aliases = without(e.aliases, name) }

func (k *keyring) index(sc scope) *scopeIndex {
	ix := k.scopes[sc]
	if ix == nil {
		ix = &scopeIndex{}
		k.scopes[sc] = ix
	}
	return ix
}

// listKeys returns at most n ids after the given one, and whether more follow.
func (k *keyring) listKeys(account AccountID, region Region, after KeyID, n int) ([]KeyID, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	ix := k.scopes[scope{account, region}]
	if ix == nil {
		return nil, false
	}
	return page(ix.keyIDs, n, func(id KeyID) bool { return id > after })
}

// listAliases returns at most n aliases after the given name, of one key if
// id is not empty, and whether more follow.
func (k *keyring) listAliases(account AccountID, region Region, id KeyID, after string, n int) ([]*AliasRecord, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	ix := k.scopes[scope{account, region}]
	if ix == nil {
		return nil, false
	}
	names := ix.aliases
	if id != "" {
		names = k.aliasesOf(account, region, id)
	}
	names, more := page(names, n, func(name string) bool { return name > after })
	out := make([]*AliasRecord, 0, len(names))
	for _, name := range names {
		out = append(out, k.alias(account, region, name))
	}
	return out, more
}

// counts returns how many keys an account has in a region, and how many
// aliases one key has.
func (k *keyring) counts(account AccountID, region Region, id KeyID) (keys, aliases int) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	ix := k.scopes[scope{account, region}]
	if ix == nil {
		return 0, 0
	}
	return len(ix.keyIDs), len(k.aliasesOf(account, region, id))
}

// aliasesOf returns the names of a key's aliases, none if the key is not of that
// account and region. The caller holds mu.
func (k *keyring) aliasesOf(account AccountID, region Region, id KeyID) []string {
	e := k.key(id)
	if e == nil {
		return nil
	}
	if r := e.rec.Load(); r.Account != account || r.Region != region {
		return nil
	}
	return e.aliases
}

// reserve keeps a place for a key that is being made, if the account has one
// left. unreserve must follow, once the key is there or will not be.
func (k *keyring) reserve(account AccountID, region Region, most int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	ix := k.index(scope{account, region})
	if len(ix.keyIDs)+ix.making >= most {
		return false
	}
	ix.making++
	return true
}

func (k *keyring) unreserve(account AccountID, region Region) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.index(scope{account, region}).making--
}

// each calls f with every key.
func (k *keyring) each(f func(*entry)) {
	k.keys.Range(func(_, v any) bool {
		f(v.(*entry)) //nolint:forcetypeassert // the only type stored
		return true
	})
}

// unfinished returns the ids of the records in CREATING.
func (k *keyring) unfinished() []KeyID {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return slices.Collect(maps.Keys(k.creating))
}

// insert adds v to a sorted slice, or to an unsorted one that will be sorted.
func insert[T ~string](s []T, v T, sorted bool) []T {
	if !sorted {
		return append(s, v)
	}
	i, found := slices.BinarySearch(s, v)
	if found {
		return s
	}
	return slices.Insert(s, i, v)
}

// without removes v from a sorted slice.
func without[T ~string](s []T, v T) []T {
	i, found := slices.BinarySearchFunc(s, v, func(a, b T) int { return strings.Compare(string(a), string(b)) })
	if !found {
		return s
	}
	return slices.Delete(s, i, i+1)
}

// page returns at most n elements of a sorted slice, from the first that is behind
// the last page, and whether more follow. The result is a copy.
func page[T any](s []T, n int, behind func(T) bool) ([]T, bool) {
	s = s[sort.Search(len(s), func(i int) bool { return behind(s[i]) }):]
	if len(s) > n {
		return slices.Clone(s[:n]), true
	}
	return slices.Clone(s), false
}
