package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// build builds the programs that are measured.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"keyholdd", "keyhold"} {
		out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, name), "../../cmd/"+name).CombinedOutput()
		if err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return dir
}

// All parts, from end to end but short, write what they must and leave nothing
// behind.
func TestRun(t *testing.T) {
	bin, doc, work := build(t), filepath.Join(t.TempDir(), "performance.md"), t.TempDir()
	for _, args := range [][]string{{"-part", "ops"}, {"-part", "keys", "-keys", "20", "-operations", "1000"}, {"-part", "records", "-records", "120"}} {
		var stderr bytes.Buffer
		args = append(args, "-bin", bin, "-doc", doc, "-work", work, "-turns", "1", "-turn", "50ms")
		if err := run(t.Context(), args, &stderr); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, stderr.String())
		}
	}
	page, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, not := range []string{"not measured", "NaN", "Inf", "%!", "| 0.00 |"} {
		if strings.Contains(text, not) {
			t.Errorf("the page has %q in it", not)
		}
	}
	for _, want := range []string{"written by hand", "### Goals", "| written | encrypt | 64 |", "| fdatasync | 1 |", "start-up with 20 keys", "encrypt, all of 20 keys in turn", "ListAliases, all 120 in 2 pages", "| DescribeKey through the AWS door, 120 records | 16 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q in it", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What cannot end well is refused before it begins, and an interruption leaves
// the page as it was.
func TestRunRefuses(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "performance.md")
	if err := os.WriteFile(doc, []byte("# no markers\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-doc", doc},
		{"-part", "more"},
		{"-turns", "0"},
		{"-turn", "0s"},
		{"-part", "keys", "-keys", "19"},
		{"-part", "records", "-records", "19"},
		{"argument"},
	} {
		if err := run(t.Context(), append(args, "-bin", "/nonexistent"), new(bytes.Buffer)); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: %v", args, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	page := filepath.Join(t.TempDir(), "page.md")
	if err := run(ctx, []string{"-doc", page, "-bin", build(t), "-work", t.TempDir()}, new(bytes.Buffer)); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := os.Stat(page); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it wrote a page: %v", err)
	}
}
