package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func (a *app) accessKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "access-key",
		Short: "Manage the access keys that principals sign requests with",
		Long: `Manage the access keys of principals: an access key id and a secret, with which
AWS clients sign requests. A principal has at most two, so that one can be
replaced by the other: create the second, use it everywhere, deactivate the first,
see that nothing fails, delete it.

Access keys of others are for the root of their account,
arn:aws:iam::<account>:root.`,
	}
	cmd.AddCommand(
		a.accessKeyCreateCommand(), a.accessKeyListCommand(),
		a.accessKeyStatusCommand("deactivate", "Refuse requests that are signed with an access key", keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_INACTIVE),
		a.accessKeyStatusCommand("activate", "Accept requests that are signed with an access key again", keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_ACTIVE),
		a.accessKeyDeleteCommand(), a.accessKeyLastUsedCommand(),
	)
	return cmd
}

// principalVar declares --principal.
func principalVar(cmd *cobra.Command, p *string) {
	cmd.Flags().StringVar(p, "principal", "", "whose: arn:aws:iam::<account>:user/<name>, :role/<name> or :root; the caller's own if left out")
}

// optional returns nil for what was left out.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (a *app) accessKeyCreateCommand() *cobra.Command {
	var principal string
	var shell bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make an access key, and show its secret this once",
		Long: `Make an access key, and show its secret this once. Nobody can show it again: the
server keeps it sealed by the token. Who has lost it makes another key.

With --output json the result is like that of ` + "`aws iam create-access-key`" + `, with a
PrincipalArn where that has a UserName.`,
		Example: `  keyhold access-key create --principal arn:aws:iam::111122223333:user/app
  eval "$(keyhold access-key create --shell)"`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				resp, err := c.AccessKeys.CreateAccessKey(cmd.Context(), &keyholdv1.CreateAccessKeyRequest{PrincipalArn: optional(principal)})
				if err != nil {
					return rpcError(err)
				}
				k := resp.GetAccessKey()
				defer clear(k.GetSecretAccessKey())
				if err := a.printAccessKey(k, shell); err != nil {
					return withHint(err, "the key was made and its secret is lost: keyhold access-key delete %s", printable(k.GetAccessKeyId()))
				}
				return nil
			})
		},
	}
	principalVar(cmd, &principal)
	cmd.Flags().BoolVar(&shell, "shell", false, "as commands for a POSIX shell, which set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	return cmd
}

// printAccessKey prints a key with its secret, and clears what it made of it.
func (a *app) printAccessKey(k *keyholdv1.AccessKey, shell bool) error {
	if !plainSecret(k.GetSecretAccessKey()) {
		return errors.New("the server sent a secret that is not of visible ASCII characters")
	}
	switch {
	case shell:
		// Neither has anything in it that a shell would take for its own: the secret
		// has no quote, and is of visible characters.
		b := fmt.Appendf(make([]byte, 0, 512), "export AWS_ACCESS_KEY_ID=%s\nexport AWS_SECRET_ACCESS_KEY='", quoteShell(k.GetAccessKeyId()))
		b = append(append(b, k.GetSecretAccessKey()...), "'\n"...)
		defer clear(b[:cap(b)])
		return a.write(b)
	case a.output == outputJSON:
		b := append(make([]byte, 0, 4096), `{"AccessKey":`...)
		// The secret is text: AWS's clients know no other form.
		whole := awsjson.NewEncoder(awsjson.Options{OmitRedacted: true}).AppendMessage(b, k)
		whole = append(append(append(whole[:len(whole)-1], `,"SecretAccessKey":"`...), k.GetSecretAccessKey()...), `"}}`...)
		return a.printJSON(whole)
	}
	return a.printRows(nil, [][]string{
		{"Principal", k.GetPrincipalArn()},
		{"AccessKeyId", k.GetAccessKeyId()},
		{"SecretAccessKey", string(k.GetSecretAccessKey())},
	})
}

// plainSecret tells whether a secret can be printed between quotes of a shell and
// of JSON as it is.
func plainSecret(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c > '~' || c == '\'' || c == '"' || c == '\\' {
			return false
		}
	}
	return len(b) > 0
}

func (a *app) accessKeyListCommand() *cobra.Command {
	var principal string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List a principal's access keys",
		Example: "  keyhold access-key list --principal arn:aws:iam::111122223333:user/app",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				resp, err := c.AccessKeys.ListAccessKeys(cmd.Context(), &keyholdv1.ListAccessKeysRequest{PrincipalArn: optional(principal)})
				if err != nil {
					return rpcError(err)
				}
				return a.printList(resp, "access_key_metadata", "access_key_id", "status", "create_date", "principal_arn")
			})
		},
	}
	principalVar(cmd, &principal)
	return cmd
}

func (a *app) accessKeyStatusCommand(verb, short string, status keyholdv1.AccessKeyStatus) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " ID",
		Short:   short,
		Example: "  keyhold access-key " + verb + " AKIAQ3EGRIPW4X5ABCDE",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				_, err := c.AccessKeys.UpdateAccessKey(cmd.Context(), &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: args[0], Status: status})
				return rpcError(err)
			})
		},
	}
}

func (a *app) accessKeyDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete ID",
		Short: "Delete an access key for good",
		Long: `Delete an access key for good. Deactivate it first and see whether anything fails:
that can be taken back.`,
		Example: "  keyhold access-key delete AKIAQ3EGRIPW4X5ABCDE",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				_, err := c.AccessKeys.DeleteAccessKey(cmd.Context(), &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: args[0]})
				return rpcError(err)
			})
		},
	}
}

func (a *app) accessKeyLastUsedCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "last-used ID",
		Short:   "Say when, where and for which service an access key was used last",
		Example: "  keyhold access-key last-used AKIAQ3EGRIPW4X5ABCDE",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				resp, err := c.AccessKeys.GetAccessKeyLastUsed(cmd.Context(), &keyholdv1.GetAccessKeyLastUsedRequest{AccessKeyId: args[0]})
				if err != nil {
					return rpcError(err)
				}
				if a.output == outputJSON {
					return a.printMessage(resp)
				}
				return a.printMessage(resp.GetAccessKeyLastUsed())
			})
		},
	}
}
