package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/keyhold/keyhold/server/kms"
)

// change runs fn in the one write transaction that there is at a time, and
// commits. It waits for its turn as long as ctx lets it, and is notBegun then; once
// begun it runs to its end, so that a ctx that ends never leaves the outcome unknown.
//
// A write that failed is not there afterwards, with one exception: where the
// disk failed while it synced, and the process is killed before another write
// came through, the failed one may be there after the restart.
func (s *Store) change(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	leave, err := s.gate.enter()
	if err != nil {
		return notBegun{err}
	}
	defer leave()
	release, err := s.takeTurn(ctx)
	if err != nil {
		return notBegun{err}
	}
	defer release()
	return s.write(ctx, fn)
}

// takeTurn waits until no other write is under way, and keeps others from
// beginning until release is called. It ends with ErrClosed where the store is
// being closed.
func (s *Store) takeTurn(ctx context.Context) (release func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.gate.closing:
		return nil, ErrClosed
	}
}

// write is what change does once it is the caller's turn.
func (s *Store) write(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return notBegun{err}
	}
	defer tx.Rollback() // after Commit it does nothing
	if err := unmoved(s.files); err != nil {
		return err
	}
	if err := fn(context.WithoutCancel(ctx), tx); err != nil {
		return explain(s.path, err)
	}
	if err := tx.Commit(); err != nil {
		return explain(s.path, err)
	}
	// Again, so that nothing is acknowledged that went nowhere.
	return unmoved(s.files)
}

// begin starts a transaction with SQLite's write lock, which only a foreign
// program can hold: an operator's shell, a backup.
func (s *Store) begin(ctx context.Context) (*sql.Tx, error) {
	start := time.Now() // bounds the waiting; decides nothing else
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		tx, err := s.writer.BeginTx(context.WithoutCancel(ctx), nil)
		if err == nil {
			return tx, nil
		}
		if !busy(err) || time.Since(start) > s.busyMax {
			return nil, explain(s.path, err)
		}
	}
}

// InsertKey implements kms.Store.
func (s *Store) InsertKey(ctx context.Context, r *kms.KeyRecord) error {
	err := s.insertKey(ctx, r)
	if err != nil {
		return fmt.Errorf("insert key %s: %w", r.ID, err)
	}
	r.Revision = 1
	return nil
}

func (s *Store) insertKey(ctx context.Context, r *kms.KeyRecord) error {
	names, err := checkNewKey(r)
	if err != nil {
		return err
	}
	return s.change(ctx, func(ctx context.Context, tx *sql.Tx) error { return insertKeyRows(ctx, tx, r, names) })
}

// checkNewKey returns the names of a record that may be inserted.
func checkNewKey(r *kms.KeyRecord) (keyNames, error) {
	if r.Revision != 0 {
		return keyNames{}, fmt.Errorf("a new record is at revision 0, not %d", r.Revision)
	}
	return checkedNames(r)
}

// insertKeyRows inserts a record with its parts.
func insertKeyRows(ctx context.Context, tx *sql.Tx, r *kms.KeyRecord, names keyNames) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO keys (account, region, key_store, spec, usage, state, description,
		created_us, deletion_us, pending_window_days, destroying, revision, id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)`,
		append(keyValues(r, names), string(r.ID))...)
	if constraint(err, sqlite3.ErrConstraintPrimaryKey) {
		return kms.ErrExists
	}
	if err != nil {
		return err
	}
	return insertParts(ctx, tx, r)
}

// UpdateKey implements kms.Store. ErrExists where the ref of a version is taken
// by another key. Seal counts stay, also those of versions that go.
func (s *Store) UpdateKey(ctx context.Context, r *kms.KeyRecord) error {
	if err := s.updateKey(ctx, r); err != nil {
		return fmt.Errorf("update key %s: %w", r.ID, err)
	}
	r.Revision++
	return nil
}

func (s *Store) updateKey(ctx context.Context, r *kms.KeyRecord) error {
	names, err := checkedNames(r)
	if err != nil {
		return err
	}
	return s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE keys SET account = ?, region = ?, key_store = ?, spec = ?, usage = ?, state = ?,
			description = ?, created_us = ?, deletion_us = ?, pending_window_days = ?, destroying = ?, revision = revision + 1
			WHERE id = ? AND revision = ?`, append(keyValues(r, names), string(r.ID), r.Revision)...)
		if err := swapped(ctx, tx, res, err, "SELECT count(*) FROM keys WHERE id = ?", string(r.ID)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM tags WHERE key_id = ?", string(r.ID)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM key_versions WHERE key_id = ?", string(r.ID)); err != nil {
			return err
		}
		return insertParts(ctx, tx, r)
	})
}

// DeleteKey implements kms.Store. The tables' references take the rest away.
func (s *Store) DeleteKey(ctx context.Context, id kms.KeyID, revision int64) error {
	err := s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "DELETE FROM keys WHERE id = ? AND revision = ?", string(id), revision)
		return swapped(ctx, tx, res, err, "SELECT count(*) FROM keys WHERE id = ?", string(id))
	})
	if err != nil {
		return fmt.Errorf("delete key %s: %w", id, err)
	}
	return nil
}

// InsertAlias implements kms.Store.
func (s *Store) InsertAlias(ctx context.Context, a *kms.AliasRecord) error {
	if err := s.insertAlias(ctx, a); err != nil {
		return fmt.Errorf("insert %s: %w", a.Name, err)
	}
	a.Revision = 1
	return nil
}

func (s *Store) insertAlias(ctx context.Context, a *kms.AliasRecord) error {
	if err := checkNewAlias(a); err != nil {
		return err
	}
	return s.change(ctx, func(ctx context.Context, tx *sql.Tx) error { return insertAliasRow(ctx, tx, a) })
}

func checkNewAlias(a *kms.AliasRecord) error {
	if a.Revision != 0 {
		return fmt.Errorf("a new record is at revision 0, not %d", a.Revision)
	}
	if err := checkAlias(a); err != nil {
		return fmt.Errorf("record refused: %w", err)
	}
	return nil
}

func insertAliasRow(ctx context.Context, tx *sql.Tx, a *kms.AliasRecord) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO aliases (account, region, name, key_id, created_us, updated_us, revision)
		VALUES (?, ?, ?, ?, ?, ?, 1)`,
		string(a.Account), string(a.Region), a.Name, string(a.KeyID), micros(a.Created), micros(a.Updated))
	switch {
	case constraint(err, sqlite3.ErrConstraintPrimaryKey, sqlite3.ErrConstraintUnique):
		return kms.ErrExists
	case constraint(err, sqlite3.ErrConstraintForeignKey):
		return fmt.Errorf("key %s: %w", a.KeyID, kms.ErrNotFound)
	}
	return err
}

// UpdateAlias implements kms.Store.
func (s *Store) UpdateAlias(ctx context.Context, a *kms.AliasRecord) error {
	if err := s.updateAlias(ctx, a); err != nil {
		return fmt.Errorf("update %s: %w", a.Name, err)
	}
	a.Revision++
	return nil
}

func (s *Store) updateAlias(ctx context.Context, a *kms.AliasRecord) error {
	if err := checkAlias(a); err != nil {
		return fmt.Errorf("record refused: %w", err)
	}
	return s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE aliases SET key_id = ?, updated_us = ?, revision = revision + 1
			WHERE account = ? AND region = ? AND name = ? AND revision = ?`,
			string(a.KeyID), micros(a.Updated), string(a.Account), string(a.Region), a.Name, a.Revision)
		if constraint(err, sqlite3.ErrConstraintForeignKey) {
			return fmt.Errorf("key %s: %w", a.KeyID, kms.ErrNotFound)
		}
		return swappedAlias(ctx, tx, res, err, a)
	})
}

// DeleteAlias implements kms.Store.
func (s *Store) DeleteAlias(ctx context.Context, a *kms.AliasRecord) error {
	err := s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "DELETE FROM aliases WHERE account = ? AND region = ? AND name = ? AND revision = ?",
			string(a.Account), string(a.Region), a.Name, a.Revision)
		return swappedAlias(ctx, tx, res, err, a)
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", a.Name, err)
	}
	return nil
}

// Tick implements kms.Store.
func (s *Store) Tick(ctx context.Context, now time.Time) error {
	err := s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "UPDATE installation SET last_tick_us = ?", micros(now))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return errors.Join(err, noInstallation(s.path))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store tick: %w", err)
	}
	return nil
}

func checkedNames(r *kms.KeyRecord) (keyNames, error) {
	if err := checkKey(r); err != nil {
		return keyNames{}, fmt.Errorf("record refused: %w", err)
	}
	names, err := namesOfKey(r)
	if err != nil {
		return keyNames{}, fmt.Errorf("record refused: %w", err)
	}
	return names, nil
}

// keyValues are the columns from account to destroying.
func keyValues(r *kms.KeyRecord, names keyNames) []any {
	deletion := sql.NullInt64{Int64: micros(r.DeletionDate), Valid: !r.DeletionDate.IsZero()}
	return []any{
		string(r.Account), string(r.Region), r.KeyStore, names.spec, names.usage, names.state, r.Description,
		micros(r.Created), deletion, r.PendingWindowDays, r.Destroying,
	}
}

// insertParts inserts a record's tags and versions.
func insertParts(ctx context.Context, tx *sql.Tx, r *kms.KeyRecord) error {
	for i, t := range r.Tags {
		if _, err := tx.ExecContext(ctx, "INSERT INTO tags (key_id, tag_key, tag_value, position) VALUES (?, ?, ?, ?)",
			string(r.ID), t.Key, t.Value, i); err != nil {
			return err
		}
	}
	for i := range r.Versions {
		v := &r.Versions[i]
		names, err := namesOfVersion(v)
		if err != nil {
			return fmt.Errorf("record refused: version %s: %w", v.Ref, err)
		}
		id := v.Locator.ID
		if id == nil {
			id = []byte{} // nil would be NULL
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO key_versions (ref, key_id, position, material_id, locator_id, locator_label,
			locator_spec, locator_usage, custody, created_us, public_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			v.Ref.String(), string(r.ID), i, string(v.MaterialID), id, v.Locator.Label,
			names.spec, names.usage, names.custody, micros(v.Created), v.PublicKey)
		if constraint(err, sqlite3.ErrConstraintPrimaryKey, sqlite3.ErrConstraintUnique) {
			return fmt.Errorf("ref %s: %w", v.Ref, kms.ErrExists)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// swapped reads the outcome of a compare-and-swap. Where it hit no row, count
// finds out why.
func swapped(ctx context.Context, tx *sql.Tx, res sql.Result, err error, count string, args ...any) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return err
	}
	switch n {
	case 1:
		return nil
	case 0:
	default:
		return errors.New("compare-and-swap hit several rows")
	}
	if err := tx.QueryRowContext(ctx, count, args...).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return kms.ErrNotFound
	}
	return kms.ErrConflict
}

func swappedAlias(ctx context.Context, tx *sql.Tx, res sql.Result, err error, a *kms.AliasRecord) error {
	return swapped(ctx, tx, res, err, "SELECT count(*) FROM aliases WHERE account = ? AND region = ? AND name = ?",
		string(a.Account), string(a.Region), a.Name)
}
