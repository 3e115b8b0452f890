package client_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func newSigner(t *testing.T, alias string) *client.Signer {
	t.Helper()
	s, err := client.NewSigner(t.Context(), dialReal(t).Crypto, alias, client.CallOptions{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.KeyID(), "arn:aws:kms:") {
		t.Errorf("KeyID = %q, want an ARN", s.KeyID())
	}
	return s
}

func digestOf(h crypto.Hash, message []byte) []byte {
	if h == 0 {
		return message
	}
	w := h.New()
	w.Write(message)
	return w.Sum(nil)
}

// TestSigner: what the HSM signs, Go's library verifies with the public key.
func TestSigner(t *testing.T) {
	message := []byte("attack at dawn")
	for _, tt := range []struct {
		alias string
		opts  crypto.SignerOpts
	}{
		{"alias/p256", crypto.SHA256},
		{"alias/p384", crypto.SHA384},
		{"alias/p521", crypto.SHA512},
		{"alias/ed25519", crypto.Hash(0)},
		{"alias/ed25519", &ed25519.Options{}},
		{"alias/rsa", crypto.SHA256},
		{"alias/rsa", crypto.SHA384},
		{"alias/rsa", crypto.SHA512},
		{"alias/rsa", &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}},
		{"alias/rsa", &rsa.PSSOptions{Hash: crypto.SHA384, SaltLength: rsa.PSSSaltLengthAuto}},
		{"alias/rsa", &rsa.PSSOptions{Hash: crypto.SHA512, SaltLength: 64}},
	} {
		t.Run(fmt.Sprintf("%s %T %v", tt.alias, tt.opts, tt.opts.HashFunc()), func(t *testing.T) {
			s := newSigner(t, tt.alias)
			digest := digestOf(tt.opts.HashFunc(), message)
			sig, err := s.Sign(rand.Reader, digest, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(s.Public(), digest, sig, tt.opts); err != nil {
				t.Error(err)
			}
			sig[len(sig)-1] ^= 1
			if err := verify(s.Public(), digest, sig, tt.opts); err == nil {
				t.Error("a changed signature verifies: the test cannot fail")
			}
		})
	}
}

func verify(pub crypto.PublicKey, digest, sig []byte, opts crypto.SignerOpts) error {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, digest, sig) {
			return errors.New("ECDSA signature is bad")
		}
		return nil
	case ed25519.PublicKey:
		return ed25519.VerifyWithOptions(pub, digest, sig, &ed25519.Options{Hash: opts.HashFunc()})
	case *rsa.PublicKey:
		if _, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(pub, opts.HashFunc(), digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.VerifyPKCS1v15(pub, opts.HashFunc(), digest, sig)
	}
	return fmt.Errorf("a key of type %T", pub)
}

func TestSignerRefuses(t *testing.T) {
	long := bytes.Repeat([]byte{7}, 4097)
	for _, tt := range []struct {
		name, alias string
		digest      []byte
		opts        crypto.SignerOpts
	}{
		{"no options", "alias/p256", make([]byte, 32), nil},
		{"another curve's hash", "alias/p256", make([]byte, 48), crypto.SHA384},
		{"another curve's hash", "alias/p384", make([]byte, 32), crypto.SHA256},
		{"no hash", "alias/p256", make([]byte, 32), crypto.Hash(0)},
		{"SHA-1", "alias/rsa", make([]byte, 20), crypto.SHA1},
		{"MD5 with SHA-1, of TLS 1.1", "alias/rsa", make([]byte, 36), crypto.MD5SHA1},
		{"SHA-1 with PSS", "alias/rsa", make([]byte, 20), &rsa.PSSOptions{Hash: crypto.SHA1, SaltLength: rsa.PSSSaltLengthEqualsHash}},
		{"unknown hash with PSS", "alias/rsa", make([]byte, 20), &rsa.PSSOptions{Hash: 99, SaltLength: 20}},
		{"shorter salt", "alias/rsa", make([]byte, 32), &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 31}},
		{"longer salt", "alias/rsa", make([]byte, 32), &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 33}},
		{"digest too short", "alias/p256", make([]byte, 31), crypto.SHA256},
		{"digest too long", "alias/rsa", make([]byte, 33), crypto.SHA256},
		{"message too long", "alias/ed25519", long, crypto.Hash(0)},
		{"Ed25519 with a context", "alias/ed25519", long[:8], &ed25519.Options{Context: "x"}},
		{"Ed25519 with SHA-256", "alias/ed25519", make([]byte, 32), crypto.SHA256},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sig, err := newSigner(t, tt.alias).Sign(rand.Reader, tt.digest, tt.opts)
			if _, asked := client.ErrorFrom(err); err == nil || asked || sig != nil {
				t.Errorf("%x, %v, want a refusal before the service is asked", sig, err)
			}
		})
	}
	s := newSigner(t, "alias/ed25519")
	sig, err := s.Sign(rand.Reader, long[:4096], crypto.Hash(0))
	if err != nil {
		t.Fatalf("the longest message: %v", err)
	}
	if err := verify(s.Public(), long[:4096], sig, crypto.Hash(0)); err != nil {
		t.Error(err)
	}
}

func TestNewSignerRefuses(t *testing.T) {
	c := dialReal(t)
	for alias, want := range map[string]string{
		"alias/k256": "secp256k1", "alias/unwrap": "usage", "alias/app": "GetPublicKey", "alias/nothing": "NotFoundException",
	} {
		if _, err := client.NewSigner(t.Context(), c.Crypto, alias, client.CallOptions{}); !strings.Contains(fmt.Sprint(err), want) && !isException(err, want) {
			t.Errorf("%s: %v, want something with %q", alias, err, want)
		}
	}
}

// TestSignerPinsKey: a Signer stays with its key when the alias moves.
func TestSignerPinsKey(t *testing.T) {
	c := dialReal(t)
	var ids []string
	for range 2 {
		resp, err := c.Keys.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{
			KeySpec: keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256, KeyUsage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY,
		})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, resp.GetKeyMetadata().GetKeyId())
	}
	alias := "alias/moves-" + ids[0]
	if _, err := c.Keys.CreateAlias(t.Context(), &keyholdv1.CreateAliasRequest{AliasName: alias, TargetKeyId: ids[0]}); err != nil {
		t.Fatal(err)
	}
	s := newSigner(t, alias)
	if _, err := c.Keys.UpdateAlias(t.Context(), &keyholdv1.UpdateAliasRequest{AliasName: alias, TargetKeyId: ids[1]}); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("x"))
	sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(s.Public(), digest[:], sig, crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// tracing is a service that remembers the metadata of what is done with keys.
type tracing struct {
	keyholdv1.CryptographyServiceClient
	metadata []metadata.MD
}

func (s *tracing) trace(ctx context.Context) {
	md, _ := metadata.FromOutgoingContext(ctx)
	s.metadata = append(s.metadata, md)
}

func (s *tracing) Sign(ctx context.Context, in *keyholdv1.SignRequest, opts ...grpc.CallOption) (*keyholdv1.SignResponse, error) {
	s.trace(ctx)
	return s.CryptographyServiceClient.Sign(ctx, in, opts...)
}

func (s *tracing) Decrypt(ctx context.Context, in *keyholdv1.DecryptRequest, opts ...grpc.CallOption) (*keyholdv1.DecryptResponse, error) {
	s.trace(ctx)
	return s.CryptographyServiceClient.Decrypt(ctx, in, opts...)
}

// TestSignerRegion: the calls go to the region of the key that was fetched,
// whatever region the context of the options names.
func TestSignerRegion(t *testing.T) {
	for _, pairs := range [][]string{nil, {client.RegionHeader, "mars-1"}, {"trace", "1"}, {"trace", "1", client.RegionHeader, "mars-1", client.RegionHeader, "mars-2"}} {
		base := metadata.AppendToOutgoingContext(t.Context(), pairs...)
		opts := client.CallOptions{BaseContext: func() context.Context { return base }}
		svc := &tracing{CryptographyServiceClient: dialReal(t).Crypto}
		s, err := client.NewSigner(t.Context(), svc, "alias/p256", opts)
		if err != nil {
			t.Fatal(err)
		}
		d, err := client.NewDecrypter(t.Context(), svc, "alias/unwrap", opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
			t.Error(err)
		}
		opens(t, d, "attack at dawn")
		want := metadata.Pairs(client.RegionHeader, strings.Split(s.KeyID(), ":")[3])
		if len(pairs) > 0 && pairs[0] == "trace" {
			want.Set("trace", "1")
		}
		if diff := cmp.Diff([]metadata.MD{want, want}, svc.metadata); diff != "" {
			t.Errorf("%q: metadata (-want +got):\n%s", pairs, diff)
		}
		if got, _ := metadata.FromOutgoingContext(base); len(got.Get(client.RegionHeader)) != len(metadata.Pairs(pairs...).Get(client.RegionHeader)) {
			t.Errorf("%q: the context was changed: %v", pairs, got)
		}
	}
}

// blocking answers GetPublicKey as another service does, and nothing else.
type blocking struct {
	client.SigningService
}

func (blocking) Sign(ctx context.Context, _ *keyholdv1.SignRequest, _ ...grpc.CallOption) (*keyholdv1.SignResponse, error) {
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

func TestCallOptions(t *testing.T) {
	svc := blocking{dialReal(t).Crypto}
	ended, end := context.WithCancel(t.Context())
	end()
	digest := make([]byte, 32)
	for _, tt := range []struct {
		name string
		opts client.CallOptions
		want codes.Code
	}{
		{"timeout", client.CallOptions{Timeout: time.Millisecond}, codes.DeadlineExceeded},
		{"base context", client.CallOptions{BaseContext: func() context.Context { return ended }}, codes.Canceled},
	} {
		s, err := client.NewSigner(t.Context(), svc, "alias/p256", tt.opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sign(nil, digest, crypto.SHA256); status.Code(errors.Unwrap(err)) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// certify returns a certificate of the signer's key, signed by itself.
func certify(t *testing.T, s *client.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hsm.test"}, DNSNames: []string{"hsm.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if _, ok := s.Public().(*rsa.PublicKey); ok {
		template.SignatureAlgorithm = x509.SHA384WithRSAPSS
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.Public(), s)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestSignerX509: certificates and requests for them.
func TestSignerX509(t *testing.T) {
	for _, alias := range []string{"alias/p256", "alias/p384", "alias/p521", "alias/ed25519", "alias/rsa"} {
		t.Run(alias, func(t *testing.T) {
			s := newSigner(t, alias)
			cert := certify(t, s)
			pool := x509.NewCertPool()
			pool.AddCert(cert)
			if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: "hsm.test"}); err != nil {
				t.Error(err)
			}
			if err := cert.CheckSignatureFrom(cert); err != nil {
				t.Error(err)
			}
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "hsm.test"}}, s)
			if err != nil {
				t.Fatal(err)
			}
			csr, err := x509.ParseCertificateRequest(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := csr.CheckSignature(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSignerTLS: a TLS server whose private key is in the HSM.
func TestSignerTLS(t *testing.T) {
	for _, alias := range []string{"alias/p256", "alias/p384", "alias/ed25519", "alias/rsa"} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(alias+" "+tls.VersionName(version), func(t *testing.T) {
				s := newSigner(t, alias)
				leaf := certify(t, s)
				cert, err := s.Certificate(leaf.Raw)
				if err != nil {
					t.Fatal(err)
				}
				pool := x509.NewCertPool()
				pool.AddCert(leaf)
				state := handshake(t,
					&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
					&tls.Config{RootCAs: pool, ServerName: "hsm.test", MinVersion: tls.VersionTLS12, MaxVersion: version})
				if state.Version != version {
					t.Errorf("%s, want %s", tls.VersionName(state.Version), tls.VersionName(version))
				}
				if !state.PeerCertificates[0].Equal(leaf) {
					t.Error("the client saw another certificate")
				}
			})
		}
	}
}

// handshake lets a client and a server exchange a byte, and returns what the
// client saw.
func handshake(t *testing.T, server, dialer *tls.Config) tls.ConnectionState {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		_, err := s.Write([]byte("x"))
		done <- errors.Join(err, a.Close())
	}()
	c := tls.Client(b, dialer)
	defer b.Close()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("client: %v", err)
		b.Close()
	}
	if err := <-done; err != nil {
		t.Errorf("server: %v", err)
	}
	return c.ConnectionState()
}

func TestSignerCertificateRefuses(t *testing.T) {
	s, other := newSigner(t, "alias/p256"), newSigner(t, "alias/p384")
	for name, chain := range map[string][][]byte{"empty": nil, "not a certificate": {[]byte("x")}, "of another key": {certify(t, other).Raw}} {
		if _, err := s.Certificate(chain...); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}
