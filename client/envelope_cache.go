package client

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc/status"
)

// Defaults and limits of CacheConfig.
const (
	DefaultCacheCapacity = 1000

	maxCacheCapacity = 1 << 20
	maxCacheMessages = 1 << 32
)

// CacheConfig says how long, and for how much, a data key is used again. It
// works as the caching materials manager of the AWS Encryption SDK: for
// encryption, one data key serves the messages of one key id and encryption
// context; for decryption, an encrypted data key that was opened with a
// context is not sent to the service again. Calls share data keys only if their
// outgoing gRPC metadata is the same too: the region, and whatever else is in it.
//
// The price: a data key that is cached stays usable in this process until it
// is MaxAge old, even if its KMS key was disabled, scheduled for deletion or
// denied to the caller meanwhile; and the audit log shows one call, not each
// message. Whoever reads this process's memory reads the cached data keys.
//
// A data key is wiped when it leaves the cache (age, limits, capacity, Close),
// but not before the last message that is being made with it is done.
type CacheConfig struct {
	// MaxAge is how old a data key may become. Its age counts from when it was
	// asked for, by the wall clock or by the time that the machine was awake,
	// whichever says more. Zero means no cache.
	MaxAge time.Duration

	// MaxMessages is how many messages one data key encrypts. Optional: 2^32,
	// the most that is possible.
	MaxMessages int64

	// MaxBytes is how many bytes of plaintext one data key encrypts. A message
	// that is longer gets a data key of its own. Optional: no limit.
	MaxBytes int64

	// Capacity is how many data keys are kept, those for encryption and those
	// for decryption together. The least recently used goes first, when another
	// one has come; one that is still asked for takes no place. Optional:
	// DefaultCacheCapacity. At most 2^20.
	Capacity int

	// Now is the clock. Optional: time.Now. For tests.
	Now func() time.Time
}

func (cfg CacheConfig) withDefaults() (CacheConfig, error) {
	if cfg.MaxAge < 0 || cfg.MaxMessages < 0 || cfg.MaxBytes < 0 || cfg.Capacity < 0 {
		return cfg, errors.New("cache: a limit is negative")
	}
	if cfg.MaxAge == 0 && (cfg.MaxMessages != 0 || cfg.MaxBytes != 0 || cfg.Capacity != 0) {
		return cfg, errors.New("cache: MaxAge is not set, which means no cache, but another limit is")
	}
	if cfg.MaxMessages > maxCacheMessages || cfg.Capacity > maxCacheCapacity {
		return cfg, fmt.Errorf("cache: %d messages and a capacity of %d; at most %d and %d are possible",
			cfg.MaxMessages, cfg.Capacity, int64(maxCacheMessages), maxCacheCapacity)
	}
	if cfg.MaxMessages == 0 {
		cfg.MaxMessages = maxCacheMessages
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = math.MaxInt64
	}
	if cfg.Capacity == 0 {
		cfg.Capacity = DefaultCacheCapacity
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return cfg, nil
}

// slot is where a data key is found: a hash of all that it depends on.
type slot [sha256.Size]byte

func slotOf(kind byte, parts ...[]byte) slot {
	b := []byte{kind}
	for _, p := range parts {
		b = appendPart(b, p)
	}
	return sha256.Sum256(b)
}

// fetch asks the service for a data key.
type fetch func(context.Context) (dataKey, error)

// dataKeys hands out data keys, and keeps them where there is a cache.
type dataKeys struct {
	cfg CacheConfig

	mu sync.Mutex
	// slots and asked have the same entries: those that others can get, be they
	// there or on their way. asked is in the order in which the service was asked,
	// so that the oldest is found, and each one added and removed, at a cost that
	// does not grow with their number.
	slots map[slot]*entry
	asked list.List // of *entry, the oldest first
	// lru has those of them that are there, and never more than Capacity: a call
	// that fails evicts nothing.
	lru list.List // of *entry, the most recently used first
	// sweeper wakes up when the oldest entry may be too old. nil when there was
	// none; while it sweeps it is what it was, so that nobody starts another.
	sweeper *time.Timer
	// pending are the entries whose call is under way, cached or not.
	pending map[*entry]struct{}
	fetches sync.WaitGroup
	closed  bool
}

// entry is a data key that is there or on its way. dataKeys.mu guards it, but
// for dataKey and err, which are set before ready is closed and then only
// read; the secret is wiped when there are no users.
type entry struct {
	dataKey
	err   error
	ready chan struct{}

	keys *dataKeys
	slot slot
	// place is where it is in keys.asked; nil if others cannot get it any more.
	// recent is where it is in keys.lru; nil without place, or if it is not there
	// yet.
	place, recent *list.Element
	// asked is when the service was asked for it.
	asked time.Time
	// messages and bytes count what was given out, whether it was used or not.
	messages, bytes int64
	// users are the goroutines that wait for it or work with it.
	users int
	// cancel ends the call that fetches it.
	cancel context.CancelFunc
}

var errClosed = errors.New("envelope is closed")

func newDataKeys(cfg CacheConfig) (*dataKeys, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &dataKeys{cfg: cfg, slots: map[slot]*entry{}, pending: map[*entry]struct{}{}}, nil
}

// forSealing returns a data key for one more message of n bytes. It must be
// released.
func (c *dataKeys) forSealing(ctx context.Context, s slot, n int64, f fetch) (*entry, error) {
	if c.cfg.MaxAge == 0 || n > c.cfg.MaxBytes {
		return c.alone(ctx, f)
	}
	return c.shared(ctx, s, n, f)
}

// forOpening returns a data key for opening messages. It must be released.
func (c *dataKeys) forOpening(ctx context.Context, s slot, f fetch) (*entry, error) {
	if c.cfg.MaxAge == 0 {
		return c.alone(ctx, f)
	}
	return c.shared(ctx, s, opening, f)
}

// opening is the length of a message that does not count.
const opening = -1

// alone fetches a data key for one message.
func (c *dataKeys) alone(ctx context.Context, f fetch) (*entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &entry{keys: c, users: 1, ready: make(chan struct{}), cancel: cancel}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		cancel()
		return nil, errClosed
	}
	c.pending[e] = struct{}{}
	c.fetches.Add(1)
	c.mu.Unlock()
	c.fetch(ctx, e, f)
	if e.err != nil {
		return nil, e.err
	}
	return e, nil
}

// fetch makes e's call and says what came of it.
func (c *dataKeys) fetch(ctx context.Context, e *entry, f fetch) {
	defer c.fetches.Done()
	k, err := f(ctx)
	e.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, e)
	e.dataKey, e.err = k, err
	close(e.ready)
	switch {
	case err != nil:
		c.drop(e)
	case e.place != nil:
		e.recent = c.lru.PushFront(e)
		if c.lru.Len() > c.cfg.Capacity {
			c.drop(c.lru.Back().Value.(*entry)) //nolint:forcetypeassert // the only type in it
		}
	}
	e.wipeUnused()
}

// shared returns the slot's data key. Where there is none, or no longer, one
// call fetches it for all who ask meanwhile; each waits as long as its own
// context lets it.
func (c *dataKeys) shared(ctx context.Context, s slot, n int64, f fetch) (*entry, error) {
	e, err := c.reserve(ctx, s, n, f)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.ready:
		if e.err == nil {
			return e, nil
		}
		err = e.err
	case <-ctx.Done():
		err = status.FromContextError(ctx.Err()).Err()
	}
	e.release()
	return nil, err
}

// reserve counts the message and the user, on the entry of the slot or on a new
// one.
func (c *dataKeys) reserve(ctx context.Context, s slot, n int64, f fetch) (*entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	now := c.cfg.Now()
	e := c.slots[s]
	if e != nil && (c.tooOld(e, now) || n != opening && n > c.cfg.MaxBytes-e.bytes) {
		c.drop(e)
		e = nil
	}
	if e == nil {
		e = c.begin(ctx, s, now, f)
	}
	if e.recent != nil {
		c.lru.MoveToFront(e.recent)
	}
	e.users++
	if n != opening {
		e.messages++
		e.bytes += n
		if e.messages == c.cfg.MaxMessages || e.bytes == c.cfg.MaxBytes {
			c.drop(e) // no other message fits; whoever uses it still may
		}
	}
	return e, nil
}

func (c *dataKeys) tooOld(e *entry, now time.Time) bool { return age(e.asked, now) >= c.cfg.MaxAge }

// age is the time from asked to now. The monotonic clock alone would not do: it
// stands still while the machine sleeps. Nor would the wall clock, which can be
// set back.
func age(asked, now time.Time) time.Duration {
	return max(now.Sub(asked), now.Round(0).Sub(asked.Round(0)))
}

// begin puts a new entry into the slot and starts its call. c.mu is held.
func (c *dataKeys) begin(ctx context.Context, s slot, now time.Time, f fetch) *entry {
	// The call is for all who will wait for it: it does not end with the one who
	// came first, but when nobody is left.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e := &entry{keys: c, slot: s, asked: now, ready: make(chan struct{}), cancel: cancel}
	e.place = c.asked.PushBack(e)
	c.slots[s] = e
	c.pending[e] = struct{}{}
	c.fetches.Add(1)
	go c.fetch(ctx, e, f)
	c.wakeFor(e, now)
	return e
}

// drop takes e out of the cache. c.mu is held.
func (c *dataKeys) drop(e *entry) {
	if e.place == nil {
		return
	}
	c.asked.Remove(e.place)
	if e.recent != nil {
		c.lru.Remove(e.recent)
	}
	delete(c.slots, e.slot)
	e.place, e.recent = nil, nil
	e.wipeUnused()
}

// release says that the caller no longer uses e.
func (e *entry) release() {
	e.keys.mu.Lock()
	defer e.keys.mu.Unlock()
	e.users--
	if e.users == 0 && !e.isReady() {
		e.cancel()
		e.keys.drop(e)
	}
	e.wipeUnused()
}

// wipeUnused forgets the secret if nobody uses it nor will. keys.mu is held.
func (e *entry) wipeUnused() {
	if e.users == 0 && e.place == nil && e.isReady() {
		clear(e.secret)
	}
}

func (e *entry) isReady() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}

const (
	// sweepEvery bounds how long the sweeper sleeps: its timer does not run while
	// the machine sleeps.
	sweepEvery = time.Minute
	// maxSweep is how many entries it drops before it lets others have the lock,
	// some 50 us.
	maxSweep = 100
)

// wakeFor makes sure that the sweeper comes when the oldest entry is too old.
// c.mu is held.
func (c *dataKeys) wakeFor(oldest *entry, now time.Time) {
	if c.sweeper == nil {
		c.sweeper = time.AfterFunc(min(c.cfg.MaxAge-age(oldest.asked, now), sweepEvery), c.sweep)
	}
}

// sweep drops what is too old, so that secrets go in time where nobody asks for
// them.
func (c *dataKeys) sweep() {
	for !c.sweepSome() {
	}
}

// sweepSome drops up to maxSweep entries, and tells whether that was all.
func (c *dataKeys) sweepSome() (done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return true
	}
	now := c.cfg.Now()
	for range maxSweep {
		front := c.asked.Front()
		if front == nil {
			c.sweeper = nil
			return true
		}
		oldest := front.Value.(*entry) //nolint:forcetypeassert // the only type in it
		if !c.tooOld(oldest, now) {
			c.sweeper = nil
			c.wakeFor(oldest, now)
			return true
		}
		c.drop(oldest)
	}
	return false
}

// close drops everything and waits until no call is under way.
func (c *dataKeys) close() {
	c.mu.Lock()
	c.closed = true
	if c.sweeper != nil {
		c.sweeper.Stop()
	}
	for place := c.asked.Front(); place != nil; place = c.asked.Front() {
		c.drop(place.Value.(*entry)) //nolint:forcetypeassert // the only type in it
	}
	for e := range c.pending {
		e.cancel()
	}
	c.mu.Unlock()
	c.fetches.Wait()
}
