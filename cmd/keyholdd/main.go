// Command keyholdd is the Keyhold daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "devel"

func main() {
	tune()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends a daemon that takes too long to finish.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process: 0 for success, 1 for failure, 2 for misuse.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "keyholdd",
		Short: "A key service whose root keys stay in a PKCS#11 token",
		Long: `keyholdd serves keys that live in a PKCS#11 token and do their work there.

  keyholdd dev                          a whole service on SoftHSM, for development
  keyholdd init --config FILE           make what a new installation needs
  keyholdd serve --config FILE          serve
  keyholdd doctor --config FILE         say what works, what does not, and why
  keyholdd backup --config FILE OUT     make a consistent set of all that is needed
  keyholdd restore --config FILE IN     put one in place, in empty folders
  keyholdd bench-token                  measure a token without a server`,
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(devCommand(), initCommand(), serveCommand(), doctorCommand(), orphansCommand(), backupCommand(), restoreCommand(), benchTokenCommand(), confirmClockCommand(), witnessCommand(), versionCommand())
	// What fails before a command runs is a mistake on the command line.
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case !understood, errors.As(err, &usage):
		fmt.Fprintf(stderr, "keyholdd: %v\nRun `%s --help` for usage.\n", err, cmd.CommandPath())
		return 2
	}
	fmt.Fprintf(stderr, "keyholdd: %v\n", err)
	return 1
}

// usageError is a mistake on the command line.
type usageError struct{ error }

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "keyholdd", version)
			return err
		},
	}
}
