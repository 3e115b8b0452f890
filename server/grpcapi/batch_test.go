package grpcapi_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
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
		if got, want := codes.Code(e.GetGrpcStatus()), status.Code(err); got != want {
			t.Errorf("item %d, %s, temporary %v: %s, alone %s", i, e.GetException(), e.GetTemporary(), got, want)
		}
	}
	if last := resp.GetResults()[len(resp.GetResults())-1].GetEncrypt(); string(last.GetCiphertextBlob()) != "c" {
		t.Errorf("an answer among errors: %v", last)
	}
}
