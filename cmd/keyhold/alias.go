package main

import (
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func (a *app) aliasCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alias",
		Short: "Give keys names",
		Long:  "Give keys names. `app` is short for `alias/app` in these commands.",
	}
	cmd.AddCommand(a.aliasCreateCommand(), a.aliasUpdateCommand(), a.aliasDeleteCommand(), a.aliasListCommand())
	return cmd
}

func (a *app) aliasCreateCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Give a key a name",
		Example: "  keyhold alias create app --key 1234abcd-12ab-34cd-56ef-1234567890ab",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := mustBeID(key); err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				_, err := c.Keys.CreateAlias(cmd.Context(), &keyholdv1.CreateAliasRequest{AliasName: aliasName(args[0]), TargetKeyId: key})
				return rpcError(err)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key, by id or ARN")
	requireFlags(cmd, "key")
	return cmd
}

func (a *app) aliasUpdateCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:     "update NAME",
		Short:   "Let an alias name another key",
		Example: "  keyhold alias update app --key 1234abcd-12ab-34cd-56ef-1234567890ab",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := mustBeID(key); err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				_, err := c.Keys.UpdateAlias(cmd.Context(), &keyholdv1.UpdateAliasRequest{AliasName: aliasName(args[0]), TargetKeyId: key})
				return rpcError(err)
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "the key, by id or ARN")
	requireFlags(cmd, "key")
	return cmd
}

func (a *app) aliasDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Remove an alias; its key is not touched",
		Example: "  keyhold alias delete app",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				_, err := c.Keys.DeleteAlias(cmd.Context(), &keyholdv1.DeleteAliasRequest{AliasName: aliasName(args[0])})
				return rpcError(err)
			})
		},
	}
}

func (a *app) aliasListCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the aliases of the account and region, or of one key",
		Example: `  keyhold alias list
  keyhold alias list --key 1234abcd-12ab-34cd-56ef-1234567890ab --output json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				all := &keyholdv1.ListAliasesResponse{Truncated: proto.Bool(false)}
				err := pages(func(marker *string) (string, bool, error) {
					req := &keyholdv1.ListAliasesRequest{Limit: proto.Int32(100), Marker: marker}
					if key != "" {
						req.KeyId = &key
					}
					page, err := c.Keys.ListAliases(cmd.Context(), req)
					all.Aliases = append(all.Aliases, page.GetAliases()...)
					return page.GetNextMarker(), page.GetTruncated(), err
				})
				if err != nil {
					return err
				}
				return a.printList(all, "aliases", "alias_name", "target_key_id", "last_updated_date")
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "only aliases of this key, by id or ARN")
	return cmd
}
