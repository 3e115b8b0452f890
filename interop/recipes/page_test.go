package recipes_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// interpreters are what runs a block of docs/clients.md, by its language, and the
// programs that it needs.
var interpreters = map[string][]string{
	"sh":     {"bash", "-euo", "pipefail", "-s"},
	"python": {"python3", "-"},
	"js":     {"node", "-"},
}

// recipe is a block of docs/clients.md and what it says it prints.
type recipe struct {
	section, language, text, output string
}

// recipes reads the page. A block of text behind a recipe is its output; "…" in it
// stands for anything within a line.
func recipes(t *testing.T) []recipe {
	t.Helper()
	page, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []recipe
	section := ""
	for _, m := range regexp.MustCompile("(?ms)^## ([^\n]+)$|^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		switch {
		case m[1] != "":
			section = m[1]
		case m[2] == "text":
			if len(all) == 0 || all[len(all)-1].section != section {
				t.Fatalf("%s: output of nothing:\n%s", section, m[3])
			}
			all[len(all)-1].output = m[3]
		default:
			all = append(all, recipe{section: section, language: m[2], text: m[3]})
		}
	}
	if len(all) < 10 {
		t.Fatalf("docs/clients.md has %d recipes", len(all))
	}
	return all
}

// TestPage runs the page from top to bottom. What is Go stands, letter by letter,
// in a test below interop.
func TestPage(t *testing.T) {
	goTests := goSources(t)
	sections := map[string]bool{}
	for _, r := range recipes(t) {
		name := r.section
		for n := 2; sections[name]; n++ {
			name = r.section + strings.Repeat("+", n-1)
		}
		sections[name] = true
		t.Run(name, func(t *testing.T) {
			if r.language == "go" {
				if !strings.Contains(goTests, withoutIndent(r.text)) {
					t.Errorf("no test below interop has\n%s", r.text)
				}
				return
			}
			run, ok := interpreters[r.language]
			if !ok {
				t.Fatalf("a block of %q: nothing runs it", r.language)
			}
			running.Need(t, run[0])
			if strings.Contains(r.text, "aws ") && r.language == "sh" {
				running.Need(t, "aws")
			}
			got := running.Script(t, r.text, run...)
			if r.output != "" && !matches(r.output, got) {
				t.Errorf("\n%s\nprinted\n%s\nwant\n%s", r.text, got, r.output)
			}
		})
	}
}

func matches(pattern, got string) bool {
	p := strings.ReplaceAll(regexp.QuoteMeta(pattern), "…", "[^\n]*")
	return regexp.MustCompile("^" + p + "$").MatchString(got)
}

// goSources are all tests below interop.
func goSources(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("../*/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests below interop: %v", err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(withoutIndent(string(b)))
	}
	return all.String()
}

func withoutIndent(s string) string {
	return regexp.MustCompile(`(?m)^[ \t]+`).ReplaceAllString(s, "")
}
