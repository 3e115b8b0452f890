package servertest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocs holds docs/faults.md to the tests: every test that it names exists, and
// every row that is tested here is in it.
func TestDocs(t *testing.T) {
	t.Parallel()
	const docs = "../../docs"
	page, err := os.ReadFile(filepath.Join(docs, "faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := ownRows()
	named := regexp.MustCompile("\\[`(Test\\w+)(?:/([\\w-]+))?`\\]\\(([^)]+)\\)").FindAllStringSubmatch(string(page), -1)
	if len(named) < len(rows) {
		t.Fatalf("the page names %d tests, there are %d rows", len(named), len(rows))
	}
	var found []string
	for _, m := range named {
		test, row, path := m[1], m[2], filepath.Join(docs, m[3])
		source, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%s: %v", test, err)
			continue
		}
		exists := strings.Contains(string(source), "func "+test+"(")
		if strings.HasPrefix(m[3], "../server/servertest/") { // a row may be in another file than its test
			exists = slices.Contains(rows, test+"/"+row)
			found = append(found, test+"/"+row)
		}
		if !exists {
			t.Errorf("%s: there is no %s/%s", m[3], test, row)
		}
	}
	for _, row := range rows {
		if !slices.Contains(found, row) {
			t.Errorf("docs/faults.md lacks %s", row)
		}
	}
}

// ownRows are the rows of this package's tests.
func ownRows() []string {
	all := []string{"TestKilled/create", "TestKilled/alias", "TestKilled/delete", "TestClock/clock-forward", "TestClock/clock-backward"}
	for _, c := range classes() {
		all = append(all, "TestFaults/"+c.name)
	}
	for _, r := range slices.Concat(tokenRows(), intruderRows(), storeRows()) {
		all = append(all, "TestFaults/"+r.name)
	}
	for _, r := range longRows() {
		all = append(all, "TestLong/"+r.name)
	}
	for _, c := range damages() {
		all = append(all, "TestDamagedFiles/"+c.name)
	}
	for _, c := range diskRows() {
		all = append(all, "TestDisks/"+c.name)
	}
	for _, k := range hostileRows() {
		all = append(all, "TestHostile/"+k.name)
	}
	return all
}
