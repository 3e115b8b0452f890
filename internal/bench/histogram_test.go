package bench

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Percentiles are the exact ones, or above by less than one part in 128.
func TestHistogramPercentiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() int64{
		"uniform":     func() int64 { return r.Int64N(10_000_000) },
		"exponential": func() int64 { return int64(r.ExpFloat64() * 300_000) },
		"two peaks": func() int64 {
			if r.IntN(100) == 0 {
				return 50_000_000 + r.Int64N(1000)
			}
			return 90_000 + r.Int64N(1000)
		},
		"all magnitudes": func() int64 { return int64(math.Exp(r.Float64() * 29)) },
		"constant":       func() int64 { return 12345 },
		"tiny":           func() int64 { return r.Int64N(3) },
	} {
		for _, n := range []int{1, 2, 99, 1000, 100_000} {
			var h, a, b Histogram
			exact := make([]int64, n)
			for i := range exact {
				exact[i] = draw()
				h.Add(time.Duration(exact[i]), 1)
				if i%3 == 0 {
					a.Add(time.Duration(exact[i]), 1)
				} else {
					b.Add(time.Duration(exact[i]), 1)
				}
			}
			a.Merge(&b)
			slices.Sort(exact)
			for _, p := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
				want := exact[max(1, int(math.Ceil(p*float64(n))))-1]
				got := int64(h.Percentile(p))
				if got < want || got > want+want/128 {
					t.Errorf("%s, %d values: p%g = %d, exactly %d", name, n, 100*p, got, want)
				}
				if merged := int64(a.Percentile(p)); merged != got {
					t.Errorf("%s, %d values: p%g = %d when merged, %d otherwise", name, n, 100*p, merged, got)
				}
			}
		}
	}
}

func TestHistogramBuckets(t *testing.T) {
	last := -1
	for _, v := range []int64{-5, 0, 1, 127, 128, 129, 255, 256, 257, 258, 511, 512, 1 << 20, 1<<20 + 1<<13, 1<<41 - 1, 1 << 41, histogramMax, histogramMax + 1, math.MaxInt64} {
		b := bucketOf(v)
		if b < last || b >= histogramBuckets {
			t.Errorf("%d is in bucket %d, after %d, of %d", v, b, last, histogramBuckets)
		}
		last = b
		if top := bucketTop(b); top < min(max(v, 0), histogramMax) || bucketOf(top) != b || top < histogramMax && bucketOf(top+1) != b+1 {
			t.Errorf("bucket %d of %d ends at %d", b, v, top)
		}
	}
	if last != histogramBuckets-1 {
		t.Errorf("the last bucket is %d of %d", last, histogramBuckets)
	}
	var h Histogram
	if h.Percentile(0.5) != 0 {
		t.Error("without values a percentile is not 0")
	}
	h.Add(time.Second, 99)
	h.Add(2*time.Second, 1)
	if got := h.Percentile(0.99); got < time.Second || got > time.Second+time.Second/128 {
		t.Errorf("p99 = %v", got)
	}
}
