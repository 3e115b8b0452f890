package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// dataKeyArgs is what datakey was told.
type dataKeyArgs struct {
	key              string
	context          pairsFlag
	spec             keyholdv1.DataKeySpec
	bytes            *int32
	plaintextOut     string
	ciphertextOut    string
	withoutPlaintext bool
}

func (a *app) dataKeyCommand() *cobra.Command {
	args := dataKeyArgs{context: pairsFlag{}}
	var n int32
	cmd := &cobra.Command{
		Use:   "datakey --key KEY",
		Short: "Get a data key, in the clear and encrypted",
		Long: `Get random bytes from the token to encrypt with outside of it: in the clear, to
use now and forget, and encrypted under a key, to keep beside the data. Later
` + "`keyhold decrypt`" + ` opens the encrypted copy.

Files have mode 0600; those that exist are replaced.`,
		Example: `  keyhold datakey --key alias/app --output json
  keyhold datakey --key alias/app --plaintext-out dk --ciphertext-out dk.kh
  keyhold datakey --key alias/app --without-plaintext --ciphertext-out dk.kh`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch bytes := cmd.Flags().Changed("bytes"); {
			case bytes && args.spec != 0:
				return usagef("--spec and --bytes both say the length: give one")
			case bytes:
				args.bytes = &n
			case args.spec == 0:
				args.spec = keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256
			}
			if sameFile(args.plaintextOut, args.ciphertextOut) {
				return usagef("--plaintext-out and --ciphertext-out name the same file")
			}
			if args.withoutPlaintext && args.plaintextOut != "" {
				return usagef("--plaintext-out and --without-plaintext contradict each other")
			}
			return a.withClient(func(c *client.Client) error { return a.dataKey(cmd.Context(), c, args) })
		},
	}
	cmd.Flags().StringVar(&args.key, "key", "", "the key that encrypts it: id, ARN, alias/NAME or alias ARN")
	contextVar(cmd, args.context, "context", "pair of the encryption context, which decrypt must give again")
	enumVar(cmd, &args.spec, "spec", "the length, by name (default AES_256)")
	cmd.Flags().Int32Var(&n, "bytes", 0, "the length, 1 to 1024 bytes, instead of --spec")
	cmd.Flags().BoolVar(&args.withoutPlaintext, "without-plaintext", false, "only the encrypted copy")
	cmd.Flags().StringVar(&args.plaintextOut, "plaintext-out", "", "write the data key to this file, raw, and do not print it")
	cmd.Flags().StringVar(&args.ciphertextOut, "ciphertext-out", "", "write the encrypted copy to this file, raw, and do not print it")
	requireFlags(cmd, "key")
	return cmd
}

func (a *app) dataKey(ctx context.Context, c *client.Client, args dataKeyArgs) error {
	if args.withoutPlaintext {
		resp, err := c.Crypto.GenerateDataKeyWithoutPlaintext(ctx, &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{
			KeyId: args.key, EncryptionContext: args.context, NumberOfBytes: args.bytes, KeySpec: args.spec,
		})
		if err != nil {
			return rpcError(err)
		}
		if err := moveToFile(&resp.CiphertextBlob, args.ciphertextOut); err != nil {
			return err
		}
		return a.printMessage(resp)
	}
	resp, err := c.Crypto.GenerateDataKey(ctx, &keyholdv1.GenerateDataKeyRequest{
		KeyId: args.key, EncryptionContext: args.context, NumberOfBytes: args.bytes, KeySpec: args.spec,
	})
	if err != nil {
		return rpcError(err)
	}
	plaintext := resp.GetPlaintext()
	defer clear(plaintext)
	// The encrypted copy first: a data key whose encrypted copy was lost must
	// not be used.
	if err := moveToFile(&resp.CiphertextBlob, args.ciphertextOut); err != nil {
		return err
	}
	if err := moveToFile(&resp.Plaintext, args.plaintextOut); err != nil {
		return err
	}
	return a.printMessage(resp)
}

// moveToFile writes a member of an answer to a file, if one is named, and
// takes it out of the answer.
func moveToFile(member *[]byte, file string) error {
	if file == "" {
		return nil
	}
	if err := writeFile(file, *member); err != nil {
		return fmt.Errorf("write data key: %w", err)
	}
	*member = nil
	return nil
}

func (a *app) randomCommand() *cobra.Command {
	var out string
	var enc encoding
	cmd := &cobra.Command{
		Use:   "random N",
		Short: "Get N random bytes, 1 to 1024, from the token",
		Example: `  keyhold random 32 > seed
  keyhold random 16 --encoding hex`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := parseCount(args[0])
			if err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.GenerateRandom(cmd.Context(), &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(n)})
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetPlaintext(), out, enc)
			})
		},
	}
	resultFlags(cmd, &out, &enc)
	return cmd
}

// parseCount parses a number of bytes. The server knows the limit.
func parseCount(s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n <= 0 {
		return 0, usagef("%q is not a number of bytes, 1 or more", s)
	}
	return int32(n), nil
}
