package server

import "testing"

func TestGCPercent(t *testing.T) {
	for _, tc := range []struct {
		inUse uint64
		want  int
	}{
		{0, 400},
		{8 << 20, 400}, // garbageBytes / 4
		{garbageBytes / 3, 300},
		{16 << 20, 200}, // garbageBytes / 2
		{1 << 30, 200},
	} {
		if got := gcPercent(tc.inUse); got != tc.want {
			t.Errorf("%d bytes in use: %d%%, want %d%%", tc.inUse, got, tc.want)
		}
	}
}
