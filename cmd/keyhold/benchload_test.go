package main

import (
	"slices"
	"testing"
)

// Senders begin far from each other, so that many keys are all in use at once; few
// keys are taken in turn.
func TestStartWorkers(t *testing.T) {
	for _, tc := range []struct {
		requests, workers int
		want              []int
	}{
		{1, 3, []int{0, 1, 2}},
		{4, 4, []int{0, 1, 2, 3}},
		{10, 4, []int{0, 2, 5, 7}},
		{100_000, 2, []int{0, 50_000}},
	} {
		op := &loadOp{count: tc.requests}
		op.startWorkers(tc.workers)
		for i, want := range tc.want {
			if op.next[i] != want {
				t.Errorf("%d requests, %d senders: they begin at %v, want %v", tc.requests, tc.workers, op.next, tc.want)
				break
			}
		}
	}
}

func TestScatter(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 10, 1000, 99_999, 100_000} {
		in := make([]int, n)
		for i := range in {
			in[i] = i
		}
		out := scatter(in)
		if n > 10 {
			for i := range 8 {
				for j := range i {
					if d := out[i] - out[j]; max(d, -d) < n/50 {
						t.Errorf("of %d, the requests %d and %d of the new order were %d apart", n, i, j, d)
					}
				}
			}
		}
		slices.Sort(out)
		if !slices.Equal(out, in) {
			t.Errorf("of %d requests, some are there twice or not at all", n)
		}
	}
}
