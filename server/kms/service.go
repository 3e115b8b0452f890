package kms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"golang.org/x/time/rate"

	"github.com/keyhold/keyhold/proto/awsjson"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms/keypair"
)

// Journal is what the core needs of the audit log.
type Journal interface {
	// Append returns when all payloads are durable as asked, else an error;
	// then none of them counts as recorded.
	Append(ctx context.Context, class audit.Class, durability audit.Durability, payloads ...[]byte) (uint64, error)
	// Healthy returns nil, or why appends fail now.
	Healthy() error
}

// Limits bound what one account or all callers together may have. Zero means
// the default.
type Limits struct {
	// KeysPerAccount bounds an account's keys in a region. Default 100,000.
	KeysPerAccount int
	// AliasesPerKey bounds a key's aliases. Default 50.
	AliasesPerKey int
	// InFlight bounds the requests that are under way: a batch is one, and each of
	// its items is one more while it is checked. Default 4,096.
	InFlight int
	// DataPerSecond and ControlPerSecond bound an account's requests to a
	// plane, with bursts of as many. Default 0: unlimited.
	DataPerSecond, ControlPerSecond int
	// AccessKeysPerPrincipal bounds a principal's access keys, active or not.
	// Default 2, as AWS has it: one is replaced by the other. More is more to lose.
	AccessKeysPerPrincipal int
}

// Config is what a Service is made of. All fields but those that are marked
// are required.
type Config struct {
	Store Store
	// Regions has the default key store of each region that is served.
	Regions map[Region]KeyStore
	Journal Journal
	Logger  *slog.Logger

	// AccessKeys are those of principals. Optional: without them the operations on
	// access keys are not supported.
	AccessKeys *identity.AccessKeys
	// DataDurability is that of data-plane records. Optional: synced. Changes
	// of keys and refusals are always synced.
	DataDurability audit.Durability
	// Limits is optional.
	Limits Limits
	// Observer is told of every request. Optional.
	Observer Observer
	// Now is the clock. Optional.
	Now func() time.Time
	// Rand gives key ids and refs. Optional.
	Rand io.Reader
	// KeyPairs makes data key pairs; the service closes it. Optional: a pool
	// with its defaults.
	KeyPairs *keypair.Pool
	// LeaseSeals is how many encryptions are leased at once. Optional.
	LeaseSeals uint64
	// MaintenanceInterval is the time between two looks for keys that are
	// due for deletion. Optional: one minute.
	MaintenanceInterval time.Duration
	// ClockConfirmed is asked, while irreversible work is held because the
	// clock jumped, whether an operator has confirmed the clock. Optional:
	// never.
	ClockConfirmed func() bool
}

// Service is the core. Make it with New; all methods may be called
// concurrently.
type Service struct {
	store       Store
	regions     map[Region]KeyStore
	journal     Journal
	log         *slog.Logger
	observer    Observer
	now         func() time.Time
	rand        io.Reader
	leaseSeals  uint64
	durability  audit.Durability
	limits      Limits
	maintenance time.Duration
	confirmed   func() bool

	ops       map[string]*operation
	validator protovalidate.Validator
	params    *awsjson.Encoder
	keys      *keyring
	pairs     *keypair.Pool
	// accessKeys is nil where there are none.
	accessKeys *identity.AccessKeys
	sealRate   *sealRate
	throttle   *throttle
	// batchPlaces is by region: a token that hangs must not hold up another's.
	batchPlaces map[Region]*batchPlaces
	// batchFaults bounds what is logged of them.
	batchFaults *rate.Limiter
	orphans     orphanReport
	clock       clockGuard
	started     time.Time
	// refills bounds the leases that are being asked for: while a database hangs,
	// those who asked leave and what they began stays.
	refills chan struct{}

	// aliasWrites serialises changes of aliases, store and memory together.
	aliasWrites turn

	// ctx ends when Close is called; background has what must end before
	// Close returns.
	ctx        context.Context //nolint:containedctx // the life of the service, not of a request
	cancel     context.CancelFunc
	background sync.WaitGroup
}

// New loads all records into memory. It does not touch the key stores.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Journal == nil || cfg.Logger == nil || len(cfg.Regions) == 0 {
		return nil, errors.New("kms: Store, Journal, Logger and Regions must be given")
	}
	ops, err := buildOperations()
	if err != nil {
		return nil, err
	}
	// All rules are compiled here: the first use of a rule costs milliseconds.
	validator, err := protovalidate.New(protovalidate.WithMessages(requestMessages(ops)...), protovalidate.WithDisableLazy())
	if err != nil {
		return nil, fmt.Errorf("compile the proto's constraints: %w", err)
	}
	snapshot, err := cfg.Store.Snapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("load key records: %w", err)
	}
	s := &Service{
		store: cfg.Store, regions: cfg.Regions, journal: cfg.Journal, log: cfg.Logger, observer: cfg.Observer,
		now: cfg.Now, rand: cfg.Rand, leaseSeals: cfg.LeaseSeals, durability: cfg.DataDurability,
		limits: cfg.Limits, maintenance: cfg.MaintenanceInterval, confirmed: cfg.ClockConfirmed,
		ops: ops, validator: validator, keys: newKeyring(snapshot), pairs: cfg.KeyPairs,
		params: awsjson.NewEncoder(awsjson.Options{LowerCamel: true, OmitRedacted: true, OmitBytes: true}),
	}
	s.setDefaults()
	s.throttle = newThrottle(s.limits, s.now)
	s.refills = make(chan struct{}, s.limits.InFlight)
	s.aliasWrites = newTurn()
	s.batchPlaces = make(map[Region]*batchPlaces, len(cfg.Regions))
	for region, ks := range cfg.Regions {
		s.batchPlaces[region] = newBatchPlaces(ks)
	}
	s.batchFaults = rate.NewLimiter(10, 50)
	s.accessKeys, s.sealRate = cfg.AccessKeys, newSealRate()
	s.started = s.now()
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

func (s *Service) setDefaults() {
	orDefault := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	orDefault(&s.limits.KeysPerAccount, 100_000)
	orDefault(&s.limits.AliasesPerKey, 50)
	orDefault(&s.limits.InFlight, 4096)
	orDefault(&s.limits.AccessKeysPerPrincipal, 2)
	if s.now == nil {
		s.now = time.Now
	}
	if s.rand == nil {
		s.rand = rand.Reader
	}
	if s.pairs == nil {
		s.pairs = keypair.NewPool(keypair.Options{})
	}
	if s.leaseSeals == 0 {
		s.leaseSeals = DefaultLeaseSeals
	}
	if s.maintenance == 0 {
		s.maintenance = time.Minute
	}
	if s.confirmed == nil {
		s.confirmed = func() bool { return false }
	}
}

// Close ends background work and waits for it. Requests must have ended.
func (s *Service) Close() {
	s.cancel()
	s.pairs.Close()
	s.background.Wait()
}

// Ready returns nil where requests can be served: the audit log writes and
// the default key store of every region works. Otherwise it says what is
// wrong, for an operator.
func (s *Service) Ready() error {
	var errs []error
	if err := s.journal.Healthy(); err != nil {
		errs = append(errs, fmt.Errorf("audit log: %w", err))
	}
	for region, ks := range s.regions {
		if err := ks.Health(); err != nil {
			errs = append(errs, fmt.Errorf("key store of %s: %w", region, err))
		}
	}
	return errors.Join(errs...)
}

// KeyCounts returns how many keys are in each state, by AWS's names.
func (s *Service) KeyCounts() map[string]int {
	counts := make(map[string]int)
	s.keys.each(func(e *entry) { counts[awsName(e.state(e.rec.Load()))]++ })
	return counts
}

// Operations returns the names of all operations, for completeness tests and
// for metrics that must exist before the first request.
func (s *Service) Operations() []string {
	names := make([]string, 0, len(s.ops))
	for name := range s.ops {
		names = append(names, name)
	}
	return names
}

// powerOf returns what a record's key store can do beyond sealing; what names
// it where the store cannot.
func powerOf[P any](s *Service, r *KeyRecord, what string) (P, error) {
	var none P
	ks, err := s.storeOf(r)
	if err != nil {
		return none, err
	}
	p, ok := ks.(P)
	if !ok {
		return none, fmt.Errorf("%w: %s", ErrUnsupported, what)
	}
	return p, nil
}

// storeOf returns the key store of a record.
func (s *Service) storeOf(r *KeyRecord) (KeyStore, error) {
	ks := s.regions[r.Region]
	if ks == nil || r.KeyStore != "" {
		return nil, fmt.Errorf("%w: key store %q of region %s is not attached", ErrStoreUnavailable, r.KeyStore, r.Region)
	}
	return ks, nil
}
