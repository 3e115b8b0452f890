package kms_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/keypair"
)

const (
	pairRSA2048   = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_RSA_2048
	pairRSA3072   = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_RSA_3072
	pairRSA4096   = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_RSA_4096
	pairP256      = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P256
	pairP384      = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P384
	pairP521      = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_P521
	pairSecp256k1 = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_SECG_P256K1
	pairSM2       = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_SM2
	pairEd25519   = keyholdv1.DataKeyPairSpec_DATA_KEY_PAIR_SPEC_ECC_NIST_EDWARDS25519
)

// pairKinds is what can be asked for, with the size of the public key in bits
// and an algorithm that such a pair signs by.
var pairKinds = []struct {
	spec keyholdv1.DataKeyPairSpec
	bits int
	alg  keyholdv1.SigningAlgorithmSpec
}{
	{pairRSA2048, 2048, pss256},
	{pairRSA3072, 3072, pkcs384},
	{pairRSA4096, 4096, pss512},
	{pairP256, 256, ecdsa256},
	{pairP384, 384, ecdsa384},
	{pairP521, 521, ecdsa512},
	{pairSecp256k1, 256, ecdsa256},
	{pairEd25519, 256, ed25519raw},
}

// Every kind of pair: the halves belong together, and Decrypt gives back the
// private key, with the same context only.
func TestDataKeyPairs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.newAESKey()
	metadata := w.metadata(key)
	ec, other := map[string]string{"tenant": "42"}, map[string]string{"tenant": "43"}
	for _, k := range pairKinds {
		t.Run(k.spec.String(), func(t *testing.T) {
			t.Parallel()
			w := w.with(t)
			got := do[*keyholdv1.GenerateDataKeyPairResponse](w, &keyholdv1.GenerateDataKeyPairRequest{KeyId: key, KeyPairSpec: k.spec, EncryptionContext: ec})
			want := &keyholdv1.GenerateDataKeyPairResponse{
				PrivateKeyCiphertextBlob: got.GetPrivateKeyCiphertextBlob(), PrivateKeyPlaintext: got.GetPrivateKeyPlaintext(), PublicKey: got.GetPublicKey(),
				KeyId: metadata.GetArn(), KeyPairSpec: k.spec, KeyMaterialId: metadata.GetCurrentKeyMaterialId(),
			}
			if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
				t.Errorf("GenerateDataKeyPair (-want +got):\n%s", d)
			}
			checkPair(t, got.GetPrivateKeyPlaintext(), got.GetPublicKey(), k.bits, k.alg)
			if !bytes.Equal(w.decrypt(got.GetPrivateKeyCiphertextBlob(), ec), got.GetPrivateKeyPlaintext()) {
				t.Error("the encrypted private key is another one")
			}

			without := do[*keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse](w, &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: key, KeyPairSpec: k.spec, EncryptionContext: ec})
			wantWithout := &keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse{
				PrivateKeyCiphertextBlob: without.GetPrivateKeyCiphertextBlob(), PublicKey: without.GetPublicKey(),
				KeyId: metadata.GetArn(), KeyPairSpec: k.spec, KeyMaterialId: metadata.GetCurrentKeyMaterialId(),
			}
			if d := cmp.Diff(wantWithout, without, protocmp.Transform()); d != "" {
				t.Errorf("GenerateDataKeyPairWithoutPlaintext (-want +got):\n%s", d)
			}
			checkPair(t, w.decrypt(without.GetPrivateKeyCiphertextBlob(), ec), without.GetPublicKey(), k.bits, k.alg)
			if bytes.Equal(without.GetPublicKey(), got.GetPublicKey()) {
				t.Error("the same pair twice")
			}
			for _, blob := range [][]byte{got.GetPrivateKeyCiphertextBlob(), without.GetPrivateKeyCiphertextBlob()} {
				refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, kms.CodeInvalidCiphertext)
				refuse(w, &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: other}, kms.CodeInvalidCiphertext)
			}
		})
	}
}

// checkPair signs with the private key and verifies with the public one.
func checkPair(t *testing.T, pkcs8, spki []byte, bits int, alg keyholdv1.SigningAlgorithmSpec) {
	t.Helper()
	message := []byte("signed outside of the service")
	private, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil { // the standard library does not know it
		if bits != 256 || !bytes.Contains(pkcs8, spki[len(spki)-65:]) {
			t.Errorf("%v, and %d bits", err, bits)
		}
		if err := hostVerify(spki, alg, message, signSecp256k1(t, pkcs8, sum(crypto.SHA256, message))); err != nil {
			t.Errorf("what the private key signs the public key does not verify: %v", err)
		}
		return
	}
	signer := private.(crypto.Signer)
	if again, err := x509.MarshalPKIXPublicKey(signer.Public()); err != nil || !bytes.Equal(again, spki) {
		t.Errorf("the private key's public half is another one (err %v)", err)
	}
	if k, ok := private.(*rsa.PrivateKey); ok && k.N.BitLen() != bits || ok != (bits >= 2048) {
		t.Errorf("the private key is a %T, want %d bits", private, bits)
	}
	input, opts := message, crypto.SignerOpts(crypto.Hash(0))
	if alg != ed25519raw {
		input, opts = sum(hashOf(alg), message), hashOf(alg)
	}
	if alg <= pss512 {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hashOf(alg)}
	}
	signature, err := signer.Sign(rand.Reader, input, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := hostVerify(spki, alg, message, signature); err != nil {
		t.Errorf("what the private key signs the public key does not verify: %v", err)
	}
}

// signSecp256k1 is ECDSA with the nonce 1, which gives the key away, and needs
// no arithmetic on the curve: R is the base point.
func signSecp256k1(t *testing.T, pkcs8, digest []byte) []byte {
	t.Helper()
	var info struct {
		Version   int
		Algorithm struct{ Algorithm, Curve asn1.ObjectIdentifier }
		Key       []byte
	}
	var key struct {
		Version int
		Scalar  []byte
		Public  asn1.BitString `asn1:"explicit,tag:1"`
	}
	if rest, err := asn1.Unmarshal(pkcs8, &info); err != nil || len(rest) != 0 {
		t.Fatalf("PrivateKeyInfo: %v, %d bytes behind it", err, len(rest))
	}
	if rest, err := asn1.Unmarshal(info.Key, &key); err != nil || len(rest) != 0 {
		t.Fatalf("ECPrivateKey: %v, %d bytes behind it", err, len(rest))
	}
	hex := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 16); return n }
	n := hex("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141")
	r := hex("79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798")
	s := new(big.Int).Mul(r, new(big.Int).SetBytes(key.Scalar))
	s.Mod(s.Add(s, new(big.Int).SetBytes(digest)), n)
	signature, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// pairSource is a generator of pairs that remembers them.
type pairSource struct {
	mu    sync.Mutex
	pairs []keypair.Pair
	// before is called at the beginning of each generation. Optional.
	before func() error
}

func (p *pairSource) generate(spec keypair.Spec) (keypair.Pair, error) {
	if p.before != nil {
		if err := p.before(); err != nil {
			return keypair.Pair{}, err
		}
	}
	if spec <= keypair.RSA4096 {
		spec = keypair.P256 // a quick one
	}
	pair, err := keypair.Generate(spec)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pairs = append(p.pairs, pair)
	return pair, err
}

// seen returns the pairs that were made.
func (p *pairSource) seen() []keypair.Pair {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.pairs)
}

func wiped(b []byte) bool { return bytes.Equal(b, make([]byte, len(b))) }

// withPairs makes the world's pairs come from p.
func withPairs(p *pairSource) func(*world) {
	return withConfig(func(c *kms.Config) { c.KeyPairs = keypair.NewPool(keypair.Options{Generate: p.generate}) })
}

// pairRequests returns both operations' requests.
func pairRequests(key string, spec keyholdv1.DataKeyPairSpec, dry bool) []proto.Message {
	return []proto.Message{
		&keyholdv1.GenerateDataKeyPairRequest{KeyId: key, KeyPairSpec: spec, DryRun: &dry},
		&keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: key, KeyPairSpec: spec, DryRun: &dry},
	}
}

// What is refused, or only a dry run, makes no pair and takes none.
func TestDataKeyPairRefusals(t *testing.T) {
	t.Parallel()
	source := &pairSource{}
	w, fake := newFakeWorld(t, withPairs(source))
	w.cfg.Regions[testRegion] = &fakeSigner{fakeStore: fake}
	w.cfg.KeyPairs = keypair.NewPool(keypair.Options{Generate: source.generate})
	w.start()
	key, off, gone := w.newAESKey(), w.newAESKey(), w.newAESKey()
	mac, sign := w.newKey(hmac256, usageMac), w.newKey(p256, usageSign)
	w.inState(off, disabled)
	w.inState(gone, pending)
	for name, c := range map[string]struct {
		key  string
		spec keyholdv1.DataKeyPairSpec
		want kms.Code
		says string
	}{
		"no spec":              {key, 0, kms.CodeValidation, "key_pair_spec"},
		"undefined spec":       {key, 10, kms.CodeValidation, "key_pair_spec"},
		"no key":               {"", pairRSA2048, kms.CodeValidation, "key_id"},
		"SM2":                  {key, pairSM2, kms.CodeUnsupportedOperation, "SM2"},
		"SM2 under a MAC key":  {mac, pairSM2, kms.CodeInvalidKeyUsage, "GENERATE_VERIFY_MAC"},
		"MAC key":              {mac, pairRSA2048, kms.CodeInvalidKeyUsage, "GENERATE_VERIFY_MAC"},
		"signing key":          {sign, pairRSA2048, kms.CodeInvalidKeyUsage, "SIGN_VERIFY"},
		"disabled key":         {off, pairRSA2048, kms.CodeDisabled, "is disabled"},
		"key pending deletion": {gone, pairRSA2048, kms.CodeInvalidState, "is pending deletion"},
		"unknown key":          {unknownID, pairRSA2048, kms.CodeNotFound, unknownID},
		"foreign key":          {arnOfForeign + "key/" + key, pairRSA2048, kms.CodeAccessDenied, ""},
	} {
		for _, dry := range []bool{false, true} {
			for _, req := range pairRequests(c.key, c.spec, dry) {
				if e := refuse(w, req, c.want); !strings.Contains(e.Message, c.says) {
					t.Errorf("%s: the refusal is %q", name, e.Message)
				}
			}
		}
	}
	for _, k := range pairKinds {
		for _, req := range pairRequests(key, k.spec, true) {
			refuse(w, req, kms.CodeDryRun)
		}
	}
	if n := len(source.seen()); n != 0 {
		t.Errorf("%d pairs were made for refusals", n)
	}
	// Nor is one taken that is ready.
	pool := w.cfg.KeyPairs
	do[proto.Message](w, pairRequests(key, pairRSA4096, false)[0])
	eventually(t, "two pairs are ready", func() bool { return pool.Ready(keypair.RSA4096) == 2 })
	made := len(source.seen())
	for _, req := range pairRequests(key, pairRSA4096, true) {
		refuse(w, req, kms.CodeDryRun)
	}
	if n := pool.Ready(keypair.RSA4096); n != 2 || len(source.seen()) != made {
		t.Errorf("after a dry run %d pairs are ready", n)
	}
}

// RSA keys have the usage ENCRYPT_DECRYPT too, and encrypt no data keys.
func TestDataKeyPairUnderRSA(t *testing.T) {
	t.Parallel()
	source := &pairSource{}
	w := newWorld(t, withPairs(source))
	id := w.newKey(rsa2048, usageEncrypt)
	for _, req := range pairRequests(id, pairP256, false) {
		if e := refuse(w, req, kms.CodeInvalidKeyUsage); !strings.Contains(e.Message, "key spec is RSA_2048") {
			t.Errorf("the refusal is %q", e.Message)
		}
	}
	if n := len(source.seen()); n != 0 {
		t.Errorf("%d pairs were made", n)
	}
}

// Private keys do not stay in memory: not where they are not asked for, not
// where something fails, and not in the pool of a service that has ended.
func TestPrivateKeysAreWiped(t *testing.T) {
	t.Parallel()
	source := &pairSource{}
	journal := &faultyJournal{}
	w, fake := newFakeWorld(t, withPairs(source), func(w *world) { journal.Journal = w.cfg.Journal; w.cfg.Journal = journal })
	key := w.newAESKey()
	last := func() []byte { all := source.seen(); return all[len(all)-1].PKCS8 }
	both := pairRequests(key, pairP384, false)

	got := do[*keyholdv1.GenerateDataKeyPairResponse](w, both[0])
	if wiped(got.GetPrivateKeyPlaintext()) || !bytes.Equal(last(), got.GetPrivateKeyPlaintext()) {
		t.Error("the private key that was asked for is not there")
	}
	do[proto.Message](w, both[1])
	if !wiped(last()) {
		t.Error("the private key is in memory though nobody asked for it")
	}
	for i, req := range both {
		fake.failing("Seal", errFault)
		refuse(w, req, kms.CodeInternal)
		fake.heal()
		if n := len(source.seen()); n != 3+2*i || !wiped(last()) {
			t.Errorf("%s: Seal failed, and the private key of %d is in memory", operationOf(req), n)
		}
		journal.failing(func([]byte) error { return errFault })
		refuse(w, req, kms.CodeInternal)
		journal.failing(nil)
		if n := len(source.seen()); n != 4+2*i || !wiped(last()) {
			t.Errorf("%s: the record failed, and the private key of %d is in memory", operationOf(req), n)
		}
	}
	// The zero bytes of a wiped key must not be what was encrypted.
	without := do[*keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse](w, both[1])
	checkPair(t, w.decrypt(without.GetPrivateKeyCiphertextBlob(), nil), without.GetPublicKey(), 384, ecdsa384)

	kept := do[*keyholdv1.GenerateDataKeyPairResponse](w, pairRequests(key, pairRSA3072, false)[0]).GetPrivateKeyPlaintext()
	eventually(t, "pairs are ready", func() bool { return w.cfg.KeyPairs.Ready(keypair.RSA3072) == 4 })
	w.svc.Close()
	for _, pair := range source.seen() {
		if held := bytes.Equal(pair.PKCS8, kept) || bytes.Equal(pair.PKCS8, got.GetPrivateKeyPlaintext()); held == wiped(pair.PKCS8) {
			t.Error("a private key is in memory after the service has ended")
		}
	}
}

// However many ask at once, no two get the same pair.
func TestConcurrentDataKeyPairs(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	key := w.newAESKey()
	var seen sync.Map
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			spec := []keyholdv1.DataKeyPairSpec{pairRSA2048, pairP256, pairEd25519, pairSecp256k1}[i%4]
			var public []byte
			if i%8 < 4 {
				resp, err := try[*keyholdv1.GenerateDataKeyPairResponse](w, &keyholdv1.GenerateDataKeyPairRequest{KeyId: key, KeyPairSpec: spec})
				if err != nil {
					t.Error(describe(err))
					return
				}
				public = resp.GetPublicKey()
			} else {
				resp, err := try[*keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse](w, &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: key, KeyPairSpec: spec})
				if err != nil {
					t.Error(describe(err))
					return
				}
				public = resp.GetPublicKey()
			}
			if _, twice := seen.LoadOrStore(string(public), true); twice {
				t.Error("a pair was handed out twice")
			}
		})
	}
	wg.Wait()
}

// A request that runs out of time while its pair is being made is answered
// then, and the next one gets the pair.
func TestDataKeyPairTimeout(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	source := &pairSource{before: func() error { <-gate; return nil }}
	w, _ := newFakeWorld(t, withPairs(source))
	key := w.newAESKey()
	req := &keyholdv1.GenerateDataKeyPairRequest{KeyId: key, KeyPairSpec: pairRSA4096}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := tryIn[proto.Message](ctx, w, alice(), req); err == nil || err.Code != kms.CodeDependencyTimeout || !err.Unavailable {
		t.Errorf("GenerateDataKeyPair = %v, want %s", err, kms.CodeDependencyTimeout)
	}
	close(gate)
	eventually(t, "the pair is kept", func() bool { return w.cfg.KeyPairs.Ready(keypair.RSA4096) > 0 })
	first := source.seen()[0]
	if got := do[*keyholdv1.GenerateDataKeyPairResponse](w, req); !bytes.Equal(got.GetPublicKey(), first.SPKI) {
		t.Error("the pair that was made was lost")
	}
}

// A generator that fails is an internal fault, whose reason is for the log.
func TestDataKeyPairFault(t *testing.T) {
	t.Parallel()
	source := &pairSource{before: func() error { return errFault }}
	w, _ := newFakeWorld(t, withPairs(source))
	key := w.newAESKey()
	for _, spec := range []keyholdv1.DataKeyPairSpec{pairRSA2048, pairEd25519} {
		for _, req := range pairRequests(key, spec, false) {
			if e := refuse(w, req, kms.CodeInternal); strings.Contains(e.Message, errFault.Error()) || !strings.Contains(describe(e), errFault.Error()) {
				t.Errorf("the fault is told as %s", describe(e))
			}
		}
	}
}

// Records say which pair was made under which key, and nothing of the pair.
func TestDataKeyPairRecords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.newAESKey()
	ec := map[string]string{"tenant": "42"}
	secrets := map[string][]byte{}
	for _, spec := range []keyholdv1.DataKeyPairSpec{pairRSA2048, pairP521, pairSecp256k1, pairEd25519} {
		for _, req := range []proto.Message{
			&keyholdv1.GenerateDataKeyPairRequest{KeyId: key, KeyPairSpec: spec, EncryptionContext: ec},
			&keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: key, KeyPairSpec: spec, EncryptionContext: ec},
		} {
			var resp proto.Message
			events := w.eventsOf(func() { resp = do[proto.Message](w, req) })
			want := map[string]any{
				"keyId": key, "encryptionContext": map[string]any{"tenant": "42"},
				"keyPairSpec": strings.TrimPrefix(spec.String(), "DATA_KEY_PAIR_SPEC_"),
			}
			if d := cmp.Diff(want, events[0].RequestParameters); d != "" || events[0].ResponseElements != nil {
				t.Errorf("%s is recorded with %v, parameters (-want +got):\n%s", operationOf(req), events[0].ResponseElements, d)
			}
			name := operationOf(req) + " " + spec.String()
			switch r := resp.(type) {
			case *keyholdv1.GenerateDataKeyPairResponse:
				secrets["private key of "+name], secrets["blob of "+name] = r.GetPrivateKeyPlaintext(), r.GetPrivateKeyCiphertextBlob()
				secrets["PEM of "+name] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: r.GetPrivateKeyPlaintext()})
			case *keyholdv1.GenerateDataKeyPairWithoutPlaintextResponse:
				secrets["private key of "+name], secrets["blob of "+name] = w.decrypt(r.GetPrivateKeyCiphertextBlob(), ec), r.GetPrivateKeyCiphertextBlob()
			}
		}
	}
	w.start()
	w.searchSecrets(secrets)
}
