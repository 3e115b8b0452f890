package kms_test

import (
	"os"
	"regexp"
	"testing"
)

// docs/aws-compat.md says of each operation of AWS's whether it is built, as
// the proto's options do.
func TestCompatibilityPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/aws-compat.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^\| ([A-Z]\w+) \| (built|not built) \|`).FindAllSubmatch(text, -1) {
		if rows[string(m[1])] != "" {
			t.Errorf("%s has two rows", m[1])
		}
		rows[string(m[1])] = string(m[2])
	}
	for op := range methods() {
		want := "built"
		switch {
		case operationSpec(op).GetExtension():
			continue
		case operationSpec(op).GetUnbuilt():
			want = "not built"
		}
		if rows[op] != want {
			t.Errorf("%s is %q on the page, and %s", op, rows[op], want)
		}
		delete(rows, op)
	}
	if len(rows) > 0 {
		t.Errorf("rows of no operation: %v", rows)
	}
}
