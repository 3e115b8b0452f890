package adminapi

import (
	"sync"
	"testing"
)

func TestSeries(t *testing.T) {
	type labels struct{ a, b string }
	var s series[labels, int]
	want := []labels{{"x", "y"}, {"xy", ""}, {"", "xy"}}
	found := make(chan *int, 1000)
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() {
			for i := range 10 * len(want) {
				p := s.get(want[i%len(want)], func() *int {
					p := new(int)
					found <- p
					return p
				})
				if p == nil {
					t.Error("get returned nothing")
				}
			}
		})
	}
	callers.Wait()
	if n := len(found); n != len(want) {
		t.Errorf("looked up %d times, want once for each of %d sets of labels", n, len(want))
	}
	first := s.get(want[0], nil)
	for _, l := range want[1:] {
		if s.get(l, nil) == first {
			t.Errorf("%v has what %v has", l, want[0])
		}
	}
}
