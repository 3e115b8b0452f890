package door

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// SparingLog keeps a flood of one kind of line from becoming a flood of the log.
// Each kind has its own, so that strangers who are refused cannot keep the
// service's own faults out of the log. It may be used concurrently.
type SparingLog struct {
	log   *slog.Logger
	limit *rate.Limiter
	// leftOut counts lines since the last one that was logged.
	leftOut atomic.Int64
}

// NewSparingLog allows ten lines a second, and 50 at once.
func NewSparingLog(log *slog.Logger) *SparingLog {
	return &SparingLog{log: log, limit: rate.NewLimiter(10, 50)}
}

// Warn logs unless there was too much of it, and says how many lines it left out.
func (s *SparingLog) Warn(ctx context.Context, msg string, args ...any) {
	if !s.limit.AllowN(time.Now(), 1) {
		s.leftOut.Add(1)
		return
	}
	if n := s.leftOut.Swap(0); n > 0 {
		args = append(args, "lines_left_out", n)
	}
	s.log.WarnContext(ctx, msg, args...) //nolint:sloglint // a constant at every caller
}
