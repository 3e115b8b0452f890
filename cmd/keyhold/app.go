package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// app is one invocation of the tool: the world outside, and what the global
// flags said.
type app struct {
	stdin      io.Reader
	stdout     io.Writer
	stderr     io.Writer
	getenv     func(string) string
	isTerminal func(file any) bool
	version    string

	flags   map[string]*string // by setting's flag
	output  outputFormat
	verbose bool

	config *config // once loadConfig has found it

	// started is true once the command line was understood: errors before are
	// usage errors.
	started bool
}

// run executes the command line args and returns the exit code. Cancelling
// ctx makes it return soon, also while it waits for input.
func run(ctx context.Context, args []string, a *app) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil && a.started:
		fmt.Fprintln(a.stderr, "keyhold: interrupted")
		return exitFailure
	case !a.started || errors.As(err, &usage):
		fmt.Fprintf(a.stderr, "keyhold: %s\nRun `%s --help` for usage.\n", printable(err.Error()), cmd.CommandPath())
		return exitUsage
	}
	printError(a.stderr, err)
	return exitFailure
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyhold",
		Short: "Use and manage the keys of a hardware token",
		Long: `keyhold talks to a Keyhold server: it makes keys inside a PKCS#11 token, uses
them on files and pipes, and manages them. A key never leaves the token, unless
it was created EXPORTABLE; then it leaves only wrapped.

The connection is taken from flags, else from the environment (KEYHOLD_ADDR,
KEYHOLD_CA, KEYHOLD_CERT, KEYHOLD_KEY and others: see ` + "`keyhold env --help`" + `), else
from $KEYHOLD_CONFIG or ~/.config/keyhold/config.yaml, else, if nothing is set,
from ./.keyhold/dev.env, which ` + "`keyholdd dev`" + ` writes.

Exit codes: 0 success, 1 failure, 2 wrong usage.`,
		Example: `  keyhold key create --alias app
  echo hello | keyhold encrypt --key alias/app > hello.kh
  keyhold decrypt < hello.kh`,
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
	}
	a.addGlobalFlags(root)
	root.AddCommand(
		a.keyCommand(), a.aliasCommand(), a.accessKeyCommand(),
		a.encryptCommand(), a.decryptCommand(), a.reencryptCommand(), a.dataKeyCommand(), a.dataKeyPairCommand(), a.fileCommand(),
		a.signCommand(), a.verifyCommand(), a.macCommand(), a.verifyMacCommand(),
		a.wrapCommand(), a.unwrapCommand(), a.deriveCommand(), a.randomCommand(), a.pubkeyCommand(),
		a.auditCommand(), a.statusCommand(), a.awsCommand(), a.benchCommand(), a.envCommand(), a.versionCommand(),
	)
	// cobra adds these two itself, but only in Execute: too late for noteStart.
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	a.noteStart(root)
	return root
}

func (a *app) addGlobalFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	a.flags = map[string]*string{}
	for _, s := range settings() {
		a.flags[s.flag] = flags.String(s.flag, "", s.usage+" ("+s.env+")")
	}
	a.output = outputTable
	flags.VarP(&a.output, "output", "o", "how to print structures: table or json")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say on standard error where settings come from")
	completeWords(root, "output", string(outputTable), string(outputJSON))
}

// noteStart makes every command note that its flags and arguments were
// understood, and every group of commands refuse words that it does not know.
func (a *app) noteStart(cmd *cobra.Command) {
	switch {
	case cmd.RunE != nil:
		runE := cmd.RunE
		cmd.RunE = func(c *cobra.Command, args []string) error {
			a.started = true
			return runE(c, args)
		}
	case cmd.Run == nil && cmd.HasSubCommands():
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				hint := ""
				if similar := c.SuggestionsFor(args[0]); len(similar) > 0 {
					hint = "; did you mean " + strings.Join(similar, " or ") + "?"
				}
				return usagef("unknown command %q for %q%s", args[0], c.CommandPath(), hint)
			}
			c.SetOut(a.stderr)
			if err := c.Help(); err != nil {
				return err
			}
			return usagef("%s needs a command", c.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		a.noteStart(sub)
	}
}

// withClient connects, calls use and disconnects.
func (a *app) withClient(use func(*client.Client) error) error {
	conf, err := a.loadConfig()
	if err != nil {
		return err
	}
	clientConf, err := conf.client()
	if err != nil {
		return err
	}
	clientConf.UserAgent = "keyhold/" + a.versionText()
	c, err := client.Dial(clientConf)
	if err != nil {
		return withHint(err, "`keyhold env` shows the settings in effect and where they come from")
	}
	useErr := use(c)
	if err := c.Close(); err != nil && useErr == nil {
		return err
	}
	return addConnectionHint(notEncoded(useErr), conf)
}

// noArguments refuses arguments. It is cobra.NoArgs, which takes them for unknown
// commands.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, and was given %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// keyArgument returns the key that a verb was given, as its argument or by
// --key.
func keyArgument(args []string, flag string) (string, error) {
	switch {
	case len(args) == 1 && flag != "" && args[0] != flag:
		return "", usagef("two keys were given: %s and --key %s", args[0], flag)
	case len(args) == 1 && args[0] != "":
		return args[0], nil
	case flag != "":
		return flag, nil
	}
	return "", usagef("name the key: by its id, its ARN, or where the verb allows it, an alias such as alias/app")
}

// keyIDArgument is keyArgument for verbs that change a key: they take no alias,
// which may name another key by the time they act.
func keyIDArgument(args []string, flag string) (string, error) {
	key, err := keyArgument(args, flag)
	if err == nil {
		err = mustBeID(key)
	}
	return key, err
}

// mustBeID refuses aliases.
func mustBeID(key string) error {
	if isAlias(key) {
		return usagef("this takes a key's id or ARN, not an alias: `keyhold key describe %s` shows them", key)
	}
	return nil
}

// isAlias tells whether key is an alias, by name or ARN.
func isAlias(key string) bool {
	return strings.HasPrefix(key, "alias/") || strings.HasPrefix(key, "arn:") && strings.Contains(key, ":alias/")
}

// aliasName lets `app` stand for `alias/app`.
func aliasName(s string) string {
	if s == "" || strings.HasPrefix(s, "alias/") || strings.HasPrefix(s, "arn:") {
		return s
	}
	return "alias/" + s
}
