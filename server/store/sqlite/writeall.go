package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyhold/keyhold/server/kms"
)

// InsertAll adds all records of a snapshot in one transaction, so that many cost
// one sync of the disk and not one each: all are there afterwards, or, with an
// error, none. Errors are those of InsertKey and InsertAlias. Other writes wait
// meanwhile.
func (s *Store) InsertAll(ctx context.Context, all *kms.Snapshot) error {
	if err := s.insertAll(ctx, all); err != nil {
		return fmt.Errorf("insert %d keys and %d aliases: %w", len(all.Keys), len(all.Aliases), err)
	}
	for _, r := range all.Keys {
		r.Revision = 1
	}
	for _, a := range all.Aliases {
		a.Revision = 1
	}
	return nil
}

func (s *Store) insertAll(ctx context.Context, all *kms.Snapshot) error {
	names := make([]keyNames, len(all.Keys))
	for i, r := range all.Keys {
		var err error
		if names[i], err = checkNewKey(r); err != nil {
			return fmt.Errorf("key %s: %w", r.ID, err)
		}
	}
	for _, a := range all.Aliases {
		if err := checkNewAlias(a); err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
	}
	return s.change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for i, r := range all.Keys {
			if err := insertKeyRows(ctx, tx, r, names[i]); err != nil {
				return fmt.Errorf("key %s: %w", r.ID, err)
			}
		}
		for _, a := range all.Aliases {
			if err := insertAliasRow(ctx, tx, a); err != nil {
				return fmt.Errorf("%s: %w", a.Name, err)
			}
		}
		return nil
	})
}
