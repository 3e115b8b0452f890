package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server/adminapi"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// Initialise makes what a new installation needs and `serve` never makes by
// itself: the database, the audit log, the canary key in every token, and the
// seal key in the home token. It may be repeated after it failed, and on an older
// installation; what exists is left as it is. It reports what it did, a line each.
func Initialise(ctx context.Context, cfg *Config, opts Options) (done []string, err error) {
	if done, err = InitialiseData(ctx, cfg, opts); err != nil {
		return done, err
	}
	s := &Server{cfg: cfg, log: opts.Logger, opts: opts, metrics: adminapi.NewMetrics(), tokens: make(map[string]*hsm.Token)}
	defer s.Close(ctx)
	// A token without its canary key says that it is not ready and that this
	// command helps. What is really wrong is returned.
	if err := s.openTokens(slog.New(slog.DiscardHandler)); err != nil {
		return done, err
	}
	canaries, err := s.EnsureCanaries(ctx)
	done = append(done, canaries...)
	if err != nil {
		return done, err
	}
	seal, err := s.EnsureSealKey(ctx)
	if err != nil {
		return done, err
	}
	return append(done, seal), nil
}

// InitialiseData is Initialise without the tokens: opening one that holds
// thousands of keys takes seconds, and on SoftHSM memory that it does not give
// back. Who goes on with New calls Server.EnsureCanaries and
// Server.EnsureSealKey then.
func InitialiseData(ctx context.Context, cfg *Config, opts Options) (done []string, err error) {
	if err := CheckRestored(cfg); err != nil {
		return nil, err
	}
	store, err := sqlite.Create(ctx, cfg.DataDir, sqlite.Options{Logger: opts.Logger, Program: "keyholdd " + opts.Version})
	switch {
	case err == nil:
		done = append(done, fmt.Sprintf("made the database of installation %s in %s", store.Instance(), cfg.DataDir))
		if err := store.Close(); err != nil {
			return done, err
		}
	case errors.Is(err, os.ErrExist):
		done = append(done, "database exists in "+cfg.DataDir)
	default:
		return done, err
	}
	journal, err := openJournal(cfg, opts.Logger, adminapi.NewMetrics(), false)
	if errors.Is(err, audit.ErrNoJournal) {
		journal, err = openJournal(cfg, opts.Logger, adminapi.NewMetrics(), true)
		done = append(done, "made the audit log in "+cfg.Audit.Dir)
	}
	if err != nil {
		return done, err
	}
	return done, journal.Close(ctx)
}

// EnsureCanaries makes the canary key in every token that has none, and
// reports what it did, a line each.
func (s *Server) EnsureCanaries(ctx context.Context) (done []string, err error) {
	for name, t := range s.tokens {
		created, err := t.EnsureCanary(ctx)
		if err != nil {
			return done, fmt.Errorf("token %s: %w", name, errors.Join(err, t.Ready()))
		}
		if created {
			done = append(done, "made the canary key in the token "+name)
		} else {
			done = append(done, "canary key exists in the token "+name)
		}
	}
	return done, nil
}
