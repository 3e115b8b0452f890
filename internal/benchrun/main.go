// Command benchrun measures Keyhold and writes the figures into
// docs/performance.md: `make bench`, `make bench-keys`, `make bench-records`. It starts servers of its
// own in a temporary folder, on free ports, and ends them.
//
// What is compared takes turns of a second in one run, also between servers, so
// that what else happens on the machine meets all alike. A ratio is the median
// of the ratios of all turns. No figure is better than the machine was quiet:
// the page says how busy it was.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "benchrun:", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	part    string
	bin     string
	doc     string
	work    string
	turns   int
	turn    time.Duration
	keys    int
	records int
	ops     int
	stderr  io.Writer
}

func run(ctx context.Context, args []string, stderr io.Writer) (err error) {
	s := settings{stderr: stderr}
	flags := flag.NewFlagSet("benchrun", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.part, "part", partOps, "what to measure: ops, keys (10,000 keys, start-up, memory), or records (100,000 key records)")
	flags.StringVar(&s.bin, "bin", "bin", "folder of keyholdd and keyhold")
	flags.StringVar(&s.doc, "doc", "docs/performance.md", "page to write the figures into")
	flags.StringVar(&s.work, "work", "", "folder to work in, on the disk to measure; the system's for temporary files")
	flags.IntVar(&s.turns, "turns", 8, "how often each operation is measured")
	flags.DurationVar(&s.turn, "turn", time.Second, "for how long each time")
	flags.IntVar(&s.keys, "keys", 10000, "how many keys are many, for -part keys")
	flags.IntVar(&s.records, "records", 100_000, "how many key records are many, for -part records")
	flags.IntVar(&s.ops, "operations", 1_000_000, "how many operations must leave the heap flat, for -part keys")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || s.turns < 1 || s.turn <= 0 || s.keys < 20 || s.records < 20 || s.ops < 1000 || !slices.Contains(parts(), s.part) {
		return fmt.Errorf("-part is ops, keys or records, -turns at least 1, -turn above zero, -keys and -records at least 20, -operations at least 1000, and there are no arguments")
	}
	// Before the minutes that the measurement takes.
	if _, err := splice(readOrNew(s.doc), s.part, ""); err != nil {
		return fmt.Errorf("%s: %w", s.doc, err)
	}
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return err
	}
	if s.work, err = os.MkdirTemp(s.work, "keyhold-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.work)) }()
	m := lookAtMachine(ctx, s.work)
	var text string
	switch s.part {
	case partOps:
		text, err = s.measureOps(ctx, m)
	case partKeys:
		text, err = s.measureKeys(ctx, m)
	default:
		text, err = s.measureRecords(ctx, m)
	}
	if err != nil {
		return err
	}
	page, err := splice(readOrNew(s.doc), s.part, text)
	if err != nil {
		return fmt.Errorf("%s: %w", s.doc, err)
	}
	fmt.Fprint(stderr, text)
	return os.WriteFile(s.doc, page, 0o644)
}

// say tells the user how far it is.
func (s *settings) say(format string, args ...any) {
	fmt.Fprintf(s.stderr, "benchrun: "+format+"\n", args...)
}

// readOrNew reads a page, or returns a new one without figures.
func readOrNew(path string) []byte {
	if b, err := os.ReadFile(path); err == nil {
		return b
	}
	return []byte(emptyPage)
}
