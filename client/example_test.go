package client_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"path"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// A program seals a secret under a key that has an alias, and opens it again.
// `keyholdd dev` writes the environment that it needs to dev.env.
func Example() {
	c, err := client.Dial(client.ConfigFromEnv())
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
		log.Panic(err)
	}
	opened, err := c.Crypto.Decrypt(ctx, &keyholdv1.DecryptRequest{
		CiphertextBlob: sealed.GetCiphertextBlob(), EncryptionContext: bound,
	})
	if err != nil {
		log.Panic(err)
	}
	fmt.Printf("%s\n", opened.GetPlaintext())
	// Output: attack at dawn
}

// The connection is described in the program, except for where it goes.
func ExampleDial() {
	env := client.ConfigFromEnv()
	c, err := client.Dial(client.Config{
		Addr:     env.Addr,     // kms.example.org:9443
		CAFile:   env.CAFile,   // /etc/keyhold/ca.pem
		CertFile: env.CertFile, // /etc/keyhold/client.pem
		KeyFile:  env.KeyFile,  // /etc/keyhold/client.key
		Region:   "us-east-1",
		Timeout:  10 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	key, err := c.Keys.DescribeKey(context.Background(), &keyholdv1.DescribeKeyRequest{KeyId: "alias/app"})
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(key.GetKeyMetadata().GetKeySpec(), key.GetKeyMetadata().GetKeyState())
	// Output: KEY_SPEC_SYMMETRIC_DEFAULT KEY_STATE_ENABLED
}

// The environment is what `keyholdd dev` writes to dev.env.
func ExampleConfigFromEnv() {
	cfg := client.ConfigFromEnv()
	cfg.UserAgent = "backup/1.2"
	c, err := client.Dial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	resp, err := c.Keys.ListAliases(context.Background(), &keyholdv1.ListAliasesRequest{})
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(len(resp.GetAliases()) > 0)
	// Output: true
}

// What the service says is told apart by the exception's name.
func ExampleErrorFrom() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	_, err = c.Crypto.Encrypt(context.Background(), &keyholdv1.EncryptRequest{KeyId: "alias/app"})
	if e, ok := client.ErrorFrom(err); ok {
		// e.RequestID finds the request in the audit log.
		fmt.Println(e.Status, e.Exception)
		for _, v := range e.Violations {
			fmt.Println(v.Field, v.Description)
		}
	}
	_, err = c.Crypto.Decrypt(context.Background(), &keyholdv1.DecryptRequest{CiphertextBlob: []byte("not one of ours")})
	if e, ok := client.ErrorFrom(err); ok && e.Exception == "InvalidCiphertextException" {
		fmt.Println("damaged, or bound to another context")
	}
	// Output:
	// InvalidArgument ValidationException
	// plaintext must be at least 1 bytes
	// damaged, or bound to another context
}

// A program gives up sooner on attempts, and tries more often.
func ExampleRetry() {
	cfg := client.ConfigFromEnv()
	cfg.Timeout = 20 * time.Second
	cfg.Retry = client.Retry{MaxAttempts: 6, BaseDelay: 100 * time.Millisecond, AttemptTimeout: 5 * time.Second}
	c, err := client.Dial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	if _, err := c.Keys.ListKeys(context.Background(), &keyholdv1.ListKeysRequest{}); err != nil {
		log.Panic(err)
	}
	fmt.Println("listed")
	// Output: listed
}

// Each attempt is shown to the program's own metrics and traces.
func ExampleHooks() {
	type begun struct{}
	cfg := client.ConfigFromEnv()
	cfg.Hooks = client.Hooks{
		Before: func(ctx context.Context, _ client.Attempt) context.Context {
			return context.WithValue(ctx, begun{}, true) // a span, for example
		},
		After: func(ctx context.Context, a client.Attempt) {
			fmt.Println(path.Base(a.Method), a.Number, a.Code, a.Exception, a.RequestID != "", ctx.Value(begun{}))
		},
	}
	c, err := client.Dial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	if _, err := c.Keys.DescribeKey(context.Background(), &keyholdv1.DescribeKeyRequest{KeyId: "alias/nothing"}); err == nil {
		log.Panic("there is such a key")
	}
	// Output: DescribeKey 1 NotFound NotFoundException true true
}

// A call goes to another region than the client's.
func ExampleClient() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ctx := metadata.AppendToOutgoingContext(context.Background(), client.RegionHeader, "mars-1")
	_, err = c.Keys.ListKeys(ctx, &keyholdv1.ListKeysRequest{})
	if e, ok := client.ErrorFrom(err); ok {
		fmt.Println(e.Message)
	}
	// Output: The region "mars-1" is not served here.
}

// The same certificates reach the server without gRPC.
func ExampleTLSConfig() {
	cfg := client.ConfigFromEnv()
	conf, err := client.TLSConfig(cfg)
	if err != nil {
		log.Fatal(err)
	}
	conf.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", cfg.Addr, conf)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println(tls.VersionName(conn.ConnectionState().Version))
	// Output: TLS 1.3
}
