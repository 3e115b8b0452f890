package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Limits of key wrapping, in bytes.
const (
	maxWrapBytes    = 4096
	maxWrappedBytes = 4104
)

// wrapArgs is what wrap and unwrap were both told.
type wrapArgs struct {
	key        string
	algorithm  keyholdv1.WrappingAlgorithmSpec
	inEnc, enc encoding
	out        string
}

func (w *wrapArgs) declare(cmd *cobra.Command, input string) {
	cmd.Flags().StringVar(&w.key, "key", "", "the wrapping key: id, ARN, alias/NAME or alias ARN")
	wrappingAlgorithmVar(cmd, &w.algorithm)
	encodingVar(cmd, &w.inEnc, "input-encoding", "how "+input+" is written: raw, base64 or hex")
	resultFlags(cmd, &w.out, &w.enc)
	requireFlags(cmd, "key")
}

func wrappingAlgorithmVar(cmd *cobra.Command, algorithm *keyholdv1.WrappingAlgorithmSpec) {
	enumVar(cmd, algorithm, "algorithm", "wrapping algorithm, RFC 5649 or RFC 3394 (default AES_KWP)")
}

func (a *app) wrapCommand() *cobra.Command {
	var w wrapArgs
	cmd := &cobra.Command{
		Use:   "wrap --key KEY [FILE]",
		Short: "Wrap a key of your own under a wrapping key",
		Long: `Wrap up to 4096 bytes, which are a key, by AES key wrap inside the token. The
wrapping key has the usage WRAP_UNWRAP. What comes out is as RFC 5649 has it, or
RFC 3394 with --algorithm AES_KW, and names no key.

Not every token takes every length: SoftHSM takes multiples of 8 bytes, and so
does AES_KW everywhere. A key of 32 bytes is fine.`,
		Example: `  keyhold key create --usage WRAP_UNWRAP --alias wrapper
  keyhold wrap --key alias/wrapper --out aes.key.wrapped aes.key   # 32 bytes, as from openssl rand 32`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			plaintext, err := a.readInput(cmd.Context(), fileArgument(args), inputSpec{
				name: "key", limit: maxWrapBytes, enc: w.inEnc, remedy: "`keyhold file encrypt` takes more",
			})
			if err != nil {
				return err
			}
			defer clear(plaintext)
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.WrapKey(cmd.Context(), &keyholdv1.WrapKeyRequest{
					KeyId: w.key, PlaintextKey: plaintext, WrappingAlgorithm: w.algorithm,
				})
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetWrappedKey(), w.out, w.enc)
			})
		},
	}
	w.declare(cmd, "the key")
	return cmd
}

func (a *app) unwrapCommand() *cobra.Command {
	var w wrapArgs
	cmd := &cobra.Command{
		Use:   "unwrap --key KEY [FILE]",
		Short: "Unwrap what wrap or key export made",
		Long: `Unwrap a key inside the token and hand it out in the clear. The wrapped key does
not say under which key it is: --key must name the right one.`,
		Example: `  keyhold unwrap --key alias/wrapper --out aes.key aes.key.wrapped
  keyhold key export alias/app --wrapping-key alias/wrapper | keyhold unwrap --key alias/wrapper --encoding hex`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			wrapped, err := a.readInput(cmd.Context(), fileArgument(args), inputSpec{name: "wrapped key", limit: maxWrappedBytes, enc: w.inEnc})
			if err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.UnwrapKey(cmd.Context(), &keyholdv1.UnwrapKeyRequest{
					KeyId: w.key, WrappedKey: wrapped, WrappingAlgorithm: w.algorithm,
				})
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetPlaintextKey(), w.out, w.enc)
			})
		},
	}
	w.declare(cmd, "the wrapped key")
	return cmd
}

func (a *app) keyExportCommand() *cobra.Command {
	var wrappingKey, out string
	var algorithm keyholdv1.WrappingAlgorithmSpec
	var enc encoding
	cmd := a.keyVerb("export", "Take a key out of its token, wrapped", keyArgument,
		"  keyhold key create --custody EXPORTABLE --alias app\n"+
			"  keyhold key create --usage WRAP_UNWRAP --alias wrapper\n"+
			"  keyhold key export alias/app --wrapping-key alias/wrapper --out app.wrapped",
		func(ctx context.Context, c *client.Client, key string) error {
			resp, err := c.Crypto.ExportKey(ctx, &keyholdv1.ExportKeyRequest{
				KeyId: key, WrappingKeyId: wrappingKey, WrappingAlgorithm: algorithm,
			})
			if err != nil {
				return rpcError(err)
			}
			return a.printResult(resp, resp.GetWrappedKey(), out, enc)
		})
	cmd.Long = `Wrap a key's material under a wrapping key, and hand it out so. The key must have
been created with --custody EXPORTABLE: no other ever leaves its token. The
wrapping key has the usage WRAP_UNWRAP. Whoever may call UnwrapKey with it can
read what leaves.`
	cmd.Flags().StringVar(&wrappingKey, "wrapping-key", "", "the key that wraps it: id, ARN, alias/NAME or alias ARN")
	wrappingAlgorithmVar(cmd, &algorithm)
	resultFlags(cmd, &out, &enc)
	requireFlags(cmd, "wrapping-key")
	return cmd
}
