package grpcapi_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/grpcapi"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// TestBatchSize: a batch may be larger than other requests, and no larger than
// its own limit.
func TestBatchSize(t *testing.T) {
	t.Parallel()
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		return &keyholdv1.BatchResponse{}, nil
	}}
	conn := open(t, c).app(t)
	// An empty item is two bytes, one with a plaintext as much as that and its
	// lengths: the last one fills up to the limit.
	batch := func(size int) []byte {
		for pad := size - 64; ; pad++ {
			b := must(proto.Marshal(&keyholdv1.BatchRequest{Items: []*keyholdv1.BatchItem{
				{Request: &keyholdv1.BatchItem_Encrypt{Encrypt: &keyholdv1.EncryptRequest{Plaintext: make([]byte, pad)}}},
			}}))
			if len(b) >= size {
				return b
			}
		}
	}
	const most = 2 << 20
	for _, tt := range []struct {
		bytes []byte
		want  codes.Code
	}{{batch(most), codes.OK}, {batch(most + 1), codes.InvalidArgument}, {batch(3<<20 + 1), codes.ResourceExhausted}} {
		err := conn.Invoke(t.Context(), keyholdv1.CryptographyService_Batch_FullMethodName, &keyholdv1.BatchRequest{}, &keyholdv1.BatchResponse{}, grpc.ForceCodec(garbage{tt.bytes}))
		if status.Code(err) != tt.want {
			t.Errorf("%d bytes: %v, want %s", len(tt.bytes), err, tt.want)
		}
		if tt.want == codes.InvalidArgument && !strings.Contains(err.Error(), "at most 2097152 bytes; it has 2097153") {
			t.Errorf("%v does not say the limit", err)
		}
	}
}

// TestBatchStatuses: an item that failed says what gRPC would have said of the
// request alone, whatever the exception.
func TestBatchStatuses(t *testing.T) {
	t.Parallel()
	var alone error
	answer := &keyholdv1.BatchResponse{}
	for _, temporary := range []bool{false, true} {
		answer.Results = append(answer.Results, &keyholdv1.BatchResult{Result: &keyholdv1.BatchResult_Error{
			Error: &keyholdv1.BatchError{Exception: string(kms.CodeInternal), Temporary: temporary, TimedOut: true},
		}})
		for _, code := range kms.Codes() {
			answer.Results = append(answer.Results, &keyholdv1.BatchResult{Result: &keyholdv1.BatchResult_Error{
				Error: &keyholdv1.BatchError{Exception: string(code), Temporary: temporary},
			}})
		}
	}
	answer.Results = append(answer.Results, &keyholdv1.BatchResult{Result: &keyholdv1.BatchResult_Encrypt{Encrypt: &keyholdv1.EncryptResponse{KeyId: "k", CiphertextBlob: []byte("c")}}})
	c := &core{do: func(_ context.Context, _ *identity.Caller, operation string, _ proto.Message) (proto.Message, error) {
		if operation == "Batch" {
			return proto.Clone(answer), nil
		}
		return nil, alone
	}}
	client := keyholdv1.NewCryptographyServiceClient(open(t, c).app(t))
	resp, err := client.Batch(t.Context(), &keyholdv1.BatchRequest{})
	if err != nil || len(resp.GetResults()) != len(answer.GetResults()) {
		t.Fatalf("%d results, %v", len(resp.GetResults()), err)
	}
	for i, r := range resp.GetResults()[:len(resp.GetResults())-1] {
		e := r.GetError()
		alone = &kms.Error{Code: kms.Code(e.GetException()), Unavailable: e.GetTemporary()}
		_, err := client.GenerateRandom(t.Context(), &keyholdv1.GenerateRandomRequest{})
		want := status.Code(err)
		if e.GetTimedOut() {
			want = codes.DeadlineExceeded
		}
		if got := codes.Code(e.GetGrpcStatus()); got != want {
			t.Errorf("item %d, %s, temporary %v: %s, alone %s", i, e.GetException(), e.GetTemporary(), got, want)
		}
	}
	if last := resp.GetResults()[len(resp.GetResults())-1].GetEncrypt(); string(last.GetCiphertextBlob()) != "c" {
		t.Errorf("an answer among errors: %v", last)
	}
}

// TestBatchItemsAreCountedFirst: a batch of a million empty items is refused before
// they are made.
func TestBatchItemsAreCountedFirst(t *testing.T) {
	t.Parallel()
	c := &core{do: func(_ context.Context, _ *identity.Caller, _ string, req proto.Message) (proto.Message, error) {
		return &keyholdv1.BatchResponse{Results: make([]*keyholdv1.BatchResult, len(req.(*keyholdv1.BatchRequest).GetItems()))}, nil
	}}
	conn := open(t, c).app(t)
	for n, want := range map[int]codes.Code{100: codes.OK, 101: codes.InvalidArgument, 1 << 20: codes.InvalidArgument} {
		raw := bytes.Repeat([]byte{0x0a, 0x00}, n)
		err := conn.Invoke(t.Context(), keyholdv1.CryptographyService_Batch_FullMethodName, &keyholdv1.BatchRequest{}, &keyholdv1.BatchResponse{}, grpc.ForceCodec(garbage{raw}))
		if status.Code(err) != want {
			t.Errorf("%d items: %v, want %s", n, err, want)
		}
		if want == codes.InvalidArgument && !strings.Contains(err.Error(), "at most 100") {
			t.Errorf("%d items: %v does not say the limit", n, err)
		}
	}
	for _, raw := range [][]byte{{0x0a}, {0x0a, 0x05, 0x00}, {0xff, 0xff, 0xff}} {
		err := conn.Invoke(t.Context(), keyholdv1.CryptographyService_Batch_FullMethodName, &keyholdv1.BatchRequest{}, &keyholdv1.BatchResponse{}, grpc.ForceCodec(garbage{raw}))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("% x: %v", raw, err)
		}
	}
}

// TestBatchRoom: more batches than there is room for wait for it, until their time
// is over.
func TestBatchRoom(t *testing.T) {
	t.Parallel()
	inside, release := make(chan struct{}, 64), make(chan struct{})
	c := &core{do: func(context.Context, *identity.Caller, string, proto.Message) (proto.Message, error) {
		inside <- struct{}{}
		<-release
		return &keyholdv1.BatchResponse{}, nil
	}}
	client := keyholdv1.NewCryptographyServiceClient(open(t, c).app(t))
	batch := &keyholdv1.BatchRequest{}
	for range 88 {
		batch.Items = append(batch.Items, &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Encrypt{Encrypt: &keyholdv1.EncryptRequest{Plaintext: make([]byte, 23<<10)}}})
	}
	const fit = 16 << 20 / (88 * 23 << 10) // eight
	var group sync.WaitGroup
	for range fit {
		group.Go(func() {
			if _, err := client.Batch(t.Context(), batch); err != nil {
				t.Error(err)
			}
		})
	}
	for range fit {
		<-inside
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Batch(ctx, batch); err == nil {
		t.Error("one more batch found room")
	}
	select {
	case <-inside:
		t.Error("one more batch came to the core")
	default:
	}
	close(release)
	group.Wait()
	if _, err := client.Batch(t.Context(), batch); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestBuffersAreWiped: what a message was encoded in holds nothing of it once gRPC
// has given it back, however small it was.
func TestBuffersAreWiped(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 32, 900, 1024, 2048, 5000, 300_000} {
		secret := bytes.Repeat([]byte{0xa5}, n)
		for name, kept := range grpcapi.EncodedAndFreed(t, &keyholdv1.DecryptResponse{Plaintext: secret}) {
			if bytes.Contains(kept, secret) {
				t.Errorf("%s of %d bytes is still there", name, n)
			}
		}
	}
}
