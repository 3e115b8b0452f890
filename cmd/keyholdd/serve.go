package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/server"
)

// configFlag adds --config and returns how to load it.
func configFlag(cmd *cobra.Command) func() (*server.Config, error) {
	path := cmd.Flags().String("config", "", "configuration file (YAML), required")
	return func() (*server.Config, error) {
		if *path == "" {
			return nil, usageError{fmt.Errorf("--config is missing: name the configuration file")}
		}
		return server.LoadConfig(*path)
	}
}

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Serve",
		Long: `Serves until SIGTERM or SIGINT, then lets requests under way finish.

SIGHUP reads PINs again where a token waits for one. Certificates are read
again when their files change. A token that cannot be used does not keep the
daemon from starting: /readyz on the admin listener says what is wrong.

On Linux the program starts itself again once, in the same process, with
GLIBC_TUNABLES set so that the PKCS#11 library's memory costs less, and with a
timer slack of 1 ms (PR_SET_TIMERSLACK), so that the kernel wakes fewer threads.
Where GLIBC_TUNABLES or GOGC is set already, it stays as it is; KEYHOLD_TUNED=1
keeps the program from being started again.`,
		Args: cobra.NoArgs,
	}
	load := configFlag(cmd)
	check := cmd.Flags().Bool("check", false, "check the configuration and exit")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if *check {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "configuration is valid")
			return err
		}
		return serve(cmd.Context(), cfg, cmd)
	}
	return cmd
}

func serve(ctx context.Context, cfg *server.Config, cmd *cobra.Command) error {
	log := server.NewLogger(cmd.ErrOrStderr(), cfg.Log)
	forbidCoreDumps(log)
	// From the beginning to the end: a SIGHUP that nobody takes kills the
	// process, also in the middle of the requests that it lets finish. systemd's
	// SendSIGHUP= sends one right after SIGTERM.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	s, err := server.New(ctx, cfg, server.Options{Logger: log, Version: version})
	if err != nil {
		return err
	}
	defer s.Close(ctx)
	served := make(chan struct{})
	defer close(served)
	go func() {
		for {
			select {
			case <-served:
				return
			case <-hup:
				log.InfoContext(ctx, "reloading")
				s.Reload()
			}
		}
	}()
	return s.Run(ctx)
}

func initCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init --config FILE",
		Short: "Make what a new installation needs: database, audit log, canary keys, seal key",
		Long: `Makes the database, the audit log, the canary key of each token, and in the token
of the first region the seal key, which seals the secrets of access keys. serve never
makes them by itself, so that a wrong path or an empty disk is noticed. The
tokens themselves are initialised with their vendor's tools.

What exists is left as it is; an installation of an older version is given what it
lacks. The daemon must not be running.`,
		Args: cobra.NoArgs,
	}
	load := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), readyTimeout)
		defer cancel()
		log := server.NewLogger(cmd.ErrOrStderr(), cfg.Log)
		forbidCoreDumps(log)
		done, err := server.Initialise(ctx, cfg, server.Options{Logger: log, Version: version})
		for _, line := range done {
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
		return err
	}
	return cmd
}

func confirmClockCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "confirm-clock --config FILE",
		Short: "Say that the clock is right, so that held deletions go on",
		Long: `When the clock jumps by more than an hour, or the daemon did not run for as
long, keys that are due are not destroyed until somebody has looked at the
clock. This says that it is right; the running daemon notices within a minute.
It counts once, and for a quarter of an hour.`,
		Args: cobra.NoArgs,
	}
	load := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		now := time.Now()
		if err := server.ConfirmClock(cfg, now); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "confirmed: it is %s\n", now.UTC().Format(time.RFC3339))
		return err
	}
	return cmd
}
