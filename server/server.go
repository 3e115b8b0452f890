// Package server puts a daemon together from its parts and runs it. It holds
// wiring only: what the parts promise is said in their packages.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server/adminapi"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// Options are what the surroundings lend to a daemon.
type Options struct {
	// Logger gets what operators should know. Required.
	Logger *slog.Logger
	// Version is the program's, for the database's history.
	Version string
	// Serving is called once all doors accept connections, with their
	// addresses. Optional.
	Serving func(Addresses)
	// Seams may change what the core is made of before it is made: a test puts
	// between core and store or journal what ends the process at a chosen step,
	// or another clock. No program sets it. Optional.
	Seams func(*kms.Config)
}

// Addresses are where the doors listen.
type Addresses struct {
	GRPC, Admin string
	// AWS is empty where there is no such door.
	AWS string
}

// Server is a daemon whose parts are open and which serves nothing yet.
type Server struct {
	cfg     *Config
	log     *slog.Logger
	opts    Options
	metrics *adminapi.Metrics

	store   *sqlite.Store
	journal *audit.Journal
	tokens  map[string]*hsm.Token
	// Core is the key service, for commands that work on it without a door.
	Core *kms.Service
	// AccessKeys are those of the principals, for doors whose requests are signed.
	AccessKeys *identity.AccessKeys
	sealKey    *kms.SealKey

	directory *identity.Directory
}

// New opens the parts: database, audit log, tokens, core. A token that cannot
// be used now does not keep the daemon from starting: it is not ready, says
// why, and goes on trying. Close must be called, also after Run.
func New(ctx context.Context, cfg *Config, opts Options) (s *Server, err error) {
	s = &Server{cfg: cfg, log: opts.Logger, opts: opts, metrics: adminapi.NewMetrics(), tokens: make(map[string]*hsm.Token)}
	defer func() {
		if err != nil {
			s.Close(ctx)
		}
	}()
	if s.directory, err = cfg.directory(); err != nil {
		return s, err
	}
	if err = CheckRestored(cfg); err != nil {
		return s, err
	}
	if s.store, err = sqlite.Open(ctx, cfg.DataDir, sqlite.Options{Logger: s.log, Program: "keyholdd " + opts.Version}); err != nil {
		return s, err
	}
	if s.journal, err = openJournal(cfg, s.log, s.metrics, false); err != nil {
		return s, err
	}
	if err = s.openTokens(opts.Logger); err != nil {
		return s, err
	}
	if err = s.openAccessKeys(ctx); err != nil {
		return s, err
	}
	durability, err := audit.ParseDurability(cfg.Audit.Durability)
	if err != nil {
		return s, err
	}
	regions := make(map[kms.Region]kms.KeyStore)
	for _, r := range cfg.Regions {
		regions[kms.Region(r.Name)] = tokenstore.New(s.tokens[r.Token])
	}
	core := kms.Config{
		Store: s.store, Regions: regions, Journal: s.journal, Logger: s.log, DataDurability: durability,
		Limits: kms.Limits(cfg.Limits), Observer: s.metrics, ClockConfirmed: s.clockConfirmed, AccessKeys: s.AccessKeys,
	}
	if opts.Seams != nil {
		opts.Seams(&core)
	}
	if s.Core, err = kms.New(ctx, core); err != nil {
		return s, err
	}
	s.metrics.Watch(s.Core, s.tokens, s.journal)
	return s, nil
}

func openJournal(cfg *Config, log *slog.Logger, m *adminapi.Metrics, create bool) (*audit.Journal, error) {
	return audit.Open(cfg.Audit.Dir, audit.Options{Create: create, SegmentBytes: cfg.Audit.SegmentBytes, Logger: log, Observer: m.Commit})
}

// openTokens opens all tokens, which write to log what happens to them.
func (s *Server) openTokens(log *slog.Logger) error {
	for _, t := range s.cfg.Tokens {
		for name, value := range t.Environment {
			if old, set := os.LookupEnv(name); set && old != value {
				// Without the values: those of the environment may be secret.
				s.log.Warn("the environment says otherwise than the configuration, which holds", "name", name, "token", t.Name)
			}
			if err := os.Setenv(name, value); err != nil {
				return fmt.Errorf("set %s for the token %s: %w", name, t.Name, err)
			}
		}
	}
	for _, t := range s.cfg.Tokens {
		cfg, err := t.HSM()
		if err != nil {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
		cfg.ProbeCache = probeCache{dir: s.cfg.DataDir, log: s.log}
		if s.tokens[t.Name], err = hsm.Open(cfg, hsm.Options{Logger: log, Observer: s.metrics.Token(t.Name)}); err != nil {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
	}
	return nil
}

// WaitReady waits until the core can serve, or ctx ends; then it says what is
// still wrong.
func (s *Server) WaitReady(ctx context.Context) error {
	for name, t := range s.tokens {
		if err := t.WaitReady(ctx); err != nil {
			return fmt.Errorf("token %s: %w", name, errors.Join(t.Ready(), err))
		}
	}
	return s.Core.Ready()
}

// Reload reads PINs again where a token waits for one. Certificates are read
// again by themselves.
func (s *Server) Reload() {
	for _, t := range s.tokens {
		t.Reload()
	}
}

// closeTimeout bounds the closing of tokens and log.
const closeTimeout = 10 * time.Second

// Close closes what New opened.
func (s *Server) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if s.Core != nil {
		s.Core.Close()
	}
	if s.AccessKeys != nil {
		s.AccessKeys.Flush(ctx)
	}
	for name, t := range s.tokens {
		if t == nil {
			continue
		}
		if err := t.Close(ctx); err != nil {
			s.log.WarnContext(ctx, "token not closed cleanly", "token", name, "err", err)
		}
	}
	if s.journal != nil {
		if err := s.journal.Close(ctx); err != nil {
			s.log.ErrorContext(ctx, "audit log not closed cleanly", "err", err)
		}
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.ErrorContext(ctx, "database not closed cleanly", "err", err)
		}
	}
}
