package client_test

import (
	"context"
	"fmt"
	"log"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// A program seals a secret under a key that has an alias, and opens it again.
func ExampleDial() {
	c, err := client.Dial(client.Config{
		Addr:     "kms.example.org:9443",
		CAFile:   "/etc/keyhold/ca.pem",
		CertFile: "/etc/keyhold/client.pem",
		KeyFile:  "/etc/keyhold/client.key",
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ctx := context.Background()
	bound := map[string]string{"tenant": "42"}
	sealed, err := c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{
		KeyId: "alias/app", Plaintext: []byte("attack at dawn"), EncryptionContext: bound,
	})
	if err != nil {
		log.Print(err)
		return
	}
	opened, err := c.Crypto.Decrypt(ctx, &keyholdv1.DecryptRequest{
		CiphertextBlob: sealed.GetCiphertextBlob(), EncryptionContext: bound,
	})
	if e, ok := client.ErrorFrom(err); ok && e.Exception == "InvalidCiphertextException" {
		log.Print("damaged, or sealed for another tenant; request ", e.RequestID)
		return
	}
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Printf("%s\n", opened.GetPlaintext())
}
