package keypair

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"testing"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// opensslSecp256k1 is what OpenSSL 3.0.19 wrote for
// `openssl ecparam -name secp256k1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -outform DER`.
const opensslSecp256k1 = "308184020100301006072a8648ce3d020106052b8104000a046d306b0201010420" +
	"d03320f51a7e5c790bf189b5d77eb39694a238cca96880491958249704a484eb" +
	"a144034200" +
	"04b21832d9a10a7b2714242a5ca69edb8404c9821e0ffc4e3a8c9e751bad4e28d7" +
	"1d8a2ba951e05fb1c5ff72e2e09e5815b4c0638ce59e412fadeb721d505df46b"

// The one encoding that the standard library cannot compare with.
func TestSecp256k1AsOpenSSL(t *testing.T) {
	t.Parallel()
	want, err := hex.DecodeString(opensslSecp256k1)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Version   int
		Algorithm asn1.RawValue
		Key       []byte
	}
	var key struct {
		Version int
		Scalar  []byte
		Public  asn1.BitString `asn1:"explicit,tag:1"`
	}
	if _, err := asn1.Unmarshal(want, &info); err != nil {
		t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(info.Key, &key); err != nil {
		t.Fatal(err)
	}
	got, err := encodeEC(pubkey.Secp256k1, key.Scalar, key.Public.Bytes)
	if err != nil || !bytes.Equal(got.PKCS8, want) {
		t.Errorf("encoded as %x (err %v), OpenSSL has %x", got.PKCS8, err, want)
	}
	if cap(got.PKCS8) != MaxPKCS8Bytes+slackBytes {
		t.Errorf("the buffer of %d bytes is another one: the first was not wiped", cap(got.PKCS8))
	}
}

// The buffer holds what it promises to, and not one byte more.
func TestEncodeBeyondTheBuffer(t *testing.T) {
	t.Parallel()
	public, err := pubkey.FromEd25519(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		t.Fatal(err)
	}
	const some = 2000
	pair, err := encode(public, ed25519PrivateKey(make([]byte, some)))
	if err != nil {
		t.Fatal(err)
	}
	most := MaxPKCS8Bytes - (len(pair.PKCS8) - some)
	if pair, err = encode(public, ed25519PrivateKey(make([]byte, most))); err != nil || len(pair.PKCS8) != MaxPKCS8Bytes {
		t.Errorf("a key of %d bytes is encoded in %d: %v", most, len(pair.PKCS8), err)
	}
	for n := most + 1; n < most+100; n++ {
		if pair, err = encode(public, ed25519PrivateKey(make([]byte, n))); err == nil || pair.PKCS8 != nil {
			t.Errorf("a key of %d bytes is encoded in %d", n, len(pair.PKCS8))
		}
	}
}
