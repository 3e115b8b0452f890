package goclients_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/awskms"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestSmallstep: a certificate authority whose key is a key of the service, as
// step-ca has it.
func TestSmallstep(t *testing.T) {
	ctx := t.Context()
	km, err := awskms.New(ctx, apiv1.Options{URI: "awskms:"})
	if err != nil {
		t.Fatal(err)
	}
	defer km.Close()
	key, err := km.CreateKey(&apiv1.CreateKeyRequest{Name: "awskms:name=root-ca", SignatureAlgorithm: apiv1.ECDSAWithSHA256})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := km.CreateSigner(&key.CreateSignerRequest)
	if err != nil {
		t.Fatal(err)
	}

	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := certificate.CheckSignatureFrom(certificate); err != nil {
		t.Error(err)
	}
}

// TestSmallstepRSA: signatures PKCS #1 and PSS, and decryption.
func TestSmallstepRSA(t *testing.T) {
	km, err := awskms.New(t.Context(), apiv1.Options{URI: "awskms:"})
	if err != nil {
		t.Fatal(err)
	}
	defer km.Close()
	name := func(usage types.KeyUsageType) string {
		return "awskms:" + url.Values{"key-id": {newKey(t, types.KeySpecRsa2048, usage)}}.Encode()
	}
	signer, err := km.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: name(types.KeyUsageTypeSignVerify)})
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	public := signer.Public().(*rsa.PublicKey)
	sig, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil || rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig) != nil {
		t.Errorf("PKCS #1: %v", err)
	}
	pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	sig, err = signer.Sign(rand.Reader, digest[:], pss)
	if err != nil || rsa.VerifyPSS(public, crypto.SHA256, digest[:], sig, pss) != nil {
		t.Errorf("PSS: %v", err)
	}
	decrypter, err := km.CreateDecrypter(&apiv1.CreateDecrypterRequest{DecryptionKey: name(types.KeyUsageTypeEncryptDecrypt)})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, decrypter.Public().(*rsa.PublicKey), []byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := decrypter.Decrypt(rand.Reader, sealed, &rsa.OAEPOptions{Hash: crypto.SHA256})
	if err != nil || string(opened) != "secret" {
		t.Errorf("%q %v", opened, err)
	}
}
