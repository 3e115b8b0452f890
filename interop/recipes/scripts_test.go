package recipes_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func file(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestBoto3 runs testdata/boto3.py.
func TestBoto3(t *testing.T) {
	t.Parallel()
	running.Need(t, "python3")
	t.Log(running.Script(t, file(t, "boto3.py"), "python3", "-"))
}

// TestJS runs testdata/sdk.js.
func TestJS(t *testing.T) {
	t.Parallel()
	running.Need(t, "node")
	if got := running.Script(t, file(t, "sdk.js"), "node", "-"); got != "ran\n" {
		t.Error(got)
	}
}

// TestCLI runs testdata/cli.sh with every AWS CLI there is: that which
// interop/install.sh installs, and the developer's own.
func TestCLI(t *testing.T) {
	t.Parallel()
	running.Need(t, "aws", "jq", "openssl")
	const want = `team	a b
0
Allow
Verified OK
True
True
1
True
1

An error occurred (NotFoundException) when calling the DescribeKey operation: Alias arn:aws:kms:…:alias/no-such-key is not found.
status 25…
(UnsupportedOperationException) when calling the EnableKeyRotation operation
(InvalidKeyUsageException)
(InvalidSignatureException)
`
	found := map[string]bool{}
	for _, dir := range append([]string{"/usr/bin"}, filepath.SplitList(os.Getenv("PATH"))...) {
		aws, err := exec.LookPath(filepath.Join(dir, "aws"))
		if err != nil {
			continue
		}
		version := strings.TrimSpace(running.Script(t, "", aws, "--version"))
		if found[version] {
			continue
		}
		found[version] = true
		t.Run(strings.Fields(version)[0], func(t *testing.T) {
			t.Parallel()
			got := running.Script(t, file(t, "cli.sh"), "AWS="+aws, "bash", "-euo", "pipefail", "-s")
			if !matches(want, got) {
				t.Errorf("printed\n%s\nwant\n%s", got, want)
			}
		})
	}
	if len(found) == 0 {
		t.Error("no AWS CLI was run")
	}
}

// TestSOPS runs testdata/sops.sh.
func TestSOPS(t *testing.T) {
	t.Parallel()
	running.Need(t, "sops", "aws", "jq")
	const want = `hunter2
InvalidCiphertextException
hunter2
DisabledException
hunter2
same
`
	if got := running.Script(t, file(t, "sops.sh"), "bash", "-euo", "pipefail", "-s"); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
}
