package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// copyTokenFolder copies the files of a SoftHSM token from one folder to a new
// one, beside processes that use it. SoftHSM writes a file under a lock of its
// own (fcntl(2)), so that one which is read under a lock is whole. A file that
// vanishes meanwhile was an object that was destroyed. Lock files stay behind.
func copyTokenFolder(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasSuffix(name, ".lock") || !e.Type().IsRegular() {
			continue
		}
		if !entryName.MatchString(tokensFolder + filepath.Base(to) + "/" + name) {
			return fmt.Errorf("%q is no file of SoftHSM's; hint: move it away", filepath.Join(from, name))
		}
		err := copyLocked(ctx, filepath.Join(from, name), filepath.Join(to, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

const (
	lockPause = 2 * time.Millisecond
	// lockWait is far beyond what SoftHSM takes to write a file.
	lockWait = 30 * time.Second
)

// copyLocked copies a small file while its writers are kept out.
func copyLocked(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close() // also gives the lock back
	whole := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}
	for deadline := time.Now().Add(lockWait); ; {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &whole)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) || time.Now().After(deadline) {
			return fmt.Errorf("lock %s: %w", from, err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFileBytes+1))
	if err != nil {
		return err
	}
	if len(b) > maxTokenFileBytes {
		return fmt.Errorf("%s is larger than %d bytes", from, maxTokenFileBytes)
	}
	return os.WriteFile(to, b, 0o600)
}
