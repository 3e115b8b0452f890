package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// FileName is the database's name in its data folder.
const FileName = fileName

// CopyTo writes the database, as of one moment, to a new data folder dir that
// holds nothing else. The folder must exist, with mode 0700. What was copied is
// on the disk when it returns nil; after an error there is no copy.
//
// It works while another process has the store open, and does not hinder it: a
// reader of a write-ahead log blocks no writer. VACUUM INTO is one read
// transaction. SQLite's online backup would begin anew with each write of the
// other process, and carries over free pages, with what was deleted in them.
func (r *Reader) CopyTo(ctx context.Context, dir string) (err error) {
	leave, err := r.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	path := filepath.Join(dir, fileName)
	if err := checkFolder(dir); err != nil {
		return fmt.Errorf("copy store: %w", err)
	}
	// SQLite writes to an empty file, and would make one with the umask's mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return fmt.Errorf("copy store: %w", explainErrno(path, err))
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(fmt.Errorf("copy store: %w", ctxError(ctx, explain(path, err))), removeDatabase(path))
		}
	}()
	if err := vacuumInto(ctx, r.path, path); err != nil {
		return err
	}
	// VACUUM INTO does not sync what it writes.
	if err := f.Sync(); err != nil {
		return err
	}
	return syncFolder(dir)
}

// vacuumInto uses a connection of its own: those of the pool may not write, not
// even elsewhere.
func vacuumInto(ctx context.Context, from, to string) error {
	db := sql.OpenDB(connector{dsn(from, "mode=ro", readBusy)})
	defer db.Close()
	_, err := db.ExecContext(ctx, "VACUUM INTO ?", to)
	return err
}

// RaiseSeals counts n sealing operations for every version of every AES key, up to
// limit, as LeaseSeals does for one, and returns how many versions there are. A store
// that is restored from a copy does not know how many were leased since.
func (s *Store) RaiseSeals(ctx context.Context, n, limit uint64) (versions int, err error) {
	limit = min(limit, math.MaxInt64)
	err = s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		// No overflow: counts are not negative, and min keeps the sum below limit.
		res, err := tx.ExecContext(ctx, `INSERT INTO seal_counts (ref, key_id, count)
			SELECT v.ref, v.key_id, max(coalesce(c.count, 0), min(?2, coalesce(c.count, 0) + min(?1, ?2)))
			FROM key_versions v LEFT JOIN seal_counts c ON c.ref = v.ref WHERE v.locator_spec = ?3
			ON CONFLICT (ref) DO UPDATE SET count = excluded.count`,
			int64(min(n, limit)), int64(limit), keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT.String())
		if err != nil {
			return err
		}
		rows, err := res.RowsAffected()
		versions = int(rows)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("raise seal counts: %w", err)
	}
	return versions, nil
}
