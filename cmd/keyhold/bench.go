package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Limits of a benchmark.
const (
	maxBenchWorkers     = 4096
	maxBenchConnections = 256
	maxBenchKeys        = 100000
	maxBenchBatch       = 100 // the API's
	// benchRound is how long one operation is measured before it is the next
	// one's turn.
	benchRound = time.Second
	// benchGCPercent is how much garbage the bench may make, in percent of what is
	// in use, before it collects.
	benchGCPercent = 400
)

// benchArgs is what bench was told.
type benchArgs struct {
	ops         []string
	door        string
	spec        keyholdv1.KeySpec
	concurrency int
	connections int
	duration    time.Duration
	warmup      time.Duration
	payload     int
	keys        int
	batch       int
	coalesce    bool
	cleanup     bool
	yes         bool

	runs []benchRun   // what ops says, when it was checked
	aws  *awsSettings // of the AWS door, if it is that
	made benchKeys
}

// benchRun is an operation that is measured, and how it is sent.
type benchRun struct {
	benchOp
	label    string // what the user called it
	batch    int    // items in a request
	coalesce bool
}

func (a *app) benchCommand() *cobra.Command {
	var b benchArgs
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a running server",
		Long: `Send requests to the server, as many at a time as --concurrency says, and print
how many it answers and how long they take. ping is the health check, which uses no
key and writes no audit record: it shows what the connection alone costs.

Several operations take turns, a second each, so that what else happens on the
machine meets all of them alike, and they can be compared.

Latencies are those of requests. With --batch each request carries that many
items, which count as operations. With --coalesce the Go client's Coalescer makes
batches of requests of one item that wait at the same time. To compare them in one
run, say it of each operation instead: encrypt:batch=100, encrypt:coalesce.
Other requests than coalesced ones are encoded once and their answers hardly read,
so that they cost this tool less CPU; the server's is what compares best.

Each sender waits for its answer before it sends again (a closed loop): a server
that pauses is asked less in the meantime, so that percentiles show less of the
pause than callers who do not wait would see (coordinated omission). They weigh
items: a batch counts its latency as often as it has items that succeeded.

With --door aws the requests go through the AWS door: JSON over HTTP/1.1, signed
with the access key of the environment or of ./` + devEnvFile + `, as ` + "`keyhold aws`" + `
takes it, before they are measured and anew after two minutes. Each sender has a
connection of its own, which is kept, unless --connections says how many they share.
ping is a signed request for an operation that there is not: it costs what connection
and signature cost, and writes no audit record. Keys are made over gRPC.

Where KEYHOLD_ADMIN_URL is set, the CPU time of the whole server process is
shown, divided by the items that succeeded.

All keys are used, in an order that is not that of their making; each sender begins elsewhere.
They are alias/` + benchAliasPrefix + `SPEC-N, are made when they are
not there, and stay for the next time. --cleanup schedules their deletion.`,
		Example: `  keyhold bench --op ping,encrypt,decrypt --concurrency 64
  keyhold bench --op sign --spec RSA_2048 --duration 30s --output json
  keyhold bench --op encrypt --batch 100 --keys 8
  keyhold bench --op encrypt --coalesce --concurrency 256
  keyhold bench --op encrypt,encrypt:coalesce,encrypt:batch=100 --concurrency 64 --output json
  keyhold bench --door aws --op ping,encrypt,decrypt
  keyhold bench --cleanup`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if b.cleanup {
				return a.withClient(func(c *client.Client) error { return a.benchCleanup(cmd.Context(), c, b.yes) })
			}
			if b.door == doorAWS && !cmd.Flags().Changed("connections") {
				b.connections = min(b.concurrency, maxBenchConnections)
			}
			if err := b.check(); err != nil {
				return err
			}
			if b.door == doorAWS {
				if b.aws, err = a.awsSettings(); err != nil {
					return err
				}
				*a.flags[setRegion] = b.aws.region // keys are made where requests go
			}
			return a.withClient(func(c *client.Client) error { return a.bench(cmd.Context(), c, &b) })
		},
	}
	b.declare(cmd)
	return cmd
}

// declare declares the flags.
func (b *benchArgs) declare(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&b.ops, "op", []string{"encrypt"}, "what to measure, one or several: "+strings.Join(benchOpNames(), ", ")+
		"; each may have :coalesce or :batch=N behind it")
	completeWords(cmd, "op", benchOpNames()...)
	flags.StringVar(&b.door, "door", doorGRPC, "which way in: grpc or aws")
	completeWords(cmd, "door", doorGRPC, doorAWS)
	enumVar(cmd, &b.spec, "spec", "type of the keys; each operation has a default")
	flags.IntVar(&b.concurrency, "concurrency", 16, "requests at a time")
	flags.IntVar(&b.connections, "connections", 1, "connections that they share; with --door aws, without it, each sender has one")
	flags.DurationVar(&b.duration, "duration", 10*time.Second, "how long to measure each operation")
	flags.DurationVar(&b.warmup, "warmup", time.Second, "how long to run each operation before")
	flags.IntVar(&b.payload, "payload", 32, "bytes of plaintext, message, or random")
	flags.IntVar(&b.keys, "keys", 1, "keys to use in turn")
	flags.IntVar(&b.batch, "batch", 1, "items in a request; more than 1 sends batches")
	flags.BoolVar(&b.coalesce, "coalesce", false, "let the Go client's Coalescer send concurrent requests together")
	flags.BoolVar(&b.cleanup, "cleanup", false, "do not measure: schedule the deletion of all keys of benchmarks")
	flags.BoolVar(&b.yes, "yes", false, "do not ask before --cleanup")
}

// check refuses command lines that make no sense.
func (b *benchArgs) check() error {
	if len(b.ops) == 0 {
		return usagef("--op names nothing to measure")
	}
	b.runs = nil
	for _, name := range b.ops {
		r, err := b.run(name)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(b.runs, func(other benchRun) bool { return other.label == r.label }) {
			return usagef("--op names %s twice", r.label)
		}
		b.runs = append(b.runs, r)
	}
	if b.door != doorGRPC && b.door != doorAWS {
		return usagef("--door %s: there are grpc and aws", b.door)
	}
	if b.door == doorAWS && slices.ContainsFunc(b.runs, func(r benchRun) bool { return r.coalesce || r.batch > 1 }) {
		return usagef("the AWS API has no batches: leave --batch and --coalesce out, or --door aws")
	}
	if b.batch > 1 && b.coalesce {
		return usagef("--batch and --coalesce are two ways to the same: give one")
	}
	for _, limit := range []struct {
		flag       string
		value, max int
	}{
		{"concurrency", b.concurrency, maxBenchWorkers},
		{"connections", b.connections, maxBenchConnections},
		{"keys", b.keys, maxBenchKeys},
		{"batch", b.batch, maxBenchBatch},
		{"payload", b.payload, maxPlaintextBytes},
	} {
		if limit.value < 1 || limit.value > limit.max {
			return usagef("--%s must be from 1 to %d", limit.flag, limit.max)
		}
	}
	if b.duration <= 0 || b.warmup < 0 {
		return usagef("--duration must be above zero, and --warmup not below")
	}
	return nil
}

// run parses an operation of --op: its name, and perhaps how it is sent. Without
// that, --batch and --coalesce say it.
func (b *benchArgs) run(text string) (benchRun, error) {
	name, how, has := strings.Cut(text, ":")
	op := findBenchOp(name)
	if op == nil {
		return benchRun{}, usagef("--op %s: there are %s", name, strings.Join(benchOpNames(), ", "))
	}
	r := benchRun{benchOp: *op, label: text, batch: b.batch, coalesce: b.coalesce}
	if has {
		n, isBatch := strings.CutPrefix(how, "batch=")
		var err error
		switch {
		case b.batch > 1 || b.coalesce:
			return r, usagef("--op %s says how it is sent: leave --batch and --coalesce out", text)
		case how == "coalesce":
			r.coalesce = true
		case !isBatch:
			return r, usagef("--op %s: behind the colon stands coalesce or batch=N", text)
		default:
			if r.batch, err = strconv.Atoi(n); err != nil || r.batch < 1 || r.batch > maxBenchBatch {
				return r, usagef("--op %s: a batch has from 1 to %d items", text, maxBenchBatch)
			}
			r.label = fmt.Sprintf("%s:batch=%d", name, r.batch)
		}
	}
	if (has || r.batch > 1 || r.coalesce) && !op.batches {
		return r, usagef("--op %s cannot be part of a batch", name)
	}
	if b.spec != 0 && !op.fits(b.spec) {
		return r, usagef("--spec %s: %s takes no such keys; its default is %s", awsjson.EnumName(b.spec), name, awsjson.EnumName(op.spec))
	}
	return r, nil
}

// bench prepares, warms up, measures and reports. When it is interrupted it
// reports what it has.
func (a *app) bench(ctx context.Context, c *client.Client, b *benchArgs) error {
	// This process shares the CPUs with the server that it measures, where both are
	// on one machine: it collects its garbage less often.
	defer debug.SetGCPercent(debug.SetGCPercent(benchGCPercent))
	conf, err := a.loadConfig()
	if err != nil {
		return err
	}
	l, err := a.dialLoad(conf, b)
	if err != nil {
		return err
	}
	defer l.close()
	loads := make([]*loadOp, len(b.runs))
	for i := range b.runs {
		if loads[i], err = a.prepareLoad(ctx, c, l, b, &b.runs[i]); err != nil {
			b.made.tell(a.stderr)
			return fmt.Errorf("prepare %s: %w", b.runs[i].label, err)
		}
	}
	b.made.tell(a.stderr)
	b.made.known.Clear()
	runtime.GC() // what the preparation left behind
	for _, op := range loads {
		if err := l.probe(ctx, op); err != nil {
			return fmt.Errorf("%s: %w", op.label, rpcError(err))
		}
	}
	if _, err := l.cpu(ctx); err != nil && conf.text(setAdminURL) != "" {
		fmt.Fprintf(a.stderr, "keyhold: the server's CPU time is not known: %s\n", printable(err.Error()))
	}
	for _, op := range loads {
		if b.warmup > 0 && ctx.Err() == nil {
			l.round(ctx, op, b.warmup)
		}
		op.tally = tally{}
	}
	rounds := 1
	if len(loads) > 1 {
		rounds = max(1, int(b.duration/benchRound))
	}
	for range rounds {
		for _, op := range loads {
			if ctx.Err() == nil {
				l.round(ctx, op, b.duration/time.Duration(rounds))
			}
		}
	}
	if err := a.printBench(b, loads); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, op := range loads {
		if op.tally.ops == 0 {
			return errors.New("not one request of " + op.label + " succeeded")
		}
	}
	return nil
}
