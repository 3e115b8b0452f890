// Package keyhold_test holds what is true of the tree as a whole: who may
// import what, how long files and functions may be, and that the tool needs no
// cgo.
package keyhold_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// goFile is one Go file of the module.
type goFile struct {
	path      string // slashes, relative to the root
	pkg       string // its folder
	test      bool
	generated bool
	lines     int
	functions map[string]int // lines, by name
	imports   []string
}

// goFiles reads every Go file of the module, whatever system or build tag it
// is for. Folders that the go command ignores, and modules within, are not
// part of it.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path == "." {
				return nil
			}
			if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		f, err := readGoFile(path)
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func readGoFile(path string) (goFile, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return goFile{}, err
	}
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, path, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return goFile{}, err
	}
	f := goFile{
		path:      filepath.ToSlash(path),
		pkg:       filepath.ToSlash(filepath.Dir(path)),
		test:      strings.HasSuffix(path, "_test.go"),
		generated: ast.IsGenerated(tree),
		lines:     bytes.Count(src, []byte("\n")),
		functions: map[string]int{},
	}
	for _, decl := range tree.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok {
			f.functions[fn.Name.Name] = fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
		}
	}
	for _, spec := range tree.Imports {
		f.imports = append(f.imports, strings.Trim(spec.Path.Value, "`\""))
	}
	return f, nil
}

// TestFilesAreShort holds files to one concern each.
func TestFilesAreShort(t *testing.T) {
	const maxLines = 500
	for _, f := range goFiles(t) {
		if !f.generated && f.lines >= maxLines {
			t.Errorf("%s has %d lines; under %d is the rule: which concern can have a file of its own?", f.path, f.lines, maxLines)
		}
	}
}

// TestFunctionsAreShort holds functions to what fits into a head. Tests are left
// out: a long table is not hard to read.
func TestFunctionsAreShort(t *testing.T) {
	const maxLines = 70
	for _, f := range goFiles(t) {
		for name, lines := range f.functions {
			if !f.test && !f.generated && lines > maxLines {
				t.Errorf("%s: %s has %d lines; up to %d is the rule: which part has a name?", f.path, name, lines, maxLines)
			}
		}
	}
}

// TestToolIsPureGo builds cmd/keyhold without cgo, and makes sure that no
// module that needs C has come in: some of them build without cgo and fail
// when they are used.
func TestToolIsPureGo(t *testing.T) {
	goTool := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
		}
		return out
	}
	dec := json.NewDecoder(bytes.NewReader(goTool("list", "-deps", "-json=ImportPath", "./cmd/keyhold")))
	for {
		var pkg struct{ ImportPath string }
		err := dec.Decode(&pkg)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, banned := range []string{
			"github.com/miekg/pkcs11", "github.com/ThalesIgnite/crypto11", "github.com/mattn/go-sqlite3",
			module + "hsm", module + "server/kms", module + "softhsm-config",
		} {
			if pkg.ImportPath == banned {
				t.Errorf("cmd/keyhold depends on %s", banned)
			}
		}
	}
	goTool("build", "-o", filepath.Join(t.TempDir(), "keyhold"), "./cmd/keyhold")
}

// TestNoProgramSetsSeams: server.Options.Seams puts tests between the core and its
// parts (docs/decisions/0013), and nothing that ships does.
func TestNoProgramSetsSeams(t *testing.T) {
	set := regexp.MustCompile(`\bSeams\s*[:=]`)
	seen := false
	for _, f := range goFiles(t) {
		src, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case !set.Match(src) || f.path == "tree_test.go":
		case f.test:
			seen = true
		default:
			t.Errorf("%s sets Seams, which is for tests", f.path)
		}
	}
	if !seen {
		t.Error("no test sets Seams: the pattern finds nothing, or they can go")
	}
}
