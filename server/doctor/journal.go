package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhold/keyhold/server/audit"
)

// defaultSegmentBytes is what the journal takes where the configuration says
// nothing (AuditConfig.SegmentBytes).
const defaultSegmentBytes = 64 << 20

// journal verifies the audit log, and tells whether a writer has it open.
func (e *exam) journal(ctx context.Context) (live bool) {
	dir := e.cfg.Audit.Dir
	type outcome struct {
		rep audit.Report
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		// A start that was archived is no fault; it is reported below.
		rep, err := audit.Verify(dir, audit.VerifyOptions{AllowMissingStart: true})
		done <- outcome{rep, err}
	}()
	var o outcome
	select {
	case o = <-done:
	case <-ctx.Done():
		e.skip("audit-log", dir, "interrupted; `keyhold audit verify` reads it alone")
		return false
	}
	e.reportJournal(dir, o.rep, o.err)
	return o.rep.Live
}

func (e *exam) reportJournal(dir string, rep audit.Report, err error) {
	var fault *audit.Fault
	read := fmt.Sprintf("%s in %s", count(int(rep.Records), "record"), count(rep.Segments, "segment"))
	switch {
	case err == nil:
		c := Check{Name: "audit-log", Subject: dir, Status: OK, Fact: "verified: " + read}
		if !rep.LastTime.IsZero() {
			c.Fact += ", the last of " + rep.LastTime.UTC().Format(time.RFC3339)
		}
		if rep.Live {
			c.Fact += "; the daemon has it open"
		}
		c.Details = append(c.Details, "worth keeping elsewhere: --since "+rep.Last.String())
		if rep.First.Count > 0 {
			c.Details = append(c.Details, fmt.Sprintf("it begins with record %d; what was before is archived, or gone", rep.First.Count))
		}
		e.add(c)
	case errors.Is(err, audit.ErrNoJournal), errors.Is(err, os.ErrNotExist):
		e.fail("audit-log", dir, "there is no audit log", "correct audit.dir, or run `keyholdd init --config "+e.opts.ConfigFile+"` for a new installation; if there was one, find out where it went")
	case errors.As(err, &fault) && fault.Kind == audit.FaultTornTail:
		e.warn("audit-log", dir, cause(err)+"; "+read+" before it are whole", "none is needed: the next start of the daemon cuts it off; nobody was told that it was durable")
	case fault != nil:
		e.fail("audit-log", dir, cause(err)+"; "+read+" before it are whole", "keep a copy of the folder as evidence, find out what changed it, and restore it from the archive; the daemon refuses to start on it")
	default:
		e.fail("audit-log", dir, cause(err), "let this user read the folder")
	}
}

// diskSpace compares what is free with what the journal allocates next.
func (e *exam) diskSpace() {
	segment := uint64(defaultSegmentBytes)
	if e.cfg.Audit.SegmentBytes > 0 {
		segment = uint64(e.cfg.Audit.SegmentBytes)
	}
	e.free("audit log", e.cfg.Audit.Dir, segment)
	if filepath.Dir(e.cfg.Audit.Dir) != filepath.Clean(e.cfg.DataDir) {
		e.free("database", e.cfg.DataDir, segment)
	}
}

// comfortableSegments is how many segments should fit on the disk.
const comfortableSegments = 4

func (e *exam) free(what, dir string, segment uint64) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		e.skip("disk-space", dir, err.Error())
		return
	}
	free := uint64(st.Bavail) * uint64(st.Bsize) //nolint:unconvert // the types differ between systems
	e.judgeFree(what, dir, free, segment)
}

func (e *exam) judgeFree(what, dir string, free, segment uint64) {
	fact := fmt.Sprintf("%s free for the %s, whose segments take %s each", humanBytes(free), what, humanBytes(segment))
	const remedy = "make room, or archive finished segments"
	switch {
	case free < segment:
		e.fail("disk-space", dir, fact+": the next one does not fit, and without audit records every request is refused", remedy)
	case free < comfortableSegments*segment:
		e.warn("disk-space", dir, fact, remedy)
	default:
		e.ok("disk-space", dir, fact)
	}
}

// humanBytes writes a number of bytes for people.
func humanBytes(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
