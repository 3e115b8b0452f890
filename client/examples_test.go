package client_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// TestEveryFunctionHasAnExample: each function that a program may begin with is
// shown by an example, and each example runs: those without output do not.
func TestEveryFunctionHasAnExample(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var functions []string
	shown := map[string]bool{}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), entry.Name(), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(entry.Name(), "_test.go") {
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
