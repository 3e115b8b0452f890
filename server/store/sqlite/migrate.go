package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"time"

	"github.com/mattn/go-sqlite3"
)

// applicationID marks our databases (PRAGMA application_id): "KYHD".
const applicationID = 0x4b594844

//go:embed migrations/*.sql
var embedded embed.FS

// migration is one step of the schema: the file NNNN_name.sql.
type migration struct {
	version int // 1 for the first
	name    string
	script  string
}

// migrations returns the steps in fsys, in order. A gap or a stray file is an
// error, so that a step cannot be lost in a merge.
func migrations(fsys fs.FS) ([]migration, error) {
	pattern := regexp.MustCompile(`^([0-9]{4})_([a-z0-9_]+)\.sql$`)
	entries, err := fs.ReadDir(fsys, "migrations")
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	var steps []migration
	for i, e := range entries {
		m := pattern.FindStringSubmatch(e.Name())
		if m == nil {
			return nil, fmt.Errorf("migration %q is not named NNNN_name.sql", e.Name())
		}
		version, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, fmt.Errorf("migration %q: %w", e.Name(), err)
		}
		if version != i+1 {
			return nil, fmt.Errorf("migration %q stands where number %d belongs", e.Name(), i+1)
		}
		script, err := fs.ReadFile(fsys, "migrations/"+e.Name())
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		steps = append(steps, migration{version, m[2], string(script)})
	}
	if len(steps) == 0 {
		return nil, errors.New("no migrations")
	}
	return steps, nil
}

// queryer is what reading needs: a database, a connection or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// schemaVersion returns the version of our schema in a database, 0 where it is
// new, and refuses what is not ours or newer than latest.
func schemaVersion(ctx context.Context, q queryer, path string, latest int) (int, error) {
	var app, version int
	if err := q.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return 0, explain(path, err)
	}
	if err := q.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return 0, explain(path, err)
	}
	switch {
	case app != applicationID || version < 1:
		return 0, damaged(path, errors.New("it is empty, or not of Keyhold"))
	case version > latest:
		program := "a program that it does not name"
		// Best effort: a newer schema may keep its history elsewhere.
		_ = q.QueryRowContext(ctx, "SELECT program FROM schema_history WHERE version = ?", version).Scan(&program)
		return 0, fmt.Errorf("database %q is %w: schema %d by %s, this program knows %d at most; hint: start that version or a later one, or restore the backup from before the upgrade",
			path, ErrNewerSchema, version, program, latest)
	}
	return version, nil
}

// migrator brings a database to the last of steps.
type migrator struct {
	steps   []migration
	program string
	now     func() time.Time
}

// run applies the steps after version from. Each is one transaction with its
// version number: done wholly or not at all. conn is not used by anyone else.
func (m migrator) run(ctx context.Context, conn *sql.Conn, from int) (err error) {
	if from == len(m.steps) {
		return nil
	}
	// Rebuilding a table drops the old one, which must not cascade
	// (sqlite.org/lang_altertable.html, section 7). The switch works outside
	// of transactions only; apply checks all references before it commits.
	if _, err := conn.ExecContext(ctx, "PRAGMA foreign_keys = OFF"); err != nil {
		return fmt.Errorf("prepare migration: %w", err)
	}
	defer func() {
		_, onErr := conn.ExecContext(context.WithoutCancel(ctx), "PRAGMA foreign_keys = ON")
		err = errors.Join(err, onErr)
	}()
	for _, step := range m.steps[from:] {
		if err := m.apply(ctx, conn, step); err != nil {
			return fmt.Errorf("migrate to schema %d (%s): %w", step.version, step.name, err)
		}
	}
	return nil
}

func (m migrator) apply(ctx context.Context, conn *sql.Conn, step migration) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after Commit it does nothing
	if _, err := tx.ExecContext(ctx, step.script); err != nil {
		return err
	}
	if err := stillInTransaction(conn); err != nil {
		return err
	}
	if err := checkReferences(ctx, tx); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO schema_history (version, name, program, applied_us) VALUES (?, ?, ?, ?)",
		step.version, step.name, m.program, micros(m.now())); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(step.version)); err != nil {
		return err
	}
	return tx.Commit()
}

// stillInTransaction catches a script that commits by itself: its steps would
// stay when a later one fails.
func stillInTransaction(conn *sql.Conn) error {
	return conn.Raw(func(c any) error {
		if sc, ok := c.(*sqlite3.SQLiteConn); !ok || sc.AutoCommit() {
			return errors.New("the script ends its transaction by itself")
		}
		return nil
	})
}

// checkReferences returns an error where a row names another one that is not
// there.
func checkReferences(ctx context.Context, q queryer) error {
	rows, err := q.QueryContext(ctx, "PRAGMA foreign_key_check")
	if err != nil {
		return err
	}
	defer rows.Close()
	if rows.Next() {
		var table, parent string
		var rowid sql.NullInt64
		var fkid int
		if err := rows.Scan(&table, &rowid, &parent, &fkid); err != nil {
			return err
		}
		return fmt.Errorf("a row of %s names one of %s that is not there", table, parent)
	}
	return rows.Err()
}

// bringUp checks what lies in the database and migrates it. It returns the
// version that it found.
func bringUp(ctx context.Context, db *sql.DB, path string, m migrator) (int, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	from, err := schemaVersion(ctx, conn, path, len(m.steps))
	if err != nil {
		return 0, err
	}
	// Before anything is written: a damaged file is best left as it is.
	if err := pragmaCheck(ctx, conn, path, "PRAGMA quick_check(5)"); err != nil {
		return 0, err
	}
	if err := m.run(ctx, conn, from); err != nil {
		return 0, err
	}
	return from, setWAL(ctx, conn)
}

// setWAL switches the write-ahead log on. The database remembers it, so that
// this changes something only after Create or a foreign tool.
func setWAL(ctx context.Context, conn *sql.Conn) error {
	var mode string
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return fmt.Errorf("switch to the write-ahead log: %w", err)
	}
	if mode != "wal" {
		return fmt.Errorf("switch to the write-ahead log: journal mode stays %q; hint: use a local file system", mode)
	}
	return nil
}
