package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// restoreMark is the file in the data folder that a restore makes first and
// removes last.
const restoreMark = "restore.unfinished"

// ErrRestoreUnfinished says that a restore runs, or was interrupted: what is in
// the data folder, and where else it put things, is not an installation.
var ErrRestoreUnfinished = errors.New("a restore was not finished")

// RestoreMark returns the path of the file that keeps the daemon from starting
// while a restore is not finished.
func RestoreMark(cfg *Config) string { return filepath.Join(cfg.DataDir, restoreMark) }

// CheckRestored returns ErrRestoreUnfinished while a restore is not finished.
func CheckRestored(cfg *Config) error {
	path := RestoreMark(cfg)
	switch _, err := os.Lstat(path); {
	case err == nil:
		return fmt.Errorf("%w (%s is there); hint: run `keyholdd restore` again, which takes back what the interrupted one did", ErrRestoreUnfinished, path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil // what opens the store next says what is wrong
	default:
		return fmt.Errorf("look for an unfinished restore: %w", err)
	}
}
