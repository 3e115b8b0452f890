package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

const (
	// benchAlias is how `keyhold bench` names its keys, but for the number.
	benchAlias = "alias/keyhold-bench/SYMMETRIC_DEFAULT-"
	// recordsOps are what is measured with all keys.
	recordsOps = "encrypt,describe"
	// firstUses is how many keys a second are used for the first time, at least:
	// a key's first encryption writes its seal count to the database.
	firstUses = 1500
	// recordStarts is how often a start is measured.
	recordStarts = 3
	listPage     = int32(100)
)

// recordsData is what -part records measures.
type recordsData struct {
	records     int
	figures     figures   // of serverFew and serverMany; a door's is behind its operations
	starts      []float64 // seconds
	idle        [2]float64
	used        float64 // bytes, of the server with many when all were used
	heap        float64
	keys, names listing
}

// listing is what walking through a list took, page by page, each time.
type listing struct {
	entries int
	walks   [][]time.Duration
}

// measureRecords measures many key records. Their objects are those of a few
// keys: a token takes long to make as many, and how many objects are in the token is
// what -part keys measures.
func (s *settings) measureRecords(ctx context.Context, m machine) (text string, err error) {
	few, many := s.newDaemon("few"), s.newDaemon("many")
	defer func() { err = errors.Join(err, few.stop(), many.stop()) }()
	for _, d := range []*daemon{few, many} {
		if err := d.start(ctx); err != nil {
			return "", err
		}
		if _, err := d.bench(ctx, "--op", "encrypt", "--keys", strconv.Itoa(fewKeys), "--duration", "100ms"); err != nil {
			return "", err
		}
	}
	data := recordsData{records: s.records, figures: figures{}}
	if err := many.stop(); err != nil {
		return "", err
	}
	s.say("writing %d records", s.records)
	if err := addRecords(ctx, filepath.Join(many.dir, "data"), s.records); err != nil {
		return "", err
	}
	for range recordStarts {
		if err := errors.Join(many.stop(), many.start(ctx)); err != nil {
			return "", err
		}
		data.starts = append(data.starts, many.started.Seconds())
		s.say("started with %d records in %.2f s", s.records, many.started.Seconds())
	}
	for i, d := range []*daemon{few, many} {
		if data.idle[i], err = d.idleMemory(ctx); err != nil {
			return "", err
		}
	}
	if err := s.useAll(ctx, many, s.records, 1); err != nil {
		return "", err
	}
	for turn := range s.turns {
		s.say("turn %d of %d", turn+1, s.turns)
		if err := errors.Join(s.recordsTurn(ctx, data.figures, few, many), many.walk(ctx, &data.keys, &data.names)); err != nil {
			return "", err
		}
	}
	if data.used, err = many.metric(ctx, "process_resident_memory_bytes"); err != nil {
		return "", err
	}
	if data.heap, err = many.metric(ctx, "go_memstats_heap_inuse_bytes"); err != nil {
		return "", err
	}
	return data.text(m.text(fmt.Sprintf("make bench-records BENCHTIME=%d", s.turns))), nil
}

// addRecords writes records and aliases into the database of a stopped daemon
// until there are n, each of the same object as one that is there.
func addRecords(ctx context.Context, dir string, n int) (err error) {
	store, err := sqlite.Open(ctx, dir, sqlite.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	all, err := store.Snapshot(ctx)
	if err != nil {
		return err
	}
	more := &kms.Snapshot{}
	for i := len(all.Keys); i < n; i++ {
		r := all.Keys[i%len(all.Keys)].Clone()
		r.ID, r.Revision = kms.KeyID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i)), 0
		if _, err := rand.Read(r.Versions[0].Ref[:]); err != nil {
			return err
		}
		a := &kms.AliasRecord{Account: r.Account, Region: r.Region, KeyID: r.ID, Name: benchAlias + strconv.Itoa(i+1), Created: r.Created, Updated: r.Created}
		more.Keys, more.Aliases = append(more.Keys, r), append(more.Aliases, a)
	}
	return store.InsertAll(ctx, more)
}

// useAll uses each of a daemon's keys, so many times.
func (s *settings) useAll(ctx context.Context, d *daemon, keys, times int) error {
	s.say("using each key: %d", times)
	long := time.Duration(keys*times) * time.Second / firstUses
	_, err := d.bench(ctx, "--op", "encrypt", "--keys", strconv.Itoa(keys), "--payload", payload, "--concurrency", strconv.Itoa(fewCallers), "--duration", long.String(), "--timeout", "5m")
	return err
}

// recordsTurn measures few and many in turn, through both doors.
func (s *settings) recordsTurn(ctx context.Context, f figures, few, many *daemon) error {
	for _, door := range []string{"grpc", "aws"} {
		for _, part := range []struct {
			d      *daemon
			server string
			keys   int
		}{{few, serverFew, fewKeys}, {many, serverMany, s.records}} {
			got, err := part.d.bench(ctx, "--op", recordsOps, "--door", door, "--keys", strconv.Itoa(part.keys), "--concurrency", strconv.Itoa(fewCallers),
				"--payload", payload, "--duration", (2 * s.turn).String(), "--warmup", s.warmup(), "--timeout", "5m")
			if err != nil {
				return err
			}
			for i := range got {
				got[i].Op += ":" + door
			}
			f.add(part.server, got)
		}
	}
	return nil
}

// walk pages through all keys and all aliases.
func (d *daemon) walk(ctx context.Context, keys, names *listing) (err error) {
	c, err := client.Dial(client.Config{Addr: d.env["KEYHOLD_ADDR"], CAFile: d.env["KEYHOLD_CA"], CertFile: d.env["KEYHOLD_CERT"], KeyFile: d.env["KEYHOLD_KEY"]})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	limit := listPage
	err = keys.walk(func(marker *string) (int, string, error) {
		page, err := c.Keys.ListKeys(ctx, &keyholdv1.ListKeysRequest{Limit: &limit, Marker: marker})
		return len(page.GetKeys()), page.GetNextMarker(), err
	})
	if err != nil {
		return err
	}
	return names.walk(func(marker *string) (int, string, error) {
		page, err := c.Keys.ListAliases(ctx, &keyholdv1.ListAliasesRequest{Limit: &limit, Marker: marker})
		return len(page.GetAliases()), page.GetNextMarker(), err
	})
}

// walk asks for page after page.
func (l *listing) walk(page func(marker *string) (entries int, next string, err error)) error {
	var marker *string
	l.entries = 0
	l.walks = append(l.walks, nil)
	pages := &l.walks[len(l.walks)-1]
	for {
		began := time.Now()
		n, next, err := page(marker)
		if err != nil {
			return err
		}
		*pages = append(*pages, time.Since(began))
		l.entries += n
		if next == "" {
			return nil
		}
		marker = &next
	}
}

// part returns the median page of the k-th quarter, in milliseconds.
func (l *listing) part(k int) float64 {
	var pages []time.Duration
	for _, walk := range l.walks {
		n := len(walk)
		pages = append(pages, walk[k*n/4:max((k+1)*n/4, k*n/4+1)]...)
	}
	slices.Sort(pages)
	return pages[len(pages)/2].Seconds() * 1e3
}

// total returns what one walk took, the median, in seconds.
func (l *listing) total() float64 {
	sums := make([]float64, len(l.walks))
	for i, walk := range l.walks {
		for _, page := range walk {
			sums[i] += page.Seconds()
		}
	}
	m, _ := median(sums)
	return m
}

// text is the generated part of the page.
func (r recordsData) text(machine string) string {
	key := func(server, op string) figureKey { return figureKey{server, op, fewCallers} }
	var targets []target
	var rows []row
	for _, op := range []struct{ op, name string }{
		{"encrypt:grpc", "Encrypt"},
		{"describe:grpc", "DescribeKey"},
		{"encrypt:aws", "Encrypt through the AWS door"},
		{"describe:aws", "DescribeKey through the AWS door"},
	} {
		few, many := key(serverFew, op.op), key(serverMany, op.op)
		targets = append(targets, r.figures.ratioTarget(fmt.Sprintf("%s of %d key records / of %d, %d callers", op.name, r.records, fewKeys, fewCallers), 1/1.2, many, few))
		rows = append(rows, row{fmt.Sprintf("%s, %d records", op.name, fewKeys), few}, row{fmt.Sprintf("%s, %d records", op.name, r.records), many})
	}
	for _, l := range []struct {
		name string
		list listing
	}{{"ListKeys", r.keys}, {"ListAliases", r.names}} {
		targets = append(targets, target{name: fmt.Sprintf("%s, a page of %d in the last quarter / in the first", l.name, listPage), goal: 1.2, atMost: true, got: l.list.part(3) / l.list.part(0), known: true},
			target{name: fmt.Sprintf("%s, a page of %d, median of the first quarter", l.name, listPage), none: true, unit: " ms", got: l.list.part(0), known: true},
			target{name: fmt.Sprintf("%s, all %d in %d pages", l.name, l.list.entries, len(l.list.walks[0])), none: true, unit: " s", got: l.list.total(), known: true})
	}
	start := target{name: fmt.Sprintf("start-up with %d records, until all doors answer", r.records), none: true, unit: " s"}
	start.got, start.known = median(r.starts)
	mb := func(name string, bytes float64) target {
		return target{name: name, none: true, unit: " MB", got: bytes / 1e6, known: bytes > 0}
	}
	targets = append(targets, start,
		mb(fmt.Sprintf("memory (RSS) of a server with %d records that has just started", r.records), r.idle[1]),
		mb(fmt.Sprintf("the same with %d", fewKeys), r.idle[0]),
		mb(fmt.Sprintf("memory (RSS) when all %d keys were used", r.records), r.used),
		mb("of it the Go heap in use", r.heap))
	var b strings.Builder
	b.WriteString(machine + "\n" + targetTable(targets) + "\n")
	b.WriteString(r.figures.opsTable(rows, false))
	return b.String()
}
