package client_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"path"
	"sync"
	"time"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// A large text is encrypted locally, under a data key of the service.
func ExampleNewEnvelope() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	e, err := client.NewEnvelope(c.Crypto, client.EnvelopeConfig{
		KeyID:             "alias/app",
		EncryptionContext: map[string]string{"app": "backup"},
	})
	if err != nil {
		log.Panic(err)
	}
	defer e.Close()

	ctx := context.Background()
	message, err := e.Encrypt(ctx, make([]byte, 1<<20), map[string]string{"tenant": "42"})
	if err != nil {
		log.Panic(err)
	}
	plaintext, err := e.Decrypt(ctx, message, map[string]string{"tenant": "42"})
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(len(plaintext), "bytes;", len(message)-len(plaintext), "more as a message")

	_, err = e.Decrypt(ctx, message, map[string]string{"tenant": "43"})
	fmt.Println(errors.Is(err, client.ErrDecrypt))
	// Output:
	// 1048576 bytes; 158 more as a message
	// true
}

// One data key serves many messages, up to limits.
func ExampleCacheConfig() {
	cfg := client.ConfigFromEnv()
	cfg.Hooks.After = func(_ context.Context, a client.Attempt) { fmt.Println(path.Base(a.Method)) }
	c, err := client.Dial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	e, err := client.NewEnvelope(c.Crypto, client.EnvelopeConfig{
		KeyID: "alias/app",
		// A KMS key that is disabled stays in use here for up to five minutes.
		Cache: client.CacheConfig{MaxAge: 5 * time.Minute, MaxMessages: 1000},
	})
	if err != nil {
		log.Panic(err)
	}
	defer e.Close()

	for range 1001 {
		if _, err := e.Encrypt(context.Background(), []byte("attack at dawn"), nil); err != nil {
			log.Panic(err)
		}
	}
	// Output:
	// GenerateDataKey
	// GenerateDataKey
}

// A certificate request is signed by a key in the HSM.
func ExampleNewSigner() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	signer, err := client.NewSigner(context.Background(), c.Crypto, "alias/p256", client.CallOptions{})
	if err != nil {
		log.Panic(err)
	}

	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "www.example.org"}, DNSNames: []string{"www.example.org"},
	}, signer)
	if err != nil {
		log.Panic(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(csr.Subject, csr.SignatureAlgorithm, csr.CheckSignature())
	// Output: CN=www.example.org ECDSA-SHA256 <nil>
}

// A TLS server works with a private key that never leaves the HSM.
func ExampleSigner_Certificate() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	signer, err := client.NewSigner(context.Background(), c.Crypto, "alias/p256", client.CallOptions{Timeout: 5 * time.Second})
	if err != nil {
		log.Panic(err)
	}
	// A certificate authority would issue this one.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"www.example.org"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		log.Panic(err)
	}
	cert, err := signer.Certificate(der)
	if err != nil {
		log.Panic(err)
	}

	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		server := tls.Server(ours, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
		defer server.Close()
		_, _ = io.WriteString(server, "hello")
	}()

	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	said, err := io.ReadAll(tls.Client(theirs, &tls.Config{RootCAs: roots, ServerName: "www.example.org", MinVersion: tls.VersionTLS13}))
	fmt.Printf("%s %v\n", said, err)
	// Output: hello <nil>
}

// What was encrypted to a public key is decrypted in the HSM.
func ExampleNewDecrypter() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	decrypter, err := client.NewDecrypter(context.Background(), c.Crypto, "alias/unwrap", client.CallOptions{})
	if err != nil {
		log.Panic(err)
	}

	public, ok := decrypter.Public().(*rsa.PublicKey)
	if !ok {
		log.Panic("no RSA key")
	}
	sealed, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, []byte("attack at dawn"), nil)
	if err != nil {
		log.Panic(err)
	}
	opened, err := decrypter.Decrypt(rand.Reader, sealed, &rsa.OAEPOptions{Hash: crypto.SHA256})
	fmt.Printf("%s %v\n", opened, err)
	// Output: attack at dawn <nil>
}

// Many goroutines call at once; what waits for a request that is under way
// rides together in the next one.
func ExampleNewCoalescer() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	together, err := client.NewCoalescer(c, client.CoalescerConfig{})
	if err != nil {
		log.Panic(err)
	}
	defer together.Close()

	macs := make([]string, 100)
	var wg sync.WaitGroup
	for i := range macs {
		wg.Go(func() {
			resp, err := together.GenerateMac(context.Background(), &keyholdv1.GenerateMacRequest{
				KeyId: "alias/cookies", Message: fmt.Appendf(nil, "user=%d", i),
				MacAlgorithm: keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256,
			})
			if err != nil {
				log.Print(err)
				return
			}
			macs[i] = string(resp.GetMac())
		})
	}
	wg.Wait()

	different := map[string]bool{}
	for _, mac := range macs {
		different[mac] = true
	}
	fmt.Println(len(different), "MACs")
	// Output: 100 MACs
}
