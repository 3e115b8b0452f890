//go:build soak

package servertest

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// TestSoak puts a daemon under load for as long as the variable SOAK says, breaks
// something of it at random every SOAK_EVERY, and ends with a check of everything
// and a report. `make soak` runs it. SOAK_ROWS is a regular expression for the names
// of the rows that may be met; without it all are.
func TestSoak(t *testing.T) {
	length, every := setting(t, "SOAK", 10*time.Minute), setting(t, "SOAK_EVERY", 20*time.Second)
	ownKeys = 200
	f := newFixture(t, nil)
	begin, err := f.d.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	rows := soakRows(t)
	var course []string
	for n := 1; time.Since(began) < length; n++ {
		next := time.Now().Add(every)
		r := rows[pick(len(rows))]
		t.Run(fmt.Sprintf("%03d-%s", n, r.name), func(t *testing.T) {
			f.recovered[r.name] = 0 // of this time
			f.load.Allow(r.allowed...)
			r.run(t, f, r)
			f.over(t)
			course = append(course, fmt.Sprintf("%7s  %-30s served again after %s", time.Since(began).Round(time.Second), r.name, f.recovered[r.name].Round(time.Millisecond)))
		})
		if t.Failed() {
			break // what follows would tell nothing
		}
		time.Sleep(min(time.Until(next), length-time.Since(began))) // the load's own time
	}
	f.load.Pause()
	f.check.CheckAll(t)
	end, err := f.d.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	f.load.Resume()
	took := time.Since(began)
	all, failed := f.load.Calls()
	t.Logf("%s under load: %d calls of clients (%.0f/s), %d of them failed while something was broken", took.Round(time.Second), all, float64(all)/took.Seconds(), failed)
	t.Logf("%d keys and %d aliases are acknowledged, and all of it is there", len(f.load.Ledger.Keys()), len(f.load.Ledger.Aliases()))
	for _, line := range course {
		t.Log(line)
	}
	const mib = 1 << 20
	for _, m := range []struct {
		when string
		m    Metrics
	}{{"at first", begin}, {"in the end", end}} {
		t.Logf("daemon %s: resident memory %.0f MiB, of it Go's heap %.0f MiB; %d goroutines", m.when, m.m["process_resident_memory_bytes"]/mib, m.m["go_memstats_heap_inuse_bytes"]/mib, m.m.Goroutines())
	}
	f.end(t)
}

// setting reads a duration from the environment.
func setting(t *testing.T, name string, otherwise time.Duration) time.Duration {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		t.Fatalf("%s is %q: use a duration, such as 10m", name, v)
	}
	return d
}

// soakRows are the rows that may be met in any order, any number of times.
func soakRows(t *testing.T) []row {
	t.Helper()
	var rows []row
	for _, c := range classes() {
		rows = append(rows, row{c.name, nil, func(t *testing.T, f *fixture, _ row) { f.class(t, c) }})
	}
	rows = append(rows, slices.Concat(tokenRows(), longRows(), intruderRows(), storeRows())...)
	rows = slices.DeleteFunc(rows, func(r row) bool { return r.name == "key-destroyed" }) // once is enough
	rows = append(rows, row{"killed", []codes.Code{codes.Unavailable, codes.DeadlineExceeded}, func(t *testing.T, f *fixture, r row) {
		f.d.Kill(t)
		f.d.Start(t)
		f.d.Connected(t, f.c)
		f.serves(t, r.name, operations()...)
		f.load.Pause()
		defer f.load.Resume()
		f.check.Restarted(t)
	}})
	only := regexp.MustCompile(os.Getenv("SOAK_ROWS"))
	rows = slices.DeleteFunc(rows, func(r row) bool { return !only.MatchString(r.name) })
	if len(rows) == 0 {
		t.Fatalf("SOAK_ROWS is %q: no row has such a name", only)
	}
	return rows
}
