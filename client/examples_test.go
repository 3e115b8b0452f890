package client_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryFunctionHasAnExample: each function that a program may begin with is
// shown by an example, and each example runs: those without output do not.
func TestEveryFunctionHasAnExample(t *testing.T) {
	folders := []string{"."}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != "internal" && entry.Name() != "testdata" {
			folders = append(folders, entry.Name())
		}
	}
	if len(folders) < 3 {
		t.Errorf("packages: %q; filecrypt and tinkaead are missing", folders)
	}
	for _, folder := range folders {
		t.Run(folder, func(t *testing.T) { everyFunctionHasAnExample(t, folder) })
	}
}

func everyFunctionHasAnExample(t *testing.T, folder string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var functions []string
	shown := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			for _, e := range doc.Examples(f) {
				if e.Output == "" {
					t.Errorf("Example%s has no output, so it does not run", e.Name)
				}
				shown[e.Name] = true
			}
			continue
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.IsExported() {
				functions = append(functions, fn.Name.Name)
			}
		}
	}
	if len(functions) == 0 {
		t.Error("found no functions: the test looks in the wrong place")
	}
	for _, name := range functions {
		if !shown[name] {
			t.Errorf("%s has no example", name)
		}
	}
}
