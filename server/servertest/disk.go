package servertest

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"testing"
)

// SmallDisk mounts a tmpfs of a size, such as 1m, and returns its folder. Mounting
// needs root on Linux: elsewhere the test is skipped, and fails in CI.
func SmallDisk(tb testing.TB, size string) string {
	tb.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			tb.Fatal("CI must run this test as root on Linux: it mounts a small tmpfs")
		}
		tb.Skip("needs root on Linux: it mounts a small tmpfs")
	}
	dir := tb.TempDir()
	if out, err := exec.CommandContext(tb.Context(), "mount", "-t", "tmpfs", "-o", "mode=0700,size="+size, "tmpfs", dir).CombinedOutput(); err != nil { //nolint:gosec // the test's own words
		tb.Fatalf("mount: %v\n%s", err, out)
	}
	tb.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "umount", "-l", dir).CombinedOutput(); err != nil { //nolint:gosec // a folder of the test's own
			tb.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}
