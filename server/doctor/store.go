package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyhold/keyhold/proto/awsjson"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// recordsBefore are the records as they were before the tokens were listed.
type recordsBefore struct {
	read   bool
	before []*kms.KeyRecord
}

// creationGrace is how old an unfinished creation must be before it is called
// one: the daemon may be at work on it. The slowest keys take a minute.
const creationGrace = 5 * time.Minute

// store opens the database beside the daemon and reads all of it.
func (e *exam) store(ctx context.Context) {
	dir := e.cfg.DataDir
	if err := server.CheckRestored(e.cfg); err != nil {
		fact, remedy := hint(err, "")
		e.fail("store", dir, fact, remedy)
		return
	}
	r, err := sqlite.OpenReadOnly(ctx, dir, sqlite.Options{})
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		fact, _ := hint(err, "")
		e.fail("store", dir, fact, "correct data_dir, or run `keyholdd init --config "+e.opts.ConfigFile+"` for a new installation")
		return
	case errors.Is(err, sqlite.ErrOlderSchema):
		fact, remedy := hint(err, "start keyholdd of this version once: it migrates the database")
		e.warn("store", dir, fact, remedy)
		return
	default:
		fact, remedy := hint(err, "restore the database from a backup, or correct data_dir")
		e.fail("store", dir, fact, remedy)
		return
	}
	e.reader = r
	if err := r.Check(ctx); err != nil {
		fact, remedy := hint(err, "restore the database from a backup")
		e.fail("store", r.Path(), fact, remedy)
		return
	}
	snapshot, err := r.Snapshot(ctx)
	if err != nil {
		fact, remedy := hint(err, "restore the database from a backup")
		e.fail("store", r.Path(), fact, remedy)
		return
	}
	e.records = recordsBefore{read: true, before: snapshot.Keys}
	e.add(Check{
		Name: "store", Subject: r.Path(), Status: OK, Details: e.byState(snapshot.Keys),
		Fact: fmt.Sprintf("whole: schema %d, installation %s, %s, %d aliases", r.Schema(), r.Instance(), count(len(snapshot.Keys), "key"), len(snapshot.Aliases)),
	})
	e.unservedRegions(snapshot.Keys)
}

// byState counts keys.
func (e *exam) byState(keys []*kms.KeyRecord) []string {
	counts := make(map[string]int)
	for _, k := range keys {
		state := awsjson.EnumName(k.State)
		if k.Destroying {
			state = "being destroyed"
		}
		counts[string(k.Region)+" "+state]++
	}
	lines := make([]string, 0, len(counts))
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf("%s: %d", state, counts[state]))
	}
	return lines
}

// unservedRegions warns of keys that nobody can reach.
func (e *exam) unservedRegions(keys []*kms.KeyRecord) {
	served := make(map[kms.Region]bool)
	for _, r := range e.cfg.Regions {
		served[kms.Region(r.Name)] = true
	}
	lost := make(map[string]bool)
	for _, k := range keys {
		if !served[k.Region] {
			lost[string(k.Region)] = true
		}
	}
	if len(lost) > 0 {
		e.warn("regions", "", "there are keys in regions that are not served: "+strings.Join(slices.Sorted(maps.Keys(lost)), ", "), "add the regions to the configuration, with the tokens that hold their keys")
	}
}

// reconcile compares records with token objects. It reads the records again:
// the daemon may be making and deleting keys meanwhile.
func (e *exam) reconcile(ctx context.Context) {
	const name = "records-and-objects"
	if !e.records.read {
		e.skip(name, "", "the store could not be read")
		return
	}
	after, err := e.reader.Snapshot(ctx)
	if err != nil {
		fact, remedy := hint(err, "restore the database from a backup")
		e.fail(name, e.reader.Path(), fact, remedy)
		return
	}
	byName := make(map[string]*patient)
	for _, p := range e.patients {
		byName[p.name] = p
	}
	for _, region := range e.cfg.Regions {
		p := byName[region.Token]
		if p == nil || p.objects == nil {
			e.skip(name, region.Name, "the objects of the token "+region.Token+" are not known")
			continue
		}
		objects := make([]kms.StoredObject, 0, len(p.objects))
		for _, o := range p.objects {
			objects = append(objects, kms.StoredObject{ID: o.ID, Label: o.Label, Public: !secret(o)})
		}
		orphans := kms.FindOrphans(kms.Comparison{
			Instance: e.reader.Instance(), Region: kms.Region(region.Name), Before: e.records.before, Objects: objects, After: after.Keys,
			Begun: e.opts.Now().Add(-creationGrace),
		})
		e.reportOrphans(region.Name, orphans)
	}
}

// reportOrphans: a key without its object cannot be used any more; the others
// are what a crash left behind, and harm nobody.
func (e *exam) reportOrphans(region string, orphans []kms.Orphan) {
	const name = "records-and-objects"
	if len(orphans) == 0 {
		e.ok(name, region, "every key has its objects, and every object of this installation its key")
		return
	}
	c := Check{Name: name, Subject: region, Status: Warn, Fact: count(len(orphans), "orphan"), Remedy: "`keyholdd orphans --config " + e.opts.ConfigFile + "` lists and cleans up, with the daemon stopped"}
	lost := 0
	for _, o := range orphans {
		c.Details = append(c.Details, fmt.Sprintf("%s: key %s, CKA_ID %x", o.Kind, o.KeyID, o.ObjectID))
		if o.Kind == kms.OrphanRecord {
			lost++
		}
	}
	if lost > 0 {
		c.Status, c.Fact = Fail, fmt.Sprintf("%s, of them %d keys whose objects are not in the token", c.Fact, lost)
		c.Remedy = "make sure that the configuration names the right token; restore its objects from the token's backup"
	}
	e.add(c)
}
