package hsm

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

func TestKeySpecs(t *testing.T) {
	want := []string{
		"SYMMETRIC_DEFAULT", "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "RSA_2048", "RSA_3072", "RSA_4096",
		"ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519",
	}
	var got []string
	for _, spec := range KeySpecs() {
		got = append(got, spec.String())
		if len(spec.Purposes()) == 0 {
			t.Errorf("%s is for nothing", spec)
		}
		for p := PurposeSeal; p < purposeEnd; p++ {
			info, _ := spec.info()
			if info.can(p) != (len(spec.operations(p)) > 0 && slices.Contains(spec.Purposes(), p)) {
				t.Errorf("%s for %s: no operation is named, or one too many", spec, p)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("specs are %q, want %q", got, want)
	}
	for _, none := range []KeySpec{0, keySpecEnd, 255} {
		if _, ok := none.info(); ok || none.String() != "unknown" || none.Purposes() != nil || none.Algorithms() != nil {
			t.Errorf("%d is a key spec", none)
		}
	}
}

func TestPoints(t *testing.T) {
	for _, size := range []int{65, 97, 133} {
		point := append([]byte{4}, bytes.Repeat([]byte{7}, size-1)...)
		wrapped := octetString(point)
		want, err := asn1.Marshal(point)
		if err != nil || !bytes.Equal(wrapped, want) {
			t.Errorf("octetString of %d bytes = %x, want %x", size, wrapped, want)
		}
		if got := unwrapPoint(wrapped, size); !bytes.Equal(got, point) {
			t.Errorf("unwrapPoint of a DER point = %x", got)
		}
		if got := unwrapPoint(point, size); !bytes.Equal(got, point) {
			t.Errorf("unwrapPoint of a raw point = %x", got)
		}
		if got := unwrapPoint(append(wrapped, 0), size); bytes.Equal(got, point) {
			t.Error("unwrapPoint takes a trailing byte")
		}
	}
	for spec, want := range map[KeySpec]string{P256: "06082a8648ce3d030107", P384: "06052b81040022", P521: "06052b81040023", Secp256k1: "06052b8104000a", Ed25519: "06032b6570"} {
		info, _ := spec.info()
		if got := curveParams(info); hex.EncodeToString(got) != want {
			t.Errorf("CKA_EC_PARAMS of %s = %x, want %s", spec, got, want)
		}
	}
}

// FuzzPublicPoint: whatever a token gives as CKA_EC_POINT, it is refused or is a
// key that package pubkey takes again.
func FuzzPublicPoint(f *testing.F) {
	f.Add(append([]byte{4, 65, 4}, make([]byte, 64)...), uint8(P256))
	f.Add(append([]byte{4, 32}, make([]byte, 32)...), uint8(Ed25519))
	f.Add([]byte{4, 0x84, 0xff, 0xff, 0xff, 0xff}, uint8(P521))
	f.Fuzz(func(t *testing.T, point []byte, which uint8) {
		info, ok := KeySpec(which).info()
		if !ok || !info.asymmetric() || info.kind == pubkey.RSA {
			return
		}
		var key *pubkey.Key
		var err error
		if info.kind == pubkey.Ed25519 {
			key, err = pubkey.FromEd25519(unwrapPoint(point, 32))
		} else {
			key, err = pubkey.FromPoint(info.kind, unwrapPoint(point, 1+2*info.bytes))
		}
		if err != nil {
			if !errors.Is(err, pubkey.ErrMalformed) {
				t.Fatalf("%v is not ErrMalformed", err)
			}
			return
		}
		again, err := pubkey.Parse(key.SPKI())
		if err != nil || !again.Equal(key) {
			t.Fatalf("%x: %v", key.SPKI(), err)
		}
	})
}
