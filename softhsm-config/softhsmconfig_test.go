package softhsmconfig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	library := filepath.Join(dir, "x86_64-linux-gnu", "softhsm", "libsofthsm2.so")
	if err := os.MkdirAll(filepath.Dir(library), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(library, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	patterns := "# comment\n\n" + dir + "/nothing/libsofthsm2.so\n" + dir + "/*-linux-gnu*/softhsm/libsofthsm2.so\n"
	if got, err := locate("", patterns); err != nil || got != library {
		t.Errorf("locate = %q, %v, want %q", got, err, library)
	}
	if got, err := locate(library, ""); err != nil || got != library {
		t.Errorf("locate with override = %q, %v, want %q", got, err, library)
	}
	for name, call := range map[string][2]string{
		"nothing there":         {"", dir + "/nothing/*.so\n"},
		"override is no file":   {dir, patterns},
		"override is not there": {dir + "/no", patterns},
	} {
		_, err := locate(call[0], call[1])
		if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), EnvModule) {
			t.Errorf("%s: locate = %v, want ErrNotInstalled that names %s", name, err, EnvModule)
		}
	}
}

func TestConfig(t *testing.T) {
	text, err := Config("/var/lib/keyhold/tokens")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "\ndirectories.tokendir = /var/lib/keyhold/tokens\n") {
		t.Errorf("no token directory in:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if setting := strings.TrimSpace(line); setting != "" && setting[0] != '#' && strings.Contains(setting, "@") {
			t.Errorf("unreplaced placeholder: %s", setting)
		}
	}
	long := "/" + strings.Repeat("a", maxConfLineBytes-1)
	if _, err := Config(long); err != nil {
		t.Errorf("path of %d bytes: %v", len(long), err)
	}
	for _, bad := range []string{"tokens", "", "/a#b", "/a=b", "/a\nb", "/a ", "/a\x00b", long + "a"} {
		if _, err := Config(bad); err == nil {
			t.Errorf("Config(%q) accepted it", bad)
		}
	}
}

func TestWriteConfig(t *testing.T) {
	dir := t.TempDir()
	conf, err := WriteConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	checkMode(t, conf, 0o600)
	checkMode(t, filepath.Join(dir, tokenDirName), 0o700)
	before, err := os.Stat(conf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := WriteConfig(dir); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(conf)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("an unchanged configuration was written again (%v)", err)
	}
}

func checkMode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != want {
		t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
	}
}

func TestCheckLabel(t *testing.T) {
	for _, good := range []string{"keyhold", "a", "us-east-1", strings.Repeat("x", 32)} {
		if err := checkLabel(good); err != nil {
			t.Errorf("checkLabel(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", "a b", "../x", "a/b", `a\b`, ".hidden", "ä", "a\n", strings.Repeat("x", 33)} {
		if err := checkLabel(bad); err == nil {
			t.Errorf("checkLabel(%q) accepted it", bad)
		}
	}
}
