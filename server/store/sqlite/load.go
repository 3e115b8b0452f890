package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/keyhold/keyhold/server/kms"
)

// loadKeys returns all records in the order of their ids, or the one named by only. q
// is a transaction: the parts of a record lie in three tables.
func (r *Reader) loadKeys(ctx context.Context, q queryer, only *kms.KeyID) ([]*kms.KeyRecord, error) {
	to := compact{many: only == nil}
	keys, err := to.loadKeyRows(ctx, q, only)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*kms.KeyRecord, len(keys))
	for _, k := range keys {
		byID[string(k.ID)] = k
	}
	if err := to.loadTags(ctx, q, only, byID); err != nil {
		return nil, err
	}
	if err := to.loadVersions(ctx, q, only, byID); err != nil {
		return nil, err
	}
	for _, k := range keys {
		if err := checkKey(k); err != nil {
			return nil, damaged(r.path, fmt.Errorf("key %s: %w", k.ID, err))
		}
	}
	return keys, nil
}

// each runs query, for all keys or that in column, and calls scan on each row.
func each(ctx context.Context, q queryer, query, column, order string, only *kms.KeyID, scan func(*sql.Rows) error) error {
	var args []any
	if only != nil {
		query += " WHERE " + column + " = ?"
		args = append(args, string(*only))
	}
	rows, err := q.QueryContext(ctx, query+" ORDER BY "+order, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (c *compact) loadKeyRows(ctx context.Context, q queryer, only *kms.KeyID) ([]*kms.KeyRecord, error) {
	var keys []*kms.KeyRecord
	const query = `SELECT id, account, region, key_store, spec, usage, state, description,
		created_us, deletion_us, pending_window_days, destroying, revision FROM keys`
	err := each(ctx, q, query, "id", "id", only, func(rows *sql.Rows) error {
		var id, account, region string
		var names keyNames
		var created int64
		var deletion sql.NullInt64
		k := c.key()
		if err := rows.Scan(&id, &account, &region, &k.KeyStore, &names.spec, &names.usage, &names.state, &k.Description,
			&created, &deletion, &k.PendingWindowDays, &k.Destroying, &k.Revision); err != nil {
			return err
		}
		k.ID, k.Account, k.Region, k.KeyStore = kms.KeyID(c.string(id)), kms.AccountID(once(account)), kms.Region(once(region)), once(k.KeyStore)
		k.Description, k.Created = c.string(k.Description), fromMicros(created)
		if deletion.Valid {
			k.DeletionDate = fromMicros(deletion.Int64)
		}
		if err := names.into(k); err != nil {
			return fmt.Errorf("key %s: %w", id, err)
		}
		keys = append(keys, k)
		return nil
	})
	return keys, err
}

func (c *compact) loadTags(ctx context.Context, q queryer, only *kms.KeyID, byID map[string]*kms.KeyRecord) error {
	const query = "SELECT key_id, tag_key, tag_value FROM tags"
	return each(ctx, q, query, "key_id", "key_id, position", only, func(rows *sql.Rows) error {
		var id string
		var t kms.Tag
		if err := rows.Scan(&id, &t.Key, &t.Value); err != nil {
			return err
		}
		k, ok := byID[id]
		if !ok {
			return fmt.Errorf("tag of a key %s that is not there", id)
		}
		t.Key, t.Value = once(t.Key), c.string(t.Value)
		k.Tags = append(k.Tags, t)
		return nil
	})
}

func (c *compact) loadVersions(ctx context.Context, q queryer, only *kms.KeyID, byID map[string]*kms.KeyRecord) error {
	const query = `SELECT key_id, ref, material_id, locator_id, locator_label, locator_spec, locator_usage,
		custody, created_us, public_key FROM key_versions`
	return each(ctx, q, query, "key_id", "key_id, position", only, func(rows *sql.Rows) error {
		var id, ref, material string
		var names versionNames
		var created int64
		var v kms.KeyVersion
		if err := rows.Scan(&id, &ref, &material, &v.Locator.ID, &v.Locator.Label, &names.spec, &names.usage,
			&names.custody, &created, &v.PublicKey); err != nil {
			return err
		}
		k, ok := byID[id]
		if !ok {
			return fmt.Errorf("version of a key %s that is not there", id)
		}
		var err error
		if v.Ref, err = parseRef(ref); err != nil {
			return fmt.Errorf("key %s: %w", id, err)
		}
		if err := names.into(&v); err != nil {
			return fmt.Errorf("key %s: version %s: %w", id, ref, err)
		}
		if len(v.Locator.ID) == 0 {
			v.Locator.ID = nil
		}
		v.MaterialID, v.Created = kms.KeyMaterialID(c.string(material)), fromMicros(created)
		v.Locator.Label = c.string(v.Locator.Label)
		k.Versions = c.version(k.Versions, v)
		return nil
	})
}

func loadAliases(ctx context.Context, q queryer) ([]*kms.AliasRecord, error) {
	var aliases []*kms.AliasRecord
	to := compact{many: true}
	const query = "SELECT account, region, name, key_id, created_us, updated_us, revision FROM aliases"
	err := each(ctx, q, query, "", "account, region, name", nil, func(rows *sql.Rows) error {
		var account, region, id string
		var created, updated int64
		a := to.alias()
		if err := rows.Scan(&account, &region, &a.Name, &id, &created, &updated, &a.Revision); err != nil {
			return err
		}
		a.Name = to.string(a.Name)
		a.Account, a.Region, a.KeyID = kms.AccountID(once(account)), kms.Region(once(region)), kms.KeyID(id)
		a.Created, a.Updated = fromMicros(created), fromMicros(updated)
		aliases = append(aliases, a)
		return nil
	})
	return aliases, err
}
