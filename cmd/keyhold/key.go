package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// maxPages bounds a listing against a server that never ends it.
const maxPages = 100_000

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make and manage keys",
	}
	cmd.AddCommand(
		a.keyCreateCommand(), a.keyListCommand(), a.keyDescribeCommand(),
		a.keyEnableCommand(), a.keyDisableCommand(),
		a.keyScheduleDeletionCommand(), a.keyCancelDeletionCommand(), a.keyUpdateDescriptionCommand(),
		a.keyExportCommand(),
	)
	return cmd
}

func (a *app) keyCreateCommand() *cobra.Command {
	spec := keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT
	var usage keyholdv1.KeyUsageType
	var custody keyholdv1.KeyCustodyType
	var description, alias string
	tags := pairsFlag{}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Generate a key inside the token",
		Long: `Generate a key inside the token and print its metadata. The key never leaves the
token, unless --custody EXPORTABLE says that ` + "`keyhold key export`" + ` may wrap it.

The usage follows from the spec: SYMMETRIC_DEFAULT keys encrypt (unless --usage
says WRAP_UNWRAP), HMAC keys make MACs, ECC keys sign (unless it says
KEY_AGREEMENT). RSA keys can do two things, so for them it must be said.`,
		Example: `  keyhold key create --alias app
  keyhold key create --spec HMAC_256 --tag team=payments --output json
  keyhold key create --spec RSA_3072 --usage SIGN_VERIFY --description 'code signing'
  keyhold key create --usage WRAP_UNWRAP --alias wrapper`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if usage == 0 {
				var err error
				if usage, err = usageOf(spec); err != nil {
					return err
				}
			}
			if err := checkNewAlias(aliasName(alias)); err != nil {
				return err
			}
			req := &keyholdv1.CreateKeyRequest{KeySpec: spec, KeyUsage: usage, KeyCustody: custody, Description: description, Tags: tags.tags()}
			return a.withClient(func(c *client.Client) error {
				return a.createKey(cmd.Context(), c, req, aliasName(alias))
			})
		},
	}
	enumVar(cmd, &spec, "spec", "type of the key")
	enumVar(cmd, &usage, "usage", "what the key is for")
	enumVar(cmd, &custody, "custody", "whether the key may ever leave its token, wrapped (default GENERATED, which may not)")
	cmd.Flags().StringVar(&alias, "alias", "", "also create this alias; app means alias/app")
	cmd.Flags().StringVar(&description, "description", "", "what people should know about the key")
	cmd.Flags().Var(tags, "tag", "tag of the key; may be repeated")
	return cmd
}

// usageOf returns what keys of a spec are for, if that is but one thing.
func usageOf(spec keyholdv1.KeySpec) (keyholdv1.KeyUsageType, error) {
	name := awsjson.EnumName(spec)
	switch {
	case spec == keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT:
		return keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT, nil
	case strings.HasPrefix(name, "HMAC_"):
		return keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC, nil
	case strings.HasPrefix(name, "ECC_"), strings.HasPrefix(name, "ML_DSA_"):
		return keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY, nil
	}
	return 0, usagef("a key of spec %s can encrypt or sign, but not both: say --usage ENCRYPT_DECRYPT or --usage SIGN_VERIFY", name)
}

// createKey makes the key and then the alias. These are two acts on the
// server: if the second fails, the first stands, and the error says so. What can
// be known before the first is looked at first.
func (a *app) createKey(ctx context.Context, c *client.Client, req *keyholdv1.CreateKeyRequest, alias string) error {
	if alias != "" {
		if err := aliasIsFree(ctx, c, alias); err != nil {
			return err
		}
	}
	resp, err := c.Keys.CreateKey(ctx, req)
	if err != nil {
		return rpcError(err)
	}
	meta := resp.GetKeyMetadata()
	if alias != "" {
		_, err := c.Keys.CreateAlias(ctx, &keyholdv1.CreateAliasRequest{AliasName: alias, TargetKeyId: meta.GetKeyId()})
		if err != nil {
			err = fmt.Errorf("the key %s was created and exists, but its alias was not: %w", meta.GetArn(), rpcError(err))
			return withHint(err, "`keyhold alias create NAME --key %s` gives it an alias, "+
				"`keyhold key schedule-deletion %s` discards it", meta.GetKeyId(), meta.GetKeyId())
		}
	}
	return a.printMessage(meta)
}

// aliasPattern is what CreateAlias accepts as a name, in up to maxAliasChars.
var aliasPattern = regexp.MustCompile(`^alias/[a-zA-Z0-9/_-]+$`)

const maxAliasChars = 256

// checkNewAlias refuses names that no alias can have.
func checkNewAlias(alias string) error {
	switch {
	case alias == "":
		return nil
	case strings.HasPrefix(alias, "alias/aws/"):
		return usagef("--alias %s: names that begin with alias/aws/ are reserved", alias)
	case !aliasPattern.MatchString(alias) || len(alias) > maxAliasChars:
		return usagef("--alias %s: a name is of letters, digits and / _ -, and has up to %d characters with alias/", alias, maxAliasChars)
	}
	return nil
}

// aliasIsFree fails where the alias names a key already, so that no key is made
// that nobody wants. Who may not look goes on: CreateAlias has the last word.
func aliasIsFree(ctx context.Context, c *client.Client, alias string) error {
	resp, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: alias})
	if e, ok := client.ErrorFrom(err); ok {
		if e.Exception == "NotFoundException" || e.Exception == "AccessDeniedException" {
			return nil
		}
		return e
	}
	if err != nil {
		return err
	}
	return withHint(fmt.Errorf("%s names the key %s already; no key was made", alias, resp.GetKeyMetadata().GetArn()),
		"choose another alias, or make the key without one and use `keyhold alias update`")
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the keys of the account and region",
		Example: `  keyhold key list
  keyhold key list --output json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				all := &keyholdv1.ListKeysResponse{Truncated: proto.Bool(false)}
				err := pages(func(marker *string) (string, bool, error) {
					page, err := c.Keys.ListKeys(cmd.Context(), &keyholdv1.ListKeysRequest{Limit: proto.Int32(1000), Marker: marker})
					all.Keys = append(all.Keys, page.GetKeys()...)
					return page.GetNextMarker(), page.GetTruncated(), err
				})
				if err != nil {
					return err
				}
				return a.printList(all, "keys", "key_id", "key_arn")
			})
		},
	}
}

// pages calls next until it says that there are no more pages.
func pages(next func(marker *string) (nextMarker string, truncated bool, err error)) error {
	var marker *string
	for range maxPages {
		m, truncated, err := next(marker)
		if err != nil {
			return rpcError(err)
		}
		if !truncated {
			return nil
		}
		if m == "" || marker != nil && m == *marker {
			return errors.New("the server says that there is more, but not where")
		}
		marker = &m
	}
	return fmt.Errorf("the server has more than %d pages", maxPages)
}

func (a *app) keyDescribeCommand() *cobra.Command {
	return a.keyVerb("describe", "Print a key's metadata", keyArgument,
		"  keyhold key describe alias/app\n  keyhold key describe alias/app --output json",
		func(ctx context.Context, c *client.Client, key string) error {
			resp, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: key})
			if err != nil {
				return rpcError(err)
			}
			return a.printMessage(resp.GetKeyMetadata())
		})
}

func (a *app) keyEnableCommand() *cobra.Command {
	return a.keyVerb("enable", "Make a disabled key usable again", keyIDArgument,
		"  keyhold key enable 1234abcd-12ab-34cd-56ef-1234567890ab",
		func(ctx context.Context, c *client.Client, key string) error {
			_, err := c.Keys.EnableKey(ctx, &keyholdv1.EnableKeyRequest{KeyId: key})
			return rpcError(err)
		})
}

func (a *app) keyDisableCommand() *cobra.Command {
	return a.keyVerb("disable", "Make a key unusable until it is enabled", keyIDArgument,
		"  keyhold key disable 1234abcd-12ab-34cd-56ef-1234567890ab",
		func(ctx context.Context, c *client.Client, key string) error {
			_, err := c.Keys.DisableKey(ctx, &keyholdv1.DisableKeyRequest{KeyId: key})
			return rpcError(err)
		})
}

func (a *app) keyCancelDeletionCommand() *cobra.Command {
	return a.keyVerb("cancel-deletion", "Keep a key that is to be destroyed; it is disabled then", keyIDArgument,
		"  keyhold key cancel-deletion 1234abcd-12ab-34cd-56ef-1234567890ab",
		func(ctx context.Context, c *client.Client, key string) error {
			resp, err := c.Keys.CancelKeyDeletion(ctx, &keyholdv1.CancelKeyDeletionRequest{KeyId: key})
			if err != nil {
				return rpcError(err)
			}
			return a.printMessage(resp)
		})
}

// keyVerb is a command that does one thing to one key, which argument finds in
// its arguments and --key.
func (a *app) keyVerb(
	verb, short string, argument func(args []string, flag string) (string, error), example string,
	do func(ctx context.Context, c *client.Client, key string) error,
) *cobra.Command {
	var keyFlag string
	cmd := &cobra.Command{
		Use:     verb + " KEY",
		Short:   short,
		Example: example,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := argument(args, keyFlag)
			if err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error { return do(cmd.Context(), c, key) })
		},
	}
	cmd.Flags().StringVar(&keyFlag, "key", "", "the key, instead of the argument")
	return cmd
}

func (a *app) keyScheduleDeletionCommand() *cobra.Command {
	var days int32
	var yes bool
	var cmd *cobra.Command
	cmd = a.keyVerb("schedule-deletion", "Destroy a key when a waiting period has passed", keyArgument,
		"  keyhold key schedule-deletion 1234abcd-12ab-34cd-56ef-1234567890ab --days 7\n"+
			"  keyhold key schedule-deletion 1234abcd-12ab-34cd-56ef-1234567890ab --yes   # in scripts",
		func(ctx context.Context, c *client.Client, key string) error {
			req := &keyholdv1.ScheduleKeyDeletionRequest{KeyId: key}
			period := "the default waiting period of 30 days"
			if cmd.Flags().Changed("days") {
				req.PendingWindowInDays = proto.Int32(days)
				period = fmt.Sprintf("a waiting period of %d days", days)
			}
			if yes {
				if err := mustBeID(key); err != nil {
					return err
				}
			} else {
				var err error
				if req.KeyId, err = a.confirmDeletion(ctx, c, key, period); err != nil {
					return err
				}
			}
			resp, err := c.Keys.ScheduleKeyDeletion(ctx, req)
			if err != nil {
				return rpcError(err)
			}
			return a.printMessage(resp)
		})
	cmd.Long = `Make a key unusable at once, and destroy it in the token when the waiting period
has passed. What was encrypted under it is lost then, for ever. Until then
` + "`keyhold key cancel-deletion`" + ` keeps it.

On a terminal you are asked to type the key's id, and may name the key by an
alias. Elsewhere, say --yes, and name it by its id or ARN.`
	cmd.Flags().Int32Var(&days, "days", 30, "the waiting period, 7 to 30 days")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// confirmDeletion shows the key, asks for its id and returns it: an alias may
// name another key by now.
func (a *app) confirmDeletion(ctx context.Context, c *client.Client, key, period string) (id string, err error) {
	if !a.isTerminal(a.stdin) {
		return "", usagef("this destroys a key and nobody can be asked, as standard input is no terminal: confirm with --yes")
	}
	resp, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: key})
	if err != nil {
		return "", withHint(rpcError(err), "the key is described before you are asked; --yes goes ahead without")
	}
	meta := resp.GetKeyMetadata()
	question := fmt.Sprintf("%s (%s, %s", meta.GetArn(), awsjson.EnumName(meta.GetKeySpec()), awsjson.EnumName(meta.GetKeyState()))
	if meta.GetDescription() != "" {
		question += fmt.Sprintf(", %q", meta.GetDescription())
	}
	question += ") becomes unusable now and is destroyed after " + period + ", with all that was encrypted under it."
	return meta.GetKeyId(), a.confirm(ctx, question, meta.GetKeyId())
}

func (a *app) keyUpdateDescriptionCommand() *cobra.Command {
	var description string
	cmd := a.keyVerb("update-description", "Replace a key's description", keyIDArgument,
		"  keyhold key update-description 1234abcd-12ab-34cd-56ef-1234567890ab --description 'orders database'",
		func(ctx context.Context, c *client.Client, key string) error {
			_, err := c.Keys.UpdateKeyDescription(ctx, &keyholdv1.UpdateKeyDescriptionRequest{KeyId: key, Description: &description})
			return rpcError(err)
		})
	cmd.Flags().StringVar(&description, "description", "", "the new description; '' removes it")
	requireFlags(cmd, "description")
	return cmd
}
