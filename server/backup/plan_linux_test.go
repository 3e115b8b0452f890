package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestParentOfRoot: the folders' parents often belong to root alone. What is to be
// done is said, and is what docs/operations.md says.
func TestParentOfRoot(t *testing.T) {
	parent := t.TempDir()
	must(t, os.Chmod(parent, 0o500))
	if os.Geteuid() == 0 {
		// Root may write anywhere: this thread alone looks at files as another user,
		// without capabilities, and ends with the goroutine.
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			if err := unix.Setfsuid(65534); err != nil {
				done <- err
				return
			}
			_, err := claim(target(t, parent), false)
			done <- err
		}()
		wantInstallHint(t, parent, <-done)
		return
	}
	_, err := claim(target(t, parent), false)
	wantInstallHint(t, parent, err)
}

func wantInstallHint(t *testing.T, parent string, err error) {
	t.Helper()
	const command = "install -d -m 700 -o "
	if page, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md")); err != nil || !strings.Contains(string(page), "`"+command+"USER ") {
		t.Errorf("docs/operations.md lacks the command: %v", err)
	}
	want := fmt.Sprintf("%s%d %s", command, os.Geteuid(), filepath.Join(parent, "data"))
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want the hint %q", err, want)
	}
}
