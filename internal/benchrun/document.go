package main

import (
	"bytes"
	"fmt"
)

// The parts of the page that are generated, each between its markers.
const (
	partOps     = "ops"
	partKeys    = "keys"
	partRecords = "records"
)

func parts() []string { return []string{partOps, partKeys, partRecords} }

// emptyPage is a page without figures.
const emptyPage = `# Performance

` + "`make bench`" + `, ` + "`make bench-keys`" + ` and ` + "`make bench-records`" + ` write the figures between the
markers; the rest is written by hand.

<!-- begin ops -->
<!-- end ops -->

<!-- begin keys -->
<!-- end keys -->

<!-- begin records -->
<!-- end records -->
`

// splice puts text between the markers of a part, in place of what was there,
// and leaves all else as it is.
func splice(page []byte, part, text string) ([]byte, error) {
	begin, end := []byte("<!-- begin "+part+" -->\n"), []byte("<!-- end "+part+" -->\n")
	if bytes.Count(page, begin) != 1 || bytes.Count(page, end) != 1 {
		return nil, fmt.Errorf("the lines %q and %q must be in it once each", bytes.TrimSpace(begin), bytes.TrimSpace(end))
	}
	from, to := bytes.Index(page, begin)+len(begin), bytes.Index(page, end)
	if to < from {
		return nil, fmt.Errorf("the line %q stands before %q", bytes.TrimSpace(end), bytes.TrimSpace(begin))
	}
	out := append([]byte(nil), page[:from]...)
	out = append(out, text...)
	return append(out, page[to:]...), nil
}
