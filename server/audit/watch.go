package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// watchFiles notices that the journal's directory or files were removed or
// replaced while they are open: writes would succeed and be lost.
func (j *Journal) watchFiles() {
	defer j.watchers.Done()
	ticker := time.NewTicker(j.opts.CheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-j.quit:
			return
		case <-ticker.C:
		}
		err := j.checkPlace()
		if j.setCause(causeLost, err) {
			if err != nil {
				j.opts.Logger.Error("audit journal is not where it was, operations are refused", "dir", j.dir, "err", err)
			} else {
				j.opts.Logger.Info("audit journal is back where it was", "dir", j.dir)
			}
		}
		if err != nil {
			j.poke()
		}
	}
}

func (j *Journal) checkPlace() error {
	for range 3 {
		j.mu.Lock()
		seg := j.segment
		j.mu.Unlock()
		err := j.samePlace(seg.path, seg.file)
		if err == nil {
			return j.samePlace(j.headPath(), j.head)
		}
		j.mu.Lock()
		rotated := j.segment != seg
		j.mu.Unlock()
		if !rotated {
			return err
		}
	}
	return nil // it rotates faster than we look: it is alive
}

// samePlace checks that path still leads to f.
func (j *Journal) samePlace(path string, f file) error {
	open, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat open audit file: %w", err)
	}
	there, err := j.opts.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s was removed or moved away; put it back, or stop and see docs/audit-format.md", ErrUnavailable, path)
	}
	if err != nil {
		return err
	}
	if !os.SameFile(open, there) {
		return fmt.Errorf("%w: %s was replaced by another file; put the original back, or stop and see docs/audit-format.md", ErrUnavailable, path)
	}
	return nil
}

// watchDisk sends callers away when the disk hangs, and says so to those who come.
func (j *Journal) watchDisk() {
	defer j.watchers.Done()
	ticker := time.NewTicker(max(time.Millisecond, min(j.opts.StallTimeout/8, 250*time.Millisecond)))
	defer ticker.Stop()
	for {
		select {
		case <-j.quit:
			return
		case <-ticker.C:
		}
		since := j.ioSince.Load()
		stalled := since != 0 && time.Since(j.epoch)-time.Duration(since) > j.opts.StallTimeout
		if !stalled {
			if j.setCause(causeStall, nil) {
				j.opts.Logger.Info("audit journal's disk answers again", "dir", j.dir)
			}
			continue
		}
		err := fmt.Errorf("%w: the disk has not answered for %v", ErrUnavailable, j.opts.StallTimeout)
		if j.setCause(causeStall, err) {
			j.opts.Logger.Error("audit journal's disk hangs, operations are refused", "dir", j.dir, "after", j.opts.StallTimeout)
		}
		j.mu.Lock()
		waiting := j.queue
		j.queue = nil
		// Only while the committer is still in that same call: taken payloads have
		// been read then, and it cannot take others while mu is held.
		if j.ioSince.Load() == since {
			waiting = append(waiting, j.inflight...)
			j.inflight = nil
		}
		j.mu.Unlock()
		finish(waiting, err)
	}
}
