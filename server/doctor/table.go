package doctor

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/keyhold/keyhold/hsm"
)

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	p := &printer{w: w}
	p.line("keyholdd %s, doctor's report of %s", r.Version, r.Time.Format(time.RFC3339))
	p.line("")
	p.checks(r.Checks)
	for _, t := range r.Tokens {
		p.abilities(t)
		p.objects(t)
	}
	p.line("")
	p.line("%d ok, %d warnings, %d failed, %d skipped", r.Count(OK), r.Count(Warn), r.Count(Fail), r.Count(Skipped))
	return p.err
}

// printer writes until there is an error.
type printer struct {
	w   io.Writer
	err error
}

// line writes a line. What others chose (labels, file names, texts of
// libraries) must not move the terminal's cursor.
func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, printable(fmt.Sprintf(format, args...)))
	}
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

func (p *printer) checks(checks []Check) {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
	}
	indent := strings.Repeat(" ", 9+width+1)
	for _, c := range checks {
		fact := c.Fact
		if c.Status == Skipped {
			fact = "because " + fact
		}
		if c.Subject != "" {
			fact = c.Subject + ": " + fact
		}
		p.line("%-8s %-*s %s", c.Status, width, c.Name, oneLine(fact))
		for _, d := range c.Details {
			p.line("%s  %s", indent, oneLine(d))
		}
		if c.Remedy != "" {
			p.line("%sdo: %s", indent, oneLine(c.Remedy))
		}
	}
}

// oneLine joins what errors.Join made several lines of.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// table writes rows of columns.
func (p *printer) table(rows [][]string) {
	if p.err != nil {
		return
	}
	t := tabwriter.NewWriter(p.w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, 0, len(row))
		for _, c := range row {
			cells = append(cells, strings.ReplaceAll(printable(oneLine(c)), "\t", " "))
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	p.err = t.Flush()
}

// abilities writes what a token has proven and what not.
func (p *printer) abilities(t TokenReport) {
	p.line("")
	p.line("What token %q can do (%s, firmware %s; library %s), as proven just now:", t.Name, describe(t.Manufacturer, t.Model), t.Firmware, t.Library)
	if t.Software {
		p.line("This is a software token: it protects nothing against root on this host.")
	}
	rows := [][]string{{"KEY SPEC", "OPERATION", "PROVEN", "HOW, OR WHY NOT"}}
	for _, spec := range hsm.KeySpecs() {
		s := t.Capabilities.Specs[spec.String()]
		rows = append(rows, proofRow(spec.String(), "generate", s.Generate))
		for _, op := range slices.Sorted(maps.Keys(s.Operations)) {
			rows = append(rows, proofRow("", op, s.Operations[op]))
		}
	}
	p.table(rows)
	c := t.Capabilities
	p.line("")
	p.facts([][]string{
		{"usages locked by CKA_ALLOWED_MECHANISMS", yes(c.AllowedMechanismsEnforced), c.Reasons["allowedMechanismsEnforced"]},
		{"keys may be copied into sessions", yes(c.SessionCopies), c.Reasons["sessionCopies"]},
		{"sessions survive a bad tag", yes(c.SessionSurvivesBadTag), c.Reasons["sessionSurvivesBadTag"]},
		{"IVs are chosen by the", orNot(c.IVSource), c.Reasons["ivSource"]},
		{"OAEP padding with SHA-1 is taken off by the", orNot(c.OAEPSHA1), c.Reasons["oaepSha1"]},
		{"OAEP padding with SHA-256 is taken off by the", orNot(c.OAEPSHA256), c.Reasons["oaepSha256"]},
	})
}

// facts writes rows of a name, a value, and a reason that may be empty.
func (p *printer) facts(rows [][]string) {
	for i, row := range rows {
		if row[2] == "" {
			rows[i] = row[:2]
		}
	}
	p.table(rows)
}

func proofRow(spec, op string, p hsm.Proof) []string {
	if p.OK {
		return []string{spec, op, "yes", p.How}
	}
	return []string{spec, op, "no", p.Why}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orNot(s string) string {
	if s == "" {
		return "(not proven)"
	}
	return s
}

// objects writes the private and secret objects.
func (p *printer) objects(t TokenReport) {
	p.line("")
	p.line("Private and secret objects of token %q:", t.Name)
	rows := [][]string{{"CLASS", "TYPE", "LABEL", "CKA_ID", "SENSITIVE", "ALWAYS", "NEVER EXTRACTABLE", "LOCAL", "PRIVATE"}}
	for _, o := range t.Objects {
		rows = append(rows, []string{
			o.Class, o.KeyType, fmt.Sprintf("%q", o.Label), o.ID,
			yes(o.Sensitive), yes(o.AlwaysSensitive), yes(o.NeverExtractable), yes(o.Local), yes(o.Private),
		})
	}
	p.table(rows)
}
