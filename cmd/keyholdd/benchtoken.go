package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/internal/bench"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/store/sqlite"
	"github.com/keyhold/keyhold/server/tokenbench"
)

// benchTokenFlags are the flags of `keyholdd bench-token`.
type benchTokenFlags struct {
	config, dir, token, disk, output string
	ops                              []string
	concurrency                      []int
	duration                         time.Duration
	payload                          int
}

// opDisk is what --op calls both measurements of the disk.
const opDisk = "fdatasync"

// benchTokenGCPercent is what the daemon sets while it is small.
const benchTokenGCPercent = 400

func benchTokenCommand() *cobra.Command {
	var f benchTokenFlags
	cmd := &cobra.Command{
		Use:   "bench-token [--config FILE | --dir FOLDER]",
		Short: "Measure a token and the audit log's disk, without a server",
		Long: `Measures what a server cannot be faster than: the token, through the same pool
of sessions as the daemon's, and how long the disk of the audit log takes to
make a record durable. Operations take turns, a second each.

Without --config or --dir it makes a SoftHSM token of its own, in a temporary
folder, and deletes it. In a token that exists it makes keys with the label
keyhold-bench-token, and destroys them at the end; it touches no others. The
daemon must not be running.

` + "`:uncopied`" + ` operations use the token's own objects, as with max_copies: -1; the
others use session copies where the token allows them. RSA keys have no copies.
fdatasync is a write and sync to blocks that were written before, as the audit
log has them; fdatasync:reserved is the same on blocks that were only reserved.

The CPU time is that of the whole process, divided by the operations. The
results of --output json are those of ` + "`keyhold bench`" + `, a line each.`,
		Example: `  keyholdd bench-token
  keyholdd bench-token --concurrency 1,4,16,64 --duration 5s --output json
  keyholdd bench-token --config keyholdd.yaml --token prod`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBenchToken(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration file (YAML) that names the token")
	flags.StringVar(&f.dir, "dir", "", "folder of 'keyholdd dev' whose token to use, such as .keyhold")
	flags.StringVar(&f.token, "token", "", "name of the token in the configuration; the first region's where it is not given")
	flags.StringVar(&f.disk, "disk", "", "folder on the disk to measure; the audit log's, or without a configuration this one")
	flags.StringSliceVar(&f.ops, "op", nil, "what to measure, one or several; all where it is not given: "+strings.Join(append(tokenbench.Names(), opDisk), ", "))
	flags.IntSliceVar(&f.concurrency, "concurrency", []int{1, 16}, "callers at a time, one number or several")
	flags.DurationVar(&f.duration, "duration", 2*time.Second, "how long to measure each operation at each concurrency")
	flags.IntVar(&f.payload, "payload", 1024, "bytes of plaintext, message, random number, or record")
	flags.StringVar(&f.output, "output", "table", "table or json")
	return cmd
}

func runBenchToken(cmd *cobra.Command, f *benchTokenFlags) error {
	if f.output != "table" && f.output != "json" {
		return usageError{fmt.Errorf("--output is %q: use table or json", f.output)}
	}
	if f.config != "" && f.dir != "" {
		return usageError{errors.New("--config and --dir both name a token: give one")}
	}
	notify := func(format string, args ...any) {
		fmt.Fprintf(cmd.ErrOrStderr(), "keyholdd: "+format+"\n", args...)
	}
	for _, name := range f.ops {
		if all := append(tokenbench.Names(), opDisk); !slices.Contains(all, name) {
			return usageError{fmt.Errorf("there is no operation %q: use %s", name, strings.Join(all, ", "))}
		}
	}
	ops, disk := tokenbench.Names(), len(f.ops) == 0 || slices.Contains(f.ops, opDisk)
	if len(f.ops) > 0 {
		ops = slices.DeleteFunc(slices.Clone(f.ops), func(name string) bool { return name == opDisk })
	}
	opts := tokenbench.Options{Ops: ops, Concurrency: f.concurrency, Duration: f.duration, Payload: f.payload, Notify: notify}
	if err := opts.Check(); err != nil {
		return usageError{err}
	}
	forbidCoreDumps(server.NewLogger(cmd.ErrOrStderr(), server.LogConfig{Level: "warn"}))
	if os.Getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(benchTokenGCPercent))
	}
	release, err := f.choose(cmd.Context(), &opts.Token)
	if err != nil {
		return err
	}
	var results []bench.Result
	if len(ops) > 0 {
		results, err = tokenbench.Run(cmd.Context(), opts)
	}
	if err == nil && disk {
		var more []bench.Result
		more, err = tokenbench.RunDisk(cmd.Context(), f.disk, f.payload, f.duration)
		results = append(results, more...)
	}
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	return writeResults(cmd.OutOrStdout(), results, f.output)
}

// choose finds the token and the disk, and keeps the daemon away from them until
// release is called.
func (f *benchTokenFlags) choose(ctx context.Context, token *hsm.Config) (release func() error, err error) {
	path := f.config
	if f.dir != "" {
		path = filepath.Join(f.dir, "keyholdd.yaml")
	}
	if path == "" {
		if f.token != "" {
			return nil, usageError{errors.New("--token names a token of a configuration: give --config or --dir")}
		}
		if f.disk == "" {
			f.disk = "."
		}
		*token, release, err = tokenbench.Temporary(ctx, "")
		return release, err
	}
	cfg, err := server.LoadConfig(path)
	if err != nil {
		return nil, err
	}
	if f.disk == "" {
		f.disk = cfg.Audit.Dir
	}
	name := f.token
	if name == "" {
		name = cfg.Regions[0].Token
	}
	for _, t := range cfg.Tokens {
		if t.Name != name {
			continue
		}
		for variable, value := range t.Environment {
			if err := os.Setenv(variable, value); err != nil {
				return nil, fmt.Errorf("set %s for the token %s: %w", variable, name, err)
			}
		}
		if *token, err = t.HSM(); err != nil {
			return nil, fmt.Errorf("token %s: %w", name, err)
		}
		return sqlite.Lock(cfg.DataDir)
	}
	return nil, usageError{fmt.Errorf("configuration %s has no token named %q", path, name)}
}

// writeResults writes what was measured.
func writeResults(w io.Writer, results []bench.Result, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		for _, r := range results {
			if err := e.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "OP\tCALLERS\tBYTES\tOPS/S\tP50 MS\tP99 MS\tP99.9 MS\tCPU US/OP\tERRORS")
	for _, r := range results {
		cpu := 0.0
		if r.ServerCPU != nil {
			cpu = *r.ServerCPU
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%.0f\t%.3f\t%.3f\t%.3f\t%.1f\t%d\n", r.Op, r.Concurrency, r.PayloadBytes, r.OpsPerSecond, r.P50, r.P99, r.P999, cpu, r.Errors)
	}
	return t.Flush()
}
