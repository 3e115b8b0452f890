//go:build soak

package servertest

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// TestSoak puts a daemon under load for as long as the variable SOAK says, breaks
// something of it at random every SOAK_EVERY, and ends with a check of everything
// and a report. `make soak` runs it.
func TestSoak(t *testing.T) {
	length, every := setting(t, "SOAK", 10*time.Minute), setting(t, "SOAK_EVERY", 20*time.Second)
	ownKeys = 200
	f := newFixture(t, nil)
	begin, err := f.d.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	rows := f.soakRows()
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
	t.Logf("daemon: resident memory %.0f MiB at first, %.0f MiB in the end; goroutines %d and %d", begin["process_resident_memory_bytes"]/mib,
		end["process_resident_memory_bytes"]/mib, begin.Goroutines(), end.Goroutines())
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
func (f *fixture) soakRows() []row {
	var rows []row
	for _, c := range classes() {
		rows = append(rows, row{c.name, nil, func(t *testing.T, f *fixture, _ row) { f.class(t, c) }})
	}
	rows = append(rows, slices.Concat(tokenRows(), longRows(), intruderRows(), storeRows())...)
	rows = slices.DeleteFunc(rows, func(r row) bool { return r.name == "key-destroyed" }) // once is enough
	return append(rows, row{"killed", []codes.Code{codes.Unavailable, codes.DeadlineExceeded}, func(t *testing.T, f *fixture, r row) {
		f.d.Kill(t)
		f.d.Start(t)
		f.d.Connected(t, f.c)
		f.serves(t, r.name, operations()...)
		f.load.Pause()
		defer f.load.Resume()
		f.check.Restarted(t)
	}})
}
