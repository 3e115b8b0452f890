package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keyhold/keyhold/internal/bench"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// reports parses what bench prints with --output json.
func reports(t *testing.T, out string) []bench.Result {
	t.Helper()
	var all []bench.Result
	for line := range strings.Lines(out) {
		var r bench.Result
		dec := json.NewDecoder(strings.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		all = append(all, r)
	}
	return all
}

// Ctrl-C prints what was measured so far.
func TestBenchInterrupt(t *testing.T) {
	s, env := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The first is the probe's.
	s.onRequest.Store(new(func(n int64) error {
		if n == 50 {
			cancel()
		}
		return nil
	}))
	var stdout, stderr bytes.Buffer
	v := &invocation{env: env, stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}
	began := time.Now()
	code := v.run(ctx, "bench", "--op", "random", "--duration", "1h", "--warmup", "0s", "--concurrency", "2", "--output", "json")
	if code != exitFailure || !strings.HasSuffix(stderr.String(), "keyhold: interrupted\n") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	got := reports(t, stdout.String())
	if len(got) != 1 || got[0].Ops < 40 || got[0].Errors != 0 || got[0].Seconds <= 0 || got[0].Seconds > time.Since(began).Seconds() {
		t.Errorf("%+v", got)
	}
}

// What can be part of a batch can be measured, alone, in batches and coalesced.
func TestBenchBatches(t *testing.T) {
	_, env := newFake(t)
	v := &invocation{env: env, stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
	a := v.app()
	a.rootCommand()
	conf, err := a.loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	clientConf, err := conf.client()
	if err != nil {
		t.Fatal(err)
	}
	shared, err := newSharedConn(clientConf)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.close()
	measured := map[protoreflect.FullName]bool{}
	for _, op := range benchOps() {
		if !op.batches {
			continue
		}
		key, err := a.benchKey(t.Context(), shared.client, &op, 0, 1, &benchKeys{})
		if err != nil {
			t.Fatal(err)
		}
		req, err := op.request(t.Context(), shared.client, key, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		measured[req.ProtoReflect().Descriptor().FullName()] = true
		if _, err := batchItem(req); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
		// The fake's Batch refuses most.
		if err := call(t.Context(), shared.coalescer, req); err != nil && !strings.Contains(err.Error(), "UnsupportedOperationException") {
			t.Errorf("%s: %v", op.name, err)
		}
	}
	items := (&keyholdv1.BatchItem{}).ProtoReflect().Descriptor().Oneofs().ByName("request").Fields()
	for i := range items.Len() {
		if name := items.Get(i).Message().FullName(); !measured[name] {
			t.Errorf("no operation measures %s", name)
		}
	}
}

// Errors are counted by their names, and are no operations.
func TestBenchErrors(t *testing.T) {
	s, env := newFake(t)
	s.onRequest.Store(new(func(n int64) error {
		switch {
		case n > 1 && n%3 == 0:
			return exception(codes.ResourceExhausted, "ThrottlingException", "slow down")
		case n > 1 && n%3 == 1:
			return status.Error(codes.Unavailable, "going away")
		}
		return nil
	}))
	var stdout, stderr bytes.Buffer
	v := &invocation{env: env, stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}
	args := []string{"bench", "--op", "random", "--duration", "300ms", "--warmup", "0s", "--concurrency", "2"}
	if code := v.run(t.Context(), append(args, "--output", "json")...); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	got := reports(t, stdout.String())[0]
	if got.Ops == 0 || got.Errors < got.Ops || !strings.Contains(stderr.String(), " ThrottlingException, ") || !strings.Contains(stderr.String(), " Unavailable\n") {
		t.Errorf("%+v, %q", got, stderr.String())
	}
	s.onRequest.Store(new(func(n int64) error {
		if n%2 == 0 {
			return exception(codes.ResourceExhausted, "ThrottlingException", "slow down")
		}
		return nil
	}))
	s.requestCount.Store(0)
	stdout.Reset()
	if code := v.run(t.Context(), args...); code != exitOK || !strings.Contains(stdout.String(), " ThrottlingException\n") {
		t.Errorf("exit code %d: %s", code, stdout.String())
	}
	// Not one success is a failure.
	s.onRequest.Store(new(func(n int64) error {
		if n > 1 {
			return exception(codes.PermissionDenied, "AccessDeniedException", "")
		}
		return nil
	}))
	s.requestCount.Store(0)
	stderr.Reset()
	if code := v.run(t.Context(), args...); code != exitFailure || !strings.Contains(stderr.String(), "not one request of random succeeded") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

// The errors of a batch are found without decoding the rest.
func TestReadResults(t *testing.T) {
	failure := func(name string) *keyholdv1.BatchResult {
		return &keyholdv1.BatchResult{Result: &keyholdv1.BatchResult_Error{Error: &keyholdv1.BatchError{Exception: name, Message: "m"}}}
	}
	success := &keyholdv1.BatchResult{Result: &keyholdv1.BatchResult_GenerateMac{GenerateMac: &keyholdv1.GenerateMacResponse{Mac: []byte("mac")}}}
	raw, err := proto.Marshal(&keyholdv1.BatchResponse{Results: []*keyholdv1.BatchResult{
		success, failure("DisabledException"), success, failure("ThrottlingException"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	f := &frame{batch: true}
	// As it comes from the wire: in pieces.
	data := mem.BufferSlice{mem.SliceBuffer(raw[:7]), mem.SliceBuffer(raw[7:])}
	if err := (frameCodec{}).Unmarshal(data, f); err != nil || !slices.Equal(f.failed, []string{"DisabledException", "ThrottlingException"}) {
		t.Errorf("%q, %v", f.failed, err)
	}
	for n := 1; n < len(raw); n++ {
		f.failed = nil
		if err := f.readResults(raw[:n]); err == nil && len(f.failed) > 1 {
			t.Errorf("the first %d of %d bytes: %q", n, len(raw), f.failed)
		}
	}
	var tl tally
	tl.count(time.Millisecond, 4, []string{"DisabledException", "ThrottlingException"})
	tl.fail(errors.New("x"), 4)
	if want := map[string]int{"DisabledException": 1, "ThrottlingException": 1, "error": 4}; tl.ops != 2 || tl.errors != 6 || !maps.Equal(tl.names, want) {
		t.Errorf("%d ops, %d errors, %v", tl.ops, tl.errors, tl.names)
	}
}

// Every key is in a batch, however many there are, and every batch is full.
func TestBenchBatchesCoverKeys(t *testing.T) {
	for _, tc := range []struct{ keys, items, batches int }{{1, 7, 1}, {3, 2, 3}, {100, 10, 100}, {101, 10, 11}, {1000, 100, 10}} {
		reqs := make([]proto.Message, tc.keys)
		for i := range reqs {
			reqs[i] = &keyholdv1.EncryptRequest{KeyId: strconv.Itoa(i)}
		}
		batches, err := makeBatches(reqs, tc.items)
		if err != nil || len(batches) != tc.batches {
			t.Errorf("%d keys in batches of %d: %d batches, %v; want %d", tc.keys, tc.items, len(batches), err, tc.batches)
		}
		seen := map[string]bool{}
		for _, b := range batches {
			batch, ok := b.(*keyholdv1.BatchRequest)
			if !ok || len(batch.GetItems()) != tc.items {
				t.Fatalf("%d keys in batches of %d: %v", tc.keys, tc.items, b)
			}
			for _, item := range batch.GetItems() {
				seen[item.GetEncrypt().GetKeyId()] = true
			}
		}
		if len(seen) != tc.keys {
			t.Errorf("%d keys in batches of %d: only %d are used", tc.keys, tc.items, len(seen))
		}
	}
}

// A few keys that were made are named, many are counted.
func TestBenchKeysTell(t *testing.T) {
	for _, tc := range []struct{ n, lines int }{{0, 0}, {1, 1}, {benchKeysNamed, benchKeysNamed}, {benchKeysNamed + 1, 1}, {10000, 1}} {
		var made benchKeys
		for i := range tc.n {
			made.add("alias/" + strconv.Itoa(i))
		}
		var out strings.Builder
		made.tell(&out)
		if n := strings.Count(out.String(), "\n"); n != tc.lines || tc.n > benchKeysNamed && !strings.Contains(out.String(), "made "+strconv.Itoa(tc.n)+" keys") {
			t.Errorf("%d keys: %q", tc.n, out.String())
		}
	}
}
