package client_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// wire is a service behind a wire: it sees what a server would decode. It
// encrypts by putting "sealed " in front. Each request waits until the test lets
// it go, by go1 or goAll, or until its context ends.
type wire struct {
	keyholdv1.CryptographyServiceClient // for what is not called here

	// itemError is an item's error, by its plaintext; singleError that of a call
	// on its own; batchError that of whole batches; edit changes an answer.
	itemError   func(plaintext string) *keyholdv1.BatchError
	singleError func(plaintext string) error
	batchError  error
	edit        func(*keyholdv1.BatchResponse)

	begun time.Time // for a test's own use

	gate chan struct{}
	mu   sync.Mutex
	// sent are the requests in the order of their arrival: the plaintexts in
	// them, those of a batch in brackets.
	sent      []string
	deadlines []time.Time
	metadata  []metadata.MD
	cancelled int
	answers   []*keyholdv1.BatchResponse
}

func newWire() *wire { return &wire{gate: make(chan struct{}, 1000)} }

// go1 lets one request go, the first that comes or has come.
func (w *wire) go1() { w.gate <- struct{}{} }

func (w *wire) goAll() { close(w.gate) }

func (w *wire) arrive(ctx context.Context, what string) error {
	w.mu.Lock()
	w.sent = append(w.sent, what)
	deadline, _ := ctx.Deadline()
	w.deadlines = append(w.deadlines, deadline)
	md, _ := metadata.FromOutgoingContext(ctx)
	w.metadata = append(w.metadata, md)
	w.mu.Unlock()
	select {
	case <-w.gate:
		return nil
	case <-ctx.Done():
		w.mu.Lock()
		w.cancelled++
		w.mu.Unlock()
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (w *wire) requests() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.sent...)
}

func (w *wire) Encrypt(ctx context.Context, in *keyholdv1.EncryptRequest, _ ...grpc.CallOption) (*keyholdv1.EncryptResponse, error) {
	if _, err := proto.Marshal(in); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := w.arrive(ctx, string(in.GetPlaintext())); err != nil {
		return nil, err
	}
	if w.singleError != nil {
		if err := w.singleError(string(in.GetPlaintext())); err != nil {
			return nil, err
		}
	}
	return sealed(in), nil
}

func sealed(in *keyholdv1.EncryptRequest) *keyholdv1.EncryptResponse {
	return &keyholdv1.EncryptResponse{KeyId: in.GetKeyId(), CiphertextBlob: append([]byte("sealed "), in.GetPlaintext()...)}
}

func (w *wire) Decrypt(ctx context.Context, in *keyholdv1.DecryptRequest, _ ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	if err := w.arrive(ctx, "decrypt"); err != nil {
		return nil, err
	}
	return &keyholdv1.DecryptResponse{Plaintext: in.GetCiphertextBlob()}, nil
}

func (w *wire) Batch(ctx context.Context, in *keyholdv1.BatchRequest, opts ...grpc.CallOption) (*keyholdv1.BatchResponse, error) {
	b, err := proto.Marshal(in)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	req := new(keyholdv1.BatchRequest)
	if err := proto.Unmarshal(b, req); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	var texts []string
	resp := &keyholdv1.BatchResponse{}
	for _, it := range req.GetItems() {
		r := &keyholdv1.BatchResult{}
		if d := it.GetDecrypt(); d != nil {
			texts = append(texts, "decrypt")
			r.Result = &keyholdv1.BatchResult_Decrypt{Decrypt: &keyholdv1.DecryptResponse{Plaintext: d.GetCiphertextBlob()}}
		} else {
			text := string(it.GetEncrypt().GetPlaintext())
			texts = append(texts, text)
			r.Result = &keyholdv1.BatchResult_Encrypt{Encrypt: sealed(it.GetEncrypt())}
			if w.itemError != nil {
				if e := w.itemError(text); e != nil {
					r.Result = &keyholdv1.BatchResult_Error{Error: e}
				}
			}
		}
		resp.Results = append(resp.Results, r)
	}
	if err := w.arrive(ctx, fmt.Sprint(texts)); err != nil {
		return nil, err
	}
	if w.batchError != nil {
		return nil, w.batchError
	}
	for _, o := range opts {
		if h, ok := o.(grpc.HeaderCallOption); ok {
			*h.HeaderAddr = metadata.Pairs("keyhold-request-id", "r-batch")
		}
	}
	if w.edit != nil {
		w.edit(resp)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, resp)
	return resp, nil
}
