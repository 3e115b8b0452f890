package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/dev"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// readyTimeout is how long dev, init and orphans wait for tokens.
const readyTimeout = time.Minute

func devCommand() *cobra.Command {
	var opts dev.Options
	var later struct{ aws, xks string }
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole service on SoftHSM, for development",
		Long: `Makes a token, certificates and a configuration in a folder, if they are not
there yet, and serves on loopback. Port 0 takes a free port. When all doors
answer, <dir>/dev.env has the settings for clients. Ctrl-C stops it; a second
start on the folder finds all keys again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDev(cmd.Context(), opts, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Dir, "dir", ".keyhold", "folder for token, database, audit log and certificates")
	f.StringVar(&opts.GRPC, "grpc", "127.0.0.1:9443", "address of the gRPC door")
	f.StringVar(&opts.Admin, "admin", "127.0.0.1:9090", "address of the admin listener")
	f.StringVar(&opts.Account, "account", "000000000000", "account of the root principal, 12 digits")
	f.StringArrayVar(&opts.Regions, "region", []string{"us-east-1"}, "region; may be given several times, the first is the default")
	f.StringVar(&opts.AuditDurability, "audit-durability", "synced", "of the data plane's audit records: synced (survive the power) or written (survive the process)")
	f.StringVar(&opts.AWS, "aws", "127.0.0.1:8080", "address of the AWS door, on loopback")
	f.StringVar(&later.xks, "xks", "127.0.0.1:8443", "address of the XKS door (not built yet, ignored)")
	return cmd
}

func runDev(ctx context.Context, opts dev.Options, stdout, stderr io.Writer) error {
	world, err := prepareDev(ctx, opts)
	if err != nil {
		return err
	}
	log := server.NewLogger(stderr, world.Config.Log)
	forbidCoreDumps(log)
	options := server.Options{Logger: log, Version: version}
	// A new token is given its canary key before the service sees it, and misses
	// one. An old one has it, unless a first start was cut short.
	initialise := server.InitialiseData
	if world.NewTokens {
		initialise = server.Initialise
	}
	if _, err := initialise(ctx, world.Config, options); err != nil {
		return err
	}
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var key dev.AccessKey
	defer func() { key.Secret.Wipe() }()
	options.Serving = func(a server.Addresses) {
		if err := world.WriteEnv(a, key); err != nil {
			stop(err)
			return
		}
		greet(stdout, world, a)
	}
	s, err := server.New(ctx, world.Config, options)
	if err != nil {
		return err
	}
	defer s.Close(ctx)
	if err := world.ForgetEnv(); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, readyTimeout)
	if _, err = s.EnsureCanaries(wait); err == nil {
		_, err = s.EnsureSealKey(wait)
	}
	if err == nil {
		err = s.WaitReady(wait)
	}
	if err == nil {
		key, err = giveRootAccessKey(wait, world, s)
	}
	cancel()
	if err != nil {
		return err
	}
	if err := s.Run(running); err != nil || ctx.Err() != nil {
		return err
	}
	return context.Cause(running) // the settings could not be written
}

// prepareDev makes the world, unless a service runs in it, whose configuration and
// tokens must stay as they are.
func prepareDev(ctx context.Context, opts dev.Options) (*dev.World, error) {
	if opts.Dir == "" {
		return nil, usageError{errors.New("--dir is empty: name a folder")}
	}
	release, err := sqlite.Lock(filepath.Join(opts.Dir, dev.DataFolder))
	switch {
	case errors.Is(err, fs.ErrNotExist): // the first start
		return dev.Prepare(ctx, opts)
	case err != nil:
		return nil, err
	}
	world, err := dev.Prepare(ctx, opts)
	return world, errors.Join(err, release()) // the service takes it anew
}

// giveRootAccessKey sees to it that the root principal has the access key that the
// environment or the folder says, and returns it, to be wiped.
func giveRootAccessKey(ctx context.Context, world *dev.World, s *server.Server) (dev.AccessKey, error) {
	k, err := world.AccessKey(os.Getenv)
	if err != nil {
		return k, err
	}
	if err := s.Core.ImportAccessKey(ctx, world.RootARN(), k.ID, k.Secret, k.Replaces); err != nil {
		return k, fmt.Errorf("the root principal's access key: %w", err)
	}
	return k, world.KeepAccessKey(k)
}

func greet(w io.Writer, world *dev.World, a server.Addresses) {
	fmt.Fprintf(w, `
Keyhold serves gRPC on %s, the AWS KMS API on http://%s and metrics
on http://%s/metrics. In another shell:

  set -a; . %s; set +a
  bin/keyhold key create --alias app
  echo 'attack at dawn' | bin/keyhold encrypt --key alias/app > secret.bin
  bin/keyhold decrypt < secret.bin

  bin/keyhold aws -- kms describe-key --key-id alias/app   # where the AWS CLI is installed

Ctrl-C stops it; the keys stay in the token.
`, a.GRPC, a.AWS, a.Admin, world.EnvFile)
}
