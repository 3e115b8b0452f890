package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// publish gives a finished file its name, where nothing has it.
func publish(temp, path string) error {
	// A link fails where the name is taken, which a rename does not.
	err := os.Link(temp, path)
	switch {
	case err == nil, errors.Is(err, fs.ErrExist):
	default: // a file system without links
		taken, lookErr := exists(path)
		switch {
		case lookErr != nil:
			err = lookErr
		case taken:
			err = fs.ErrExist
		default:
			err = os.Rename(temp, path)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return taken(path)
	}
	if err != nil {
		return fmt.Errorf("name the backup: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func taken(path string) error {
	return fmt.Errorf("%s: %w; hint: a backup overwrites nothing, name another file", path, fs.ErrExist)
}

// createFile makes a new file of mode 0600 that write fills, and syncs it.
func createFile(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
