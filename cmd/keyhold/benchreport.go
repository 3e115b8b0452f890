package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// benchReport is what --output json prints of an operation, on a line of its
// own. Scripts rely on its members.
type benchReport struct {
	Op           string  `json:"op"` // as --op has it, with :coalesce or :batch=N
	Door         string  `json:"door"`
	Concurrency  int     `json:"concurrency"`
	PayloadBytes int     `json:"payload_bytes"`
	Batch        int     `json:"batch"`
	Seconds      float64 `json:"seconds"`
	Ops          int     `json:"ops"`
	Errors       int     `json:"errors"`
	OpsPerSecond float64 `json:"ops_per_second"`
	P50          float64 `json:"p50_ms"`
	P99          float64 `json:"p99_ms"`
	P999         float64 `json:"p999_ms"`
	// ServerCPU is null where the server did not tell its CPU time.
	ServerCPU *float64 `json:"server_cpu_us_per_op"`
}

func (b *benchArgs) report(op *loadOp) benchReport {
	t := &op.tally
	r := benchReport{
		Op: op.label, Door: "grpc", Concurrency: b.concurrency, PayloadBytes: b.payload, Batch: op.batch,
		Seconds: round3(t.elapsed.Seconds()), Ops: t.ops, Errors: t.errors,
		P50: milliseconds(t.histogram.percentile(0.5)), P99: milliseconds(t.histogram.percentile(0.99)),
		P999: milliseconds(t.histogram.percentile(0.999)),
	}
	if op.name == "ping" || op.name == "datakey" {
		r.PayloadBytes = 0
	}
	if t.elapsed > 0 {
		r.OpsPerSecond = round3(float64(t.ops) / t.elapsed.Seconds())
	}
	if t.cpuKnown && t.ops > 0 {
		cpu := round3(t.cpu * 1e6 / float64(t.ops))
		r.ServerCPU = &cpu
	}
	return r
}

func round3(f float64) float64 { return math.Round(f*1000) / 1000 }

func milliseconds(d time.Duration) float64 { return round3(float64(d) / float64(time.Millisecond)) }

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
