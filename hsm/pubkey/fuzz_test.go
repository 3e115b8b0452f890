package pubkey_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"testing"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// FuzzParse: what is accepted is written back byte for byte, and a signature of
// noise never verifies.
func FuzzParse(f *testing.F) {
	f.Add(marshal(f, newECDSA(f, elliptic.P256())))
	f.Add(marshal(f, newECDSA(f, elliptic.P384())))
	f.Add(marshal(f, newECDSA(f, elliptic.P521())))
	f.Add(marshal(f, &rsa.PublicKey{N: rsaModulus(2048), E: 65537}))
	f.Add(mustHex(f, "302a300506032b65700321007d4d0e7f6153a69b6242b522abbee685fda4420f8834b108c3bdae369ef549fa"))
	f.Add(mustHex(f, "3056301006072a8648ce3d020106052b8104000a0342000479be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"))
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := pubkey.Parse(der)
		if err != nil {
			if !errors.Is(err, pubkey.ErrMalformed) {
				t.Fatalf("Parse: %v is not ErrMalformed", err)
			}
			return
		}
		if !bytes.Equal(key.SPKI(), der) {
			t.Fatalf("%x is written back as %x", der, key.SPKI())
		}
		for _, alg := range pubkey.Algorithms() {
			input := make([]byte, 32)
			if h := alg.Hash(); h != 0 {
				input = make([]byte, h.Size())
			}
			if err := key.Verify(alg, input, der); err == nil {
				t.Fatalf("%v verifies noise", alg)
			}
		}
	})
}

// FuzzECDSAFromDER: what is accepted is the one encoding of its value.
func FuzzECDSAFromDER(f *testing.F) {
	f.Add(mustHex(f, "3006020101020102"), 32)
	f.Add(mustHex(f, "300a02050080000000020100"), 66)
	f.Fuzz(func(t *testing.T, der []byte, size int) {
		if size < 1 || size > 66 {
			return
		}
		raw, err := pubkey.ECDSAFromDER(der, size)
		if err != nil {
			return
		}
		again, err := pubkey.ECDSAToDER(raw)
		if err != nil || !bytes.Equal(again, der) {
			t.Fatalf("%x became %x, %v", der, again, err)
		}
	})
}
