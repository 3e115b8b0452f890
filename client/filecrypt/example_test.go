package filecrypt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/client/filecrypt"
	"github.com/keyhold/keyhold/client/internal/daemontest"
)

// TestMain runs a real daemon, which examples find in the environment.
func TestMain(m *testing.M) {
	daemon, err := daemontest.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(func(code int) {
		if err := daemon.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// A program encrypts what it reads.
func ExampleNewWriter() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	src, dst := strings.NewReader("all that the database holds"), new(bytes.Buffer)
	w, err := filecrypt.NewWriter(context.Background(), c.Crypto, dst, filecrypt.WriterOptions{
		KeyID: "alias/app", Context: map[string]string{"host": "db1"},
	})
	if err != nil {
		log.Panic(err)
	}
	if _, err := io.Copy(w, src); err != nil {
		log.Panic(err) // and no Close: a part must not pass for the whole
	}
	if err := w.Close(); err != nil {
		log.Panic(err)
	}
	fmt.Println("in the clear:", bytes.Contains(dst.Bytes(), []byte("database")))
	// Output: in the clear: false
}

// What was read before the end may be a part only: io.EOF says that it was all.
func ExampleNewReader() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx, host := context.Background(), map[string]string{"host": "db1"}
	file := new(bytes.Buffer)
	w, err := filecrypt.NewWriter(ctx, c.Crypto, file, filecrypt.WriterOptions{KeyID: "alias/app", Context: host})
	if err != nil {
		log.Panic(err)
	}
	if _, err := io.WriteString(w, "all that the database holds"); err != nil {
		log.Panic(err)
	}
	if err := w.Close(); err != nil {
		log.Panic(err)
	}

	decrypt := func(file []byte) (string, error) {
		r, err := filecrypt.NewReader(ctx, c.Crypto, bytes.NewReader(file), filecrypt.ReaderOptions{KeyID: "alias/app", Context: host})
		if err != nil {
			return "", err
		}
		plaintext, err := io.ReadAll(r)
		return string(plaintext), err
	}
	plaintext, err := decrypt(file.Bytes())
	fmt.Println(plaintext, err)
	_, err = decrypt(file.Bytes()[:file.Len()-1])
	fmt.Println("cut off:", errors.Is(err, filecrypt.ErrDamaged))
	// Output:
	// all that the database holds <nil>
	// cut off: true
}
