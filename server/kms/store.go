package kms

import (
	"context"
	"errors"
	"time"
)

// Errors that a Store answers with. Everything else is an internal fault.
var (
	// ErrConflict: the record is not at the expected revision any more.
	ErrConflict = errors.New("record was changed meanwhile")
	// ErrExists: a record of that name is there already.
	ErrExists = errors.New("record exists")
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("record not found")
	// ErrNotBegun: the write was not begun, since its ctx ended while it waited
	// for its turn, for one. The cause is beside it in the chain.
	ErrNotBegun = errors.New("write was not begun")
)

// Store keeps key and alias records. It is trusted for availability and for
// what a key is called and may be used for, not with secrets: it holds none.
//
// Every write is durable when it returns nil (it survives a power failure),
// and has had no effect when it returns one of the errors above. After any
// other error the effect is unknown until the record is read again. A write waits
// for its turn as long as ctx lets it, and is ErrNotBegun then; once begun it runs
// to its end, whatever becomes of ctx. LeaseSeals may leave earlier.
//
// All methods may be called concurrently.
type Store interface {
	// Instance returns the id of this installation: 8 lower-case hexadecimal
	// digits, chosen at random when the store was made and never changed. It
	// is part of the labels of token objects.
	Instance() string

	// Snapshot returns all records as of one moment.
	Snapshot(ctx context.Context) (*Snapshot, error)

	// Key returns one record, as it is stored now. ErrNotFound.
	Key(ctx context.Context, id KeyID) (*KeyRecord, error)

	// InsertKey adds a record; its Revision must be 0 and is 1 afterwards.
	// ErrExists where the id, or the ref of a version, is taken.
	InsertKey(ctx context.Context, r *KeyRecord) error

	// UpdateKey replaces the record, its tags and its versions, if it stands
	// at r.Revision, and counts r.Revision up. ErrConflict, ErrNotFound.
	UpdateKey(ctx context.Context, r *KeyRecord) error

	// DeleteKey removes the record, its tags, versions, seal counts and the
	// aliases that name it, if it stands at revision. ErrConflict,
	// ErrNotFound.
	DeleteKey(ctx context.Context, id KeyID, revision int64) error

	// InsertAlias adds an alias; its Revision must be 0 and is 1 afterwards.
	// ErrExists where the name is taken in that account and region,
	// ErrNotFound where the key does not exist.
	InsertAlias(ctx context.Context, a *AliasRecord) error

	// UpdateAlias replaces KeyID and Updated if the alias stands at
	// a.Revision, and counts a.Revision up. ErrConflict, ErrNotFound (also
	// where the key does not exist).
	UpdateAlias(ctx context.Context, a *AliasRecord) error

	// DeleteAlias removes the alias if it stands at a.Revision. ErrConflict,
	// ErrNotFound.
	DeleteAlias(ctx context.Context, a *AliasRecord) error

	// LeaseSeals adds n to the count of sealing operations that were given
	// out for the version and returns the count before. The caller may then
	// seal n times; what it does not use is lost, never given out again. The
	// count never exceeds limit: where n would pass it, what is left is given
	// out, possibly nothing. Where it returns an error, that of a ctx that ended
	// for one, the count may have gone up all the same; it never lags behind.
	LeaseSeals(ctx context.Context, ref Ref, n, limit uint64) (start, granted uint64, err error)

	// SealCount returns the count of LeaseSeals.
	SealCount(ctx context.Context, ref Ref) (uint64, error)

	// Tick stores that the clock read now. Irreversible work compares the
	// clock with the last tick.
	Tick(ctx context.Context, now time.Time) error

	// LastTick returns the last stored tick, or the zero time.
	LastTick(ctx context.Context) (time.Time, error)
}

// Snapshot is all that a Store holds, as of one moment.
type Snapshot struct {
	Keys    []*KeyRecord
	Aliases []*AliasRecord
}
