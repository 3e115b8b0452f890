// Package bench is what all of Keyhold's benchmarks share: how durations are
// counted ([Histogram]) and the form in which results are printed ([Result]).
// It measures nothing itself.
package bench

import (
	"math"
	"time"
)

// Result is what a benchmark prints of one operation with --output json, as one
// object on a line of its own. Scripts rely on its members.
type Result struct {
	// Op is the operation, with how it was done behind a colon where that is not
	// the usual way, such as encrypt:batch=100.
	Op string `json:"op"`
	// Door is where the operation was asked for: grpc, or below all doors token
	// or disk.
	Door        string `json:"door"`
	Concurrency int    `json:"concurrency"`
	// PayloadBytes is the size of plaintext, message or block; 0 where there is
	// none.
	PayloadBytes int     `json:"payload_bytes"`
	Batch        int     `json:"batch"` // items of a request
	Seconds      float64 `json:"seconds"`
	Ops          int     `json:"ops"`    // items that succeeded
	Errors       int     `json:"errors"` // items that did not
	OpsPerSecond float64 `json:"ops_per_second"`
	P50          float64 `json:"p50_ms"`
	P99          float64 `json:"p99_ms"`
	P999         float64 `json:"p999_ms"`
	// ServerCPU is the CPU time that the whole process which did the work has used
	// per op. It is null where that is not known.
	ServerCPU *float64 `json:"server_cpu_us_per_op"`
}

// Set fills in what follows from a measurement: the items that succeeded in so
// much time with their latencies, and the CPU time in seconds, negative where
// it is not known.
func (r *Result) Set(ops, errors int, elapsed time.Duration, h *Histogram, cpu float64) {
	r.Ops, r.Errors, r.Seconds = ops, errors, Round(elapsed.Seconds())
	r.P50, r.P99, r.P999 = Milliseconds(h.Percentile(0.5)), Milliseconds(h.Percentile(0.99)), Milliseconds(h.Percentile(0.999))
	if elapsed > 0 {
		r.OpsPerSecond = Round(float64(ops) / elapsed.Seconds())
	}
	if cpu >= 0 && ops > 0 {
		perOp := Round(cpu * 1e6 / float64(ops))
		r.ServerCPU = &perOp
	}
}

// Round rounds to three decimals.
func Round(f float64) float64 { return math.Round(f*1000) / 1000 }

// Milliseconds is a duration in milliseconds, rounded.
func Milliseconds(d time.Duration) float64 { return Round(float64(d) / float64(time.Millisecond)) }
