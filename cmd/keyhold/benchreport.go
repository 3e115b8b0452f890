package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/keyhold/keyhold/internal/bench"
)

func (b *benchArgs) report(op *loadOp) bench.Result {
	t := &op.tally
	r := bench.Result{Op: op.label, Door: b.door, Concurrency: b.concurrency, PayloadBytes: b.payload, Batch: op.batch}
	if op.name == "ping" || op.name == "datakey" {
		r.PayloadBytes = 0
	}
	cpu := -1.0
	if t.cpuKnown {
		cpu = t.cpu
	}
	r.Set(t.ops, t.errors, t.elapsed, &t.histogram, cpu)
	return r
}

// printBench prints what was measured.
func (a *app) printBench(b *benchArgs, loads []*loadOp) error {
	if a.output == outputJSON {
		for _, op := range loads {
			line, err := json.Marshal(b.report(op))
			if err != nil {
				return err
			}
			if err := a.write(append(line, '\n')); err != nil {
				return err
			}
			if op.tally.errors > 0 {
				fmt.Fprintf(a.stderr, "keyhold: errors of %s: %s\n", op.label, op.tally.errorText())
			}
		}
		return nil
	}
	var rows [][]string
	for _, op := range loads {
		r := b.report(op)
		cpu := "-"
		if r.ServerCPU != nil {
			cpu = fixed(*r.ServerCPU, 1)
		}
		rows = append(rows, []string{
			r.Op, fixed(r.OpsPerSecond, 0), fixed(r.P50, 3), fixed(r.P99, 3), fixed(r.P999, 3), cpu, op.tally.errorText(),
		})
	}
	return a.printRows([]string{"OP", "OPS/S", "P50 MS", "P99 MS", "P99.9 MS", "SERVER CPU US/OP", "ERRORS"}, rows)
}

func fixed(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }

// errorText counts the errors by their names.
func (t *tally) errorText() string {
	if t.errors == 0 {
		return "0"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(t.names)) {
		parts = append(parts, fmt.Sprintf("%d %s", t.names[name], name))
	}
	return strings.Join(parts, ", ")
}
