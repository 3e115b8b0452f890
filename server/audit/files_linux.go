package audit

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sync is fdatasync. A write and sync in one call (pwritev2 with RWF_DSYNC) was
// tried: no difference in BenchmarkAppend.
func (f *osFile) Sync() error {
	for {
		if err := unix.Fdatasync(f.fd); err == nil {
			return nil
		} else if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("fdatasync %s: %w", f.Name(), err)
		}
	}
}

func (f *osFile) Allocate(size int64) error {
	for {
		err := unix.Fallocate(f.fd, 0, 0, size)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return errors.ErrUnsupported
		default:
			return fmt.Errorf("fallocate %s: %w", f.Name(), err)
		}
	}
}

func (f *osFile) DropCache() {
	// A hint: what stays cached is compared all the same.
	_ = unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED)
}
