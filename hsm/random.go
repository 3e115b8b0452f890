package hsm

import (
	"context"
	"fmt"
)

// Random returns n random bytes, 1 to MaxRandomBytes, from the token's generator. They are the token's alone: nothing is mixed in here.
func (t *Token) Random(ctx context.Context, n int) ([]byte, error) {
	if n < 1 || n > MaxRandomBytes {
		return nil, fmt.Errorf("%w: %d random bytes, want 1 to %d", ErrInvalidInput, n, MaxRandomBytes)
	}
	var out handover
	err := t.use(ctx, "Random", func(s *session) error {
		fresh := make([]byte, n)
		if err := s.direct().random(s.h, fresh); err != nil {
			return s.fail("C_GenerateRandom", err)
		}
		out.give(fresh)
		return nil
	})
	return out.take(err)
}
