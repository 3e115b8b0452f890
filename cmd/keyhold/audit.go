package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/server/audit"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check the audit log",
	}
	cmd.AddCommand(a.auditVerifyCommand())
	return cmd
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var dir, since string
	var opts audit.VerifyOptions
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Verify the audit log in a folder, without the server",
		Long: `Verify that the audit log in a folder is complete and unchanged: each record's
checksum, the hash chain over all of them, and that the end that is known to
have been durable is there. It may run while the server writes.

The last line of the report is an anchor, COUNT:HASH. Kept elsewhere and given
with --since, it proves that none of the records before it was changed since, as
far as they are in the folder: it stands for segments that were archived, which
the report says. Those prove the same when they are back in one folder.
Without --since, a log that somebody who can write the folder has made up, or cut
short, verifies too if it is consistent.`,
		Example: `  keyhold audit verify .keyhold/data/audit
  keyhold audit verify /var/lib/keyhold/audit --since 1200:9f86d081884c7d65…`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && dir != "" && args[0] != dir:
				return usagef("two folders were given: %s and --dir %s", args[0], dir)
			case len(args) == 1:
				dir = args[0]
			}
			if dir == "" {
				return usagef("name the folder of the audit log")
			}
			if since != "" {
				anchor, err := audit.ParseAnchor(since)
				if err != nil {
					return usagef("--since: %v", err)
				}
				opts.From = &anchor
			}
			return a.auditVerify(cmd.Context(), dir, opts)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the folder, instead of the argument")
	cmd.Flags().StringVar(&since, "since", "", "anchor from an earlier report, kept elsewhere")
	cmd.Flags().BoolVar(&opts.AllowMissingStart, "allow-missing-start", false, "accept that the first segments were archived, though no anchor covers them")
	return cmd
}

// auditReport is what verify prints. Times are RFC 3339.
type auditReport struct {
	Verified      bool
	Journal       string
	Segments      int
	Records       uint64
	Notes         uint64
	Bytes         int64
	FirstTime     *time.Time `json:",omitempty"`
	LastTime      *time.Time `json:",omitempty"`
	Live          bool
	UnprovenBytes int64
	First         string
	Anchor        string
	Fault         *auditFault `json:",omitempty"`
}

// auditFault is the first thing found wrong.
type auditFault struct {
	Kind     string
	Segment  string `json:",omitempty"`
	Offset   int64
	Sequence uint64
	Detail   string
}

func (a *app) auditVerify(ctx context.Context, dir string, opts audit.VerifyOptions) error {
	type result struct {
		report audit.Report
		err    error
	}
	done := make(chan result, 1)
	go func() { // reading a large log takes a while, and cannot be cancelled
		report, err := audit.Verify(dir, opts)
		done <- result{report, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	var fault *audit.Fault
	if r.err != nil && !errors.As(r.err, &fault) {
		return fmt.Errorf("audit log %s could not be read: %w", dir, r.err)
	}
	out := auditReport{
		Verified:      fault == nil,
		Journal:       r.report.Journal,
		Segments:      r.report.Segments,
		Records:       r.report.Records,
		Notes:         r.report.Notes,
		Bytes:         r.report.Bytes,
		Live:          r.report.Live,
		UnprovenBytes: r.report.Unproven,
		First:         r.report.First.String(),
		Anchor:        r.report.Last.String(),
	}
	if r.report.Records > 0 {
		out.FirstTime, out.LastTime = &r.report.FirstTime, &r.report.LastTime
	}
	if fault != nil {
		out.Fault = &auditFault{Kind: string(fault.Kind), Segment: fault.Segment, Offset: fault.Offset, Sequence: fault.Seq, Detail: fault.Detail}
	}
	if err := a.printAuditReport(&out); err != nil {
		return err
	}
	if fault != nil {
		return fmt.Errorf("audit log %s is NOT intact: %w", dir, fault)
	}
	return nil
}

func (a *app) printAuditReport(r *auditReport) error {
	if a.output == outputJSON {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return a.printJSON(b)
	}
	verdict := "yes"
	if !r.Verified {
		verdict = "NO"
	}
	rows := [][]string{
		{"Verified", verdict},
		{"Journal", r.Journal},
		{"Segments", strconv.Itoa(r.Segments)},
		{"Records", strconv.FormatUint(r.Records, 10)},
	}
	if r.FirstTime != nil {
		rows = append(rows,
			[]string{"First record", r.FirstTime.UTC().Format(time.RFC3339Nano)},
			[]string{"Last record", r.LastTime.UTC().Format(time.RFC3339Nano)})
	}
	if n, _, _ := strings.Cut(r.First, ":"); n != "0" {
		rows = append(rows, []string{"Not here", "the first " + n + " records, which were not verified"})
	}
	if r.Live {
		rows = append(rows, []string{"Live", fmt.Sprintf("the server is writing; %d bytes at the end are not finished", r.UnprovenBytes)})
	}
	return a.printRows(nil, append(rows, []string{"Anchor", r.Anchor}))
}
