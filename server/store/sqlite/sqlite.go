// Package sqlite keeps the records of keys, aliases and access keys in one SQLite
// database in a data folder. It is the embedded default of kms.Store and
// identity.AccessKeyStore.
//
// It promises what those document, and to operators:
//
//   - A write that returned nil survives the death of the process and, as far
//     as disk and file system keep their word on fsync, a power failure
//     (journal in WAL mode, synchronous=FULL, and fullfsync on macOS).
//   - One process at a time uses a data folder for writing. A second one is
//     refused with the process id of the first. OpenReadOnly works beside it.
//   - Nothing is made silently: Open wants a database that exists, Create one
//     that does not.
//   - Schemas are brought up to date by numbered steps, each done wholly or not
//     at all. A schema from a newer program is refused and left as it is.
//   - A damaged, foreign or truncated file is refused at Open. A full or failing
//     disk fails the write, harms nothing that was acknowledged, and when there
//     is space again writes go on without a restart.
//   - A database that is moved or removed under the running process is noticed:
//     writes fail, and go on when it is put back.
//   - The database can be read with SQLite's own tools: times are UTC integer
//     microseconds (finer parts are dropped), enums the names of their proto
//     values, refs hexadecimal. A name that this version does not know is
//     refused, never guessed.
//
// It deliberately does not encrypt (the only secrets in a record, those of access
// keys, come sealed by the token), does not detect
// that someone who may write to the folder changed a record or put an older
// copy in place, and does not see that a write-ahead log (keyhold.db-wal) was
// taken away after a crash: the folder's files belong together. It is not for
// network file systems: the log needs shared memory (sqlite.org/wal.html).
package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/keyhold/keyhold/server/kms"
)

// Options are what a Store takes from outside. The zero value is usable.
type Options struct {
	// Logger gets openings and migrations. Optional.
	Logger *slog.Logger
	// Now dates the installation and the steps of its schema. Optional;
	// time.Now.
	Now func() time.Time
	// Rand is where Create takes the instance's id from. Optional;
	// crypto/rand.
	Rand io.Reader
	// Program is the name and version of the running program, such as
	// "keyholdd 1.2.0". It is kept with the schema, for the day when an older
	// program meets it. Optional.
	Program string
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Program == "" {
		o.Program = "keyholdd of unknown version"
	}
	return o
}

// Store is a database that is open for writing. Its process has the data
// folder for itself.
type Store struct {
	*Reader

	writer *sql.DB // one connection, used by who holds turn
	// turn holds one element while a write is under way. Those who wait for
	// it are served in order and obey their ctx.
	turn    chan struct{}
	busyMax time.Duration // writeBusyMax
	lock    *folderLock
	files   []openFile // those whose loss would go unnoticed
	leases  leaseQueue
}

var _ kms.Store = (*Store)(nil)

// Open opens the database in the data folder dir, and brings its schema up to
// date. Errors: fs.ErrNotExist, ErrInUse, ErrExposed, ErrDamaged,
// ErrNewerSchema, ErrNoSpace, ErrReadOnly, each wrapped in a text that names
// the remedy. The caller closes the store.
func Open(ctx context.Context, dir string, o Options) (*Store, error) {
	return open(ctx, dir, o.withDefaults(), embedded)
}

func open(ctx context.Context, dir string, o Options, fsys fs.FS) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := checkFolder(dir); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	// Look before the lock file is made: a folder without a database is left
	// as it is.
	if err := checkFile(filepath.Join(dir, fileName)); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s, err := openLocked(ctx, dir, o, fsys, lock)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), lock.release())
	}
	return s, nil
}

// openLocked opens the database of a folder that is locked. It keeps the lock
// where it returns no error.
func openLocked(ctx context.Context, dir string, o Options, fsys fs.FS, lock *folderLock) (*Store, error) {
	path := filepath.Join(dir, fileName)
	if err := checkFile(path); err != nil {
		return nil, err
	}
	steps, err := migrations(fsys)
	if err != nil {
		return nil, err
	}
	writer := openWriter(path)
	from, err := bringUp(ctx, writer, path, migrator{steps, o.Program, o.Now})
	if err != nil {
		return nil, errors.Join(ctxError(ctx, explain(path, err)), writer.Close())
	}
	r, err := newReader(ctx, path, openReaders(path, ""), len(steps))
	if err != nil {
		return nil, errors.Join(err, writer.Close())
	}
	files, err := openFiles(path)
	if err != nil {
		return nil, errors.Join(err, r.Close(), writer.Close())
	}
	o.Logger.InfoContext(ctx, "store opened", "path", path, "instance", r.instance, "schema", len(steps), "schema_before", from)
	return &Store{Reader: r, writer: writer, turn: make(chan struct{}, 1), busyMax: writeBusyMax, lock: lock, files: files}, nil
}

// Close waits for the operations under way, ends those that wait for their
// turn with ErrClosed, and gives the data folder free. A second call does
// nothing.
func (s *Store) Close() error {
	if !s.gate.shut() {
		return nil
	}
	// The writer last: who closes last folds the log into the database.
	return errors.Join(s.db.Close(), s.writer.Close(), s.lock.release())
}
