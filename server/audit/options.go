package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// Class says whether a record may use the reserve.
type Class uint8

const (
	// Normal records are refused with ErrFull when only the reserve is left.
	Normal Class = iota
	// Protected records may use the reserve: refusals, DisableKey,
	// ScheduleKeyDeletion and whatever else must stay possible on a full disk.
	Protected
)

// Durability says what has happened to a record when Append returns.
type Durability uint8

const (
	// DefaultDurability is what Options.Durability says.
	DefaultDurability Durability = iota
	// Synced records are on the disk: they survive a loss of power.
	Synced
	// Written records are with the operating system: they survive the end of this
	// process but not a loss of power within Options.SyncInterval. They also
	// survive a failed sync: the journal keeps them and writes them again.
	Written
)

// String returns the name used in configuration: "synced" or "written".
func (d Durability) String() string {
	switch d {
	case Synced:
		return "synced"
	case Written:
		return "written"
	default:
		return "default"
	}
}

// ParseDurability reads "synced" or "written".
func ParseDurability(s string) (Durability, error) {
	switch s {
	case "synced":
		return Synced, nil
	case "written":
		return Written, nil
	}
	return DefaultDurability, fmt.Errorf("audit durability %q is neither synced nor written", s)
}

// Commit is what the observer learns of one commit.
type Commit struct {
	Records int           // records in it, 0 for a sync of Written records
	Bytes   int           // their size in the file
	Synced  bool          // the commit included a sync
	Elapsed time.Duration // time in the operating system: write and sync
	Err     error         // nil, or why it failed
}

// Options configures a Journal. The zero value is usable: every zero field means
// its default.
type Options struct {
	// Create makes a new journal where there is none. Without it Open then fails
	// with ErrNoJournal, so that a mistyped or unmounted path is not taken for an
	// empty journal.
	Create bool

	// SegmentBytes is the size of a segment, preallocated. Default 64 MiB, at least
	// 64 KiB, a multiple of 4096.
	SegmentBytes int64

	// ReserveBytes at the end of the last segment are kept for Protected records
	// when the disk is full. Default 1/16 of SegmentBytes, at most half of it.
	ReserveBytes int64

	// MaxRecordBytes is the largest payload. Default 256 KiB or, if smaller, what
	// fits in a segment beside the reserve; at most 16 MiB.
	MaxRecordBytes int

	// MaxBatch is the most records in one call, and in one commit. Default 1024.
	MaxBatch int

	// Durability is what DefaultDurability means. Default Synced.
	Durability Durability

	// SyncInterval is the longest that a Written record waits for the disk.
	// Default 1 s.
	SyncInterval time.Duration

	// RetryInterval is the pause between attempts to recover, and to preallocate.
	// Default 1 s.
	RetryInterval time.Duration

	// CheckInterval is how often the journal looks whether its directory and files
	// are still where they were. Default 500 ms.
	CheckInterval time.Duration

	// StallTimeout is how long a write or sync may take before waiting appends fail
	// and the journal reports itself unhealthy. Default 10 s.
	StallTimeout time.Duration

	// Logger receives recoveries and failures. Default: discarded.
	Logger *slog.Logger

	// Observer is called after each commit, in order, by the committing goroutine:
	// it must not block and must not call the Journal. Optional.
	Observer func(Commit)

	// Now stamps records and segments. Default time.Now.
	Now func() time.Time

	// Rand gives journal and event ids. Default crypto/rand.
	Rand io.Reader

	fs fileSystem // tests inject faults here
}

const (
	defaultSegmentBytes   = 64 << 20
	minSegmentBytes       = 64 << 10
	defaultMaxRecordBytes = 256 << 10
	defaultMaxBatch       = 1024

	// maxCommitBytes bounds the buffer of one commit, unless a single call is larger.
	maxCommitBytes = 4 << 20
	// maxUnsyncedBytes bounds what Written records keep in memory between syncs.
	maxUnsyncedBytes = 4 << 20
)

func orDefault[T ~int | ~int64 | ~uint8](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

func (o Options) withDefaults() (Options, error) {
	orDefault(&o.SegmentBytes, defaultSegmentBytes)
	orDefault(&o.ReserveBytes, o.SegmentBytes/16)
	orDefault(&o.MaxBatch, defaultMaxBatch)
	orDefault(&o.Durability, Synced)
	orDefault(&o.SyncInterval, time.Second)
	orDefault(&o.RetryInterval, time.Second)
	orDefault(&o.CheckInterval, 500*time.Millisecond)
	orDefault(&o.StallTimeout, 10*time.Second)
	// One record must fit in a fresh segment beside the reserve.
	room := o.SegmentBytes - segmentHeaderBytes - o.ReserveBytes - int64(recordSize(0)+recordAlign)
	orDefault(&o.MaxRecordBytes, int(max(1, min(defaultMaxRecordBytes, room))))
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.fs == nil {
		o.fs = osFS{}
	}
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("audit: "+format, args...))
		}
	}
	check(o.SegmentBytes >= minSegmentBytes && o.SegmentBytes%4096 == 0,
		"segment size %d is not a multiple of 4096 of at least %d", o.SegmentBytes, minSegmentBytes)
	check(o.ReserveBytes > 0 && o.ReserveBytes <= o.SegmentBytes/2,
		"reserve of %d bytes is not between 1 and half of the segment size %d", o.ReserveBytes, o.SegmentBytes)
	check(o.MaxRecordBytes > 0 && o.MaxRecordBytes <= maxPayloadBytes && int64(o.MaxRecordBytes) <= max(room, 1),
		"record limit of %d bytes is not between 1 and %d (segment less header and reserve)",
		o.MaxRecordBytes, min(maxPayloadBytes, room))
	check(o.MaxBatch > 0, "batch limit %d is negative", o.MaxBatch)
	check(o.Durability == Synced || o.Durability == Written, "durability %d is unknown", o.Durability)
	check(o.SyncInterval > 0 && o.RetryInterval > 0 && o.CheckInterval > 0 && o.StallTimeout > 0,
		"intervals must be positive")
	return o, errors.Join(errs...)
}
