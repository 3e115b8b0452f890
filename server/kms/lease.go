package kms

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// The limit of sealing operations under one AES-GCM key with random 96-bit
// IVs (NIST SP 800-38D, 8.3).
const maxSeals = 1 << 32

// alarmSeals is where an operator is warned, for keys that cannot rotate.
const alarmSeals = 1 << 31

// DefaultLeaseSeals is how many sealing operations one lease allows. A crash
// loses at most two leases: a key survives some 8,000 crashes before 2^32.
const DefaultLeaseSeals = 1 << 18

// refillPause is the time between two refills ahead of need that fail.
const refillPause = time.Second

// sealLease counts the sealing operations of one key version down. It is
// filled in blocks from the store, so that restarts never count anew and the
// store is not asked for each operation.
type sealLease struct {
	ref Ref
	// left is what may be sealed without asking. Never negative.
	left atomic.Int64
	// filling is set while a refill ahead of need is under way.
	filling atomic.Bool
	// notBefore is when a refill ahead of need may be tried again after one that
	// failed, in Unix nanoseconds: not with, and logged for, each encryption.
	notBefore atomic.Int64
	// spent is set once the store has nothing more to give: what is refused
	// then must not cost a write of the database.
	spent atomic.Bool

	// refilling is the turn of who refills.
	refilling turn
}

// takeSeal takes one sealing operation from the version's lease, step 11 of
// every operation that seals. It asks the store when the lease is empty, and
// ahead of that in the background when three quarters are used.
func (s *Service) takeSeal(ctx context.Context, e *entry, v *KeyVersion) error {
	l := e.lease(v.Ref)
	left, ok := l.take()
	if !ok {
		return s.refillAndTake(ctx, e, l)
	}
	if left < int64(s.leaseSeals/4) && !l.spent.Load() && s.now().UnixNano() >= l.notBefore.Load() && l.filling.CompareAndSwap(false, true) {
		s.background.Go(func() {
			defer l.filling.Store(false)
			release, err := l.refilling.take(s.ctx)
			if err != nil {
				return
			}
			defer release()
			if l.spent.Load() {
				return // somebody who had nothing left was here first
			}
			if err := s.refill(s.ctx, e, l); err != nil {
				l.notBefore.Store(s.now().Add(refillPause).UnixNano())
				s.log.WarnContext(s.ctx, "seal lease not renewed ahead of need", "key", e.arn, "err", err)
			}
		})
	}
	return nil
}

// take takes one, if there is one, and returns what is left.
func (l *sealLease) take() (left int64, ok bool) {
	for {
		n := l.left.Load()
		if n == 0 {
			return 0, false
		}
		if l.left.CompareAndSwap(n, n-1) {
			return n - 1, true
		}
	}
}

func (s *Service) refillAndTake(ctx context.Context, e *entry, l *sealLease) error {
	for {
		release, err := l.refilling.take(ctx)
		if err != nil {
			return fmt.Errorf("wait for the lease of %s: %w", e.arn, err)
		}
		// Whoever held the lock before may have refilled; and those who do not
		// need it may have used up what was filled in here.
		if _, ok := l.take(); ok {
			release()
			return nil
		}
		if l.spent.Load() {
			release()
			return errorf(CodeInvalidState, "%s has encrypted 2^32 times, the safe limit of its key material. It still decrypts; create a new key and move its aliases.", e.arn)
		}
		select {
		case s.refills <- struct{}{}:
		case <-ctx.Done():
			release()
			return fmt.Errorf("wait to lease encryptions of %s: %w", e.arn, ctx.Err())
		}
		// Not with the caller's ctx: who leaves while the lease is being written
		// would lose it, and some 16,000 requests with a short deadline the key.
		done := make(chan error, 1)
		s.background.Go(func() {
			defer release()
			defer func() { <-s.refills }()
			done <- s.refill(s.ctx, e, l)
		})
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for the lease of %s: %w", e.arn, ctx.Err())
		}
		if _, ok := l.take(); ok {
			return nil
		}
	}
}

// refill adds a block to the lease, which is locked. It runs in no request that
// would catch a panic.
func (s *Service) refill(ctx context.Context, e *entry, l *sealLease) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic while leasing encryptions of %s: %v\n%s", e.arn, p, debug.Stack())
		}
	}()
	start, granted, err := s.store.LeaseSeals(ctx, l.ref, s.leaseSeals, maxSeals)
	if err != nil {
		return fmt.Errorf("lease encryptions of %s: %w", e.arn, err)
	}
	if end := start + granted; end > alarmSeals {
		s.log.WarnContext(ctx, "key material has encrypted more than 2^31 times; it stops encrypting at 2^32", "key", e.arn, "count", end)
	}
	if granted == 0 {
		l.spent.Store(true)
	}
	l.left.Add(int64(granted))
	return nil
}

func (e *entry) lease(ref Ref) *sealLease {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.leases {
		if l.ref == ref {
			return l
		}
	}
	l := &sealLease{ref: ref, refilling: newTurn()}
	e.leases = append(e.leases, l)
	return l
}
