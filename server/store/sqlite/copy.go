package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
