//go:build !linux

package tokenbench

import (
	"errors"
	"os"
)

func reserve(*os.File, int64) error { return errors.ErrUnsupported }

// datasync flushes the drive's cache as well (F_FULLFSYNC on macOS), as the
// journal does there.
func datasync(f *os.File) error { return f.Sync() }
