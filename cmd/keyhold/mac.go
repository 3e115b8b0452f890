package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// macArgs is what mac and verify-mac were both told.
type macArgs struct {
	key       string
	algorithm keyholdv1.MacAlgorithmSpec
}

func (m *macArgs) declare(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.key, "key", "", "the key: id, ARN, alias/NAME or alias ARN")
	enumVar(cmd, &m.algorithm, "algorithm", "MAC algorithm; by default the key's, which is looked up")
	requireFlags(cmd, "key")
}

func (m *macArgs) input() inputSpec {
	return inputSpec{name: "message", limit: maxMessageBytes, remedy: "make a digest of it and authenticate that"}
}

// resolve finds the algorithm, if it was not said: a key has but one.
func (m *macArgs) resolve(ctx context.Context, c *client.Client) error {
	if m.algorithm != 0 {
		return nil
	}
	meta, err := describeFor(ctx, c, m.key, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC)
	if err != nil {
		return err
	}
	m.algorithm, err = only(meta.GetMacAlgorithms())
	return err
}

func (a *app) macCommand() *cobra.Command {
	var m macArgs
	var out string
	var enc encoding
	cmd := &cobra.Command{
		Use:   "mac --key KEY [FILE]",
		Short: "Make an HMAC of up to 4096 bytes",
		Example: `  keyhold mac --key alias/webhooks < message > message.mac
  keyhold mac --key alias/webhooks --encoding hex message`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			message, err := a.readInput(cmd.Context(), fileArgument(args), m.input())
			if err != nil {
				return err
			}
			defer clear(message)
			return a.withClient(func(c *client.Client) error {
				if err := m.resolve(cmd.Context(), c); err != nil {
					return err
				}
				resp, err := c.Crypto.GenerateMac(cmd.Context(), &keyholdv1.GenerateMacRequest{
					KeyId: m.key, Message: message, MacAlgorithm: m.algorithm,
				})
				if err != nil {
					return rpcError(err)
				}
				return a.printResult(resp, resp.GetMac(), out, enc)
			})
		},
	}
	m.declare(cmd)
	resultFlags(cmd, &out, &enc)
	return cmd
}

func (a *app) verifyMacCommand() *cobra.Command {
	var m macArgs
	var macFile string
	var enc encoding
	cmd := &cobra.Command{
		Use:     "verify-mac --key KEY --mac FILE [FILE]",
		Short:   "Verify an HMAC",
		Long:    "Verify an HMAC in the token, in constant time. The exit code is 0 only if it is valid.",
		Example: "  keyhold verify-mac --key alias/webhooks --mac message.mac < message",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if macFile == "-" && (fileArgument(args) == "" || fileArgument(args) == "-") {
				return usagef("MAC and message cannot both be standard input")
			}
			mac, err := a.readInput(cmd.Context(), macFile, inputSpec{name: "MAC", limit: maxMACBytes, enc: enc})
			if err != nil {
				return err
			}
			defer clear(mac)
			message, err := a.readInput(cmd.Context(), fileArgument(args), m.input())
			if err != nil {
				return err
			}
			defer clear(message)
			return a.withClient(func(c *client.Client) error {
				if err := m.resolve(cmd.Context(), c); err != nil {
					return err
				}
				resp, err := c.Crypto.VerifyMac(cmd.Context(), &keyholdv1.VerifyMacRequest{
					KeyId: m.key, Message: message, MacAlgorithm: m.algorithm, Mac: mac,
				})
				if err != nil {
					return rpcError(err)
				}
				if !resp.GetMacValid() {
					// The API says that it is an error then. Trust nothing less.
					return fmt.Errorf("the server did not say that the MAC is valid")
				}
				return a.printMessage(resp)
			})
		},
	}
	m.declare(cmd)
	cmd.Flags().StringVar(&macFile, "mac", "", "file with the MAC; - is standard input")
	encodingVar(cmd, &enc, "mac-encoding", "how the MAC is written: raw, base64 or hex")
	requireFlags(cmd, "mac")
	return cmd
}
