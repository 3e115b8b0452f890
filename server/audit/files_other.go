//go:build !linux

package audit

import "errors"

// Sync is os.File's, which also flushes the drive's cache (F_FULLFSYNC on macOS).

// Allocate leaves it to the caller to write zeros.
func (f *osFile) Allocate(int64) error { return errors.ErrUnsupported }

func (f *osFile) DropCache() {}
