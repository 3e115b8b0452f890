package dev

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAccessKey: where the root principal's access key comes from, and what it takes
// the place of.
func TestAccessKey(t *testing.T) {
	t.Parallel()
	w := &World{EnvFile: filepath.Join(t.TempDir(), "dev.env"), opts: Options{Account: "000000000000"}}
	get := func(id, secret string) (AccessKey, error) {
		return w.AccessKey(func(name string) string {
			return map[string]string{EnvAccessKeyID: id, EnvSecretAccessKey: secret}[name]
		})
	}
	must := func(id, secret string) AccessKey {
		t.Helper()
		k, err := get(id, secret)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := must("", "")
	if again := must("", ""); again.ID != first.ID || string(again.Secret) != string(first.Secret) || again.Replaces != "" {
		t.Error("the folder's key is another one each time")
	}
	if env := first.Env(); env[0] != "AWS_ACCESS_KEY_ID="+first.ID || env[1] != "AWS_SECRET_ACCESS_KEY="+string(first.Secret) {
		t.Error("dev.env would not name the key")
	}
	const secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	given := must("test", secret)
	if given.ID != "test" || string(given.Secret) != secret || given.Replaces != first.ID {
		t.Errorf("given %q instead of %q", given.ID, given.Replaces)
	}
	// Until it is kept, a start that was cut short does the same again.
	if again := must("test", secret); again.Replaces != first.ID {
		t.Errorf("again instead of %q", again.Replaces)
	}
	if err := w.KeepAccessKey(given); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(w.accessKeyPath())
	if err != nil || string(b) != "test\n" {
		t.Errorf("the folder has %d bytes, %v", len(b), err)
	}
	if again := must("test", secret); again.Replaces != "" {
		t.Errorf("the same instead of %q", again.Replaces)
	}
	if fresh := must("", ""); fresh.ID == first.ID || fresh.Replaces != "test" || len(fresh.Secret) != 40 {
		t.Errorf("without the environment: %q instead of %q", fresh.ID, fresh.Replaces)
	}
	for _, c := range [][2]string{
		{"test", ""}, {"", secret}, {"a-b", secret}, {"test", "a b"}, {"test", "$HOME"}, {"test", "~root"}, {"test", "a'b"}, {"test", "a\nb"}, {"test", "é"},
	} {
		if k, err := get(c[0], c[1]); err == nil {
			t.Errorf("%q is taken: %v", c, k.ID)
		} else if c[1] != "" && strings.Contains(err.Error(), c[1]) {
			t.Errorf("the error has the secret: %v", err)
		}
	}
	if err := os.WriteFile(w.accessKeyPath(), []byte("not an id\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := get("", ""); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a spoiled file: %v", err)
	}
}
