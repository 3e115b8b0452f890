package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// drillSteps returns the commands of docs/operations.md's drill after a mark.
func drillSteps(t *testing.T, mark string) []step {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, listing, ok := strings.Cut(string(text), "<!-- drill: "+mark+" -->\n```console\n")
	if !ok {
		t.Fatalf("docs/operations.md has no drill %q", mark)
	}
	listing, _, _ = strings.Cut(listing, "```")
	var steps []step
	for line := range strings.Lines(listing) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			steps = append(steps, step{command: command})
		} else {
			steps[len(steps)-1].output += line
		}
	}
	return steps
}

// typeDrill types the commands in dir and wants to see what the page shows.
func typeDrill(t *testing.T, dir, mark string) {
	t.Helper()
	steps := drillSteps(t, mark)
	script := "exec 2>&1\n"
	for _, s := range steps {
		script += s.command + "printf '\\0'\n"
	}
	cmd := exec.CommandContext(t.Context(), "sh")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(script)
	cmd.Env = append(os.Environ(), "PATH="+binaries.dir+":"+os.Getenv("PATH"))
	out, err := cmd.Output()
	if err != nil {
		t.Error(err)
	}
	outputs := bytes.Split(out, []byte{0})
	if len(outputs) != len(steps)+1 {
		t.Fatalf("%d commands, %d outputs:\n%s", len(steps), len(outputs)-1, out)
	}
	// What differs each time: ids and times.
	hex, digits := regexp.MustCompile(`[0-9a-f]{8,}`), regexp.MustCompile(`\d+`)
	same := func(s string) string { return digits.ReplaceAllString(hex.ReplaceAllString(s, "X"), "N") }
	for i, s := range steps {
		if got := string(outputs[i]); same(got) != same(s.output) {
			t.Errorf("$ %sprints\n%sand not\n%s", s.command, got, s.output)
		}
	}
}

// TestOperationsDrill does the drill of docs/operations.md as it is written there.
func TestOperationsDrill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink(binaries.dir, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	world := filepath.Join(dir, ".keyhold")
	d := start(t, world)
	typeDrill(t, dir, "while it runs")
	d.stop(t)
	typeDrill(t, dir, "while it is stopped")
	d = start(t, world)
	typeDrill(t, dir, "when it runs again")
	d.stop(t)
}
