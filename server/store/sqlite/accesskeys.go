package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/mattn/go-sqlite3"

	"github.com/keyhold/keyhold/server/identity"
)

var _ identity.AccessKeyStore = (*Store)(nil)

// AccessKeys implements identity.AccessKeyStore. Keys are in the order of their
// ids.
func (r *Reader) AccessKeys(ctx context.Context) ([]*identity.AccessKeyRecord, error) {
	var all []*identity.AccessKeyRecord
	err := r.view(ctx, func(q queryer) (err error) {
		all, err = r.loadAccessKeys(ctx, q, "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read access keys: %w", err)
	}
	return all, nil
}

// AccessKey implements identity.AccessKeyStore.
func (r *Reader) AccessKey(ctx context.Context, id string) (*identity.AccessKeyRecord, error) {
	var found []*identity.AccessKeyRecord
	err := r.view(ctx, func(q queryer) (err error) {
		found, err = r.loadAccessKeys(ctx, q, " WHERE id = ?", id)
		return err
	})
	if err == nil && len(found) == 0 {
		err = identity.ErrNoAccessKey
	}
	if err != nil {
		return nil, fmt.Errorf("read access key: %w", err)
	}
	return found[0], nil
}

func (r *Reader) loadAccessKeys(ctx context.Context, q queryer, where string, args ...any) ([]*identity.AccessKeyRecord, error) {
	rows, err := q.QueryContext(ctx, `SELECT id, principal, active, created_us, sealed_secret,
		last_used_us, last_used_region, last_used_service, revision FROM access_keys`+where+" ORDER BY id", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []*identity.AccessKeyRecord
	for rows.Next() {
		k := &identity.AccessKeyRecord{}
		var created int64
		var used sql.NullInt64
		if err := rows.Scan(&k.ID, &k.Principal, &k.Active, &created, &k.SealedSecret,
			&used, &k.LastUse.Region, &k.LastUse.Service, &k.Revision); err != nil {
			return nil, err
		}
		k.Created = fromMicros(created)
		if used.Valid {
			k.LastUse.At = fromMicros(used.Int64)
		}
		if err := checkAccessKey(k); err != nil {
			return nil, damaged(r.path, fmt.Errorf("access key %q: %w", k.ID, err))
		}
		all = append(all, k)
	}
	return all, rows.Err()
}

// checkAccessKey holds a record to its documentation.
func checkAccessKey(k *identity.AccessKeyRecord) error {
	if err := identity.CheckAccessKeyID(k.ID); err != nil {
		return err
	}
	if _, err := identity.ParsePrincipal(k.Principal); err != nil {
		return err
	}
	switch {
	case len(k.SealedSecret) == 0:
		return errors.New("it has no secret")
	case k.Created.IsZero():
		return errors.New("it has no time of creation")
	case k.LastUse.At.IsZero() && k.LastUse != identity.AccessKeyUse{}:
		return errors.New("it was used, at no time")
	}
	return nil
}

// InsertAccessKey implements identity.AccessKeyStore.
func (s *Store) InsertAccessKey(ctx context.Context, r *identity.AccessKeyRecord) error {
	if r.Revision != 0 {
		return fmt.Errorf("insert access key: a new record is at revision 0, not %d", r.Revision)
	}
	if err := checkAccessKey(r); err != nil {
		return fmt.Errorf("insert access key: record refused: %w", err)
	}
	err := s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO access_keys (id, principal, active, created_us, sealed_secret,
			last_used_us, last_used_region, last_used_service, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)`,
			r.ID, r.Principal, r.Active, micros(r.Created), r.SealedSecret,
			sql.NullInt64{Int64: micros(r.LastUse.At), Valid: !r.LastUse.At.IsZero()}, r.LastUse.Region, r.LastUse.Service)
		if constraint(err, sqlite3.ErrConstraintPrimaryKey) {
			return identity.ErrAccessKeyExists
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("insert access key %s: %w", r.ID, err)
	}
	r.Revision = 1
	return nil
}

// UpdateAccessKey implements identity.AccessKeyStore.
func (s *Store) UpdateAccessKey(ctx context.Context, r *identity.AccessKeyRecord) error {
	err := s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "UPDATE access_keys SET active = ?, revision = revision + 1 WHERE id = ? AND revision = ?",
			r.Active, r.ID, r.Revision)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); n == 1 || err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM access_keys WHERE id = ?", r.ID).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return identity.ErrNoAccessKey
		}
		return identity.ErrAccessKeyChanged
	})
	if err != nil {
		return fmt.Errorf("update access key %s: %w", r.ID, err)
	}
	r.Revision++
	return nil
}

// DeleteAccessKey implements identity.AccessKeyStore.
func (s *Store) DeleteAccessKey(ctx context.Context, id string) error {
	err := s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "DELETE FROM access_keys WHERE id = ?", id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); n == 1 || err != nil {
			return err
		}
		return identity.ErrNoAccessKey
	})
	if err != nil {
		return fmt.Errorf("delete access key %s: %w", id, err)
	}
	return nil
}

// NoteAccessKeyUses implements identity.AccessKeyStore.
func (s *Store) NoteAccessKeyUses(ctx context.Context, uses map[string]identity.AccessKeyUse) error {
	err := s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for id, use := range uses {
			if use.At.IsZero() {
				return fmt.Errorf("record refused: access key %s was used at no time", id)
			}
			if _, err := tx.ExecContext(ctx, "UPDATE access_keys SET last_used_us = ?, last_used_region = ?, last_used_service = ? WHERE id = ?",
				micros(use.At), use.Region, use.Service, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note uses of access keys: %w", err)
	}
	return nil
}
