package main

import (
	"slices"

	"github.com/keyhold/keyhold/internal/bench"
)

// figureKey says of what a figure is.
type figureKey struct {
	server      string // synced, written, token; few or many keys or records
	op          string
	concurrency int
}

// figures are the results of all turns, in their order.
type figures map[figureKey][]bench.Result

// add adds the results of a turn.
func (f figures) add(server string, results []bench.Result) {
	for _, r := range results {
		k := figureKey{server, r.Op, r.Concurrency}
		f[k] = append(f[k], r)
	}
}

// median returns the median of what of sees in each turn, and false where there
// was no turn.
func (f figures) median(k figureKey, of func(bench.Result) float64) (float64, bool) {
	var all []float64
	for _, r := range f[k] {
		all = append(all, of(r))
	}
	return median(all)
}

// ratio returns the median of the ratios of the rates of a to those of b, turn
// by turn.
func (f figures) ratio(a, b figureKey) (float64, bool) {
	var all []float64
	for i := range min(len(f[a]), len(f[b])) {
		if below := f[b][i].OpsPerSecond; below > 0 {
			all = append(all, f[a][i].OpsPerSecond/below)
		}
	}
	return median(all)
}

func median(all []float64) (float64, bool) {
	if len(all) == 0 {
		return 0, false
	}
	all = slices.Sorted(slices.Values(all))
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2, true
	}
	return all[len(all)/2], true
}

// What of a result is looked at.
func rate(r bench.Result) float64 { return r.OpsPerSecond }
func p50(r bench.Result) float64  { return r.P50 }
func p99(r bench.Result) float64  { return r.P99 }
func p999(r bench.Result) float64 { return r.P999 }

func cpu(r bench.Result) float64 {
	if r.ServerCPU == nil {
		return 0
	}
	return *r.ServerCPU
}
