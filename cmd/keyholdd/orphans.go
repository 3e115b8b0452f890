package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/kms"
)

func orphansCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "orphans --config FILE",
		Short: "List what records and tokens do not agree on, and clean up",
		Long: `Compares the database with the tokens. A crash while a key is made may leave an
unfinished creation, or an object without a record; neither was ever
acknowledged to anybody. After a restore they may be keys that were made since the
backup: do not destroy them before you know. --destroy removes one of them, by its
object id as listed; it is recorded in the audit log. A record without an object
is a key that somebody may still miss: it is never removed here.

The daemon must not be running.`,
		Example: `  keyholdd orphans --config keyholdd.yaml
  keyholdd orphans --config keyholdd.yaml --destroy 6f1d…`,
		Args: cobra.NoArgs,
	}
	load := configFlag(cmd)
	destroy := cmd.Flags().StringArray("destroy", nil, "object id of an orphan to destroy; may be given several times")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), readyTimeout)
		defer cancel()
		log := server.NewLogger(cmd.ErrOrStderr(), cfg.Log)
		forbidCoreDumps(log)
		s, err := server.New(ctx, cfg, server.Options{Logger: log, Version: version})
		if err != nil {
			return err
		}
		defer s.Close(ctx)
		if err := s.WaitReady(ctx); err != nil {
			return err
		}
		orphans, err := s.Core.Reconcile(ctx)
		if err != nil {
			return err
		}
		if len(*destroy) == 0 {
			listOrphans(cmd.OutOrStdout(), orphans)
			return nil
		}
		return destroyOrphans(ctx, s.Core, orphans, *destroy, cmd.OutOrStdout())
	}
	return cmd
}

func listOrphans(w io.Writer, orphans []kms.Orphan) {
	if len(orphans) == 0 {
		fmt.Fprintln(w, "no orphans")
		return
	}
	for _, o := range orphans {
		fmt.Fprintf(w, "%-22s  object %x  key %s  region %s\n", o.Kind, o.ObjectID, o.KeyID, o.Region)
	}
}

func destroyOrphans(ctx context.Context, core *kms.Service, orphans []kms.Orphan, ids []string, w io.Writer) error {
	byID := make(map[string]kms.Orphan, len(orphans))
	for _, o := range orphans {
		byID[hex.EncodeToString(o.ObjectID)] = o
	}
	// All are looked up before any is destroyed: a mistyped id stops it.
	for _, id := range ids {
		if _, ok := byID[id]; !ok {
			return fmt.Errorf("no orphan has the object id %q; run it without --destroy for the list", id)
		}
	}
	for _, id := range ids {
		if err := core.CleanUp(ctx, byID[id]); err != nil {
			return fmt.Errorf("clean up %s: %w", id, err)
		}
		fmt.Fprintf(w, "destroyed %s %s\n", byID[id].Kind, id)
	}
	return nil
}
