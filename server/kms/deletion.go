package kms

import (
	"context"
	"errors"
	"fmt"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// Run does what is due by time rather than by request: it reconciles records
// with the token once both can be read, carries out deletions and keeps the
// clock's tick. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) {
	ticker := time.NewTicker(s.maintenance)
	defer ticker.Stop()
	compared, whole := false, false
	for {
		if !whole {
			compared, whole = s.tryReconcile(ctx)
		}
		s.Maintain(ctx)
		// Until the first comparison look more often: the token may still be
		// waking up.
		var soon <-chan time.Time
		if !compared {
			soon = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-soon:
		}
	}
}

// Maintain does one round of timed work: the clock's tick, then deletions
// that are due, unless the clock is in doubt.
func (s *Service) Maintain(ctx context.Context) {
	now := s.now()
	if err := s.checkClock(ctx, now); err != nil {
		return // logged by it
	}
	s.keys.each(func(e *entry) {
		if !e.rec.Load().due(now) || ctx.Err() != nil {
			return
		}
		if err := s.deleteKey(ctx, e, now); err != nil {
			s.log.ErrorContext(ctx, "key that is due was not deleted, it will be tried again", "key", e.arn, "err", err)
		}
	})
}

// due reports whether the waiting period of a key is over.
func (r *KeyRecord) due(now time.Time) bool {
	return r.State == keyholdv1.KeyState_KEY_STATE_PENDING_DELETION && !r.DeletionDate.After(now)
}

// deleteKey destroys a key whose waiting period is over: mark it in the store
// so that there is no way back, destroy the material, remove the record. Each
// step may be repeated after a crash.
func (s *Service) deleteKey(ctx context.Context, e *entry, now time.Time) error {
	release, err := e.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	r := e.rec.Load()
	// The date too: it may have been cancelled and scheduled anew meanwhile.
	if e.removed || !r.due(now) {
		return nil
	}
	// Each attempt is recorded; while the token is away there is none.
	ks, err := s.storeOf(r)
	if err != nil {
		return err
	}
	if err := ks.Health(); err != nil {
		return err
	}
	gen, ok := ks.(Generator)
	if !ok {
		return fmt.Errorf("%w: key destruction", ErrUnsupported)
	}
	if err := s.recordOwn(ctx, "DeleteKey", e.arn, r.Account, r.Region, audit.PhaseIntent, nil); err != nil {
		return fmt.Errorf("%w: %w", errNoRecord, err)
	}
	err = s.destroy(ctx, gen, e)
	if auditErr := s.recordOwn(context.WithoutCancel(ctx), "DeleteKey", e.arn, r.Account, r.Region, audit.PhaseOutcome, err); auditErr != nil {
		return errors.Join(err, fmt.Errorf("outcome not recorded: %w", auditErr))
	}
	return err
}

func (s *Service) destroy(ctx context.Context, gen Generator, e *entry) error {
	next := e.rec.Load().Clone()
	if !next.Destroying {
		next.Destroying = true
		err := s.store.UpdateKey(ctx, next)
		switch {
		case errors.Is(err, ErrNotBegun):
			return fmt.Errorf("mark as being deleted: %w", err)
		case err != nil:
			_, readErr := s.reread(ctx, next.ID)
			return fmt.Errorf("mark as being deleted: %w", errors.Join(err, readErr))
		}
		s.keys.put(next)
	}
	for i := range next.Versions {
		if err := gen.Destroy(ctx, next.Versions[i].Locator); err != nil && !errors.Is(err, ErrKeyMissing) {
			return fmt.Errorf("destroy the material: %w", err)
		}
	}
	// The material is gone; its record follows even when the caller does.
	if err := s.store.DeleteKey(context.WithoutCancel(ctx), next.ID, next.Revision); err != nil && !errors.Is(err, ErrNotFound) {
		fresh, readErr := s.reread(ctx, next.ID)
		if fresh != nil || readErr != nil {
			return fmt.Errorf("remove the record: %w", errors.Join(err, readErr))
		}
		// It is gone after all.
	}
	e.removed = true
	s.keys.remove(next)
	s.log.InfoContext(ctx, "key deleted", "key", e.arn)
	return nil
}

// reread brings what the store holds now into memory: after a failed write its
// effect is not known, and after a conflict the next attempt must start from
// what is there. It returns what there is, nil where the record is gone. Also where
// ctx has ended: its end must not leave memory behind the store. The caller has the
// entry's turn.
func (s *Service) reread(ctx context.Context, id KeyID) (fresh *KeyRecord, err error) {
	fresh, err = s.store.Key(context.WithoutCancel(ctx), id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the record again: %w", err)
	}
	s.keys.put(fresh)
	return fresh, nil
}

// recordOwn records what the service does by itself, with what more is to be said
// of it.
func (s *Service) recordOwn(ctx context.Context, name, arn string, account AccountID, region Region, phase audit.Phase, failure error, facts ...audit.Member) error {
	e := &audit.Event{
		UserIdentity: audit.UserIdentity{Type: "AWSService", InvokedBy: ownName}, EventTime: s.now(), EventName: name,
		AWSRegion: string(region), SourceIPAddress: ownName, UserAgent: ownName, Phase: phase, EventID: newEventID(),
		EventType: audit.TypeService, RecipientAccountID: string(account),
		Resources: []audit.Resource{{ARN: arn, AccountID: string(account)}}, Additional: facts,
	}
	if failure != nil {
		e.ErrorCode, e.ErrorMessage = string(CodeInternal), internalMessage
	}
	// What is about to be done can wait for space; what was done cannot.
	class := audit.Protected
	if phase == audit.PhaseIntent {
		class = audit.Normal
	}
	_, err := s.journal.Append(ctx, class, audit.Synced, e.AppendJSON(nil))
	return err
}

// ownName is who did what nobody asked for.
const ownName = "keyhold"
