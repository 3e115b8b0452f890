package adminapi

import (
	"maps"
	"sync"
	"sync/atomic"
)

// series keeps what was found for a set of labels. prometheus hashes and locks at
// each look-up by labels, which with seven of them cost a request a microsecond.
// The zero value is ready. It may be used concurrently, and grows with what is put
// in: labels must be few.
type series[L comparable, S any] struct {
	mu    sync.Mutex // of those who add
	known atomic.Pointer[map[L]*S]
}

// get returns what belongs to the labels. find finds it, the first time.
func (c *series[L, S]) get(labels L, find func() *S) *S {
	if known := c.known.Load(); known != nil {
		if s := (*known)[labels]; s != nil {
			return s
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	next := map[L]*S{}
	if known := c.known.Load(); known != nil {
		if s := (*known)[labels]; s != nil {
			return s
		}
		next = maps.Clone(*known)
	}
	s := find()
	next[labels] = s
	c.known.Store(&next)
	return s
}
