package server

import (
	"os"
	"runtime"
	"runtime/debug"
)

// garbageBytes is how much garbage may gather between two collections, where the
// heap in use is smaller than that.
const garbageBytes = 32 << 20

// tuneGC makes the garbage collector run less often. By default it runs whenever as
// much was allocated as is in use. For a service of 10 MiB under load that is fifty
// times a second, and a seventh of its CPU time; with the records of 100,000 keys it
// is seldom, but there are a million objects to look at, and a fifth. So a
// small process may have garbageBytes, and a large one twice what is in use. It is
// left alone where an operator has set GOGC.
//
// Call it when all records are loaded.
func tuneGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	runtime.GC() // what loading left behind is not in use
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetGCPercent(gcPercent(m.HeapAlloc))
}

// gcPercent returns GOGC for so many bytes in use.
func gcPercent(inUse uint64) int {
	const least, most = 200, 400
	return int(min(most, max(least, garbageBytes*100/max(inUse, 1))))
}
