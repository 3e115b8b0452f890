package client_test

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// dialCoalescer connects to the daemon with a Coalescer, and counts batches.
func dialCoalescer(t *testing.T) (*client.Client, *client.Coalescer, *atomic.Int64) {
	t.Helper()
	batches := new(atomic.Int64)
	cfg := client.ConfigFromEnv()
	cfg.Hooks.After = func(_ context.Context, a client.Attempt) {
		if strings.HasSuffix(a.Method, "/Batch") {
			batches.Add(1)
		}
	}
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	co, err := client.NewCoalescer(c, client.CoalescerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(co.Close)
	return c, co, batches
}

// operation is one call, by either.
type operation struct {
	name string
	call func(context.Context, keyholdv1.CryptographyServiceClient) (proto.Message, error)
}

func does[Req, Resp proto.Message](name string, req Req, method func(keyholdv1.CryptographyServiceClient, context.Context, Req) (Resp, error)) operation {
	return operation{name, func(ctx context.Context, svc keyholdv1.CryptographyServiceClient) (proto.Message, error) {
		resp, err := method(svc, ctx, req)
		if err != nil {
			return nil, err
		}
		return resp, nil
	}}
}

type service = keyholdv1.CryptographyServiceClient

func encrypts(name string, req *keyholdv1.EncryptRequest) operation {
	return does(name, req, func(s service, ctx context.Context, r *keyholdv1.EncryptRequest) (*keyholdv1.EncryptResponse, error) {
		return s.Encrypt(ctx, r)
	})
}

func decrypts(name string, req *keyholdv1.DecryptRequest) operation {
	return does(name, req, func(s service, ctx context.Context, r *keyholdv1.DecryptRequest) (*keyholdv1.DecryptResponse, error) {
		return s.Decrypt(ctx, r)
	})
}

// operations are calls whose answers are the same each time, but for the
// fields that the test leaves out.
func operations(t *testing.T, c *client.Client) []operation {
	t.Helper()
	ec := map[string]string{"tenant": "42"}
	enc, err := c.Crypto.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: "alias/app", Plaintext: []byte("attack at dawn"), EncryptionContext: ec})
	if err != nil {
		t.Fatal(err)
	}
	alg := keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_SHA_512
	sig, err := c.Crypto.Sign(t.Context(), &keyholdv1.SignRequest{KeyId: "alias/ed25519", Message: []byte("m"), SigningAlgorithm: alg})
	if err != nil {
		t.Fatal(err)
	}
	const hmac = keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256
	mac, err := c.Crypto.GenerateMac(t.Context(), &keyholdv1.GenerateMacRequest{KeyId: "alias/cookies", Message: []byte("m"), MacAlgorithm: hmac})
	if err != nil {
		t.Fatal(err)
	}
	blob := enc.GetCiphertextBlob()
	return []operation{
		encrypts("encrypt", &keyholdv1.EncryptRequest{KeyId: "alias/app", Plaintext: []byte("x"), EncryptionContext: ec}),
		decrypts("decrypt", &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec}),
		does("re-encrypt", &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: ec, DestinationKeyId: "alias/other"},
			func(s service, ctx context.Context, r *keyholdv1.ReEncryptRequest) (*keyholdv1.ReEncryptResponse, error) {
				return s.ReEncrypt(ctx, r)
			}),
		does("data key", &keyholdv1.GenerateDataKeyRequest{KeyId: "alias/app", NumberOfBytes: proto.Int32(24)},
			func(s service, ctx context.Context, r *keyholdv1.GenerateDataKeyRequest) (*keyholdv1.GenerateDataKeyResponse, error) {
				return s.GenerateDataKey(ctx, r)
			}),
		does("sign", &keyholdv1.SignRequest{KeyId: "alias/ed25519", Message: []byte("m"), SigningAlgorithm: alg},
			func(s service, ctx context.Context, r *keyholdv1.SignRequest) (*keyholdv1.SignResponse, error) {
				return s.Sign(ctx, r)
			}),
		does("verify", &keyholdv1.VerifyRequest{KeyId: "alias/ed25519", Message: []byte("m"), Signature: sig.GetSignature(), SigningAlgorithm: alg},
			func(s service, ctx context.Context, r *keyholdv1.VerifyRequest) (*keyholdv1.VerifyResponse, error) {
				return s.Verify(ctx, r)
			}),
		does("mac", &keyholdv1.GenerateMacRequest{KeyId: "alias/cookies", Message: []byte("m"), MacAlgorithm: hmac},
			func(s service, ctx context.Context, r *keyholdv1.GenerateMacRequest) (*keyholdv1.GenerateMacResponse, error) {
				return s.GenerateMac(ctx, r)
			}),
		does("verify mac", &keyholdv1.VerifyMacRequest{KeyId: "alias/cookies", Message: []byte("m"), MacAlgorithm: hmac, Mac: mac.GetMac()},
			func(s service, ctx context.Context, r *keyholdv1.VerifyMacRequest) (*keyholdv1.VerifyMacResponse, error) {
				return s.VerifyMac(ctx, r)
			}),
		does("bad signature", &keyholdv1.VerifyRequest{KeyId: "alias/ed25519", Message: []byte("n"), Signature: sig.GetSignature(), SigningAlgorithm: alg},
			func(s service, ctx context.Context, r *keyholdv1.VerifyRequest) (*keyholdv1.VerifyResponse, error) {
				return s.Verify(ctx, r)
			}),
		encrypts("no key", &keyholdv1.EncryptRequest{KeyId: "alias/nothing", Plaintext: []byte("x")}),
		encrypts("invalid", &keyholdv1.EncryptRequest{Plaintext: make([]byte, 4097)}),
		encrypts("empty", &keyholdv1.EncryptRequest{}),
		encrypts("dry run", &keyholdv1.EncryptRequest{KeyId: "alias/app", Plaintext: []byte("x"), DryRun: proto.Bool(true)}),
		encrypts("wrong usage", &keyholdv1.EncryptRequest{KeyId: "alias/cookies", Plaintext: []byte("x")}),
		decrypts("damaged", &keyholdv1.DecryptRequest{CiphertextBlob: append(bytes.Clone(blob), 0), EncryptionContext: ec}),
		decrypts("wrong context", &keyholdv1.DecryptRequest{CiphertextBlob: blob}),
		decrypts("another key", &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: ec, KeyId: proto.String("alias/other")}),
	}
}

// fresh are the fields that differ each time.
func fresh() cmp.Option {
	return cmp.Options{
		protocmp.Transform(),
		protocmp.IgnoreFields(&keyholdv1.EncryptResponse{}, "ciphertext_blob"),
		protocmp.IgnoreFields(&keyholdv1.ReEncryptResponse{}, "ciphertext_blob"),
		protocmp.IgnoreFields(&keyholdv1.GenerateDataKeyResponse{}, "ciphertext_blob", "plaintext"),
		cmpopts.IgnoreUnexported(client.Error{}),
		cmpopts.IgnoreFields(client.Error{}, "RequestID"),
	}
}

// TestCoalescerReal: whatever is asked, at any load, the answers and errors
// are those of single calls.
func TestCoalescerReal(t *testing.T) {
	c, co, batches := dialCoalescer(t)
	ops := operations(t, c)
	type outcome struct {
		Response proto.Message
		Error    *client.Error
	}
	outcomeOf := func(op operation, svc service) outcome {
		resp, err := op.call(t.Context(), svc)
		e, _ := client.ErrorFrom(err)
		if err != nil && (e == nil || e.RequestID == "") {
			t.Errorf("%s: %v has no request id", op.name, err)
		}
		return outcome{resp, e}
	}
	want := make([]outcome, len(ops))
	for i, op := range ops {
		want[i] = outcomeOf(op, c.Crypto)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range ops {
				op := (i + j) % len(ops)
				if diff := cmp.Diff(want[op], outcomeOf(ops[op], co), fresh()); diff != "" {
					t.Errorf("%s (-alone +together):\n%s", ops[op].name, diff)
				}
			}
		})
	}
	wg.Wait()
	if batches.Load() == 0 {
		t.Error("there was no batch")
	}
	t.Logf("%d calls, %d batches", 40*len(ops), batches.Load())
}

// TestCoalescerServes: the other parts of this package use a Coalescer like a
// connection.
func TestCoalescerServes(t *testing.T) {
	_, co, batches := dialCoalescer(t)
	e := newEnvelope(t, co, client.EnvelopeConfig{})
	s, err := client.NewSigner(t.Context(), co, "alias/p256", client.CallOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := client.NewDecrypter(t.Context(), co, "alias/unwrap", client.CallOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			text := fmt.Sprint("message ", i)
			message, err := e.Encrypt(t.Context(), []byte(text), nil)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := e.Decrypt(t.Context(), message, nil); err != nil || string(got) != text {
				t.Errorf("%q, %v", got, err)
			}
			digest := digestOf(crypto.SHA256, []byte(text))
			sig, err := s.Sign(nil, digest, crypto.SHA256)
			if err != nil {
				t.Error(err)
				return
			}
			if err := verify(s.Public(), digest, sig, crypto.SHA256); err != nil {
				t.Error(err)
			}
			opens(t, d, text)
		})
	}
	wg.Wait()
	if batches.Load() == 0 {
		t.Error("there was no batch")
	}
}

// TestCoalescerRegion: a batch goes to the region that its calls name.
func TestCoalescerRegion(t *testing.T) {
	_, co, batches := dialCoalescer(t)
	nowhere := metadata.AppendToOutgoingContext(t.Context(), client.RegionHeader, "mars-1")
	var wg sync.WaitGroup
	for range 20 {
		for _, ctx := range []context.Context{t.Context(), nowhere} {
			wg.Go(func() {
				_, err := co.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: "alias/app", Plaintext: []byte("x")})
				if ctx == nowhere && !isException(err, "AccessDeniedException") || ctx != nowhere && err != nil {
					t.Errorf("in %v: %v", ctx == nowhere, err)
				}
			})
		}
	}
	wg.Wait()
	if batches.Load() == 0 {
		t.Error("there was no batch")
	}
}

// TestCoalescerLeaving: contexts that end at any moment spoil nothing for the
// others.
func TestCoalescerLeaving(t *testing.T) {
	_, co, _ := dialCoalescer(t)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 50 {
				ctx, cancel := t.Context(), context.CancelFunc(func() {})
				leaves := (i+j)%3 == 0
				if leaves {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(i*j)*10*time.Microsecond)
				}
				text := []byte(fmt.Sprint(i, " ", j))
				resp, err := co.GenerateMac(ctx, &keyholdv1.GenerateMacRequest{
					KeyId: "alias/cookies", Message: text, MacAlgorithm: keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256,
				})
				clear(text)
				cancel()
				if err != nil && !leaves || err == nil && len(resp.GetMac()) != 32 {
					t.Errorf("%v, %v", resp, err)
				}
			}
		})
	}
	wg.Wait()
}
