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

// TestOperationsPipe: the pipe of docs/operations.md ends well with a whole backup, and
// a backup that fails fails it, and leaves no file that looks like one. What encrypts is
// left out: it is somebody else's.
func TestOperationsPipe(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, script, ok := strings.Cut(string(text), "<!-- pipe -->\n```bash\n")
	script, _, end := strings.Cut(script, "```")
	if !ok || !end {
		t.Fatal("docs/operations.md shows no pipe")
	}
	world := filepath.Join(t.TempDir(), "dev")
	config := filepath.Join(world, "keyholdd.yaml")
	for old, replacement := range map[string]string{"/etc/keyhold/keyholdd.yaml": config, "age -R backup.pub": "cat"} {
		if strings.Count(script, old) != 1 {
			t.Fatalf("the pipe does not name %s once:\n%s", old, script)
		}
		script = strings.Replace(script, old, replacement, 1)
	}
	start(t, world).stop(t)
	typed := func() (made []string, err error) {
		cmd := exec.CommandContext(t.Context(), "bash")
		cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader(script)
		cmd.Env = append(os.Environ(), "PATH="+binaries.dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		t.Logf("%v\n%s", err, out)
		made, globErr := filepath.Glob(filepath.Join(cmd.Dir, "keyhold-*"))
		if globErr != nil {
			t.Fatal(globErr)
		}
		return made, err
	}
	made, err := typed()
	if err != nil || len(made) != 1 {
		t.Fatalf("made %q, %v", made, err)
	}
	wipe(t, world)
	if made, err := typed(); err == nil || len(made) > 0 {
		t.Errorf("without an installation: made %q, %v", made, err)
	}
	mustKeyholdd(t, "restore", "--config", config, made[0])
}
