package server

import (
	"os"
	"runtime"
	"runtime/debug"
)

// garbageBytes is how much garbage may gather between two collections, where the
// heap in use is smaller than that.
const garbageBytes = 32 << 20

// tuneGC makes the garbage collector run less often in a small process. By
// default it runs whenever as much was allocated as is in use, which for a
// service of 10 MiB under load is fifty times a second, and a seventh of its
// CPU time. One that holds many keys keeps the default, and so does one whose
// operator has set GOGC.
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
	const least, most = 100, 400
	return int(min(most, max(least, garbageBytes*100/max(inUse, 1))))
}
