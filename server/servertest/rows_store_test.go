package servertest

import (
	"database/sql"
	"path/filepath"
	"testing"

	_ "github.com/mattn/go-sqlite3" // another program that has the database open
	"google.golang.org/grpc/codes"
)

// storeRows are faults of the database. Those that a daemon does not survive are
// in server/store/sqlite's tests.
func storeRows() []row {
	return []row{
		{"database-locked", []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Internal}, func(t *testing.T, f *fixture, r row) {
			db, err := sql.Open("sqlite3", filepath.Join(f.d.Settings.DataDir, "keyhold.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
				t.Fatal(err)
			}
			f.refused(t, op("generate key"), hurry, codes.DeadlineExceeded, codes.Unavailable, codes.Internal)
			for _, op := range []operation{op("encrypt"), op("decrypt"), op("sign"), op("mac"), op("random")} {
				if err := f.try(op, callDeadline); err != nil {
					t.Errorf("%s while the database is locked: %v", op.name, err)
				}
			}
			if _, err := conn.ExecContext(t.Context(), "ROLLBACK"); err != nil {
				t.Fatal(err)
			}
			f.serves(t, r.name, operations()...)
		}},
	}
}
