//go:build !linux

package audit

import "errors"

// WriteSync is two system calls here. os.File.Sync is a full sync (F_FULLFSYNC on
// macOS), which is what durable means.
func (f *osFile) WriteSync(p []byte, off int64) error {
	if _, err := f.WriteAt(p, off); err != nil {
		return err
	}
	return f.Sync()
}

// Allocate leaves it to the caller to write zeros.
func (f *osFile) Allocate(int64) error { return errors.ErrUnsupported }

func (f *osFile) DropCache() {}
