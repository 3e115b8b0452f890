package tokenbench

import (
	"os"

	"golang.org/x/sys/unix"
)

func reserve(f *os.File, size int64) error {
	return again(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
}

func datasync(f *os.File) error {
	return again(func() error { return unix.Fdatasync(int(f.Fd())) })
}

// again repeats a call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR { //nolint:errorlint // the system call's own
			return err
		}
	}
}
