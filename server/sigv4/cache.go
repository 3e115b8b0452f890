package sigv4

import (
	"container/list"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// keyCache holds signing keys, the most recently used ones first. Keys are
// wiped when they leave, as far as Go allows: copies on stacks are not.
type keyCache struct {
	max int
	// forgotten counts the calls of forget. It is written under mu.
	forgotten atomic.Uint64

	mu      sync.Mutex
	entries map[cacheID]*list.Element // of *cachedKey
	recent  *list.List                // front: used last
	// oldest is the first day that is kept. All entries are of it or later.
	oldest string
}

type cacheID struct {
	accessKeyID string
	version     uint64
	scope       Scope
}

type cachedKey struct {
	id  cacheID
	key SigningKey
}

func newKeyCache(maxKeys int) *keyCache {
	return &keyCache{max: maxKeys, entries: map[cacheID]*list.Element{}, recent: list.New()}
}

// get copies the key of id into out and reports whether there is one.
func (c *keyCache) get(id cacheID, out *SigningKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[id]
	if !ok {
		return false
	}
	c.recent.MoveToFront(e)
	*out = entryOf(e).key
	return true
}

// put keeps a key, unless its day is over, or something was forgotten since
// forgotten was read: that may be the access key that this was derived from. Read
// it before that is looked up, or a key may stay that nothing forgets any more.
func (c *keyCache) put(id cacheID, key *SigningKey, forgotten uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id.scope.Day < c.oldest || c.forgotten.Load() != forgotten {
		return
	}
	if e, ok := c.entries[id]; ok { // another request was as fast
		entryOf(e).key = *key
		return
	}
	for len(c.entries) >= c.max {
		c.drop(c.recent.Back())
	}
	// The strings are parts of a request, which would be kept with them.
	id = cacheID{
		accessKeyID: strings.Clone(id.accessKeyID),
		version:     id.version,
		scope:       Scope{Day: strings.Clone(id.scope.Day), Region: strings.Clone(id.scope.Region), Service: strings.Clone(id.scope.Service)},
	}
	c.entries[id] = c.recent.PushFront(&cachedKey{id: id, key: *key})
}

// expire drops the keys of days before the one that contains t.
func (c *keyCache) expire(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Comparing in place spares every request the formatting.
	if y, m, d := t.UTC().Date(); dayNumber(c.oldest) == y*10000+int(m)*100+d {
		return
	}
	c.oldest = t.UTC().Format(dayLayout)
	for id, e := range c.entries {
		if id.scope.Day < c.oldest {
			c.drop(e)
		}
	}
}

// dayNumber reads YYYYMMDD.
func dayNumber(day string) int {
	n := 0
	for _, c := range []byte(day) {
		n = n*10 + int(c-'0')
	}
	return n
}

// forget drops the keys for which gone says so.
func (c *keyCache) forget(gone func(accessKeyID string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgotten.Add(1)
	for id, e := range c.entries {
		if gone(id.accessKeyID) {
			c.drop(e)
		}
	}
}

// drop wipes and removes an entry. The caller holds mu.
func (c *keyCache) drop(e *list.Element) {
	k := entryOf(e)
	clear(k.key[:])
	delete(c.entries, k.id)
	c.recent.Remove(e)
}

// entryOf is the value of an element of recent, which has no other kind.
func entryOf(e *list.Element) *cachedKey {
	k, _ := e.Value.(*cachedKey)
	return k
}

func (c *keyCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}
