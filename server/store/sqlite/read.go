package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhold/keyhold/server/kms"
)

// Reader reads a database. A Store has one; alone it comes from OpenReadOnly.
// All methods may be called concurrently.
type Reader struct {
	db       *sql.DB
	path     string
	instance string
	schema   int
	gate     *gate
}

// OpenReadOnly opens the database in the data folder dir for looking at it. It
// takes no lock and works while another process has the store open; it sees
// what that has committed. It changes no record and no schema, but SQLite may
// leave empty companion files. Errors are those of Open and ErrOlderSchema.
// The caller closes the reader.
func OpenReadOnly(ctx context.Context, dir string, o Options) (*Reader, error) {
	r, err := openReadOnly(ctx, dir, embedded)
	if err != nil {
		return nil, fmt.Errorf("open store read-only: %w", err)
	}
	o.withDefaults().Logger.DebugContext(ctx, "store opened read-only", "path", r.path, "instance", r.instance)
	return r, nil
}

func openReadOnly(ctx context.Context, dir string, fsys fs.FS) (*Reader, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := checkFolder(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fileName)
	if err := checkFile(path); err != nil {
		return nil, err
	}
	steps, err := migrations(fsys)
	if err != nil {
		return nil, err
	}
	params := ""
	// SQLite wants to make companion files. On a read-only file system nobody
	// can be writing, and it may do without them, unless there is a log.
	if errors.Is(unix.Access(dir, unix.W_OK), unix.EROFS) {
		if wal, err := os.Lstat(path + "-wal"); err == nil && wal.Size() > 0 {
			return nil, readOnly(path, errors.New("the log of a crashed process must be played in first"))
		}
		params = "&immutable=1"
	}
	return newReader(ctx, path, openReaders(path, params), len(steps))
}

// newReader takes over db, also where it returns an error.
func newReader(ctx context.Context, path string, db *sql.DB, latest int) (*Reader, error) {
	r := &Reader{db: db, path: path, gate: newGate()}
	err := r.view(ctx, func(q queryer) (err error) {
		if r.schema, err = schemaVersion(ctx, q, path, latest); err != nil {
			return err
		}
		if r.schema < latest {
			return fmt.Errorf("database %q is %w: schema %d, this program wants %d; hint: start keyholdd of this version once, it migrates", path, ErrOlderSchema, r.schema, latest)
		}
		return q.QueryRowContext(ctx, "SELECT instance FROM installation").Scan(&r.instance)
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = noInstallation(path)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return r, nil
}

// Close waits for the operations under way. A second call does nothing.
func (r *Reader) Close() error {
	if !r.gate.shut() {
		return nil
	}
	return r.db.Close()
}

// Instance implements kms.Store.
func (r *Reader) Instance() string { return r.instance }

// Schema returns the version of the database's schema.
func (r *Reader) Schema() int { return r.schema }

// Path returns the path of the database file.
func (r *Reader) Path() string { return r.path }

// view runs fn in a transaction that sees the database as of one moment.
func (r *Reader) view(ctx context.Context, fn func(q queryer) error) error {
	leave, err := r.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := ctx.Err(); err != nil {
		return err
	}
	tx, err := r.db.BeginTx(ctx, nil)
	if err == nil {
		defer tx.Rollback() // it has nothing to commit
		err = fn(tx)
	}
	return ctxError(ctx, explain(r.path, err))
}

// ctxError returns ctx's error in place of err where ctx has ended: an
// interruption comes to light in several ways.
func ctxError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Snapshot implements kms.Store. Keys are in the order of their ids, aliases
// in that of account, region and name.
func (r *Reader) Snapshot(ctx context.Context) (*kms.Snapshot, error) {
	var snap kms.Snapshot
	err := r.view(ctx, func(q queryer) (err error) {
		if snap.Keys, err = r.loadKeys(ctx, q, nil); err != nil {
			return err
		}
		snap.Aliases, err = loadAliases(ctx, q)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read all records: %w", err)
	}
	return &snap, nil
}

// Key implements kms.Store.
func (r *Reader) Key(ctx context.Context, id kms.KeyID) (*kms.KeyRecord, error) {
	var keys []*kms.KeyRecord
	err := r.view(ctx, func(q queryer) (err error) {
		keys, err = r.loadKeys(ctx, q, &id)
		return err
	})
	if err == nil && len(keys) == 0 {
		err = kms.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", id, err)
	}
	return keys[0], nil
}

// SealCount implements kms.Store. ErrNotFound where no key has the version.
func (r *Reader) SealCount(ctx context.Context, ref kms.Ref) (uint64, error) {
	var count int64
	err := r.view(ctx, func(q queryer) (err error) {
		_, count, err = scanSealCount(q.QueryRowContext(ctx, sealCountQuery, ref.String()))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read seal count of %s: %w", ref, err)
	}
	return uint64(count), nil
}

// sealCountQuery selects the key of a version and how many seals were leased.
const sealCountQuery = `SELECT v.key_id, coalesce(c.count, 0)
	FROM key_versions v LEFT JOIN seal_counts c ON c.ref = v.ref WHERE v.ref = ?`

// scanSealCount reads the answer of sealCountQuery.
func scanSealCount(row *sql.Row) (key string, count int64, err error) {
	err = row.Scan(&key, &count)
	if errors.Is(err, sql.ErrNoRows) {
		err = kms.ErrNotFound
	}
	return key, count, err
}

// LastTick implements kms.Store.
func (r *Reader) LastTick(ctx context.Context) (time.Time, error) {
	var us sql.NullInt64
	err := r.view(ctx, func(q queryer) error {
		return q.QueryRowContext(ctx, "SELECT last_tick_us FROM installation").Scan(&us)
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = noInstallation(r.path)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read last tick: %w", err)
	}
	if !us.Valid {
		return time.Time{}, nil
	}
	return fromMicros(us.Int64), nil
}

// Check reads the whole database: SQLite's integrity check, all references
// between tables, and every record. It returns ErrDamaged and what was found.
// It takes as long as reading the file, and does not hinder writers.
func (r *Reader) Check(ctx context.Context) error {
	err := r.view(ctx, func(q queryer) error {
		if err := pragmaCheck(ctx, q, r.path, "PRAGMA integrity_check(10)"); err != nil {
			return err
		}
		if err := checkReferences(ctx, q); err != nil {
			return damaged(r.path, err)
		}
		if _, err := r.loadKeys(ctx, q, nil); err != nil {
			return err
		}
		if _, err := loadAliases(ctx, q); err != nil {
			return err
		}
		_, err := r.loadAccessKeys(ctx, q, "")
		return err
	})
	if err != nil {
		return fmt.Errorf("check store: %w", err)
	}
	return nil
}

// pragmaCheck runs one of SQLite's checks, which answers "ok" or with what is
// wrong, one finding a row.
func pragmaCheck(ctx context.Context, q queryer, path, pragma string) error {
	rows, err := q.QueryContext(ctx, pragma)
	if err != nil {
		return err
	}
	defer rows.Close()
	var findings []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return err
		}
		findings = append(findings, s)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(findings) != 1 || findings[0] != "ok" {
		return damaged(path, errors.New(strings.Join(findings, "; ")))
	}
	return nil
}
