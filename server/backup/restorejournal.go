package backup

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
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
		r.out.SealedSince, r.unrecorded = *r.o.SealedSince, *r.o.SealedSince
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

const (
	// createKey is the operation whose effect shows in the store.
	createKey = "CreateKey"
	// restoreName is the name of a restore's event.
	restoreName = "RestoreBackup"
)

// staging verifies the journal of the backup: all of it, and that it holds Since.
func (r *restorer) staging(_ context.Context, _, end audit.Anchor) error {
	report, err := audit.Verify(r.journalDir(), audit.VerifyOptions{AllowMissingStart: true})
	if err == nil && r.o.Since != nil {
		// From alone would leave out what is before it.
		_, err = audit.Verify(r.journalDir(), audit.VerifyOptions{From: r.o.Since})
	}
	if err != nil {
		return fmt.Errorf("the backup's audit log: %w", err)
	}
	if report.Last != end || report.Journal != r.m.Journal.ID {
		return fmt.Errorf("%w: the audit log is %s up to %s, the manifest says %s up to %s", ErrDamaged, report.Journal, report.Last, r.m.Journal.ID, r.m.Journal.End)
	}
	r.out.End, r.unrecorded = end, r.out.SealedSince
	return nil
}

// kept verifies the journal that is in place: it must go on from where that of the
// backup ends. What a crash left unfinished at its end is cut off by the next start.
// It has one record at least for each encryption since the backup, but for those that
// an earlier restore counted.
func (r *restorer) kept(ctx context.Context, at, end audit.Anchor) error {
	dir := r.t.audit
	span, err := audit.Settle(ctx, dir)
	if err == nil && span.Live {
		return fmt.Errorf("%w: %s; hint: stop the daemon", audit.ErrLocked, dir)
	}
	for _, point := range []*audit.Anchor{&end, r.o.Since} {
		if err == nil && point != nil {
			err = contains(dir, span.First, *point)
		}
	}
	if err != nil {
		return fmt.Errorf("the audit log in %s: %w; hint: without --keep-audit-log, and with its folder moved away, that of the backup is restored", dir, err)
	}
	r.out.End = span.End
	if r.o.SealedSince != nil {
		return nil
	}
	if _, err := audit.Durable(ctx, dir); err != nil {
		return fmt.Errorf("%w; without it nobody knows where the log ended, and how often keys have encrypted; hint: say that with --sealed-since, %d as without the log, or more", err, uint64(DefaultSealedSince))
	}
	earlier, err := unrecordedSeals(dir, at.Count)
	if err != nil {
		return err
	}
	r.unrecorded = lostRecords
	r.out.SealedSince = min(span.End.Count-at.Count+lostRecords+earlier, maxSeals)
	return nil
}

// contains wants the chain of the journal in dir, which begins at first, to have that
// value at that point.
func contains(dir string, first, point audit.Anchor) error {
	if point.Count == first.Count {
		return isAt(first.Hash, point)
	}
	if point.Count == 0 {
		return fmt.Errorf("it begins after %d records", first.Count)
	}
	for rec, err := range audit.Read(dir, point.Count-1) {
		if err != nil {
			return err
		}
		return isAt(rec.Chain, point)
	}
	return fmt.Errorf("it has fewer than %d records", point.Count)
}

func isAt(chain audit.Hash, point audit.Anchor) error {
	if chain != point.Hash {
		return fmt.Errorf("it has the chain value %s after %d records, not %s: it is another log", chain, point.Count, point.Hash)
	}
	return nil
}

// unrecordedSeals returns how many seals are to be counted, from number from on, that
// the journal in dir has no records of: what earlier restores have counted for the
// branch that was lost then, and DefaultSealedSince where it lost its head file, and
// nobody knows what else.
func unrecordedSeals(dir string, from uint64) (seals uint64, err error) {
	for rec, err := range audit.Read(dir, from) {
		if err != nil {
			return 0, fmt.Errorf("read what was recorded since the backup: %w", err)
		}
		n, err := unrecordedIn(rec)
		if err != nil {
			return 0, fmt.Errorf("record %d of the audit log, of an earlier restore, does not say what that counted: %w; hint: say with --sealed-since how often keys may have encrypted since the backup", rec.Seq, err)
		}
		seals = min(seals+min(n, maxSeals), maxSeals)
	}
	return seals, nil
}

func unrecordedIn(rec audit.Record) (seals uint64, err error) {
	if !bytes.Contains(rec.Payload, []byte(restoreName)) && !bytes.Contains(rec.Payload, []byte(audit.NoteHeadRenewed)) {
		return 0, nil // most
	}
	var e struct {
		EventName  string `json:"eventName"`
		Additional struct {
			Counted    string `json:"sealsCounted"`
			Unrecorded string `json:"sealsUnrecorded"`
		} `json:"additionalEventData"`
	}
	// What is no JSON is no event of ours: it has no name.
	_ = json.Unmarshal(rec.Payload, &e)
	switch {
	case rec.Kind == audit.KindNote && e.EventName == audit.NoteHeadRenewed:
		return DefaultSealedSince, nil
	case rec.Kind == audit.KindEvent && e.EventName == restoreName:
		return strconv.ParseUint(cmp.Or(e.Additional.Unrecorded, e.Additional.Counted), 10, 64)
	}
	return 0, nil
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
		UserIdentity: audit.UserIdentity{Type: "AWSService", InvokedBy: ownName}, EventTime: r.o.Now(), EventName: restoreName,
		SourceIPAddress: ownName, UserAgent: ownName, EventID: id, EventType: audit.TypeService,
		Additional: []audit.Member{
			{Key: "backupCreated", Value: r.m.Created.Format(time.RFC3339Nano)},
			{Key: "accessKeysDeactivated", Value: strconv.Itoa(deactivated)},
			{Key: "manifestSHA256", Value: r.out.SHA256},
			{Key: "continuesFrom", Value: r.out.End.String()},
			{Key: "sealsCounted", Value: strconv.FormatUint(r.out.SealedSince, 10)},
			{Key: "sealsUnrecorded", Value: strconv.FormatUint(r.unrecorded, 10)},
		},
	}
	return e.AppendJSON(nil)
}

// ownName is who did what no request asked for, as in the core's events.
const ownName = "keyhold"
