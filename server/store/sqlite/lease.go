package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/keyhold/keyhold/server/kms"
)

// maxLeaseGroup is how many leases one transaction writes at most: other writes
// wait meanwhile, for some 10 ms.
const maxLeaseGroup = 256

// lease is one call of LeaseSeals.
type lease struct {
	ref      kms.Ref
	n, limit uint64

	// The outcome. It belongs to whoever writes the lease until done is closed.
	start, granted uint64
	err            error
	done           chan struct{}

	// gone is set when the caller has left. What nobody waits for is not written;
	// what was being written by then stays granted, and unused.
	gone atomic.Bool
}

// leaseQueue is where leases gather while one transaction, of leases or of
// something else, is being written: those that waited go together in the next.
type leaseQueue struct {
	mu      sync.Mutex
	waiting []*lease
	// writing is set while a goroutine runs that will write what waits. It runs
	// no longer than something waits.
	writing bool
}

// add returns true where the caller has to start the goroutine that writes.
func (q *leaseQueue) add(l *lease) (first bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, l)
	first = !q.writing
	q.writing = true
	return first
}

// more returns false where nothing waits; the goroutine that asked ends then.
func (q *leaseQueue) more() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writing = len(q.waiting) > 0
	return q.writing
}

// take returns those that have waited longest.
func (q *leaseQueue) take() []*lease {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), maxLeaseGroup)
	group := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	return group
}

// LeaseSeals implements kms.Store. ErrNotFound where no key has the version.
// Counts end at the greatest int64, also where limit is above it.
//
// Calls that come while a transaction is being written share the next one. If it
// fails, all of them do. A call whose ctx ends returns at once; where its lease was
// being written by then, the count went up and nobody seals for it. That is the
// side to err on: a count is never lower than what was used.
func (s *Store) LeaseSeals(ctx context.Context, ref kms.Ref, n, limit uint64) (start, granted uint64, err error) {
	l := &lease{ref: ref, n: n, limit: min(limit, math.MaxInt64), done: make(chan struct{})}
	if err := s.lease(ctx, l); err != nil {
		return 0, 0, fmt.Errorf("lease seals of %s: %w", ref, err)
	}
	return l.start, l.granted, nil
}

func (s *Store) lease(ctx context.Context, l *lease) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		leave()
		return err
	}
	if s.leases.add(l) {
		// Not the caller's own work: a caller may leave, the others still wait.
		go s.writeLeases(context.WithoutCancel(ctx), leave)
	} else {
		leave() // Close waits for the goroutine, which waits for all
	}
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		l.gone.Store(true)
		return ctx.Err()
	}
}

// writeLeases writes leases until none waits.
func (s *Store) writeLeases(ctx context.Context, leave func()) {
	defer leave()
	for s.leases.more() {
		s.writeGroup(ctx)
	}
}

// writeGroup waits for its turn, writes what has gathered by then and wakes who
// waits for it, whatever happens.
func (s *Store) writeGroup(ctx context.Context) {
	release, err := s.takeTurn(ctx)
	group := s.leases.take()
	if err == nil {
		err = s.grant(ctx, group)
		release()
	}
	for _, l := range group {
		if l.err == nil {
			l.err = err
		}
		close(l.done)
	}
}

// grant grants the leases of a group in one transaction. What it returns is the
// error of all that have none of their own. The caller has the turn.
func (s *Store) grant(ctx context.Context, group []*lease) (err error) {
	// It runs in no request that could catch a panic, and others wait.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic while seals were leased: %v\n%s", p, debug.Stack())
		}
	}()
	refused := false // by a statement, which says nothing about the other leases
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		st, err := prepareLeases(ctx, tx)
		if err != nil {
			return err
		}
		for _, l := range group {
			if l.gone.Load() {
				continue
			}
			switch err := l.grant(ctx, st); {
			case errors.Is(err, kms.ErrNotFound):
				l.err = err
			case err != nil:
				refused = true
				return err
			}
		}
		return nil
	})
	if !refused || len(group) == 1 {
		return err
	}
	// A damaged row, perhaps. Each alone, so that it fails none but its own.
	for _, l := range group {
		if err := s.grant(ctx, []*lease{l}); l.err == nil {
			l.err = err
		}
	}
	return nil
}

// leaseStatements are prepared once for all leases of a transaction: that is half
// of what a lease in a large group costs.
type leaseStatements struct{ count, raise *sql.Stmt }

func prepareLeases(ctx context.Context, tx *sql.Tx) (st leaseStatements, err error) {
	if st.count, err = tx.PrepareContext(ctx, sealCountQuery); err != nil {
		return st, err
	}
	st.raise, err = tx.PrepareContext(ctx, `INSERT INTO seal_counts (ref, key_id, count) VALUES (?, ?, ?)
		ON CONFLICT (ref) DO UPDATE SET key_id = excluded.key_id, count = excluded.count`)
	return st, err // the transaction closes its statements when it ends
}

// grant reads the count and raises it.
func (l *lease) grant(ctx context.Context, st leaseStatements) error {
	key, count, err := scanSealCount(st.count.QueryRowContext(ctx, l.ref.String()))
	if err != nil {
		return err
	}
	l.start, l.granted = uint64(count), 0
	if l.start < l.limit {
		l.granted = min(l.n, l.limit-l.start)
	}
	if l.granted == 0 {
		return nil
	}
	_, err = st.raise.ExecContext(ctx, l.ref.String(), key, int64(l.start+l.granted))
	return err
}
