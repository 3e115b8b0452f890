package door

import (
	"cmp"
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What FailureLimits are where they do not say. Only failures have a part in them,
// so the figures are for callers who mean well and are configured wrongly.
const (
	// failuresPerSecond is more than the log has lines for, and more than a program
	// makes whose every request fails and is retried with backoff. failureBurst lets
	// a script that begins with the wrong secret see why a hundred times over.
	failuresPerSecond = 20
	failureBurst      = 100
	// allFailuresPerSecond and allFailureBurst are those of ten sources.
	allFailuresPerSecond = 200
	allFailureBurst      = 1000
	// failureSources is more than misconfigure themselves at once. A source takes
	// 300 bytes: 1.2 MiB if there are so many.
	failureSources = 4096
)

// FailureLimits are those of Failures. A field that is zero has its default.
type FailureLimits struct {
	// PerSecond and Burst are for each source: 20, and 100 at once.
	PerSecond, Burst int
	// AllPerSecond and AllBurst are for all sources together: 200, and 1,000 at once.
	AllPerSecond, AllBurst int
	// Sources bounds how many are remembered: 4,096.
	Sources int
	// Now is the clock: time.Now.
	Now func() time.Time
}

// Failures bounds the failed authentications that are told why they failed, by
// source: an IPv4 address, the /64 of an IPv6 address, which is what one network has,
// and one source for all addresses that are none. It bounds nothing else. A
// request that authenticates has no part in it, or whoever fails on purpose would
// lock out those who share an address with them.
//
// When there are more sources than are remembered the one that failed longest ago is
// forgotten, and begins anew if it fails again. So those who have many addresses get
// more than their share, up to what all together may have; others are then not told
// why either.
//
// It may be used concurrently. It has no goroutine and no timer.
type Failures struct {
	limits FailureLimits

	mu  sync.Mutex // guards what follows
	all *rate.Limiter
	// sources and recent have the same elements, recent in the order of their last
	// failures, the last one first. They are limits.Sources at most.
	sources map[netip.Addr]*list.Element
	recent  *list.List // of *failing
}

// failing is a source.
type failing struct {
	source netip.Addr
	limit  *rate.Limiter
}

// NewFailures makes one that has seen no failure.
func NewFailures(l FailureLimits) *Failures {
	l.PerSecond, l.Burst = cmp.Or(l.PerSecond, failuresPerSecond), cmp.Or(l.Burst, failureBurst)
	l.AllPerSecond, l.AllBurst = cmp.Or(l.AllPerSecond, allFailuresPerSecond), cmp.Or(l.AllBurst, allFailureBurst)
	l.Sources = cmp.Or(l.Sources, failureSources)
	if l.Now == nil {
		l.Now = time.Now
	}
	return &Failures{
		limits: l, all: rate.NewLimiter(rate.Limit(l.AllPerSecond), l.AllBurst),
		sources: make(map[netip.Addr]*list.Element), recent: list.New(),
	}
}

// Tell counts a failed authentication from an IP address and returns whether the
// caller may be told why it failed.
func (f *Failures) Tell(address string) bool {
	source := sourceOf(address)
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.limits.Now()
	// In this order: a source that has had its share takes nothing of the others'.
	return f.limitOf(source).AllowN(now, 1) && f.all.AllowN(now, 1)
}

// limitOf returns a source's limit, with mu held.
func (f *Failures) limitOf(source netip.Addr) *rate.Limiter {
	e := f.sources[source]
	if e != nil {
		f.recent.MoveToFront(e)
	} else {
		if f.recent.Len() >= f.limits.Sources {
			oldest := f.recent.Back()
			delete(f.sources, f.recent.Remove(oldest).(*failing).source) //nolint:forcetypeassert // the only type stored
		}
		e = f.recent.PushFront(&failing{source, rate.NewLimiter(rate.Limit(f.limits.PerSecond), f.limits.Burst)})
		f.sources[source] = e
	}
	return e.Value.(*failing).limit //nolint:forcetypeassert // the only type stored
}

// sourceOf is the source that an address is of. The zero Addr is that of all that
// are none.
func sourceOf(address string) netip.Addr {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Addr{}
	}
	if a = a.Unmap(); a.Is4() {
		return a
	}
	network, err := a.Prefix(64) // without the zone
	if err != nil {
		return netip.Addr{}
	}
	return network.Addr()
}
