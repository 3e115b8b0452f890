package main

import (
	"context"
	"encoding/pem"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// dataKeyPairArgs is what datakeypair was told.
type dataKeyPairArgs struct {
	key              string
	context          pairsFlag
	spec             keyholdv1.DataKeyPairSpec
	format           string
	privateOut       string
	ciphertextOut    string
	publicOut        string
	withoutPlaintext bool
}

func (a *app) dataKeyPairCommand() *cobra.Command {
	args := dataKeyPairArgs{context: pairsFlag{}}
	cmd := &cobra.Command{
		Use:   "datakeypair --key KEY --spec SPEC",
		Short: "Get a key pair to use outside of the token",
		Long: `Get a new key pair to use outside of the token: the public key, the private key
in the clear, to use now and forget, and encrypted under a key, to keep. Later
` + "`keyhold decrypt`" + ` opens the encrypted copy, to PKCS #8 in DER.

Files of the private and the public key are PKCS #8 and SubjectPublicKeyInfo, in
PEM unless --format says der. All files have mode 0600; those that exist are replaced.`,
		Example: `  keyhold datakeypair --key alias/app --spec ECC_NIST_P256 --output json
  keyhold datakeypair --key alias/app --spec RSA_2048 --private-out k.pem --public-out pub.pem --ciphertext-out k.kh
  keyhold datakeypair --key alias/app --spec ECC_NIST_EDWARDS25519 --without-plaintext --ciphertext-out k.kh`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case args.format != "pem" && args.format != "der":
				return usagef("--format must be pem or der, not %q", args.format)
			case sameFile(args.privateOut, args.ciphertextOut) || sameFile(args.privateOut, args.publicOut) || sameFile(args.ciphertextOut, args.publicOut):
				return usagef("two of --private-out, --ciphertext-out and --public-out name the same file")
			case args.withoutPlaintext && args.privateOut != "":
				return usagef("--private-out and --without-plaintext contradict each other")
			}
			return a.withClient(func(c *client.Client) error { return a.dataKeyPair(cmd.Context(), c, &args) })
		},
	}
	cmd.Flags().StringVar(&args.key, "key", "", "the key that encrypts the private key: id, ARN, alias/NAME or alias ARN")
	contextVar(cmd, args.context, "context", "pair of the encryption context, which decrypt must give again")
	enumVar(cmd, &args.spec, "spec", "type of the pair")
	cmd.Flags().StringVar(&args.format, "format", "pem", "of --private-out and --public-out: pem or der")
	completeWords(cmd, "format", "pem", "der")
	cmd.Flags().BoolVar(&args.withoutPlaintext, "without-plaintext", false, "only the encrypted copy of the private key")
	cmd.Flags().StringVar(&args.privateOut, "private-out", "", "write the private key to this file and do not print it")
	cmd.Flags().StringVar(&args.ciphertextOut, "ciphertext-out", "", "write the encrypted private key to this file, raw, and do not print it")
	cmd.Flags().StringVar(&args.publicOut, "public-out", "", "write the public key to this file, and do not print it")
	requireFlags(cmd, "key", "spec")
	return cmd
}

func (a *app) dataKeyPair(ctx context.Context, c *client.Client, args *dataKeyPairArgs) error {
	if args.withoutPlaintext {
		resp, err := c.Crypto.GenerateDataKeyPairWithoutPlaintext(ctx, &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{
			KeyId: args.key, EncryptionContext: args.context, KeyPairSpec: args.spec,
		})
		if err != nil {
			return rpcError(err)
		}
		if err := moveToFile(&resp.PrivateKeyCiphertextBlob, args.ciphertextOut); err != nil {
			return err
		}
		if err := args.moveKey(&resp.PublicKey, args.publicOut, "PUBLIC KEY"); err != nil {
			return err
		}
		return a.printMessage(resp)
	}
	resp, err := c.Crypto.GenerateDataKeyPair(ctx, &keyholdv1.GenerateDataKeyPairRequest{
		KeyId: args.key, EncryptionContext: args.context, KeyPairSpec: args.spec,
	})
	if err != nil {
		return rpcError(err)
	}
	defer clear(resp.GetPrivateKeyPlaintext())
	// The encrypted copy first: a key whose encrypted copy was lost must not be
	// used.
	if err := moveToFile(&resp.PrivateKeyCiphertextBlob, args.ciphertextOut); err != nil {
		return err
	}
	if err := args.moveKey(&resp.PrivateKeyPlaintext, args.privateOut, "PRIVATE KEY"); err != nil {
		return err
	}
	if err := args.moveKey(&resp.PublicKey, args.publicOut, "PUBLIC KEY"); err != nil {
		return err
	}
	return a.printMessage(resp)
}

// moveKey is moveToFile for a key in DER, which becomes PEM of a type if that
// was asked for.
func (args *dataKeyPairArgs) moveKey(member *[]byte, file, pemType string) error {
	if file == "" || args.format == "der" {
		return moveToFile(member, file)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: *member})
	defer clear(text)
	if err := moveToFile(&text, file); err != nil {
		return err
	}
	*member = nil
	return nil
}
