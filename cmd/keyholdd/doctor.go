package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/witness"
	"github.com/keyhold/keyhold/server/doctor"
)

// doctorFlags are the flags of `keyholdd doctor`.
type doctorFlags struct {
	config, module, token, serial, pinSource, output string
	noWitness                                        bool
	timeout                                          time.Duration
}

func doctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor (--config FILE | --token URI | --module PATH --token LABEL --pin-source SOURCE)",
		Short: "Say what works, what does not, and why",
		Long: `Looks at an installation, or at one token alone, and says of each part whether
it works, and what to do where it does not. It needs no server and may run
beside one. It ends with 0 when nothing failed (warnings are allowed), with 1
when something did, with 2 when it was called wrongly.

It changes nothing: what is tried on the token are session objects. A token
sees one login, and none when its flags warn of the last try. Only the witness,
an independent library in a process of its own, logs in once more, and makes
and destroys keys of its own in the token; --no-witness leaves it out.

SOURCE is file:/path, env:NAME or credential:NAME (systemd).`,
		Example: `  keyholdd doctor --config keyholdd.yaml
  keyholdd doctor --token 'pkcs11:token=prod?module-path=/usr/lib/vendor/libpkcs11.so&pin-source=file:/etc/keyhold/pin'
  keyholdd doctor --module /usr/lib/vendor/libpkcs11.so --token prod --pin-source file:/etc/keyhold/pin --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration file (YAML)")
	flags.StringVar(&f.module, "module", "", "path of the PKCS#11 library")
	flags.StringVar(&f.token, "token", "", "label of the token, or a whole pkcs11: URI")
	flags.StringVar(&f.serial, "serial", "", "serial number of the token, where its label does not tell it from others")
	flags.StringVar(&f.pinSource, "pin-source", "", "where the token's PIN is")
	flags.StringVar(&f.output, "output", "table", "table or json")
	flags.DurationVar(&f.timeout, "timeout", doctor.DefaultTimeout, "how long each step at a token may take")
	flags.BoolVar(&f.noWitness, "no-witness", false, "leave the independent library out")
	return cmd
}

// options turns the flags into what doctor wants. Its errors are misuse.
func (f doctorFlags) options() (doctor.Options, error) {
	opts := doctor.Options{ConfigFile: f.config, Version: version, Timeout: f.timeout}
	if f.timeout <= 0 {
		return opts, fmt.Errorf("--timeout is %s: use a positive duration, such as 1m", f.timeout)
	}
	if f.output != "table" && f.output != "json" {
		return opts, fmt.Errorf("--output is %q: use table or json", f.output)
	}
	single := f.module != "" || f.token != "" || f.serial != "" || f.pinSource != ""
	switch {
	case f.config != "" && single:
		return opts, errors.New("--config names the tokens: leave --module, --token, --serial and --pin-source out")
	case f.config != "":
		return opts, nil
	case !single:
		return opts, errors.New("name a configuration with --config, or a token with --module, --token and --pin-source")
	}
	var err error
	if strings.HasPrefix(f.token, "pkcs11:") {
		if f.module != "" || f.serial != "" || f.pinSource != "" {
			return opts, errors.New("--token is a URI, which says all: leave --module, --serial and --pin-source out")
		}
		if opts.Token, err = hsm.ParseURI(f.token); err != nil {
			return opts, fmt.Errorf("--token: %w", err)
		}
		return opts, opts.Token.Check()
	}
	pin, err := hsm.ParsePINSource(f.pinSource)
	if err != nil {
		return opts, fmt.Errorf("--pin-source: %w", err)
	}
	opts.Token = hsm.Config{Module: f.module, TokenLabel: f.token, TokenSerial: f.serial, PIN: pin}
	return opts, opts.Token.Check()
}

func runDoctor(cmd *cobra.Command, f doctorFlags) error {
	opts, err := f.options()
	if err != nil {
		return usageError{err}
	}
	// It reads PINs, as the daemon does.
	forbidCoreDumps(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
	if !f.noWitness {
		if opts.Witness.Exe, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program, to run it as the witness: %w", err)
		}
		opts.Witness.Args = []string{witnessName}
	}
	report := doctor.Run(cmd.Context(), opts)
	if err := writeReport(cmd.OutOrStdout(), report, f.output); err != nil {
		return err
	}
	if n := report.Count(doctor.Fail); n > 0 {
		return fmt.Errorf("%d of %d checks failed", n, len(report.Checks))
	}
	return cmd.Context().Err() // interrupted: not everything was looked at
}

func writeReport(w io.Writer, report *doctor.Report, output string) error {
	if output == "table" {
		return report.WriteTable(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(report)
}

// witnessName is the hidden subcommand that doctor runs in a child process.
const witnessName = "witness"

func witnessCommand() *cobra.Command {
	return &cobra.Command{
		Use: witnessName, Short: "Look at a token with crypto11, for doctor", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			forbidCoreDumps(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
			return witness.Main(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
