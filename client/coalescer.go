package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
	// stalledAfter is when a request under way no longer keeps others waiting.
	stalledAfter = time.Second
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
// wait, and when one ends, all that wait, up to 100, are sent as one Batch: at
// any load there is no timer to wait for, and the more calls, the larger the
// batches. What a batch saves are round trips and, in the service, writes of
// the audit log to disk.
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
//   - A call whose context ends returns at once. If it was still waiting, it is
//     not sent. If it is in a batch, it may be carried out nevertheless; the
//     batch is cancelled when all its callers have left.
//   - A batch has the latest deadline of its calls, and the region that they
//     name in their contexts: calls of different regions are not mixed. Values
//     of contexts do not travel with a batch.
//   - Requests are read before the call returns and not after.
//
// A request that has been under way for a second no longer keeps others
// waiting. A Coalescer may be used concurrently; one for each Client is enough.
type Coalescer struct {
	keyholdv1.CryptographyServiceClient

	retry   Retry
	timeout time.Duration
	cfg     CoalescerConfig

	mu sync.Mutex
	// lanes has the regions that something is under way or waits in.
	lanes map[string]*lane
	// waiting counts the items in all lanes' queues.
	waiting int
	closed  bool
	// calls are those that have begun and not returned, and the batches.
	calls sync.WaitGroup
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
	return &Coalescer{CryptographyServiceClient: service, retry: retry, timeout: timeout, cfg: cfg, lanes: map[string]*lane{}}, nil
}

// Close waits until all calls have returned. Calls that begin after it fail
// with CANCELED.
func (c *Coalescer) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.calls.Wait()
}

// Encrypt is the operation Encrypt.
func (c *Coalescer) Encrypt(ctx context.Context, in *keyholdv1.EncryptRequest, opts ...grpc.CallOption) (*keyholdv1.EncryptResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Encrypt{Encrypt: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.Encrypt, (*keyholdv1.BatchResult).GetEncrypt)
}

// Decrypt is the operation Decrypt.
func (c *Coalescer) Decrypt(ctx context.Context, in *keyholdv1.DecryptRequest, opts ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Decrypt{Decrypt: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.Decrypt, (*keyholdv1.BatchResult).GetDecrypt)
}

// ReEncrypt is the operation ReEncrypt.
func (c *Coalescer) ReEncrypt(ctx context.Context, in *keyholdv1.ReEncryptRequest, opts ...grpc.CallOption) (*keyholdv1.ReEncryptResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_ReEncrypt{ReEncrypt: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.ReEncrypt, (*keyholdv1.BatchResult).GetReEncrypt)
}

// GenerateDataKey is the operation GenerateDataKey.
func (c *Coalescer) GenerateDataKey(ctx context.Context, in *keyholdv1.GenerateDataKeyRequest, opts ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_GenerateDataKey{GenerateDataKey: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.GenerateDataKey, (*keyholdv1.BatchResult).GetGenerateDataKey)
}

// Sign is the operation Sign.
func (c *Coalescer) Sign(ctx context.Context, in *keyholdv1.SignRequest, opts ...grpc.CallOption) (*keyholdv1.SignResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Sign{Sign: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.Sign, (*keyholdv1.BatchResult).GetSign)
}

// Verify is the operation Verify.
func (c *Coalescer) Verify(ctx context.Context, in *keyholdv1.VerifyRequest, opts ...grpc.CallOption) (*keyholdv1.VerifyResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Verify{Verify: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.Verify, (*keyholdv1.BatchResult).GetVerify)
}

// GenerateMac is the operation GenerateMac.
func (c *Coalescer) GenerateMac(ctx context.Context, in *keyholdv1.GenerateMacRequest, opts ...grpc.CallOption) (*keyholdv1.GenerateMacResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_GenerateMac{GenerateMac: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.GenerateMac, (*keyholdv1.BatchResult).GetGenerateMac)
}

// VerifyMac is the operation VerifyMac.
func (c *Coalescer) VerifyMac(ctx context.Context, in *keyholdv1.VerifyMacRequest, opts ...grpc.CallOption) (*keyholdv1.VerifyMacResponse, error) {
	item := &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_VerifyMac{VerifyMac: in}}
	return coalesce(ctx, c, in, item, opts, c.CryptographyServiceClient.VerifyMac, (*keyholdv1.BatchResult).GetVerifyMac)
}

// coalesce makes one call: alone while that is allowed, else in a batch.
func coalesce[Req, Resp proto.Message](
	ctx context.Context, c *Coalescer, in Req, asItem *keyholdv1.BatchItem, opts []grpc.CallOption,
	single func(context.Context, Req, ...grpc.CallOption) (Resp, error), answer func(*keyholdv1.BatchResult) Resp,
) (Resp, error) {
	var none Resp
	if err := c.enter(); err != nil {
		return none, err
	}
	defer c.calls.Done()
	region, plain := regionOf(ctx)
	if !plain || len(opts) > 0 || proto.Size(in) > maxItemBytes {
		return single(ctx, in, opts...)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return none, status.FromContextError(err).Err()
		}
		var it *item
		f := c.begin(region)
		if f == nil {
			var err error
			if it, err = newItem(ctx, asItem); err != nil {
				// gRPC itself says best what is wrong with a message.
				return single(ctx, in)
			}
			if f, err = c.wait(ctx, region, it); err != nil {
				return none, err
			}
		}
		if f != nil {
			return alone(ctx, c, f, in, single)
		}
		if it.err != nil {
			return none, it.err
		}
		e := it.result.GetError()
		if e == nil {
			if resp := answer(it.result); resp.ProtoReflect().IsValid() {
				return resp, nil
			}
			return none, status.Error(codes.Internal, "a batch's result is not of the item's kind")
		}
		err := itemError(e, it.requestID)
		if !c.pause(ctx, n, err) {
			return none, err
		}
	}
}

// alone makes a call as it is.
func alone[Req, Resp any](ctx context.Context, c *Coalescer, f *flight, in Req, single func(context.Context, Req, ...grpc.CallOption) (Resp, error)) (Resp, error) {
	defer c.end(f)
	return single(ctx, in)
}

// enter counts a call that begins.
func (c *Coalescer) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return status.Error(codes.Canceled, "the coalescer is closed")
	}
	c.calls.Add(1)
	return nil
}

// pause waits before another attempt, if an item's error may pass. What failed
// a whole batch was tried again already.
func (c *Coalescer) pause(ctx context.Context, n int, err error) bool {
	e, ok := ErrorFrom(err)
	if !ok || n >= c.retry.MaxAttempts || e.Exception != throttlingException && e.Status != codes.Unavailable {
		return false
	}
	wait := c.retry.delay(n, e)
	deadline, _ := ctx.Deadline()
	return wait < deadline.Sub(c.retry.Now()) && c.retry.Sleep(ctx, wait) == nil
}
