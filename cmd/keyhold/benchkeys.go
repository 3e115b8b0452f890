package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// benchPreparers is how many keys are looked up or made at a time. The token
// makes one after the other; the rest of their work is done meanwhile.
const benchPreparers = 8

// benchKeysNamed is how many keys are named one by one.
const benchKeysNamed = 10

// benchKeys notes which keys were made, and which are known until all requests are
// made: a hundred thousand would keep the garbage collector busy while it is measured.
type benchKeys struct {
	mu      sync.Mutex
	n       int
	aliases []string // the first of those that were made
	known   sync.Map // alias -> *keyholdv1.KeyMetadata: operations share their keys
}

func (k *benchKeys) add(alias string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.n++
	if len(k.aliases) < benchKeysNamed {
		k.aliases = append(k.aliases, alias)
	}
}

// tell says what stays in the server.
func (k *benchKeys) tell(w io.Writer) {
	if k.n > benchKeysNamed {
		fmt.Fprintf(w, "keyhold: made %d keys such as %s, which stay for the next time; `keyhold bench --cleanup` discards them\n", k.n, k.aliases[0])
		return
	}
	slices.Sort(k.aliases)
	for _, alias := range k.aliases {
		fmt.Fprintf(w, "keyhold: made %s, which stays for the next time; `keyhold bench --cleanup` discards it\n", alias)
	}
}

// prepareLoad makes the requests of an operation: one for each key, or, in
// batches, one that begins with each key.
func (a *app) prepareLoad(ctx context.Context, c *client.Client, l *load, b *benchArgs, op *benchRun) (*loadOp, error) {
	load := &loadOp{benchRun: *op, method: op.method}
	payload := make([]byte, b.payload)
	for i := range payload {
		payload[i] = byte(i)
	}
	keys := 1
	if op.usage != 0 {
		keys = b.keys
	}
	reqs := make([]proto.Message, keys)
	made := &b.made
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(benchPreparers)
	for i := range reqs {
		group.Go(func() error {
			var key *keyholdv1.KeyMetadata
			var err error
			if op.usage != 0 {
				if key, err = a.benchKey(groupCtx, c, &op.benchOp, b.spec, i+1, made); err != nil {
					return err
				}
			}
			if reqs[i], err = op.request(groupCtx, c, key, payload); err != nil {
				return rpcError(err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	reqs = scatter(reqs)
	var err error
	if op.batch > 1 {
		load.method = keyholdv1.CryptographyService_Batch_FullMethodName
		if reqs, err = makeBatches(reqs, op.batch); err != nil {
			return nil, err
		}
	}
	load.count = len(reqs)
	switch {
	case l.aws != nil:
		for _, req := range reqs {
			q := l.aws.request(&op.benchOp, req)
			l.aws.signed(q) // here, since with many keys it would be measured
			load.aws = append(load.aws, q)
		}
	case op.coalesce:
		load.messages = reqs
	default:
		for _, req := range reqs {
			raw, err := proto.Marshal(req)
			if err != nil {
				return nil, err
			}
			load.requests = append(load.requests, mem.BufferSlice{mem.SliceBuffer(raw)})
		}
	}
	return load, nil
}

// scatter returns the requests so that none is near those that were next to it: keys
// lie in the server's memory in the order of their making, which callers do not keep.
// It is the same order each time.
func scatter[T any](in []T) []T {
	n := len(in)
	const golden = 0.6180339887 // of all ratios, the farthest from a fraction: no step comes back near its start soon
	stride := max(1, int(golden*float64(n)))
	for gcd(stride, n) != 1 {
		stride++
	}
	out := make([]T, n)
	for i := range out {
		out[i] = in[i*stride%n]
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// makeBatches makes batches of n items: as many as there are requests, each of
// which begins with another one, or, of many requests, as few as have them all.
func makeBatches(reqs []proto.Message, n int) ([]proto.Message, error) {
	items := make([]*keyholdv1.BatchItem, len(reqs))
	for i, req := range reqs {
		var err error
		if items[i], err = batchItem(req); err != nil {
			return nil, err
		}
	}
	step := 1
	if len(items) > maxBenchBatch {
		step = n
	}
	var out []proto.Message
	for i := 0; i < len(items); i += step {
		batch := &keyholdv1.BatchRequest{}
		for j := range n {
			batch.Items = append(batch.Items, items[(i+j)%len(items)])
		}
		out = append(out, batch)
	}
	return out, nil
}

// benchKey returns the n-th key of an operation's type, and makes it if it is
// not there. Several may be asked for at once.
func (a *app) benchKey(ctx context.Context, c *client.Client, op *benchOp, spec keyholdv1.KeySpec, n int, made *benchKeys) (*keyholdv1.KeyMetadata, error) {
	if spec == 0 {
		spec = op.spec
	}
	// RSA keys are for one of two things: their aliases say which.
	name := awsjson.EnumName(spec)
	if strings.HasPrefix(name, "RSA_") {
		name += "-" + awsjson.EnumName(op.usage)
	}
	alias := fmt.Sprintf("alias/%s%s-%d", benchAliasPrefix, name, n)
	if meta, ok := made.known.Load(alias); ok {
		return meta.(*keyholdv1.KeyMetadata), nil //nolint:forcetypeassert // the only type stored
	}
	resp, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: alias})
	if err == nil {
		meta := resp.GetKeyMetadata()
		if meta.GetKeyState() != keyholdv1.KeyState_KEY_STATE_ENABLED || meta.GetKeySpec() != spec || meta.GetKeyUsage() != op.usage {
			hint := "`keyhold bench --cleanup` discards the keys of benchmarks, and the next benchmark makes others"
			if meta.GetDescription() != benchDescription {
				hint = "bench did not make that key: aliases that begin with alias/" + benchAliasPrefix + " are for its own"
			}
			return nil, withHint(fmt.Errorf("%s is a key of spec %s for %s, and is %s", alias,
				awsjson.EnumName(meta.GetKeySpec()), awsjson.EnumName(meta.GetKeyUsage()), awsjson.EnumName(meta.GetKeyState())), "%s", hint)
		}
		made.known.Store(alias, meta)
		return meta, nil
	}
	if e, ok := client.ErrorFrom(err); !ok || e.Exception != "NotFoundException" {
		return nil, rpcError(err)
	}
	created, err := c.Keys.CreateKey(ctx, &keyholdv1.CreateKeyRequest{KeySpec: spec, KeyUsage: op.usage, Description: benchDescription})
	if err != nil {
		return nil, rpcError(err)
	}
	meta := created.GetKeyMetadata()
	if _, err := c.Keys.CreateAlias(ctx, &keyholdv1.CreateAliasRequest{AliasName: alias, TargetKeyId: meta.GetKeyId()}); err != nil {
		return nil, fmt.Errorf("the key %s was created and exists, but its alias %s was not: %w", meta.GetArn(), alias, rpcError(err))
	}
	made.add(alias)
	made.known.Store(alias, meta)
	return meta, nil
}
