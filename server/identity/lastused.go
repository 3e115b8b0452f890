package identity

import (
	"context"
	"strings"
	"sync"
	"time"
)

const (
	// useWriteInterval is how often the last use of one key is written at most:
	// the data plane must not write the database for each request. A crash loses
	// what was not written.
	useWriteInterval = time.Hour
	// useLookInterval is how often it is looked for what to write.
	useLookInterval = time.Minute
)

// uses is the last use of one key.
type uses struct {
	mu      sync.Mutex
	last    AccessKeyUse
	dirty   bool      // last is not in the store
	written time.Time // when it was written last; zero: not by this process
}

// note remembers a use. region and service may be parts of a request.
func (u *uses) note(at time.Time, region, service string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	at = at.UTC().Truncate(time.Second)
	if u.last.Region != region {
		u.last.Region = strings.Clone(region)
	}
	if u.last.Service != service {
		u.last.Service = strings.Clone(service)
	}
	u.last.At, u.dirty = at, true
}

func (u *uses) get() AccessKeyUse {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last
}

// due returns what has to be written.
func (u *uses) due(now time.Time, all bool) (AccessKeyUse, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last, u.dirty && (all || now.Sub(u.written) >= useWriteInterval)
}

// wrote notes that use is in the store.
func (u *uses) wrote(use AccessKeyUse, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.written = now
	if u.last == use {
		u.dirty = false
	}
}

// Run writes last uses, each at most once an hour, until ctx ends.
func (a *AccessKeys) Run(ctx context.Context) {
	t := time.NewTicker(useLookInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			a.flush(ctx, false)
		}
	}
}

// Flush writes all last uses, as at the end.
func (a *AccessKeys) Flush(ctx context.Context) { a.flush(ctx, true) }

// flush writes those that are due, or all, in one transaction. What fails is tried
// again; nobody's request fails for it.
func (a *AccessKeys) flush(ctx context.Context, all bool) {
	now := a.cfg.Now()
	batch := make(map[string]AccessKeyUse)
	whose := make(map[string]*uses)
	a.keys.Range(func(_, v any) bool {
		k := v.(*AccessKey) //nolint:forcetypeassert // the only type stored
		if use, due := k.uses.due(now, all); due {
			batch[k.rec.ID], whose[k.rec.ID] = use, k.uses
		}
		return true
	})
	if len(batch) == 0 {
		return
	}
	if err := a.cfg.Store.NoteAccessKeyUses(ctx, batch); err != nil {
		a.cfg.Logger.WarnContext(ctx, "last uses of access keys were not written", "count", len(batch), "err", err)
		return
	}
	for id, use := range batch {
		whose[id].wrote(use, now)
	}
}
