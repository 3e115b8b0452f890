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

// step is a command of a session, with what it prints.
type step struct{ command, output string }

// readmeSession returns the commands of one of the README's sessions, the first of
// which is 0.
func readmeSession(t *testing.T, n int) []step {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	listings := strings.Split(string(text), "```console\n")
	if len(listings) < n+2 {
		t.Fatalf("README.md shows no session %d", n)
	}
	listing, _, _ := strings.Cut(listings[n+1], "```")
	var steps []step
	for line := range strings.Lines(listing) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			steps = append(steps, step{command: command})
		} else if more, ok := strings.CutPrefix(line, "> "); ok {
			steps[len(steps)-1].command += more
		} else if strings.TrimSpace(line) != "" {
			steps[len(steps)-1].output += line
		}
	}
	return steps
}

// TestREADMESession types the README's session and wants to see what it shows.
func TestREADMESession(t *testing.T) {
	t.Parallel()
	typeSession(t, readmeSession(t, 0))
}

// haveAWSCLI tells whether there is an AWS CLI. CI must have one.
func haveAWSCLI(t *testing.T) bool {
	t.Helper()
	_, err := exec.LookPath("aws")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal("CI must have the AWS CLI: run interop/install.sh")
	}
	return err == nil
}

// TestREADMEWithAWSCLI does so with the session that needs the AWS CLI.
func TestREADMEWithAWSCLI(t *testing.T) {
	t.Parallel()
	if !haveAWSCLI(t) {
		t.Skip("the AWS CLI is not installed (apt install awscli): the README's session with it is not tried")
	}
	aws := readmeSession(t, 1)
	// It goes on where the first one has made a key.
	typeSession(t, append(readmeSession(t, 0)[:2], aws...))
}

// typeSession types commands at a daemon of their own and wants to see what they
// print.
func typeSession(t *testing.T, steps []step) {
	t.Helper()
	dir := t.TempDir()
	d := start(t, filepath.Join(dir, ".keyhold"))
	if err := os.Symlink(binaries.dir, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	script := "exec 2>&1\n"
	for _, s := range steps {
		script += s.command + "printf '\\0'\n"
	}
	cmd := exec.Command("sh")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(script)
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v", err)
	}
	outputs := bytes.Split(out, []byte{0})
	if len(outputs) != len(steps)+1 {
		t.Fatalf("%d commands, %d outputs:\n%s", len(steps), len(outputs)-1, out)
	}
	// What differs each time: ids, how many records there are, and how wide a column is
	// that has more rows than are shown.
	id := regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	records := regexp.MustCompile(`(?m)^(Records +)\d+$`)
	spaces := regexp.MustCompile(` {2,}`)
	same := func(s string) string {
		return spaces.ReplaceAllString(records.ReplaceAllString(id.ReplaceAllString(s, "ID"), "${1}N"), "  ")
	}
	for i, s := range steps {
		if got := string(outputs[i]); same(got) != same(s.output) {
			t.Errorf("$ %sprints\n%sand not\n%s", s.command, got, s.output)
		}
	}
	d.stop(t)
}
