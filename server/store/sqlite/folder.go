package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// fileName is the database in the data folder. SQLite keeps two files
	// beside it while it is open, and after a crash; they belong to it.
	fileName = "keyhold.db"
	// newFileName is a database that Create has not finished.
	newFileName = "keyhold.db.new"
	// lockName is the file whose flock is the right to use the data folder.
	lockName = "keyhold.lock"

	folderMode fs.FileMode = 0o700
	fileMode   fs.FileMode = 0o600
)

// companions are the suffixes of the files that SQLite keeps beside a database.
func companions() []string { return []string{"-wal", "-shm", "-journal"} }

// checkFolder refuses a data folder that users other than its owner can enter.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return notExist(filepath.Join(dir, fileName))
	}
	if err != nil {
		return fmt.Errorf("look at the data folder: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("data folder %q is no folder", dir)
	}
	return checkMode("data folder", dir, info, folderMode)
}

// checkFile refuses a database file that is none, or that users other than its
// owner can open. It only looks: opening and closing the file here would drop
// SQLite's POSIX locks on it in the whole process (fcntl(2), "Advisory record
// locking").
func checkFile(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return notExist(path)
	}
	if err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("database %q is no regular file (%s); hint: name the folder that really holds it", path, info.Mode().Type())
	}
	return checkMode("database", path, info, fileMode)
}

func checkMode(what, path string, info fs.FileInfo, want fs.FileMode) error {
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s %q is %w (mode %04o); hint: chmod %04o %q", what, path, ErrExposed, perm, want, path)
	}
	return nil
}

// openFile is a file that SQLite has open, as it was when it was opened.
type openFile struct {
	path string
	info fs.FileInfo
}

// openFiles notes the database at path and its log, which exists while the
// database is open.
func openFiles(path string) ([]openFile, error) {
	var files []openFile
	for _, p := range []string{path, path + "-wal"} {
		info, err := os.Lstat(p)
		if err != nil {
			return nil, fmt.Errorf("look at the database: %w", err)
		}
		files = append(files, openFile{p, info})
	}
	return files, nil
}

// unmoved returns an error where one of the files is not at its path any more.
// SQLite would go on writing to what no path leads to, and what is written
// there is lost at the next start.
func unmoved(files []openFile) error {
	for _, f := range files {
		if info, err := os.Lstat(f.path); err != nil || !os.SameFile(info, f.info) {
			return fmt.Errorf("%q was %w; hint: put back the very same file, or stop this process and restore a backup", f.path, ErrMoved)
		}
	}
	return nil
}

// makeFolder makes the data folder, or checks the one that is there. It does
// not make parents: a misspelt path shall not grow a tree.
func makeFolder(dir string) error {
	err := os.Mkdir(dir, folderMode)
	if errors.Is(err, fs.ErrExist) {
		return checkFolder(dir)
	}
	if err != nil {
		return fmt.Errorf("make the data folder: %w", explainErrno(dir, err))
	}
	return syncFolder(filepath.Dir(dir))
}

// syncFolder makes the entries of a folder durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// folderLock is the right to use a data folder. The kernel takes it back when
// the process ends, however it ends.
type folderLock struct{ f *os.File }

// Lock takes the right to use the data folder dir, without opening what is in
// it, so that no other process does until release is called. ErrInUse, with the
// process that has it.
func Lock(dir string) (release func() error, err error) {
	if err := checkFolder(dir); err != nil {
		return nil, err
	}
	l, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	return l.release, nil
}

// lockFolder takes the lock without waiting, or names who holds it.
func lockFolder(dir string) (*folderLock, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", explainErrno(path, err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data folder %q is %w by %s; hint: stop it first, or use another folder", dir, ErrInUse, holder(f))
		}
		return nil, fmt.Errorf("lock the data folder: flock %q: %w", path, err)
	}
	if err := claim(f, dir); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the data folder: %w", explainErrno(path, err))
	}
	return &folderLock{f}, nil
}

// holder reads who holds the lock. Between a holder's flock and its note the
// file is empty: a holder empties it when it goes, and what a killed one left
// is overwritten within microseconds.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	pid, convErr := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || convErr != nil {
		return "another process"
	}
	return "process " + strconv.Itoa(pid)
}

// giveToOwner makes f the file of the user whose folder dir is. Where root
// works on a folder of the daemon's user, that user could not open it later.
// SQLite does the same for the files that it makes beside a database.
func giveToOwner(f *os.File, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("stat %q: %w", dir, err)
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

// claim notes the pid for those who come later.
func claim(f *os.File, dir string) error {
	if err := giveToOwner(f, dir); err != nil {
		return err
	}
	// The lock holds without the note: a full disk shall not stop a start that
	// could serve otherwise.
	err := f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return err
}

// release gives the lock back. The file stays: removing it would let two
// processes hold locks on two files of one name.
func (l *folderLock) release() error {
	return errors.Join(l.f.Truncate(0), l.f.Close())
}
