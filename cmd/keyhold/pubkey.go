package main

import (
	"encoding/pem"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func (a *app) pubkeyCommand() *cobra.Command {
	var key, out, format string
	var enc encoding
	cmd := &cobra.Command{
		Use:   "pubkey --key KEY",
		Short: "Get the public key of a key pair",
		Long: `Get the public key of an asymmetric key as SubjectPublicKeyInfo (RFC 5280), in
PEM or DER, to encrypt or verify without the server.`,
		Example: `  keyhold pubkey --key alias/release > release.pem
  keyhold pubkey --key alias/release --format der --out release.der`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := keyArgument(args, key)
			if err != nil {
				return err
			}
			if format != "pem" && format != "der" {
				return usagef("--format must be pem or der, not %q", format)
			}
			if enc != "" && format != "der" {
				return usagef("--encoding is for --format der; PEM is text already")
			}
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.GetPublicKey(cmd.Context(), &keyholdv1.GetPublicKeyRequest{KeyId: key})
				if err != nil {
					return rpcError(err)
				}
				if format == "der" || a.output == outputJSON && out == "" {
					return a.printResult(resp, resp.GetPublicKey(), out, enc)
				}
				text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: resp.GetPublicKey()})
				return a.writeBytes(text, out, encodingRaw)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key: id, ARN, alias/NAME or alias ARN")
	cmd.Flags().StringVar(&format, "format", "pem", "pem or der")
	completeWords(cmd, "format", "pem", "der")
	resultFlags(cmd, &out, &enc)
	return cmd
}
