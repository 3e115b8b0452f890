package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/mattn/go-sqlite3"
)

const (
	// maxReaders bounds the connections that read at the same time.
	maxReaders = 4
	// readBusy is how long a reader waits while another connection recovers
	// the log after a crash. SQLite waits without looking at a ctx.
	readBusy = time.Second
	// writeBusy is the same for a writer that meets another program's write
	// lock; begin repeats it up to writeBusyMax and looks at ctx in between.
	writeBusy    = 50 * time.Millisecond
	writeBusyMax = 5 * time.Second
)

// connector opens connections with our settings. It is used instead of
// sql.Open since that has no place for the hook but a global registration.
type connector struct{ dsn string }

func (c connector) Driver() driver.Driver {
	return &sqlite3.SQLiteDriver{ConnectHook: func(conn *sqlite3.SQLiteConn) error {
		// trusted_schema, cell_size_check: a file from strange hands shall do
		// little. fullfsync: on macOS fsync alone does not reach the disk.
		// journal_size_limit, in bytes: a log that once grew is cut again.
		_, err := conn.Exec(`PRAGMA trusted_schema = OFF;
			PRAGMA cell_size_check = ON;
			PRAGMA temp_store = MEMORY;
			PRAGMA fullfsync = ON;
			PRAGMA checkpoint_fullfsync = ON;
			PRAGMA journal_size_limit = 16777216`, nil)
		return err
	}}
}

func (c connector) Connect(context.Context) (driver.Conn, error) { return c.Driver().Open(c.dsn) }

// dsn names the database at path, an absolute one, by URI (sqlite.org/uri.html):
// any character may be in it.
func dsn(path, params string, busy time.Duration) string {
	return fmt.Sprintf("file:%s?%s&_busy_timeout=%d&_foreign_keys=on&_synchronous=FULL",
		(&url.URL{Path: path}).EscapedPath(), params, busy.Milliseconds())
}

// openWriter returns the one connection that writes. It does not create.
func openWriter(path string) *sql.DB {
	db := sql.OpenDB(connector{dsn(path, "mode=rw&_txlock=immediate", writeBusy)})
	db.SetMaxOpenConns(1)
	return db
}

// openReaders returns a pool of connections that cannot write.
func openReaders(path, params string) *sql.DB {
	db := sql.OpenDB(connector{dsn(path, "mode=ro&_query_only=on"+params, readBusy)})
	db.SetMaxOpenConns(maxReaders)
	db.SetMaxIdleConns(maxReaders)
	return db
}

// gate lets operations in until it is shut, and then waits for them.
type gate struct {
	mu      sync.Mutex
	closing chan struct{} // closed by shut
	ops     sync.WaitGroup
}

func newGate() *gate { return &gate{closing: make(chan struct{})} }

// enter returns the function that the operation calls at its end.
func (g *gate) enter() (leave func(), err error) {
	g.mu.Lock() // so that no Add comes after shut began to Wait
	defer g.mu.Unlock()
	select {
	case <-g.closing:
		return nil, ErrClosed
	default:
		g.ops.Add(1)
		return g.ops.Done, nil
	}
}

// shut returns when no operation is inside any more, false where it had been
// called before.
func (g *gate) shut() bool {
	g.mu.Lock()
	select {
	case <-g.closing:
		g.mu.Unlock()
		return false
	default:
		close(g.closing)
	}
	g.mu.Unlock()
	g.ops.Wait()
	return true
}
