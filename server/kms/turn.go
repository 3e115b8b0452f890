package kms

import (
	"context"
	"fmt"
)

// turn is for one at a time. A channel and no mutex: who waits for it obeys its
// deadline even while the database hangs.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits until nobody has the turn, until ctx ends. Who took it calls release.
func (t turn) take(ctx context.Context) (release func(), err error) {
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// takeTurn waits until no other change of the record is under way, until ctx ends.
func (e *entry) takeTurn(ctx context.Context) (release func(), err error) {
	e.mu.Lock()
	if e.writes == nil {
		e.writes = newTurn() // most keys are never changed
	}
	t := e.writes
	e.mu.Unlock()
	release, err = t.take(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait to change %s: %w", e.arn, err)
	}
	return release, nil
}

// takeAliasTurn waits until no other change of an alias is under way, until ctx
// ends.
func (s *Service) takeAliasTurn(ctx context.Context) (release func(), err error) {
	release, err = s.aliasWrites.take(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait to change aliases: %w", err)
	}
	return release, nil
}
