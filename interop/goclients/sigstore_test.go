package goclients_test

import (
	"bytes"
	"crypto"
	"slices"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms"
	sigstoreaws "github.com/sigstore/sigstore/pkg/signature/kms/aws"
	"github.com/sigstore/sigstore/pkg/signature/options"
)

// TestSigstore: what `cosign generate-key-pair --kms`, `sign` and `verify` do.
func TestSigstore(t *testing.T) {
	ctx := t.Context()
	sv, err := kms.Get(ctx, "awskms:///alias/cosign", crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sv.CreateKey(ctx, sv.DefaultAlgorithm()); err != nil {
		t.Fatal(err)
	}
	message := []byte("sha256:0123456789abcdef")
	sig, err := sv.SignMessage(bytes.NewReader(message), options.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}

	for name, opts := range map[string][]signature.VerifyOption{"here": nil, "there": {options.WithRemoteVerification(true)}} {
		if err := sv.VerifySignature(bytes.NewReader(sig), bytes.NewReader(message), opts...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := sv.VerifySignature(bytes.NewReader(sig), bytes.NewReader([]byte("other")), opts...); err == nil {
			t.Errorf("%s: the signature is that of another message too", name)
		}
	}
	public, err := sv.PublicKey(options.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := signature.LoadVerifier(public, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.VerifySignature(bytes.NewReader(sig), bytes.NewReader(message)); err != nil {
		t.Error(err)
	}
}

// TestSigstoreAlgorithms: every algorithm that the library offers for AWS.
func TestSigstoreAlgorithms(t *testing.T) {
	algorithms := (&sigstoreaws.SignerVerifier{}).SupportedAlgorithms()
	if !slices.Contains(algorithms, "RSA_4096") {
		t.Fatalf("%v", algorithms)
	}
	for _, algorithm := range algorithms {
		if algorithm == "RSA_3072" || algorithm == "RSA_4096" {
			continue // slow to make; the API is the same
		}
		t.Run(algorithm, func(t *testing.T) {
			sv, err := sigstoreaws.LoadSignerVerifier(t.Context(), "awskms:///alias/sigstore/"+algorithm)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := sv.CreateKey(t.Context(), algorithm); err != nil {
				t.Fatal(err)
			}
			sig, err := sv.SignMessage(bytes.NewReader([]byte("message")))
			if err != nil {
				t.Fatal(err)
			}
			if err := sv.VerifySignature(bytes.NewReader(sig), bytes.NewReader([]byte("message"))); err != nil {
				t.Error(err)
			}
		})
	}
}
