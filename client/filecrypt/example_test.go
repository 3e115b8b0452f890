package filecrypt_test

import (
	"context"
	"errors"
	"io"
	"log"
	"os"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/client/filecrypt"
)

// A program encrypts what it reads, and decrypts it again.
func Example() {
	c, err := client.Dial(client.ConfigFromEnv())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()

	encrypt := func(dst io.Writer, src io.Reader) error {
		w, err := filecrypt.NewWriter(ctx, c.Crypto, dst, filecrypt.WriterOptions{
			KeyID: "alias/backup", Context: map[string]string{"host": "db1"},
		})
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, src); err != nil {
			return err // and no Close: a part must not pass for the whole
		}
		return w.Close()
	}
	decrypt := func(dst io.Writer, src io.Reader) error {
		r, err := filecrypt.NewReader(ctx, c.Crypto, src, filecrypt.ReaderOptions{
			KeyID: "alias/backup", Context: map[string]string{"host": "db1"},
		})
		if err != nil {
			return err
		}
		_, err = io.Copy(dst, r)
		if errors.Is(err, filecrypt.ErrDamaged) {
			log.Print("damaged or cut off: what was written to dst is not the whole")
		}
		return err
	}
	if len(os.Args) > 1 && os.Args[1] == "decrypt" {
		err = decrypt(os.Stdout, os.Stdin)
	} else {
		err = encrypt(os.Stdout, os.Stdin)
	}
	if err != nil {
		log.Print(err)
	}
}
