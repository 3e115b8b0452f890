package pubkey_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

func digest(alg pubkey.Algorithm, message []byte) []byte {
	if alg.Hash() == 0 {
		return message
	}
	h := alg.Hash().New()
	h.Write(message)
	return h.Sum(nil)
}

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// marshal is the standard library's encoding, as a second opinion.
func marshal(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func rsaModulus(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return n.Add(n, big.NewInt(12345))
}

func TestParseAgreesWithStandardLibrary(t *testing.T) {
	for name, tc := range map[string]struct {
		key  func() crypto.PublicKey
		kind pubkey.Kind
		bits int
	}{
		"RSA-2048": {func() crypto.PublicKey { return &rsa.PublicKey{N: rsaModulus(2048), E: 65537} }, pubkey.RSA, 2048},
		"RSA-3072": {func() crypto.PublicKey { return &rsa.PublicKey{N: rsaModulus(3072), E: 65537} }, pubkey.RSA, 3072},
		"RSA-4096": {func() crypto.PublicKey { return &rsa.PublicKey{N: rsaModulus(4096), E: 3} }, pubkey.RSA, 4096},
		"P-256":    {func() crypto.PublicKey { return newECDSA(t, elliptic.P256()) }, pubkey.P256, 256},
		"P-384":    {func() crypto.PublicKey { return newECDSA(t, elliptic.P384()) }, pubkey.P384, 384},
		"P-521":    {func() crypto.PublicKey { return newECDSA(t, elliptic.P521()) }, pubkey.P521, 521},
		"Ed25519": {func() crypto.PublicKey {
			public, _, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return public
		}, pubkey.Ed25519, 256},
	} {
		t.Run(name, func(t *testing.T) {
			public := tc.key()
			der := marshal(t, public)
			key, err := pubkey.Parse(der)
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			if key.Kind() != tc.kind || key.Bits() != tc.bits {
				t.Errorf("got %v of %d bits", key.Kind(), key.Bits())
			}
			if !bytes.Equal(key.SPKI(), der) {
				t.Errorf("SPKI = %x, want %x", key.SPKI(), der)
			}
			if equal, ok := public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !equal.Equal(key.Crypto()) {
				t.Errorf("Crypto() = %v, want %v", key.Crypto(), public)
			}
		})
	}
}

func newECDSA(t testing.TB, curve elliptic.Curve) *ecdsa.PublicKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &key.PublicKey
}

func TestSecp256k1(t *testing.T) {
	private, err := secp256k1.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := pubkey.FromPoint(pubkey.Secp256k1, private.PubKey().SerializeUncompressed())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := pubkey.Parse(key.SPKI())
	if err != nil || !parsed.Equal(key) {
		t.Fatalf("Parse of its own encoding = %v, %v", parsed, err)
	}
	// RFC 5480 with the curve of SEC 2, as OpenSSL writes it.
	const prefix = "3056301006072a8648ce3d020106052b8104000a03420004"
	if got := hex.EncodeToString(key.SPKI()); got[:len(prefix)] != prefix {
		t.Errorf("SPKI begins %s, want %s", got[:len(prefix)], prefix)
	}
	sum := sha256.Sum256([]byte("message"))
	signature := k1ecdsa.Sign(private, sum[:])
	if err := key.Verify(pubkey.ECDSASHA256, sum[:], signature.Serialize()); err != nil {
		t.Errorf("Verify: %v", err)
	}
	order := secp256k1.Params().N
	// The same signature with n - s: high, and still valid.
	raw, err := pubkey.ECDSAFromDER(signature.Serialize(), 32)
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).Sub(order, new(big.Int).SetBytes(raw[32:]))
	s.FillBytes(raw[32:])
	high, err := pubkey.ECDSAToDER(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Verify(pubkey.ECDSASHA256, sum[:], high); err != nil {
		t.Errorf("Verify of the signature with high S: %v", err)
	}
	// r = 0, s = 0 and r = n are not signatures.
	for name, bad := range map[string][]byte{
		"zero r":  append(make([]byte, 32), raw[32:]...),
		"zero s":  append(append([]byte(nil), raw[:32]...), make([]byte, 32)...),
		"order r": append(order.FillBytes(make([]byte, 32)), raw[32:]...),
	} {
		der, err := pubkey.ECDSAToDER(bad)
		if err != nil {
			t.Fatal(err)
		}
		if err := key.Verify(pubkey.ECDSASHA256, sum[:], der); !errors.Is(err, pubkey.ErrSignature) {
			t.Errorf("%s: Verify = %v, want ErrSignature", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	p256 := marshal(t, newECDSA(t, elliptic.P256()))
	p224 := marshal(t, newECDSA(t, elliptic.P224()))
	offCurve := bytes.Clone(p256)
	offCurve[len(offCurve)-1] ^= 1
	longLength := append([]byte{0x30, 0x81, p256[1]}, p256[2:]...)
	rsaKey := marshal(t, &rsa.PublicKey{N: rsaModulus(2048), E: 65537})
	noNull := bytes.Replace(rsaKey, mustHex(t, "300d06092a864886f70d0101010500"), mustHex(t, "300b06092a864886f70d010101"), 1)
	noNull[3] -= 2 // the length of the outer sequence, 0x0122
	for name, der := range map[string][]byte{
		"nothing":                   nil,
		"trailing byte":             append(bytes.Clone(p256), 0),
		"truncated":                 p256[:len(p256)-1],
		"point off the curve":       offCurve,
		"length not minimal":        longLength,
		"curve that we do not have": p224,
		"RSA without NULL":          noNull,
		"RSA of 1024 bits":          marshal(t, &rsa.PublicKey{N: rsaModulus(1024), E: 65537}),
		"RSA of 2047 bits":          marshal(t, &rsa.PublicKey{N: rsaModulus(2047), E: 65537}),
		"RSA of 2049 bits":          marshal(t, &rsa.PublicKey{N: rsaModulus(2049), E: 65537}),
		"RSA of 8192 bits":          marshal(t, &rsa.PublicKey{N: rsaModulus(8192), E: 65537}),
		"RSA with even modulus":     marshal(t, &rsa.PublicKey{N: new(big.Int).Sub(rsaModulus(2048), big.NewInt(1)), E: 65537}),
		"RSA with even exponent":    marshal(t, &rsa.PublicKey{N: rsaModulus(2048), E: 65536}),
		"RSA with exponent 1":       marshal(t, &rsa.PublicKey{N: rsaModulus(2048), E: 1}),
		"RSA with huge exponent":    marshal(t, &rsa.PublicKey{N: rsaModulus(2048), E: 1<<31 + 1}),
		// RFC 8032: y = 2 is not on the curve; p + 1 is a second way to write
		// y = 1; x = 0 with the sign bit set does not exist.
		"Ed25519 off the curve":   mustHex(t, "302a300506032b65700321000200000000000000000000000000000000000000000000000000000000000000"),
		"Ed25519 not canonical":   mustHex(t, "302a300506032b6570032100eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
		"Ed25519 with negative 0": mustHex(t, "302a300506032b65700321000100000000000000000000000000000000000000000000000000000000000080"),
		"Ed25519 with parameters": mustHex(t, "302c300706032b657005000321007d4d0e7f6153a69b6242b522abbee685fda4420f8834b108c3bdae369ef549fa"),
		"X25519":                  mustHex(t, "302a300506032b656e0321007d4d0e7f6153a69b6242b522abbee685fda4420f8834b108c3bdae369ef549fa"),
		"over the limit":          make([]byte, pubkey.MaxSPKIBytes+1),
	} {
		if key, err := pubkey.Parse(der); !errors.Is(err, pubkey.ErrMalformed) {
			t.Errorf("%s: Parse = %v, %v, want ErrMalformed", name, key, err)
		}
	}
}

func TestVerifyRefusesWrongUse(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pubkey.Parse(marshal(t, &private.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(nil)
	signature, err := ecdsa.SignASN1(rand.Reader, private, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Verify(pubkey.ECDSASHA256, sum[:], signature); err != nil {
		t.Fatalf("Verify: %v", err)
	}
	for _, alg := range append(pubkey.Algorithms(), 0, 200) {
		if alg == pubkey.ECDSASHA256 {
			continue
		}
		if err := key.Verify(alg, sum[:], signature); !errors.Is(err, pubkey.ErrAlgorithm) {
			t.Errorf("%v: Verify = %v, want ErrAlgorithm", alg, err)
		}
	}
	for _, n := range []int{0, 31, 33} {
		if err := key.Verify(pubkey.ECDSASHA256, make([]byte, n), signature); !errors.Is(err, pubkey.ErrLength) {
			t.Errorf("digest of %d bytes: Verify = %v, want ErrLength", n, err)
		}
	}
	sum[0] ^= 1
	if err := key.Verify(pubkey.ECDSASHA256, sum[:], signature); !errors.Is(err, pubkey.ErrSignature) {
		t.Errorf("another digest: Verify = %v, want ErrSignature", err)
	}
}

func TestEd25519ph(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pubkey.FromEd25519(public)
	if err != nil {
		t.Fatal(err)
	}
	sum := digest(pubkey.Ed25519phSHA512, []byte("message"))
	prehashed, err := private.Sign(nil, sum, crypto.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Verify(pubkey.Ed25519phSHA512, sum, prehashed); err != nil {
		t.Errorf("Ed25519ph: %v", err)
	}
	// The trap of some tokens: a plain signature over the digest.
	if err := key.Verify(pubkey.Ed25519phSHA512, sum, ed25519.Sign(private, sum)); !errors.Is(err, pubkey.ErrSignature) {
		t.Errorf("plain signature as Ed25519ph: Verify = %v, want ErrSignature", err)
	}
}

// The limits of the AWS KMS documentation, at n and n+1.
func TestOAEPLimits(t *testing.T) {
	for _, tc := range []struct {
		bits, sha1, sha256 int
	}{{2048, 214, 190}, {3072, 342, 318}, {4096, 470, 446}} {
		private, err := rsa.GenerateKey(rand.Reader, tc.bits)
		if err != nil {
			t.Fatal(err)
		}
		key, err := pubkey.FromRSA(private.N.Bytes(), []byte{1, 0, 1})
		if err != nil {
			t.Fatal(err)
		}
		for hash, limit := range map[crypto.Hash]int{crypto.SHA1: tc.sha1, crypto.SHA256: tc.sha256} {
			if got := key.MaxOAEP(hash); got != limit {
				t.Errorf("RSA-%d %v: MaxOAEP = %d, want %d", tc.bits, hash, got, limit)
			}
			plaintext := bytes.Repeat([]byte{7}, limit)
			ciphertext, err := key.EncryptOAEP(hash, plaintext)
			if err != nil {
				t.Fatalf("RSA-%d %v, %d bytes: %v", tc.bits, hash, limit, err)
			}
			got, err := private.Decrypt(nil, ciphertext, &rsa.OAEPOptions{Hash: hash})
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("RSA-%d %v: decrypts to %x, %v", tc.bits, hash, got, err)
			}
			for _, n := range []int{0, limit + 1} {
				if _, err := key.EncryptOAEP(hash, make([]byte, n)); !errors.Is(err, pubkey.ErrLength) {
					t.Errorf("RSA-%d %v, %d bytes: %v, want ErrLength", tc.bits, hash, n, err)
				}
			}
		}
		if _, err := key.EncryptOAEP(crypto.MD5, []byte{1}); !errors.Is(err, pubkey.ErrAlgorithm) {
			t.Errorf("MD5: %v, want ErrAlgorithm", err)
		}
	}
}

func TestAlgorithmNames(t *testing.T) {
	seen := map[string]bool{}
	for _, alg := range pubkey.Algorithms() {
		if name := alg.String(); name == "" || seen[name] {
			t.Errorf("the name %q is empty or taken", name)
		}
		seen[alg.String()] = true
		fits := 0
		for kind := pubkey.RSA; kind <= pubkey.Ed25519; kind++ {
			if alg.Fits(kind) {
				fits++
			}
		}
		if fits == 0 {
			t.Errorf("%v fits no kind of key", alg)
		}
	}
}

func TestECDSAEncodings(t *testing.T) {
	for _, tc := range []struct{ raw, der string }{
		{"0000000100000002", "3006020101020102"},
		{"8000000000000000", "300a02050080000000020100"},
		{"00ff00ff7fffffff", "300c020400ff00ff02047fffffff"},
	} {
		der, err := pubkey.ECDSAToDER(mustHex(t, tc.raw))
		if err != nil || hex.EncodeToString(der) != tc.der {
			t.Errorf("ECDSAToDER(%s) = %x, %v, want %s", tc.raw, der, err, tc.der)
		}
		raw, err := pubkey.ECDSAFromDER(mustHex(t, tc.der), len(tc.raw)/4)
		if err != nil || hex.EncodeToString(raw) != tc.raw {
			t.Errorf("ECDSAFromDER(%s) = %x, %v, want %s", tc.der, raw, err, tc.raw)
		}
	}
	for _, n := range []int{0, 1, 63, 133, 134} {
		if _, err := pubkey.ECDSAToDER(make([]byte, n)); !errors.Is(err, pubkey.ErrLength) {
			t.Errorf("ECDSAToDER of %d bytes: %v, want ErrLength", n, err)
		}
	}
	for name, der := range map[string]string{
		"negative":       "30060201ff020101",
		"padded":         "30070202000102010" + "1",
		"too big":        "300702020100020101",
		"trailing":       "300602010102010100",
		"inner trailing": "300702010102010100",
		"one integer":    "3003020101",
		"empty":          "",
	} {
		if raw, err := pubkey.ECDSAFromDER(mustHex(t, der), 1); !errors.Is(err, pubkey.ErrSignature) {
			t.Errorf("%s: ECDSAFromDER = %x, %v, want ErrSignature", name, raw, err)
		}
	}
}
