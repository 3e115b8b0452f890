package keypair_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"

	"github.com/keyhold/keyhold/hsm/pubkey"
	"github.com/keyhold/keyhold/server/kms/keypair"
)

// algorithms is one signature algorithm of each spec.
var algorithms = map[keypair.Spec]pubkey.Algorithm{
	keypair.RSA2048: pubkey.RSAPSSSHA256, keypair.RSA3072: pubkey.RSAPSSSHA256, keypair.RSA4096: pubkey.RSAPKCS1SHA256,
	keypair.P256: pubkey.ECDSASHA256, keypair.P384: pubkey.ECDSASHA384, keypair.P521: pubkey.ECDSASHA512,
	keypair.Secp256k1: pubkey.ECDSASHA256, keypair.Ed25519: pubkey.Ed25519SHA512,
}

// bitsOf is the size of a public key of each spec.
var bitsOf = map[keypair.Spec]int{
	keypair.RSA2048: 2048, keypair.RSA3072: 3072, keypair.RSA4096: 4096, keypair.P256: 256, keypair.P384: 384, keypair.P521: 521,
	keypair.Secp256k1: 256, keypair.Ed25519: 256,
}

// Every spec gives a pair whose halves belong together: what one signs the
// other verifies, in the encodings that others read.
func TestGenerate(t *testing.T) {
	t.Parallel()
	for _, spec := range keypair.Specs() {
		t.Run(spec.String(), func(t *testing.T) {
			t.Parallel()
			pair, err := keypair.Generate(spec)
			if err != nil {
				t.Fatal(err)
			}
			public, err := pubkey.Parse(pair.SPKI)
			if err != nil || public.Bits() != bitsOf[spec] {
				t.Fatalf("the public key is %v, %v", public, err)
			}
			alg := algorithms[spec]
			input := []byte("signed outside of the service")
			if h := alg.Hash(); h != 0 {
				hash := h.New()
				hash.Write(input)
				input = hash.Sum(nil)
			}
			signature := sign(t, pair, alg, input)
			if err := public.Verify(alg, input, signature); err != nil {
				t.Errorf("what the private key signs the public key does not verify: %v", err)
			}
			checkWithOpenSSL(t, pair)

			if len(pair.PKCS8) > keypair.MaxPKCS8Bytes || keypair.MaxPKCS8Bytes > 4096 {
				t.Errorf("the private key has %d bytes, at most %d are promised and 4096 are encrypted", len(pair.PKCS8), keypair.MaxPKCS8Bytes)
			}
			other, err := keypair.Generate(spec)
			if err != nil || bytes.Equal(other.SPKI, pair.SPKI) || bytes.Equal(other.PKCS8, pair.PKCS8) {
				t.Errorf("the second pair is the first (err %v)", err)
			}
			pair.Wipe()
			if !bytes.Equal(pair.PKCS8, make([]byte, len(pair.PKCS8))) {
				t.Error("a wiped private key is still there")
			}
		})
	}
	for _, spec := range []keypair.Spec{0, keypair.Ed25519 + 1, 255} {
		if _, err := keypair.Generate(spec); !errors.Is(err, keypair.ErrSpec) || spec.String() != "unknown" {
			t.Errorf("Generate(%d, %s) = %v", spec, spec, err)
		}
	}
}

// sign signs with a private key that is read by the standard library, or for
// secp256k1 by hand. It checks that our encoding is the standard one.
func sign(t *testing.T, pair keypair.Pair, alg pubkey.Algorithm, input []byte) []byte {
	t.Helper()
	if secp := parseSecp256k1(t, pair.PKCS8); secp != nil {
		return k1ecdsa.Sign(secp, input).Serialize()
	}
	key, err := x509.ParsePKCS8PrivateKey(pair.PKCS8)
	if err != nil {
		t.Fatal(err)
	}
	again, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil || !bytes.Equal(again, pair.PKCS8) {
		t.Errorf("the standard library writes another private key (err %v)", err)
	}
	signer := key.(crypto.Signer)
	if spki, err := x509.MarshalPKIXPublicKey(signer.Public()); err != nil || !bytes.Equal(spki, pair.SPKI) {
		t.Errorf("the private key's public half is another one (err %v)", err)
	}
	var opts crypto.SignerOpts = alg.Hash()
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if err := k.Validate(); err != nil || k.E != 65537 || len(k.Primes) != 2 {
			t.Errorf("RSA key with e = %d and %d primes: %v", k.E, len(k.Primes), err)
		}
		if alg.IsPSS() {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: alg.Hash()}
		}
	case *ecdsa.PrivateKey, ed25519.PrivateKey:
	default:
		t.Fatalf("the private key is a %T", key)
	}
	signature, err := signer.Sign(rand.Reader, input, opts)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// parseSecp256k1 reads PrivateKeyInfo with an RFC 5915 key of secp256k1, with
// the standard library's ASN.1; nil for other algorithms.
func parseSecp256k1(t *testing.T, der []byte) *secp256k1.PrivateKey {
	t.Helper()
	var info struct {
		Version   int
		Algorithm struct {
			OID   asn1.ObjectIdentifier
			Curve asn1.RawValue `asn1:"optional"`
		}
		Key []byte
	}
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) != 0 || info.Version != 0 {
		t.Fatalf("PrivateKeyInfo of version %d with %d bytes behind: %v", info.Version, len(rest), err)
	}
	var curve asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(info.Algorithm.Curve.FullBytes, &curve); err != nil || !curve.Equal(asn1.ObjectIdentifier{1, 3, 132, 0, 10}) {
		return nil
	}
	var key struct {
		Version int
		Scalar  []byte
		Public  asn1.BitString `asn1:"explicit,tag:1"`
	}
	if rest, err := asn1.Unmarshal(info.Key, &key); err != nil || len(rest) != 0 || key.Version != 1 || len(key.Scalar) != 32 {
		t.Fatalf("ECPrivateKey of version %d, %d bytes: %v", key.Version, len(key.Scalar), err)
	}
	private := secp256k1.PrivKeyFromBytes(key.Scalar)
	if !bytes.Equal(private.PubKey().SerializeUncompressed(), key.Public.Bytes) {
		t.Error("the public key beside the private one is another one")
	}
	return private
}

// checkWithOpenSSL has openssl, where it is installed, read the private key,
// write it again and show its public half. Where it is not, x509 above and the
// vector of TestSecp256k1AsOpenSSL say the same.
func checkWithOpenSSL(t *testing.T, pair keypair.Pair) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Log("openssl is not installed")
		return
	}
	openssl := func(stdin []byte, args ...string) []byte {
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Stdin = bytes.NewReader(stdin)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, &stderr)
		}
		return out
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pair.PKCS8})
	if got := openssl(text, "pkey", "-pubout", "-outform", "DER"); !bytes.Equal(got, pair.SPKI) {
		t.Errorf("openssl's public key is %x, ours %x", got, pair.SPKI)
	}
	if got := openssl(text, "pkcs8", "-topk8", "-nocrypt", "-outform", "DER"); !bytes.Equal(got, pair.PKCS8) {
		t.Errorf("openssl writes another private key: %d bytes, ours has %d (SHA-256 %x, %x)", len(got), len(pair.PKCS8), sha256.Sum256(got), sha256.Sum256(pair.PKCS8))
	}
	openssl(text, "pkey", "-check", "-noout")
}

// BenchmarkGenerate is what a pair costs that is not ready.
//
//	go test -run '^$' -bench Generate -benchtime 40x ./server/kms/keypair
func BenchmarkGenerate(b *testing.B) {
	for _, spec := range keypair.Specs() {
		b.Run(spec.String(), func(b *testing.B) {
			took := make([]time.Duration, 0, b.N)
			for b.Loop() {
				start := time.Now()
				if _, err := keypair.Generate(spec); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		})
	}
}
