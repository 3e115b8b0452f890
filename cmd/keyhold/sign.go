package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// signArgs is what sign and verify were both told.
type signArgs struct {
	key       string
	algorithm keyholdv1.SigningAlgorithmSpec
	digest    bool
}

func (s *signArgs) declare(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.key, "key", "", "the key: id, ARN, alias/NAME or alias ARN")
	enumVar(cmd, &s.algorithm, "algorithm", "signing algorithm, needed if the key knows several")
	cmd.Flags().BoolVar(&s.digest, "digest", false, "the input is the message's digest, in raw bytes, not the message")
	requireFlags(cmd, "key")
}

func (s *signArgs) messageType() keyholdv1.MessageType {
	if s.digest {
		return keyholdv1.MessageType_MESSAGE_TYPE_DIGEST
	}
	return keyholdv1.MessageType_MESSAGE_TYPE_RAW
}

// input describes the message, and how to go about one that is too large.
func (s *signArgs) input() inputSpec {
	hash := "sha256"
	for _, bits := range []string{"384", "512"} {
		if strings.HasSuffix(awsjson.EnumName(s.algorithm), bits) {
			hash = "sha" + bits
		}
	}
	return inputSpec{
		name: "message", limit: maxMessageBytes,
		remedy: "give its digest: `openssl dgst -" + hash + " -binary FILE` piped into the same command with --digest",
	}
}

// resolve finds the algorithm, if it was not said, among those of the key.
func (s *signArgs) resolve(ctx context.Context, c *client.Client) error {
	if s.algorithm != 0 {
		return nil
	}
	meta, err := describeFor(ctx, c, s.key, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY)
	if err != nil {
		return err
	}
	s.algorithm, err = only(meta.GetSigningAlgorithms())
	return err
}

// describeFor looks up what algorithms a key knows, and refuses one of another
// usage with its name.
func describeFor(ctx context.Context, c *client.Client, key string, usage keyholdv1.KeyUsageType) (*keyholdv1.KeyMetadata, error) {
	resp, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: key})
	if err != nil {
		return nil, withHint(rpcError(err), "the key's algorithm was looked up; --algorithm does without")
	}
	meta := resp.GetKeyMetadata()
	if meta.GetKeyUsage() != usage {
		return nil, fmt.Errorf("the key %s is for %s, not for %s", meta.GetArn(), awsjson.EnumName(meta.GetKeyUsage()), awsjson.EnumName(usage))
	}
	return meta, nil
}

// only returns the one algorithm of a list, or says that one must be chosen.
func only[E enum](algorithms []E) (E, error) {
	if len(algorithms) == 1 {
		return algorithms[0], nil
	}
	var names []string
	for _, alg := range algorithms {
		names = append(names, awsjson.EnumName(alg))
	}
	return 0, usagef("the key knows several algorithms; choose with --algorithm: %s", strings.Join(names, ", "))
}

func (a *app) signCommand() *cobra.Command {
	var s signArgs
	var out string
	var enc encoding
	cmd := &cobra.Command{
		Use:   "sign --key KEY --algorithm ALGORITHM [FILE]",
		Short: "Sign a message of up to 4096 bytes, or a digest",
		Example: `  keyhold sign --key alias/release --algorithm ECDSA_SHA_256 < message > message.sig
  openssl dgst -sha256 -binary release.tar |
    keyhold sign --key alias/release --algorithm ECDSA_SHA_256 --digest > release.sig`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			message, err := a.readInput(cmd.Context(), fileArgument(args), s.input())
			if err != nil {
				return err
			}
			defer clear(message)
			return a.withClient(func(c *client.Client) error {
				if err := s.resolve(cmd.Context(), c); err != nil {
					return err
				}
				resp, err := c.Crypto.Sign(cmd.Context(), &keyholdv1.SignRequest{
					KeyId: s.key, Message: message, MessageType: s.messageType(), SigningAlgorithm: s.algorithm,
				})
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetSignature(), out, enc)
			})
		},
	}
	s.declare(cmd)
	resultFlags(cmd, &out, &enc)
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	var s signArgs
	var signatureFile string
	var enc encoding
	cmd := &cobra.Command{
		Use:   "verify --key KEY --algorithm ALGORITHM --signature FILE [FILE]",
		Short: "Verify a signature",
		Long:  "Verify a signature with the key's public half. The exit code is 0 only if it is valid.",
		Example: `  keyhold verify --key alias/release --algorithm ECDSA_SHA_256 --signature message.sig < message
  keyhold pubkey --key alias/release > release.pem   # to verify without the server`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if signatureFile == "-" && (fileArgument(args) == "" || fileArgument(args) == "-") {
				return usagef("signature and message cannot both be standard input")
			}
			signature, err := a.readInput(cmd.Context(), signatureFile, inputSpec{name: "signature", limit: maxSignatureBytes, enc: enc})
			if err != nil {
				return err
			}
			message, err := a.readInput(cmd.Context(), fileArgument(args), s.input())
			if err != nil {
				return err
			}
			defer clear(message)
			return a.withClient(func(c *client.Client) error {
				if err := s.resolve(cmd.Context(), c); err != nil {
					return err
				}
				resp, err := c.Crypto.Verify(cmd.Context(), &keyholdv1.VerifyRequest{
					KeyId: s.key, Message: message, MessageType: s.messageType(), Signature: signature, SigningAlgorithm: s.algorithm,
				})
				if err != nil {
					return rpcError(err)
				}
				if !resp.GetSignatureValid() {
					// The API says that it is an error then. Trust nothing less.
					return fmt.Errorf("the server did not say that the signature is valid")
				}
				return a.printMessage(resp)
			})
		},
	}
	s.declare(cmd)
	cmd.Flags().StringVar(&signatureFile, "signature", "", "file with the signature; - is standard input")
	encodingVar(cmd, &enc, "signature-encoding", "how the signature is written: raw, base64 or hex")
	requireFlags(cmd, "signature")
	return cmd
}
