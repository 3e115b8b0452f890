package tokenbench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/keyhold/keyhold/internal/bench"
)

// diskFileBytes is the size of the file that is written to: what the journal
// has for a segment.
const diskFileBytes = 64 << 20

// RunDisk measures writing a block of the given size and syncing it
// (fdatasync), one after the other through a preallocated file in dir, which is
// removed. The blocks of the file have been written before, as the journal has
// them, or only reserved. Where the system reserves none, that part is left out.
func RunDisk(ctx context.Context, dir string, block int, d time.Duration) ([]bench.Result, error) {
	dir, err := os.MkdirTemp(dir, ".bench-token-")
	if err != nil {
		return nil, fmt.Errorf("a folder to measure the disk in: %w", err)
	}
	defer os.RemoveAll(dir)
	written, err := newDiskFile(filepath.Join(dir, "written"), true)
	if err != nil {
		return nil, err
	}
	defer written.f.Close()
	files := []*diskFile{written}
	if reserved, err := newDiskFile(filepath.Join(dir, "reserved"), false); err == nil {
		defer reserved.f.Close()
		files = append(files, reserved)
	}
	content := make([]byte, block)
	for i := range content {
		content[i] = byte(i)
	}
	rounds := max(1, int(d/round))
	for range rounds {
		for _, f := range files {
			if err := f.run(ctx, content, d/time.Duration(rounds)); err != nil {
				return nil, err
			}
		}
	}
	results := []bench.Result{written.tally.result("fdatasync", DoorDisk, 1, block)}
	if len(files) > 1 {
		results = append(results, files[1].tally.result("fdatasync:reserved", DoorDisk, 1, block))
	}
	return results, ctx.Err()
}

// diskFile is a file of diskFileBytes.
type diskFile struct {
	f       *os.File
	written bool
	at      int64
	tally   tally
}

func newDiskFile(path string, written bool) (*diskFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	d := &diskFile{f: f, written: written}
	if err := d.prepare(); err != nil {
		f.Close()
		return nil, fmt.Errorf("prepare a file to measure the disk with: %w", err)
	}
	return d, nil
}

// prepare makes the file anew.
func (d *diskFile) prepare() error {
	d.at = 0
	if d.written {
		zeros := make([]byte, 1<<20)
		for off := int64(0); off < diskFileBytes; off += int64(len(zeros)) {
			if _, err := d.f.WriteAt(zeros, off); err != nil {
				return err
			}
		}
		return d.f.Sync()
	}
	if err := d.f.Truncate(0); err != nil {
		return err
	}
	if err := reserve(d.f, diskFileBytes); err != nil {
		return err
	}
	return d.f.Sync()
}

// run writes and syncs blocks for a time. At the end of the file it begins
// anew, which is not counted.
func (d *diskFile) run(ctx context.Context, block []byte, limit time.Duration) error {
	var spent time.Duration
	cpu := cpuTime()
	for spent < limit && ctx.Err() == nil {
		if d.at+int64(len(block)) > diskFileBytes {
			d.tally.cpu += cpuTime() - cpu
			if err := d.prepare(); err != nil {
				return err
			}
			cpu = cpuTime()
		}
		began := time.Now()
		if _, err := d.f.WriteAt(block, d.at); err != nil {
			return err
		}
		if err := datasync(d.f); err != nil {
			return fmt.Errorf("sync a file to measure the disk with: %w", err)
		}
		took := time.Since(began)
		d.tally.add(took, nil)
		spent += took
		d.at += int64(len(block))
	}
	d.tally.cpu += cpuTime() - cpu
	d.tally.elapsed += spent
	return nil
}
