package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Defaults and limits of CoalescerConfig.
const (
	DefaultMaxInFlight = 2
	DefaultMaxWaiting  = 10_000

	maxMaxInFlight = 64
	maxMaxWaiting  = 1 << 20

	// maxBatchItems is the service's limit.
	maxBatchItems = 100
	// maxBatchBytes is half of what the service takes.
	maxBatchBytes = 1 << 20
	// maxItemBytes is above every item that can be valid. A larger one is sent
	// alone, to be refused as such.
	maxItemBytes = 64 << 10
	// maxOwnBytes is up to which length an item has a buffer of its own, and not
	// one of the pool, whose shortest are longer: many items may wait.
	maxOwnBytes = 1 << 10
	// stalledAfter is when a request under way no longer keeps others waiting.
	stalledAfter = time.Second
	// maxIdleLanes is how many regions are remembered that nothing goes on in.
	maxIdleLanes = 16
)

// CoalescerConfig says how much a Coalescer does at once.
type CoalescerConfig struct {
	// MaxInFlight is how many requests may be under way, in each region, before
	// calls wait to be sent together. With 1 batches are largest, but a second
	// caller waits for the first, and everyone for whatever is slow. Optional:
	// DefaultMaxInFlight.
	MaxInFlight int

	// MaxWaiting is how many calls may wait. The next one is refused with
	// RESOURCE_EXHAUSTED. Optional: DefaultMaxWaiting.
	MaxWaiting int
}

// Coalescer sends concurrent calls together. While fewer than MaxInFlight
// requests are under way a call is sent at once, as it is. While they are, calls
// wait, and when one ends, some of those that wait are sent as one Batch: as
// many as make batches of one size of all calls, those that wait and those under
// way, divided by MaxInFlight; at most 100, and a mebibyte. At any load there is
// no timer to wait for, and the more calls, the larger the batches. What a batch
// saves are round trips and, in the service, writes of the audit log to disk.
//
// It has the methods of a Client's Crypto, so that it can stand for it in an
// Envelope, a Signer and so on. Encrypt, Decrypt, ReEncrypt, GenerateDataKey,
// Sign, Verify, GenerateMac and VerifyMac ride together. Other methods go
// straight to the service, and so do calls with gRPC call options and calls
// whose outgoing metadata has more than a region: a batch can carry no item's own.
//
// Each call keeps its own answer or error, which is the one that it would have
// got alone, its own context and deadline, and its own retries:
//
//   - A batch is answered as a whole: a call in it waits for its slowest
//     companion, but never longer than its own context and deadline let it.
//   - A call whose context ends returns at once. If it was still waiting, it is
//     not sent. If it is in a batch, it may be carried out nevertheless; the
//     batch is cancelled when all its callers have left.
//   - A batch has the latest deadline of its calls, and the region that they
//     name in their contexts: calls of different regions are not mixed. Values
//     of contexts do not travel with a batch.
//   - A call is sent as often as Retry says, alone and in batches together. While
//     it waits for its next attempt, others do not wait for it. Hooks see a Batch
//     as a call with one attempt.
//   - Requests are read before the call returns and not after.
//
// A request that has been under way for a second no longer keeps others
// waiting. A Coalescer may be used concurrently; one for each Client is enough.
type Coalescer struct {
	keyholdv1.CryptographyServiceClient

	retry   Retry
	timeout time.Duration
	cfg     CoalescerConfig

	// calls are those that have begun and not returned, and the batches.
	calls underWay
	// busy says that the last call had to wait. The next one will have to as well,
	// most likely, and is encoded before it takes the lock.
	busy atomic.Bool
	// timers are of those who wait without a deadline in their context.
	timers sync.Pool // of *time.Timer, stopped

	mu sync.Mutex
	// lanes has the regions that something is under way or waits in, and some
	// more.
	lanes map[string]*lane
	// waiting counts the items in all lanes' queues.
	waiting int
}

var _ keyholdv1.CryptographyServiceClient = (*Coalescer)(nil)

// NewCoalescer makes a Coalescer that sends by c, with its Retry and Timeout.
// Close it before c.
func NewCoalescer(c *Client, cfg CoalescerConfig) (*Coalescer, error) {
	if c.conn == nil {
		return nil, errors.New("coalescer: client was not made by Dial")
	}
	return newCoalescer(c.Crypto, c.retry, c.timeout, cfg)
}

func newCoalescer(service keyholdv1.CryptographyServiceClient, retry Retry, timeout time.Duration, cfg CoalescerConfig) (*Coalescer, error) {
	if cfg.MaxInFlight < 0 || cfg.MaxInFlight > maxMaxInFlight || cfg.MaxWaiting < 0 || cfg.MaxWaiting > maxMaxWaiting {
		return nil, fmt.Errorf("coalescer: %d in flight and %d waiting; up to %d and %d are possible", cfg.MaxInFlight, cfg.MaxWaiting, maxMaxInFlight, maxMaxWaiting)
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = DefaultMaxInFlight
	}
	if cfg.MaxWaiting == 0 {
		cfg.MaxWaiting = DefaultMaxWaiting
	}
	c := &Coalescer{CryptographyServiceClient: service, retry: retry, timeout: timeout, cfg: cfg, lanes: map[string]*lane{}}
	c.calls.ended = make(chan struct{})
	return c, nil
}

// Close waits until all calls have returned. Calls that begin after it fail
// with CANCELED.
func (c *Coalescer) Close() {
	c.calls.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lanes {
		c.forget(l)
	}
}

// Encrypt is the operation Encrypt.
func (c *Coalescer) Encrypt(ctx context.Context, in *keyholdv1.EncryptRequest, opts ...grpc.CallOption) (*keyholdv1.EncryptResponse, error) {
	return coalesce(ctx, c, in, itemEncrypt, opts, c.CryptographyServiceClient.Encrypt, (*keyholdv1.BatchResult).GetEncrypt)
}

// Decrypt is the operation Decrypt.
func (c *Coalescer) Decrypt(ctx context.Context, in *keyholdv1.DecryptRequest, opts ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	return coalesce(ctx, c, in, itemDecrypt, opts, c.CryptographyServiceClient.Decrypt, (*keyholdv1.BatchResult).GetDecrypt)
}

// ReEncrypt is the operation ReEncrypt.
func (c *Coalescer) ReEncrypt(ctx context.Context, in *keyholdv1.ReEncryptRequest, opts ...grpc.CallOption) (*keyholdv1.ReEncryptResponse, error) {
	return coalesce(ctx, c, in, itemReEncrypt, opts, c.CryptographyServiceClient.ReEncrypt, (*keyholdv1.BatchResult).GetReEncrypt)
}

// GenerateDataKey is the operation GenerateDataKey.
func (c *Coalescer) GenerateDataKey(ctx context.Context, in *keyholdv1.GenerateDataKeyRequest, opts ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error) {
	return coalesce(ctx, c, in, itemGenerateDataKey, opts, c.CryptographyServiceClient.GenerateDataKey, (*keyholdv1.BatchResult).GetGenerateDataKey)
}

// Sign is the operation Sign.
func (c *Coalescer) Sign(ctx context.Context, in *keyholdv1.SignRequest, opts ...grpc.CallOption) (*keyholdv1.SignResponse, error) {
	return coalesce(ctx, c, in, itemSign, opts, c.CryptographyServiceClient.Sign, (*keyholdv1.BatchResult).GetSign)
}

// Verify is the operation Verify.
func (c *Coalescer) Verify(ctx context.Context, in *keyholdv1.VerifyRequest, opts ...grpc.CallOption) (*keyholdv1.VerifyResponse, error) {
	return coalesce(ctx, c, in, itemVerify, opts, c.CryptographyServiceClient.Verify, (*keyholdv1.BatchResult).GetVerify)
}

// GenerateMac is the operation GenerateMac.
func (c *Coalescer) GenerateMac(ctx context.Context, in *keyholdv1.GenerateMacRequest, opts ...grpc.CallOption) (*keyholdv1.GenerateMacResponse, error) {
	return coalesce(ctx, c, in, itemGenerateMac, opts, c.CryptographyServiceClient.GenerateMac, (*keyholdv1.BatchResult).GetGenerateMac)
}

// VerifyMac is the operation VerifyMac.
func (c *Coalescer) VerifyMac(ctx context.Context, in *keyholdv1.VerifyMacRequest, opts ...grpc.CallOption) (*keyholdv1.VerifyMacResponse, error) {
	return coalesce(ctx, c, in, itemVerifyMac, opts, c.CryptographyServiceClient.VerifyMac, (*keyholdv1.BatchResult).GetVerifyMac)
}

// coalesce makes one call: alone while that is allowed, else in a batch, and
// again if that may help.
func coalesce[Req, Resp proto.Message](
	ctx context.Context, c *Coalescer, in Req, kind protowire.Number, opts []grpc.CallOption,
	single func(context.Context, Req, ...grpc.CallOption) (Resp, error), answer func(*keyholdv1.BatchResult) Resp,
) (Resp, error) {
	var none Resp
	if !c.calls.begin() {
		return none, status.Error(codes.Canceled, "the coalescer is closed")
	}
	defer c.calls.end()
	region, plain := regionOf(ctx)
	if !plain || len(opts) > 0 || proto.Size(in) > maxItemBytes {
		return single(ctx, in, opts...)
	}
	deadline, own := ctx.Deadline()
	if !own {
		deadline = c.retry.Now().Add(c.timeout)
	}
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return none, status.FromContextError(err).Err()
		}
		f, it, err := c.board(ctx, region, in, kind, deadline)
		if errors.Is(err, errNotEncoded) {
			// gRPC itself says best what is wrong with a message.
			return single(ctx, in)
		}
		var (
			resp  Resp
			wait  time.Duration
			again bool
		)
		switch {
		case err != nil: // the context has ended, or too many wait
			return none, err
		case f != nil:
			once := &oneAttempt{number: n}
			resp, err = alone(ctx, c, f, deadline, func(ctx context.Context) (Resp, error) { return single(ctx, in, once) })
			wait, again = once.wait, once.again
		default:
			if resp, err = outcome(it, answer); err != nil {
				wait, again = c.retry.again(n, err, readOnly, it.late, deadline)
			}
		}
		if err == nil || !again {
			return resp, err
		}
		if err := c.retry.Sleep(ctx, wait); err != nil {
			return none, status.FromContextError(err).Err()
		}
	}
}

// readOnly is true of all operations that a batch carries: the proto says so.
const readOnly = true

// alone makes a call as it is.
func alone[Resp any](ctx context.Context, c *Coalescer, f *flight, deadline time.Time, single func(context.Context) (Resp, error)) (Resp, error) {
	defer c.land(f)
	if _, own := ctx.Deadline(); !own {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	return single(ctx)
}

// outcome is what came of a call in a batch.
func outcome[Resp proto.Message](it *item, answer func(*keyholdv1.BatchResult) Resp) (Resp, error) {
	var none Resp
	if it.err != nil {
		return none, it.err
	}
	if e := it.result.GetError(); e != nil {
		return none, itemError(e, it.requestID)
	}
	resp := answer(it.result)
	if !resp.ProtoReflect().IsValid() {
		return none, status.Error(codes.Internal, "a batch's result is not of the item's kind")
	}
	return resp, nil
}

// underWay counts what must end before a Coalescer is closed.
type underWay struct {
	n      atomic.Int64
	closed atomic.Bool
	once   sync.Once
	ended  chan struct{} // closed when there is nothing, and nothing will begin
}

// begin counts one more, unless close was called before.
func (u *underWay) begin() bool {
	u.n.Add(1)
	if u.closed.Load() {
		u.end()
		return false
	}
	return true
}

func (u *underWay) end() {
	if u.n.Add(-1) == 0 && u.closed.Load() {
		u.once.Do(func() { close(u.ended) })
	}
}

// goes runs f and counts it. Its caller is counted itself.
func (u *underWay) goes(f func()) {
	u.n.Add(1)
	go func() {
		defer u.end()
		f()
	}()
}

// close returns when all that has begun has ended.
func (u *underWay) close() {
	u.n.Add(1)
	u.closed.Store(true)
	u.end()
	<-u.ended
}
