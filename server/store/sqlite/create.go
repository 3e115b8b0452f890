package sqlite

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// instanceBytes is the length of an installation's id before it is written in
// hexadecimal.
const instanceBytes = 4

// Create makes a database with a new instance id in the data folder dir, and
// opens it. It makes the folder too, not its parents. Errors: fs.ErrExist where
// there is a database or what is left of one, and those of Open. After an error
// there is no database, and Create may be called again.
func Create(ctx context.Context, dir string, o Options) (*Store, error) {
	return create(ctx, dir, o.withDefaults(), embedded)
}

func create(ctx context.Context, dir string, o Options, fsys fs.FS) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	if err := makeFolder(dir); err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	s, err := createLocked(ctx, dir, o, fsys, lock)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create store: %w", err), lock.release())
	}
	return s, nil
}

func createLocked(ctx context.Context, dir string, o Options, fsys fs.FS, lock *folderLock) (*Store, error) {
	path := filepath.Join(dir, fileName)
	if err := refuseRemains(path); err != nil {
		return nil, err
	}
	// Made under another name, so that a crash leaves no half-made database.
	temp := filepath.Join(dir, newFileName)
	if err := removeDatabase(temp); err != nil {
		return nil, err
	}
	if err := build(ctx, temp, o, fsys); err != nil {
		return nil, errors.Join(ctxError(ctx, explain(temp, err)), removeDatabase(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, errors.Join(explain(path, err), removeDatabase(temp))
	}
	if err := syncFolder(dir); err != nil {
		return nil, err
	}
	return openLocked(ctx, dir, o, fsys, lock)
}

// refuseRemains refuses a folder with a database, or with the log of one that
// is gone: SQLite would play it into the new database.
func refuseRemains(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("database %q: %w; hint: open it, or choose another folder", path, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at the database: %w", err)
	}
	for _, suffix := range companions() {
		if _, err := os.Lstat(path + suffix); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%q: %w, but its database is gone; hint: put the database back, or move this file away (it may hold the last writes)", path+suffix, fs.ErrExist)
		}
	}
	return nil
}

func removeDatabase(path string) error {
	for _, suffix := range append(companions(), "") {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an unfinished database: %w", explain(path, err))
		}
	}
	return nil
}

// build writes a whole new database to path and closes it; SQLite syncs it.
func build(ctx context.Context, path string, o Options, fsys fs.FS) (err error) {
	steps, err := migrations(fsys)
	if err != nil {
		return err
	}
	id := make([]byte, instanceBytes)
	if _, err := io.ReadFull(o.Rand, id); err != nil {
		return fmt.Errorf("choose an instance id: %w", err)
	}
	// SQLite would make the file with the umask's mode.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(fileMode), giveToOwner(f, filepath.Dir(path)), f.Close()); err != nil {
		return err
	}
	db := openWriter(path)
	defer func() { err = errors.Join(err, db.Close()) }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := (migrator{steps, o.Program, o.Now}).run(ctx, conn, 0); err != nil {
		return err
	}
	if err := setWAL(ctx, conn); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, "INSERT INTO installation (one, instance, created_us) VALUES (1, ?, ?)",
		hex.EncodeToString(id), micros(o.Now()))
	return err
}
