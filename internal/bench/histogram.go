package bench

import (
	"math"
	"math/bits"
	"time"
)

const (
	// histogramBits is the resolution: each power of two is divided into 2^7
	// buckets, so a percentile is off by less than one part in 128.
	histogramBits = 7
	// histogramMax bounds the memory, to 36 KiB. What takes longer, over an
	// hour, counts as this.
	histogramMax = 1<<42 - 1
	// histogramBuckets is one more than the bucket of histogramMax.
	histogramBuckets = (42 - histogramBits + 1) << histogramBits
)

// Histogram counts durations in log-linear buckets, in memory that does not
// grow. It is not safe for concurrent use: each worker has its own.
type Histogram struct {
	counts [histogramBuckets]uint64
	total  uint64
}

// bucketOf returns the bucket of a number of nanoseconds. Numbers below 2^7
// have a bucket each; above, the bits behind the leading one choose it.
func bucketOf(ns int64) int {
	v := uint64(min(max(ns, 0), histogramMax))
	shift := max(0, bits.Len64(v)-histogramBits-1)
	return shift<<histogramBits + int(v>>shift)
}

// bucketTop returns the largest number of nanoseconds in a bucket.
func bucketTop(b int) int64 {
	shift := max(0, b>>histogramBits-1)
	return int64(b-shift<<histogramBits+1)<<shift - 1
}

// Add counts a duration n times.
func (h *Histogram) Add(d time.Duration, n int) {
	h.counts[bucketOf(int64(d))] += uint64(n)
	h.total += uint64(n)
}

// Merge adds what another one has counted.
func (h *Histogram) Merge(other *Histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
}

// Percentile returns the duration that a share p, from 0 to 1, of all counted
// ones do not exceed. It is never below the exact one. Without any it is 0.
func (h *Histogram) Percentile(p float64) time.Duration {
	rank := max(1, uint64(math.Ceil(p*float64(h.total))))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= rank {
			return time.Duration(bucketTop(i))
		}
	}
	return 0
}
