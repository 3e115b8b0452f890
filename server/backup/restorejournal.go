package backup

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// journalDir is where the journal is that the installation will have.
func (r *restorer) journalDir() string {
	if r.o.KeepJournal {
		return r.t.audit
	}
	return r.t.stage(r.t.audit)
}

// journal verifies the journal, and takes from it what the store may not know.
func (r *restorer) journal(ctx context.Context) error {
	points := make(map[string]audit.Anchor)
	for name, text := range map[string]string{"at": r.m.Journal.AtStore, "end": r.m.Journal.End} {
		at, err := audit.ParseAnchor(text)
		if err != nil {
			return err
		}
		points[name] = at
	}
	r.out.SealedSince = DefaultSealedSince
	verify := r.staging
	if r.o.KeepJournal {
		verify = r.kept
	}
	if err := verify(ctx, points["at"], points["end"]); err != nil {
		return err
	}
	if r.o.SealedSince != nil {
		r.out.SealedSince = *r.o.SealedSince
	}
	finished := make(map[string]bool)
	for _, k := range r.keys {
		finished[k.ARN()] = k.State != keyholdv1.KeyState_KEY_STATE_CREATING
	}
	var err error
	r.out.Unsure, r.out.Recorded, err = changesSince(r.journalDir(), points["at"].Count, func(c Change) bool {
		return c.Name != createKey || !finished[c.Resource]
	})
	return err
}

// createKey is the operation whose effect shows in the store.
const createKey = "CreateKey"

// staging verifies the journal of the backup.
func (r *restorer) staging(_ context.Context, _, end audit.Anchor) error {
	report, err := audit.Verify(r.journalDir(), audit.VerifyOptions{From: r.o.Since, AllowMissingStart: true})
	if err != nil {
		return fmt.Errorf("the backup's audit log: %w", err)
	}
	if report.Last != end || report.Journal != r.m.Journal.ID {
		return fmt.Errorf("%w: the audit log is %s up to %s, the manifest says %s up to %s", ErrDamaged, report.Journal, report.Last, r.m.Journal.ID, r.m.Journal.End)
	}
	r.out.End = end
	return nil
}

// kept verifies the journal that is in place: it must go on from where that of the
// backup ends. What a crash left unfinished at its end is cut off by the next start.
// It has one record at least for each encryption since the backup.
func (r *restorer) kept(ctx context.Context, at, end audit.Anchor) error {
	for _, point := range []*audit.Anchor{&end, r.o.Since} {
		if point == nil {
			continue
		}
		if err := contains(r.t.audit, *point); err != nil {
			return fmt.Errorf("the audit log in %s: %w; hint: without --keep-audit-log, and with its folder moved away, that of the backup is restored", r.t.audit, err)
		}
	}
	span, err := audit.Settle(ctx, r.t.audit)
	if err != nil {
		return err
	}
	if span.Live {
		return fmt.Errorf("%w: %s; hint: stop the daemon", audit.ErrLocked, r.t.audit)
	}
	r.out.End = span.End
	r.out.SealedSince = span.End.Count - at.Count + lostRecords
	return nil
}

// contains wants the chain of the journal in dir to have that value at that point.
func contains(dir string, point audit.Anchor) error {
	if point.Count == 0 {
		return nil
	}
	for rec, err := range audit.Read(dir, point.Count-1) {
		if err != nil {
			return err
		}
		if rec.Chain != point.Hash {
			return fmt.Errorf("it has the chain value %s after %d records, not %s: it is another log", rec.Chain, point.Count, point.Hash)
		}
		return nil
	}
	return fmt.Errorf("it has fewer than %d records", point.Count)
}

// record writes the restore into the journal, the last thing before all is put in
// place. A staged one is from here on another one than that which went on without the
// backup. In one that was kept, the event may be there once more where the restore
// fails after it, or is killed.
func (r *restorer) record(ctx context.Context) error {
	dir := r.journalDir()
	j, err := audit.Open(dir, audit.Options{SegmentBytes: r.o.Config.Audit.SegmentBytes, Now: r.o.Now})
	if err != nil {
		return err
	}
	id, err := uuid.NewRandom()
	if err == nil {
		_, err = j.Append(ctx, audit.Protected, audit.Synced, r.event(id.String()))
	}
	r.out.Now = j.Durable()
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
	defer cancel()
	if err = errors.Join(err, j.Close(wait)); err != nil {
		return fmt.Errorf("record the restore: %w", err)
	}
	if report, err := audit.Verify(dir, audit.VerifyOptions{From: &r.out.End}); err != nil || report.Last != r.out.Now {
		return fmt.Errorf("the audit log with the event of the restore ends at %s, want %s: %w", report.Last, r.out.Now, err)
	}
	return nil
}

// event is what the journal tells of the restore.
func (r *restorer) event(id string) []byte {
	deactivated := len(r.out.AccessKeys)
	if r.o.KeepAccessKeys {
		deactivated = 0
	}
	e := audit.Event{
		UserIdentity: audit.UserIdentity{Type: "AWSService", InvokedBy: ownName}, EventTime: r.o.Now(), EventName: "RestoreBackup",
		SourceIPAddress: ownName, UserAgent: ownName, EventID: id, EventType: audit.TypeService,
		Additional: []audit.Member{
			{Key: "backupCreated", Value: r.m.Created.Format(time.RFC3339Nano)},
			{Key: "accessKeysDeactivated", Value: strconv.Itoa(deactivated)},
			{Key: "manifestSHA256", Value: r.out.SHA256},
			{Key: "continuesFrom", Value: r.out.End.String()},
			{Key: "sealsCounted", Value: strconv.FormatUint(r.out.SealedSince, 10)},
		},
	}
	return e.AppendJSON(nil)
}

// ownName is who did what no request asked for, as in the core's events.
const ownName = "keyhold"
