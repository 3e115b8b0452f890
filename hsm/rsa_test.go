package hsm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"

	"github.com/keyhold/keyhold/hsm/hsmtest/vectors"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// rawRSA is what CKM_RSA_X_509 gives.
func rawRSA(key *rsa.PrivateKey, ciphertext []byte) []byte {
	m := new(big.Int).Exp(new(big.Int).SetBytes(ciphertext), key.D, key.N)
	return m.FillBytes(make([]byte, key.Size()))
}

func TestUnpadOAEPWycheproof(t *testing.T) {
	for file, hash := range map[string]crypto.Hash{
		"rsa_oaep_2048_sha1_mgf1sha1_test.json":     crypto.SHA1,
		"rsa_oaep_2048_sha256_mgf1sha256_test.json": crypto.SHA256,
		"rsa_oaep_3072_sha256_mgf1sha256_test.json": crypto.SHA256,
		"rsa_oaep_4096_sha256_mgf1sha256_test.json": crypto.SHA256,
	} {
		ran := 0
		for _, group := range vectors.Load[vectors.OAEPGroup](t, file) {
			parsed, err := x509.ParsePKCS8PrivateKey(group.PKCS8)
			if err != nil {
				t.Fatal(err)
			}
			key := parsed.(*rsa.PrivateKey)
			for _, tc := range group.Tests {
				if len(tc.Label) > 0 && tc.Valid() || len(tc.Ciphertext) != key.Size() {
					continue
				}
				if new(big.Int).SetBytes(tc.Ciphertext).Cmp(key.N) >= 0 {
					continue // the token refuses it: the probe saw to that
				}
				ran++
				got, err := unpadOAEP(hash, rawRSA(key, tc.Ciphertext), key.Size())
				if tc.Valid() && (err != nil || !bytes.Equal(got, tc.Message)) {
					t.Errorf("%s %v: %x, %v, want %x", file, tc.Case, got, err, tc.Message)
				}
				if tc.Invalid() && !errors.Is(err, ErrAuthentication) {
					t.Errorf("%s %v: %x, %v, want ErrAuthentication", file, tc.Case, got, err)
				}
			}
		}
		if ran < 15 {
			t.Errorf("%s: only %d vectors ran", file, ran)
		}
	}
}

// pad is EME-OAEP encoding (RFC 8017, 7.1.1), with every part open to change.
func pad(h crypto.Hash, k int, label, plaintext []byte, change func(first *byte, db []byte)) []byte {
	hLen := h.Size()
	em := make([]byte, k)
	seed, db := em[1:1+hLen], em[1+hLen:]
	copy(seed, randomBytes(hLen))
	digest := h.New()
	digest.Write(label)
	copy(db, digest.Sum(nil))
	db[len(db)-len(plaintext)-1] = 1
	copy(db[len(db)-len(plaintext):], plaintext)
	change(&em[0], db)
	mgf1XOR(h, db, seed)
	mgf1XOR(h, seed, db)
	return em
}

// TestUnpadOAEPManger: all that Manger's attack and its relatives send gets the
// same answer.
func TestUnpadOAEPManger(t *testing.T) {
	const k = 256
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		most := k - 2*h.Size() - 2
		for _, n := range []int{0, 1, most - 1, most} {
			plaintext := randomBytes(n)
			got, err := unpadOAEP(h, pad(h, k, nil, plaintext, func(*byte, []byte) {}), k)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%v, %d bytes: %x, %v", h, n, got, err)
			}
		}
		for name, change := range map[string]func(first *byte, db []byte){
			"first byte 1":               func(first *byte, _ []byte) { *first = 1 },
			"first byte 128":             func(first *byte, _ []byte) { *first = 128 },
			"label's first byte":         func(_ *byte, db []byte) { db[0] ^= 1 },
			"label's last byte":          func(_ *byte, db []byte) { db[h.Size()-1] ^= 1 },
			"no 01 at all":               func(_ *byte, db []byte) { clear(db[h.Size():]) },
			"02 instead of 01":           func(_ *byte, db []byte) { db[len(db)-17] = 2 },
			"02 before 01":               func(_ *byte, db []byte) { db[h.Size()] = 2 },
			"ff among the zeros":         func(_ *byte, db []byte) { db[h.Size()+5] = 0xff },
			"everything at once":         func(first *byte, db []byte) { *first = 7; db[0] ^= 1; db[h.Size()] = 9 },
			"first byte, and no padding": func(first *byte, db []byte) { *first = 1; clear(db[h.Size():]) },
		} {
			em := pad(h, k, nil, make([]byte, 16), change)
			got, err := unpadOAEP(h, em, k)
			if err != ErrAuthentication || got != nil { // exactly this: anything wrapped around it would be detail
				t.Errorf("%v, %s: %x, %v, want ErrAuthentication and nothing else", h, name, got, err)
			}
		}
		if got, err := unpadOAEP(h, pad(h, k, []byte("label"), nil, func(*byte, []byte) {}), k); !errors.Is(err, ErrAuthentication) {
			t.Errorf("%v, with a label: %x, %v", h, got, err)
		}
		// Some tokens give the number without its leading zeros.
		stripped := pad(h, k, nil, []byte("plaintext"), func(*byte, []byte) {})[1:]
		if got, err := unpadOAEP(h, stripped, k); err != nil || string(got) != "plaintext" {
			t.Errorf("%v, without the leading zero: %x, %v", h, got, err)
		}
		for _, n := range []int{0, k + 1} {
			if _, err := unpadOAEP(h, make([]byte, n), k); !errors.Is(err, ErrAuthentication) {
				t.Errorf("%v, %d bytes: %v", h, n, err)
			}
		}
		if _, err := unpadOAEP(h, make([]byte, 2*h.Size()+1), 2*h.Size()+1); !errors.Is(err, ErrAuthentication) {
			t.Errorf("%v, a modulus too short for OAEP: %v", h, err)
		}
	}
}

// TestUnpadOAEPHost: the standard library encrypts.
func TestUnpadOAEPHost(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		for range 20 {
			plaintext := randomBytes(32)
			ciphertext, err := rsa.EncryptOAEP(h.New(), rand.Reader, &key.PublicKey, plaintext, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := unpadOAEP(h, rawRSA(key, ciphertext), key.Size())
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%v: %x, %v, want %x", h, got, err, plaintext)
			}
		}
	}
}

// FuzzUnpadOAEP: what is taken pads to a message that is taken again.
func FuzzUnpadOAEP(f *testing.F) {
	f.Add(pad(crypto.SHA1, 256, nil, []byte("plaintext"), func(*byte, []byte) {}), true)
	f.Add(pad(crypto.SHA256, 256, nil, []byte("plaintext"), func(*byte, []byte) {}), false)
	f.Add(make([]byte, 256), false)
	f.Fuzz(func(t *testing.T, em []byte, sha1 bool) {
		h := crypto.SHA256
		if sha1 {
			h = crypto.SHA1
		}
		before := bytes.Clone(em)
		got, err := unpadOAEP(h, em, 256)
		if !bytes.Equal(before, em) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			if err != ErrAuthentication || got != nil { // exactly this
				t.Fatalf("%x, %v", got, err)
			}
			return
		}
		if len(got) > 256-2*h.Size()-2 {
			t.Fatalf("%d bytes cannot have been padded", len(got))
		}
	})
}

// TestSignWhileStarting: what the token cannot do is refused also before its probe is done. SoftHSM would sign plain Ed25519 here.
func TestSignWhileStarting(t *testing.T) {
	w := newWorld(t, false)
	cfg := w.token("alpha")
	tok := w.ready(cfg)
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: Ed25519, Purpose: PurposeSign, ID: []byte("ed"), Label: "ed"})
	check(t, err)
	check(t, tok.Close(ctx(t)))
	tok = w.open(cfg)
	_, err = tok.Key(Ed25519, PurposeSign, []byte("ed")).Sign(ctx(t), pubkey.Ed25519phSHA512, make([]byte, 64))
	wantErr(t, "Ed25519ph", err, ErrUnsupported)
}
