package tinkaead_test

import (
	"bytes"
	"context"
	"fmt"
	"log"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/client/tinkaead"
)

// A keyset of Tink's is stored encrypted under a KMS key.
func Example() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	kek, err := tinkaead.New(c.Crypto, "alias/app", client.CallOptions{})
	if err != nil {
		log.Panic(err)
	}

	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		log.Panic(err)
	}
	ctx, purpose := context.Background(), []byte("keyset of the backups")
	var stored bytes.Buffer
	if err := handle.WriteWithContext(ctx, keyset.NewBinaryWriter(&stored), kek, purpose); err != nil {
		log.Panic(err)
	}

	again, err := keyset.ReadWithContext(ctx, keyset.NewBinaryReader(&stored), kek, purpose)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println("keys:", again.Len())
	// Output: keys: 1
}

// Each message gets a data key from Tink, which the KMS key encrypts.
func ExampleNew() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	kek, err := tinkaead.New(c.Crypto, "alias/app", client.CallOptions{})
	if err != nil {
		log.Panic(err)
	}

	envelope := aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), kek)
	sealed, err := envelope.Encrypt([]byte("attack at dawn"), []byte("tenant 42"))
	if err != nil {
		log.Panic(err)
	}
	opened, err := envelope.Decrypt(sealed, []byte("tenant 42"))
	if err != nil {
		log.Panic(err)
	}
	fmt.Printf("%s\n", opened)
	// Output: attack at dawn
}
