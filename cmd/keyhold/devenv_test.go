package main

import (
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseEnvFile(t *testing.T) {
	got, err := parseEnvFile("# comment\n\nA=1\r\nexport B='it'\\''s'\n_c2=\"x y\"\nD=\nE=a=b\nF=pre'mid'\"post\"\nA=2")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"A": "2", "B": "it's", "_c2": "x y", "D": "", "E": "a=b", "F": "premidpost"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parseEnvFile (-want +got):\n%s", diff)
	}
}

func TestParseEnvFileRefuses(t *testing.T) {
	for _, text := range []string{
		"A", "=x", "1A=x", "A-B=x", " A=x", "A=$HOME", "A=`id`", "A=x y", "A=x;id", "A=x&", "A=~", "A=x#y",
		"A='x", `A="x`, `A="$x"`, "A=\"`x`\"", `A="\x"`, `A=x\`, "A=*", "A=!x",
	} {
		if got, err := parseEnvFile("OK=1\n" + text); err == nil {
			t.Errorf("parseEnvFile(%q) = %q, want refusal", text, got)
		} else if !strings.Contains(err.Error(), "line 2") {
			t.Errorf("parseEnvFile(%q): %v does not name the line", text, err)
		}
	}
}

// What is understood means the same when it is written and read again.
func FuzzParseEnvFile(f *testing.F) {
	for _, s := range []string{"A=1\n", "export B='it'\\''s'", "C=\"x y\"\n#\nD=\n", "E=\\\n", "F='", "=", "G=$(id)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		vars, err := parseEnvFile(text)
		if err != nil {
			return
		}
		var b strings.Builder
		for name, val := range vars {
			if !isEnvName(name) {
				t.Fatalf("%q is taken for a name", name)
			}
			b.WriteString(name + "=" + quoteShell(val) + "\n")
		}
		again, err := parseEnvFile(b.String())
		if err != nil {
			t.Fatalf("%q: %v", b.String(), err)
		}
		if !maps.Equal(vars, again) {
			t.Fatalf("%q came back as %q", vars, again)
		}
	})
}

func FuzzParseConfigFile(f *testing.F) {
	for _, s := range []string{"addr: x\n", "ca: a/b\ntimeout: 5s", "addr: [", "a: &a [*a]", "---\n---\n", "addr: !!binary eA==", "<<: {addr: x}"} {
		f.Add(s)
	}
	known := map[string]bool{}
	for _, s := range settings() {
		known[s.yaml] = true
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, err := parseConfigFile([]byte(text), "/dir")
		if err != nil {
			return
		}
		for key := range values {
			if !known[key] {
				t.Fatalf("%q is accepted as a setting", key)
			}
		}
	})
}
