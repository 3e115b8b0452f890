package main

import (
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/internal/bench"
)

func TestSplice(t *testing.T) {
	const page = "# P\n\nby hand\n<!-- begin ops -->\nold\n<!-- end ops -->\nmore by hand\n<!-- begin keys -->\nkept\n<!-- end keys -->\n"
	got, err := splice([]byte(page), partOps, "new\n")
	if want := strings.Replace(page, "old", "new", 1); err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	if again, err := splice(got, partOps, "new\n"); err != nil || string(again) != string(got) {
		t.Errorf("twice: %q, %v", again, err)
	}
	if got, err = splice(got, partKeys, ""); err != nil || strings.Contains(string(got), "kept") || !strings.Contains(string(got), "more by hand") {
		t.Errorf("%q, %v", got, err)
	}
	for name, bad := range map[string]string{
		"no markers":  "# P\n",
		"one marker":  "<!-- begin ops -->\n",
		"other order": "<!-- end ops -->\n<!-- begin ops -->\n",
		"twice":       page + page,
	} {
		if got, err := splice([]byte(bad), partOps, "new"); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, part := range []string{partOps, partKeys} {
		if _, err := splice([]byte(emptyPage), part, "x\n"); err != nil {
			t.Errorf("the empty page: %v", err)
		}
		page, err := os.ReadFile("../../docs/performance.md")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := splice(page, part, "x\n"); err != nil {
			t.Errorf("docs/performance.md: %v", err)
		}
	}
}

// turn is a result of one turn.
func turn(op string, concurrency int, perSecond, p99, cpu float64) bench.Result {
	return bench.Result{Op: op, Concurrency: concurrency, OpsPerSecond: perSecond, P50: p99 / 2, P99: p99, P999: 2 * p99, ServerCPU: &cpu}
}

// A ratio is the median of the turns' ratios: one in which the machine was busy
// counts no more than another.
func TestRatio(t *testing.T) {
	f := figures{}
	for _, rates := range [][2]float64{{50, 100}, {10, 1000}, {55, 100}, {600, 1000}, {52, 100}} {
		f.add("synced", []bench.Result{turn("encrypt", 16, rates[0], 5, 100), turn("ping", 16, rates[1], 1, 40)})
	}
	encrypt, ping := figureKey{"synced", "encrypt", 16}, figureKey{"synced", "ping", 16}
	if got, ok := f.ratio(encrypt, ping); !ok || math.Abs(got-0.52) > 1e-9 {
		t.Errorf("%f, %t; want 0.52", got, ok)
	}
	if got, ok := f.median(encrypt, rate); !ok || got != 52 {
		t.Errorf("%f, %t; want 52", got, ok)
	}
	for _, none := range []figureKey{{"written", "ping", 16}, {"synced", "ping", 64}, {}} {
		if got, ok := f.ratio(encrypt, none); ok {
			t.Errorf("a ratio to nothing is %f", got)
		}
	}
	f.add("token", []bench.Result{turn("idle", 16, 0, 0, 0)})
	if got, ok := f.ratio(encrypt, figureKey{"token", "idle", 16}); ok {
		t.Errorf("a ratio to zero is %f", got)
	}
	if got, _ := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("the median of four is %f", got)
	}
}

// goal finds a line of the table of goals.
func goal(t *testing.T, text, name string) string {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "| "+name) {
			return strings.TrimSpace(line)
		}
	}
	t.Errorf("no goal %q in\n%s", name, text)
	return ""
}

func TestOpsText(t *testing.T) {
	f := figures{}
	for _, concurrency := range []int{16, 64} {
		f.add(serverSynced, []bench.Result{
			turn("ping", concurrency, 10000, 1, 40), turn("encrypt", concurrency, 5000, 9.5, 100), turn("mac", concurrency, 3000, 9, 100),
			turn("sign", concurrency, 2500, 9, 100), turn("encrypt:coalesce", concurrency, 7500, 9, 50), turn("encrypt:batch=100", concurrency, 30000, 90, 22.4),
		})
		f.add(serverWritten, []bench.Result{turn("ping", concurrency, 10000, 1, 40), turn("encrypt", concurrency, 6000, 9, 100), turn("mac", concurrency, 5999, 9, 100)})
	}
	f.add(serverSynced, []bench.Result{turn(opRSA, 16, 700, 9, 800)})
	f.add(serverToken, []bench.Result{turn("sign-rsa2048", 16, 1000, 9, 600)})
	alone := figures{}
	alone.add(serverToken, []bench.Result{turn("encrypt", 1, 60000, 0.1, 12), turn("fdatasync", 1, 8000, 0.2, 40)})
	text := f.opsText(alone, 59.9e6, "Measured somewhere.\n")
	for name, want := range map[string]string{
		"Encrypt / ping, audit synced, 16 callers":      "| at least 0.40 | 0.50 | met |",
		"Encrypt / ping, audit synced, 64 callers":      "| at least 0.55 | 0.50 | **not met** |",
		"Encrypt / ping, audit written, 16 callers":     "| at least 0.60 | 0.60 | met |",
		"GenerateMac / ping, audit synced, 16 callers":  "| at least 0.40 | 0.30 | **not met** |",
		"GenerateMac / ping, audit written, 64 callers": "| at least 0.60 | 0.60 | **not met** |", // 0.5999
		"Sign P-256 / ping, audit synced, 64 callers":   "| at least 0.25 | 0.25 | met |",
		"Sign RSA-2048 / the token alone":               "| at least 0.70 | 0.70 | met |",
		"Encrypt, 99th percentile":                      "| at most 10.0 ms | 9.50 ms | met |",
		"Encrypt in batches of 100":                     "| at most 22.0 µs | 22.4 µs | **not met** |",
		"Encrypt coalesced by the client / single":      "| - | 1.50 |  |",
		"memory (RSS) of an idle server":                "| at most 60.0 MB | 59.9 MB | met |",
	} {
		if line := goal(t, text, name); !strings.HasSuffix(line, want) {
			t.Errorf("%s: %s, want %s", name, line, want)
		}
	}
	for _, want := range []string{
		"Measured somewhere.",
		"| synced | encrypt | 16 | 5000 | 0.50 | 4.750 | 9.500 | 19.000 | 100.0 |",
		"| synced | Sign RSA-2048 | 16 | 700 | 0.07 |",
		"| encrypt | 1 | 60000 | 0.050 | 0.100 | 0.200 | 12.0 |",
		"| fdatasync | 1 | 8000 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if line := goal(t, figures{}.opsText(figures{}, 0, ""), "Encrypt, 99th"); !strings.HasSuffix(line, "| - | not measured |") {
		t.Errorf("without figures: %s", line)
	}
}

func TestKeysText(t *testing.T) {
	k := keysData{keys: 10000, figures: figures{}, starts: []float64{4, 6, 4.5}, rss: 200e6, filled: 60}
	k.figures.add(serverFew, []bench.Result{turn("encrypt", 16, 1000, 5, 100)})
	k.figures.add(serverMany, []bench.Result{turn("encrypt", 16, 950, 5, 100), turn(manyInUse, 16, 850, 5, 120)})
	for i := range 4 {
		k.memories = append(k.memories, memory{ops: float64(i) * 5e5, heap: 30e6 + float64(i)*2e6, rss: 90e6})
	}
	text := k.text("Measured somewhere.\n")
	for name, want := range map[string]string{
		"Encrypt with 10 of 10000 keys":          "| at least 0.90 | 0.95 | met |",
		"Encrypt with all of 10000 keys in turn": "| at least 0.90 | 0.85 | **not met** |",
		"start-up with 10000 keys":               "| at most 5.00 s | 4.50 s | met |",
		"heap in the second half":                "| at most 1.10 | 1.13 | **not met** |",
		"CreateKey with CreateAlias":             "| - | 60.0/s |  |",
	} {
		if line := goal(t, text, name); !strings.HasSuffix(line, want) {
			t.Errorf("%s: %s, want %s", name, line, want)
		}
	}
	if !strings.Contains(text, "| 1000000 | 34.0 | 90.0 |") {
		t.Error(text)
	}
}

func TestFileSystem(t *testing.T) {
	const mounts = `25 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 25 0:26 / /dev/shm rw,nosuid - tmpfs tmpfs rw
31 25 0:27 / /data rw shared:1 - xfs /dev/vdb rw
32 31 0:28 / /data/fast rw shared:2 master:1 - btrfs /dev/vdc rw
short
`
	for path, want := range map[string]string{
		"/": "ext4", "/home/x": "ext4", "/data": "xfs", "/data/x": "xfs", "/database": "ext4", "/data/fast/x": "btrfs", "/dev/shm/y": "tmpfs",
	} {
		if got := fileSystem([]byte(mounts), path); got != want {
			t.Errorf("%s is on %s, want %s", path, got, want)
		}
	}
	if got := fileSystem(nil, "/"); got != "unknown" {
		t.Errorf("without mounts: %s", got)
	}
}

func TestMachineText(t *testing.T) {
	text := lookAtMachine(t.Context(), t.TempDir()).text("make bench")
	for _, want := range []string{"`make bench`", "CPU: ", runtime.GOOS + " ", "go1", "file system "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if strings.Contains(text, "%!") {
		t.Error(text)
	}
}
