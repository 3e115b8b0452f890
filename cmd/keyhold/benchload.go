package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpcencoding "google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/internal/bench"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// maxMetricsBytes is how much of /metrics is read.
const maxMetricsBytes = 4 << 20

// load sends requests. It does without the client package, whose comforts cost
// time on each call, so that the server is measured and not the tool: bytes
// that were made before go out, and the answer is not decoded.
type load struct {
	conns   []*grpc.ClientConn
	shared  []*sharedConn // instead of conns, for what is coalesced
	aws     *awsLoad      // instead of both, through the AWS door
	workers int
	region  string
	timeout time.Duration
	conf    *config
}

// loadOp is an operation with its requests, and what came of them.
type loadOp struct {
	benchRun
	method   string            // of the requests, which may be batches
	count    int               // of the requests, which are taken in turn; one of these has them:
	requests []mem.BufferSlice // for gRPC
	messages []proto.Message   // for the Coalescer
	aws      []*awsRequest     // for the AWS door
	next     []int             // which request each worker sends next
	tally    tally
}

// tally is what came of requests.
type tally struct {
	histogram bench.Histogram
	ops       int            // items that succeeded
	errors    int            // items that did not
	names     map[string]int // the errors, by exception or gRPC code
	elapsed   time.Duration
	cpu       float64 // seconds of the server's process
	cpuKnown  bool
}

// dialLoad prepares the connections. They are made at the first request.
func (a *app) dialLoad(conf *config, b *benchArgs) (*load, error) {
	clientConf, err := conf.client()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := client.TLSConfig(clientConf)
	if err != nil {
		return nil, err
	}
	if tlsConfig.ServerName == "" {
		if tlsConfig.ServerName, _, err = net.SplitHostPort(clientConf.Addr); err != nil {
			return nil, err
		}
	}
	l := &load{workers: b.concurrency, region: clientConf.Region, timeout: clientConf.Timeout, conf: conf}
	if b.door == doorAWS {
		l.aws, err = a.dialAWS(b.aws, b.connections)
		return l, err
	}
	coalesced := slices.ContainsFunc(b.runs, func(r benchRun) bool { return r.coalesce })
	plain := slices.ContainsFunc(b.runs, func(r benchRun) bool { return !r.coalesce })
	for range b.connections {
		if coalesced {
			c, err := newSharedConn(clientConf)
			if err != nil {
				l.close()
				return nil, err
			}
			l.shared = append(l.shared, c)
		}
		if !plain {
			continue
		}
		conn, err := grpc.NewClient("dns:///"+clientConf.Addr,
			grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
			grpc.WithDisableRetry(), grpc.WithUserAgent("keyhold/"+a.versionText()+" bench"))
		if err != nil {
			l.close()
			return nil, err
		}
		l.conns = append(l.conns, conn)
	}
	return l, nil
}

func (l *load) close() {
	for _, conn := range l.conns {
		conn.Close()
	}
	for _, c := range l.shared {
		c.close()
	}
	if l.aws != nil {
		l.aws.close()
	}
}

// connections is how many there are.
func (l *load) connections() int {
	if l.aws != nil {
		return len(l.aws.conns)
	}
	return max(len(l.conns), len(l.shared))
}

// callContext is the context of a worker's calls. It ends at their deadline:
// one for all is cheaper than one for each.
func (l *load) callContext(ctx context.Context, end time.Time) (context.Context, context.CancelFunc) {
	if l.region != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, client.RegionHeader, l.region)
	}
	return context.WithDeadline(ctx, end.Add(l.timeout))
}

// send makes the n-th call of an operation, over connection number conn. Both
// count on for ever.
func (l *load) send(ctx context.Context, op *loadOp, conn, n int, f *frame) error {
	if l.aws != nil {
		return l.aws.send(ctx, op.aws[n%op.count], conn)
	}
	if op.coalesce {
		return call(ctx, l.shared[conn%len(l.shared)].coalescer, op.messages[n%op.count])
	}
	f.request, f.failed = op.requests[n%op.count], f.failed[:0]
	return l.conns[conn%len(l.conns)].Invoke(ctx, op.method, f, f, frameOption)
}

// frameOption makes a call one of frames.
var frameOption = grpc.ForceCodecV2(frameCodec{})

// maxProbes bounds how many of an operation's requests are tried before it is
// measured. What fails later is counted.
const maxProbes = 1000

// probe sends each request once over the first connection, though not more than
// maxProbes, and the first over each other one, and wants them to succeed.
func (l *load) probe(ctx context.Context, op *loadOp) error {
	ctx, cancel := l.callContext(ctx, time.Now())
	defer cancel()
	for conn := range l.connections() {
		for n := range min(op.count, maxProbes) {
			f := &frame{batch: op.batch > 1}
			if err := l.send(ctx, op, conn, n, f); err != nil {
				return err
			}
			if len(f.failed) > 0 {
				return fmt.Errorf("%d of %d items failed with %s", len(f.failed), op.batch, f.failed[0])
			}
			if conn > 0 {
				break
			}
		}
	}
	return nil
}

// startWorkers says where in an operation's requests each worker begins: far from
// the others, so that many keys are all in use at once. Rounds go on where the
// last one ended.
func (op *loadOp) startWorkers(workers int) {
	op.next = make([]int, workers)
	for i := range op.next {
		op.next[i] = i
		if op.count > workers {
			op.next[i] = i * op.count / workers
		}
	}
}

// round runs an operation for a time, and adds what came of it to its tally.
func (l *load) round(ctx context.Context, op *loadOp, d time.Duration) {
	before, beforeErr := l.cpu(ctx)
	tallies := make([]tally, l.workers)
	if len(op.next) != l.workers {
		op.startWorkers(l.workers)
	}
	began := time.Now()
	end := began.Add(d)
	var wg sync.WaitGroup
	for i := range tallies {
		wg.Go(func() { l.work(ctx, op, i, end, &tallies[i]) })
	}
	wg.Wait()
	op.tally.elapsed += time.Since(began)
	for i := range tallies {
		op.tally.merge(&tallies[i])
	}
	after, afterErr := l.cpu(context.WithoutCancel(ctx))
	if beforeErr == nil && afterErr == nil {
		op.tally.cpu += after - before
		op.tally.cpuKnown = true
	}
}

// work is one worker, which is its connection too: it sends the next request when
// the last was answered, and at least one.
func (l *load) work(ctx context.Context, op *loadOp, worker int, end time.Time, t *tally) {
	callCtx, cancel := l.callContext(ctx, end)
	defer cancel()
	f := &frame{batch: op.batch > 1}
	n := op.next[worker]
	defer func() { op.next[worker] = n }()
	for sent := time.Now(); ; {
		err := l.send(callCtx, op, worker, n, f)
		n++
		if ctx.Err() != nil {
			return // what was interrupted counts for nothing
		}
		answered := time.Now()
		if err == nil {
			t.count(answered.Sub(sent), op.batch, f.failed)
		} else if name := t.fail(err, op.batch); !strings.HasSuffix(name, "Exception") {
			pause(ctx) // a connection that is down fails at once, again and again
			answered = time.Now()
		}
		if !answered.Before(end) {
			return
		}
		sent = answered
	}
}

// pause waits a moment, or until ctx ends.
func pause(ctx context.Context) {
	timer := time.NewTimer(time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// count counts a request that was answered, with the names of the errors of
// its items.
func (t *tally) count(d time.Duration, items int, failed []string) {
	t.histogram.Add(d, items-len(failed))
	t.ops += items - len(failed)
	for _, name := range failed {
		t.addError(name, 1)
	}
}

// fail counts a request that failed, and returns by which name.
func (t *tally) fail(err error, items int) string {
	name := "error"
	var answered *awsError
	if errors.As(err, &answered) && answered.exception != "" {
		name = answered.exception
	}
	if e, ok := client.ErrorFrom(err); ok {
		if name = e.Exception; name == "" {
			name = e.Status.String()
		}
	}
	t.addError(name, items)
	return name
}

func (t *tally) addError(name string, n int) {
	if t.names == nil {
		t.names = map[string]int{}
	}
	t.names[name] += n
	t.errors += n
}

func (t *tally) merge(other *tally) {
	t.histogram.Merge(&other.histogram)
	t.ops += other.ops
	for name, n := range other.names {
		t.addError(name, n)
	}
}

// cpu returns the CPU time that the server's process has used, in seconds.
func (l *load) cpu(ctx context.Context) (float64, error) {
	if l.conf.text(setAdminURL) == "" {
		return 0, errors.New("KEYHOLD_ADMIN_URL is not set")
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	resp, err := adminGet(ctx, l.conf, "metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxMetricsBytes))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "process_cpu_seconds_total "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, errors.New("/metrics has no process_cpu_seconds_total")
}

// frame is a call: the bytes to send, and what the answer said of errors.
type frame struct {
	request mem.BufferSlice
	batch   bool
	failed  []string // the exceptions of a batch's items
}

// frameCodec sends frames as they are.
type frameCodec struct{}

var _ grpcencoding.CodecV2 = frameCodec{}

// Name is that of protobuf, which is what the bytes are.
func (frameCodec) Name() string { return "proto" }

// Marshal returns the bytes of a frame's request.
func (frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("%T is no frame", v)
	}
	return f.request, nil
}

// Unmarshal looks at the answer no more than it must: only batches say in
// there what failed.
func (frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("%T is no frame", v)
	}
	if !f.batch {
		return nil
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return f.readResults(buf.ReadOnlyData())
}

// readResults collects the errors of a BatchResponse, without decoding the rest.
func (f *frame) readResults(b []byte) error {
	const results, failure = 1, 100 // BatchResponse.results, BatchResult.error
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if field != results || kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		result, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if inner, _, n := protowire.ConsumeTag(result); n > 0 && inner == failure {
			var r keyholdv1.BatchResult
			if err := proto.Unmarshal(result, &r); err != nil {
				return err
			}
			f.failed = append(f.failed, r.GetError().GetException())
		}
	}
	return nil
}
