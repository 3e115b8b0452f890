package servertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
)

// fixture is a daemon under load, which many rows of the matrix share.
type fixture struct {
	d     *Daemon
	load  *Load
	check *Checker
	c     *client.Client

	blob, wrapped []byte
	// recovered has the longest recovery of each row.
	recovered map[string]time.Duration
	order     []string
}

// hurry is the deadline of a call that is to meet a hang.
const hurry = 300 * time.Millisecond

// clients is how many there are under each fault.
const clients = 3

func newFixture(t *testing.T, change func(*server.Config)) *fixture {
	t.Helper()
	d := New(t, Options{Program: program, Change: change})
	d.Start(t)
	f := &fixture{d: d, c: d.Dial(t), recovered: make(map[string]time.Duration)}
	f.load = NewLoad(t, d.Dial(t))
	f.check = NewChecker(t, d, f.load)
	enc, err := f.c.Crypto.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: f.load.Base.AES.ID, Plaintext: []byte("of the fixture")})
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := f.c.Crypto.WrapKey(t.Context(), &keyholdv1.WrapKeyRequest{
		KeyId: f.load.Base.KEK.ID, PlaintextKey: make([]byte, 32), WrappingAlgorithm: keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.blob, f.wrapped = enc.GetCiphertextBlob(), wrap.GetWrappedKey()
	f.load.Run(t, clients)
	return f
}

// end stops all and logs what was measured.
func (f *fixture) end(t *testing.T) {
	t.Helper()
	f.load.Stop()
	f.check.CheckAll(t)
	t.Logf("%d objects in the token, or unfinished creations, are of no key", f.check.Leftovers)
	f.d.Stop(t)
	if strings.Contains(f.d.Log.String(), "panic") {
		t.Errorf("a panic:\n%s", tail(f.d.Log.String()))
	}
	var b strings.Builder
	for _, name := range f.order {
		fmt.Fprintf(&b, "%-28s %6s\n", name, f.recovered[name].Round(time.Millisecond))
	}
	if b.Len() > 0 {
		t.Logf("longest time from a fault's end until its operation is served:\n%s", &b)
	}
	t.Logf("calls of clients under load:\n%s", f.load.Report())
}

// operation is a kind of work of the token, and the PKCS#11 call that does it.
type operation struct {
	name, call string
	do         func(ctx context.Context, f *fixture) error
}

func operations() []operation {
	return []operation{
		{"encrypt", "C_Encrypt", func(ctx context.Context, f *fixture) error {
			_, err := f.c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: f.load.Base.Other.ID, Plaintext: []byte("x")})
			return err
		}},
		{"decrypt", "C_Decrypt", func(ctx context.Context, f *fixture) error {
			resp, err := f.c.Crypto.Decrypt(ctx, &keyholdv1.DecryptRequest{CiphertextBlob: f.blob})
			if err == nil && string(resp.GetPlaintext()) != "of the fixture" {
				err = status.Errorf(codes.DataLoss, "it decrypts to %q", resp.GetPlaintext())
			}
			return err
		}},
		{"sign", "C_Sign", func(ctx context.Context, f *fixture) error {
			_, err := f.c.Crypto.Sign(ctx, &keyholdv1.SignRequest{
				KeyId: f.load.Base.P256.ID, Message: []byte("x"), SigningAlgorithm: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256,
			})
			return err
		}},
		{"mac", "C_SignInit", func(ctx context.Context, f *fixture) error {
			_, err := f.c.Crypto.GenerateMac(ctx, &keyholdv1.GenerateMacRequest{
				KeyId: f.load.Base.HMAC.ID, Message: []byte("x"), MacAlgorithm: keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256,
			})
			return err
		}},
		{"generate key", "C_GenerateKey", func(ctx context.Context, f *fixture) error {
			_, err := f.load.CreateKey(ctx, &keyholdv1.CreateKeyRequest{})
			return err
		}},
		{"generate pair", "C_GenerateKeyPair", func(ctx context.Context, f *fixture) error {
			_, err := f.load.CreateKey(ctx, &keyholdv1.CreateKeyRequest{
				KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY,
			})
			return err
		}},
		{"derive", "C_DeriveKey", func(ctx context.Context, f *fixture) error {
			_, err := f.c.Crypto.DeriveSharedSecret(ctx, &keyholdv1.DeriveSharedSecretRequest{
				KeyId: f.load.Base.ECDH.ID, PublicKey: f.load.Base.ECDH.spki, KeyAgreementAlgorithm: keyholdv1.KeyAgreementAlgorithmSpec_KEY_AGREEMENT_ALGORITHM_SPEC_ECDH,
			})
			return err
		}},
		{"wrap", "C_WrapKey", func(ctx context.Context, f *fixture) error {
			_, err := f.c.Crypto.ExportKey(ctx, &keyholdv1.ExportKeyRequest{
				KeyId: f.load.Base.Exportable.ID, WrappingKeyId: f.load.Base.KEK.ID, WrappingAlgorithm: keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP,
			})
			return err
		}},
		{"unwrap", "C_UnwrapKey", func(ctx context.Context, f *fixture) error {
			_, err := f.c.Crypto.UnwrapKey(ctx, &keyholdv1.UnwrapKeyRequest{
				KeyId: f.load.Base.KEK.ID, WrappedKey: f.wrapped, WrappingAlgorithm: keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KWP,
			})
			return err
		}},
		{"random", "C_GenerateRandom", func(ctx context.Context, f *fixture) error {
			n := int32(32)
			_, err := f.c.Crypto.GenerateRandom(ctx, &keyholdv1.GenerateRandomRequest{NumberOfBytes: &n})
			return err
		}},
	}
}

// try carries an operation out within a deadline.
func (f *fixture) try(op operation, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	began := time.Now()
	err := op.do(ctx, f)
	if took := time.Since(began); took > within+deadlineSlack {
		return status.Errorf(codes.DataLoss, "%s took %s, its deadline was %s", op.name, took, within)
	}
	return err
}

// refused wants an operation to fail with one of the codes.
func (f *fixture) refused(t *testing.T, op operation, within time.Duration, want ...codes.Code) {
	t.Helper()
	err := f.try(op, within)
	if code := status.Code(err); !slices.Contains(want, code) {
		t.Errorf("%s under the fault: %v, want one of %s", op.name, err, want)
	}
}

// serves waits until operations work again and the daemon is ready, and notes how
// long that took.
func (f *fixture) serves(t *testing.T, row string, ops ...operation) {
	t.Helper()
	took := f.d.until(t, row+" is over", func() error {
		for _, op := range ops {
			if err := f.try(op, callDeadline); err != nil {
				return fmt.Errorf("%s: %w", op.name, err)
			}
		}
		return nil
	})
	f.d.WaitReady(t)
	if _, known := f.recovered[row]; !known {
		f.order = append(f.order, row)
	}
	f.recovered[row] = max(f.recovered[row], took)
}

// over checks everything after a row.
func (f *fixture) over(t *testing.T) {
	t.Helper()
	f.load.Pause()
	defer f.load.Resume()
	f.load.Allow()
	f.check.Check(t)
}
