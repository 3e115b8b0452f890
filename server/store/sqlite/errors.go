package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/mattn/go-sqlite3"

	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// Errors of opening and working that an operator can do something about. Each
// comes wrapped in a text that names the file and the remedy. Besides these,
// Open answers fs.ErrNotExist where there is no database, and Create answers
// fs.ErrExist where there is one.
var (
	// ErrInUse: another process holds the data folder, or the database.
	ErrInUse = errors.New("in use")
	// ErrExposed: users other than the owner can get at the folder or file.
	ErrExposed = errors.New("accessible by other users")
	// ErrDamaged: the file is no database, or one that contradicts itself.
	ErrDamaged = errors.New("damaged")
	// ErrNewerSchema: a newer program has written the database.
	ErrNewerSchema = errors.New("made by a newer version")
	// ErrOlderSchema: a read-only open met a schema that must be migrated.
	ErrOlderSchema = errors.New("made by an older version")
	// ErrNoSpace: the disk or the quota is full.
	ErrNoSpace = errors.New("no space left")
	// ErrReadOnly: the folder, file or file system cannot be written.
	ErrReadOnly = errors.New("not writable")
	// ErrMoved: the database is not where it was opened any more.
	ErrMoved = errors.New("moved or removed while in use")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("store is closed")
)

// notBegun is why a write was not begun, in the words of both interfaces.
type notBegun struct{ cause error }

func (e notBegun) Error() string { return e.cause.Error() }

func (e notBegun) Unwrap() []error {
	return []error{kms.ErrNotBegun, identity.ErrNotBegun, e.cause}
}

// explain turns what SQLite or the system says about the file at path into an
// error that an operator can act on. Errors that it does not know, ctx errors
// and those of package kms among them, come back as they are.
func explain(path string, err error) error {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return explainErrno(path, err)
	}
	switch e.Code {
	case sqlite3.ErrFull:
		return noSpace(path, err)
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB, sqlite3.ErrFormat:
		return damaged(path, err)
	case sqlite3.ErrBusy, sqlite3.ErrLocked:
		return fmt.Errorf("database %q is %w: %w; hint: end the other program that has it open", path, ErrInUse, err)
	case sqlite3.ErrReadonly:
		return readOnly(path, err)
	case sqlite3.ErrIoErr, sqlite3.ErrCantOpen, sqlite3.ErrPerm:
		return ioError(path, err, e.SystemErrno)
	}
	return err
}

// explainErrno is explain for errors that the system gave to Go itself.
func explainErrno(path string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	return ioError(path, err, errno)
}

func ioError(path string, err error, errno syscall.Errno) error {
	switch errno {
	case syscall.ENOSPC, syscall.EDQUOT:
		return noSpace(path, err)
	case syscall.EROFS, syscall.EACCES, syscall.EPERM:
		return readOnly(path, err)
	case syscall.EMFILE, syscall.ENFILE:
		return fmt.Errorf("%q: %w; hint: raise the limit of open files (ulimit -n)", path, err)
	}
	return fmt.Errorf("%q: %w; hint: check the disk and the kernel's log", path, err)
}

func noSpace(path string, err error) error {
	return fmt.Errorf("%q: %w: %w; hint: free space on its file system, writes then go on by themselves", path, ErrNoSpace, err)
}

func readOnly(path string, err error) error {
	return fmt.Errorf("%q is %w: %w; hint: mount the file system read-write, and give folder and files to the user of this process", path, ErrReadOnly, err)
}

func damaged(path string, what error) error {
	return fmt.Errorf("database %q is %w: %w; hint: keep a copy of the whole folder, then restore the database from a backup", path, ErrDamaged, what)
}

// noInstallation says that the row with instance id and tick is gone.
func noInstallation(path string) error {
	return damaged(path, errors.New("it has no instance id"))
}

// constraint reports whether err is the violation of one of the constraints.
func constraint(err error, codes ...sqlite3.ErrNoExtended) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.ExtendedCode == c {
			return true
		}
	}
	return false
}

// busy reports whether err says that another connection holds the lock.
func busy(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && e.Code == sqlite3.ErrBusy
}

// notExist says that there is no database, and how to get one.
func notExist(path string) error {
	return fmt.Errorf("no database at %q: %w; hint: check the path of the data folder; a new installation is made with keyholdd init --config FILE", path, fs.ErrNotExist)
}
