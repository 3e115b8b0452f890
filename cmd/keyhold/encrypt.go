package main

import (
	"bytes"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

const encodingUsage = "how to write it: raw, base64 or hex; default raw, but base64 on a terminal"

func (a *app) encryptCommand() *cobra.Command {
	var key, out string
	var algorithm keyholdv1.EncryptionAlgorithmSpec
	var enc encoding
	pairs := pairsFlag{}
	cmd := &cobra.Command{
		Use:   "encrypt --key KEY [FILE]",
		Short: "Encrypt up to 4096 bytes",
		Long: `Encrypt a file or standard input, up to 4096 bytes, inside the token. For more,
there is ` + "`keyhold file encrypt`" + `. RSA keys need --algorithm and take less.`,
		Example: `  keyhold encrypt --key alias/app < password > password.kh
  keyhold encrypt --key alias/app --context tenant=7 --out password.kh password`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			plaintext, err := a.readInput(cmd.Context(), fileArgument(args), inputSpec{
				name: "plaintext", limit: maxPlaintextBytes, remedy: "`keyhold file encrypt` takes more",
			})
			if err != nil {
				return err
			}
			defer clear(plaintext)
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.Encrypt(cmd.Context(), &keyholdv1.EncryptRequest{
					KeyId: key, Plaintext: plaintext, EncryptionContext: pairs, EncryptionAlgorithm: algorithm,
				})
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetCiphertextBlob(), out, enc)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key: id, ARN, alias/NAME or alias ARN")
	contextVar(cmd, pairs, "context", "pair of the encryption context, which decrypt must give again")
	enumVar(cmd, &algorithm, "algorithm", "algorithm, needed for RSA keys")
	resultFlags(cmd, &out, &enc)
	requireFlags(cmd, "key")
	return cmd
}

// resultFlags declares where and how a command writes its bytes.
func resultFlags(cmd *cobra.Command, out *string, enc *encoding) {
	cmd.Flags().StringVar(out, "out", "", "write to this file, with mode 0600, instead of standard output; a file that exists is replaced")
	encodingVar(cmd, enc, "encoding", encodingUsage)
}

// printResult writes what a command made: the whole answer as JSON if that was
// asked for, else the bytes alone.
func (a *app) printResult(resp proto.Message, b []byte, out string, enc encoding) error {
	if a.output == outputJSON && out == "" {
		defer clear(b)
		return a.printMessage(resp)
	}
	return a.writeBytes(b, out, enc)
}

func (a *app) decryptCommand() *cobra.Command {
	var key, out string
	var algorithm keyholdv1.EncryptionAlgorithmSpec
	var inEnc, enc encoding
	pairs := pairsFlag{}
	cmd := &cobra.Command{
		Use:   "decrypt [FILE]",
		Short: "Decrypt what encrypt made",
		Long: `Decrypt a file or standard input inside the token. Ciphertexts of symmetric keys
name their key; for RSA, --key and --algorithm are needed. With --key, a
ciphertext of another key is refused.

On a terminal, text is shown as it is and anything else in base64.`,
		Example: `  keyhold decrypt < password.kh > password
  keyhold decrypt --key alias/app --context tenant=7 password.kh`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			blob, err := a.readInput(cmd.Context(), fileArgument(args), inputSpec{
				name: "ciphertext", limit: maxCiphertextBytes, enc: inEnc,
			})
			if err != nil {
				return err
			}
			req := &keyholdv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: pairs, EncryptionAlgorithm: algorithm}
			if key != "" {
				req.KeyId = &key
			}
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.Decrypt(cmd.Context(), req)
				if err != nil {
					return rpcError(err)
				}
				return a.printPlaintext(resp, out, enc)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key that it must be encrypted under")
	contextVar(cmd, pairs, "context", "pair of the encryption context that encrypt was given")
	enumVar(cmd, &algorithm, "algorithm", "algorithm, needed for RSA keys")
	encodingVar(cmd, &inEnc, "input-encoding", "how the ciphertext is written: raw, base64 or hex")
	resultFlags(cmd, &out, &enc)
	return cmd
}

// printPlaintext is printResult, but a plaintext that is text is shown on a
// terminal as it is, since a person wants to read it.
func (a *app) printPlaintext(resp *keyholdv1.DecryptResponse, out string, enc encoding) error {
	plaintext := resp.GetPlaintext()
	onTerminal := a.output != outputJSON && out == "" && enc == "" && a.isTerminal(a.stdout)
	if !onTerminal || !isText(plaintext) {
		return a.printResult(resp, plaintext, out, enc)
	}
	defer clear(plaintext)
	if err := a.write(plaintext); err != nil {
		return err
	}
	if !bytes.HasSuffix(plaintext, []byte("\n")) {
		return a.write([]byte("\n"))
	}
	return nil
}

// isText reports whether b can be sent to a terminal without its obeying
// anything but line feeds and tabs.
func isText(b []byte) bool {
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size == 1 || r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r <= 0x9f {
			return false
		}
		b = b[size:]
	}
	return true
}

func (a *app) reencryptCommand() *cobra.Command {
	var key, sourceKey, out string
	var algorithm, sourceAlgorithm keyholdv1.EncryptionAlgorithmSpec
	var inEnc, enc encoding
	pairs, sourcePairs := pairsFlag{}, pairsFlag{}
	cmd := &cobra.Command{
		Use:   "reencrypt --key KEY [FILE]",
		Short: "Encrypt a ciphertext under another key or context",
		Long: `Decrypt a ciphertext and encrypt it again, under another key or another
encryption context. The plaintext does not leave the server.`,
		Example: `  keyhold reencrypt --key alias/new < old.kh > new.kh
  keyhold reencrypt --key alias/app --source-context tenant=7 --context tenant=8 < old.kh > new.kh`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			blob, err := a.readInput(cmd.Context(), fileArgument(args), inputSpec{
				name: "ciphertext", limit: maxCiphertextBytes, enc: inEnc,
			})
			if err != nil {
				return err
			}
			req := &keyholdv1.ReEncryptRequest{
				CiphertextBlob:                 blob,
				SourceEncryptionContext:        sourcePairs,
				SourceEncryptionAlgorithm:      sourceAlgorithm,
				DestinationKeyId:               key,
				DestinationEncryptionContext:   pairs,
				DestinationEncryptionAlgorithm: algorithm,
			}
			if sourceKey != "" {
				req.SourceKeyId = &sourceKey
			}
			return a.withClient(func(c *client.Client) error {
				resp, err := c.Crypto.ReEncrypt(cmd.Context(), req)
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetCiphertextBlob(), out, enc)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key to encrypt under: id, ARN, alias/NAME or alias ARN")
	contextVar(cmd, pairs, "context", "pair of the new encryption context")
	enumVar(cmd, &algorithm, "algorithm", "new algorithm, needed for RSA keys")
	cmd.Flags().StringVar(&sourceKey, "source-key", "", "the key that it must be encrypted under")
	contextVar(cmd, sourcePairs, "source-context", "pair of the old encryption context")
	enumVar(cmd, &sourceAlgorithm, "source-algorithm", "old algorithm, needed for RSA keys")
	encodingVar(cmd, &inEnc, "input-encoding", "how the ciphertext is written: raw, base64 or hex")
	resultFlags(cmd, &out, &enc)
	requireFlags(cmd, "key")
	return cmd
}
