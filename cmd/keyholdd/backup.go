package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/backup"
	"github.com/keyhold/keyhold/server/kms"
)

// stdio is the argument that means standard input or output.
const stdio = "-"

func backupCommand() *cobra.Command {
	var opts backup.Options
	cmd := &cobra.Command{
		Use:   "backup --config FILE OUT",
		Short: "Back up store, audit log and SoftHSM tokens as one set",
		Long: `Makes one consistent set of the database, the audit log and the files of SoftHSM
tokens, and writes it to the tar file OUT (0600), or to standard output for "-".
The daemon may run, and is not hindered. The set is complete and on the disk when
the command ends well; OUT is not there otherwise, and is never overwritten. What
goes to a pipe is not read back, and what reads the pipe cannot tell a failed backup
from a whole one: look at this command's exit status, as the second example does.

An HSM's keys are backed up with its vendor's tools; the set says which keys must
be there. Configuration, certificates and SoftHSM's configuration are in it too.
PIN files and the server's TLS key are not, unless --include-secrets says so.

The files of SoftHSM tokens are encrypted under their PINs and nothing else:
whoever has both has the keys. Encrypt the set, as in the second example.

Run it as the daemon's user. It logs in to each token once, with the PIN that the
configuration names.`,
		Example: `  keyholdd backup --config keyholdd.yaml /srv/backup/keyhold-2026-01-31.tar
  bash -c 'set -o pipefail; keyholdd backup --config keyholdd.yaml - | age -R backup.pub > new.tar.age' &&
    mv new.tar.age keyhold-2026-01-31.tar.age`,
	}
	load := configFlag(cmd)
	cmd.Args = onePath
	cmd.Flags().BoolVar(&opts.Secrets, "include-secrets", false, "put PIN files and the server's TLS key into the backup")
	cmd.Flags().BoolVar(&opts.SkipTokens, "skip-token-check", false, "do not log in to the tokens to see that they hold the keys")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		// It reads PINs.
		forbidCoreDumps(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		opts.Config, opts.Program, opts.Stdout = cfg, "keyholdd "+version, cmd.OutOrStdout()
		if opts.ConfigFile, err = filepath.Abs(cmd.Flag("config").Value.String()); err != nil {
			return err
		}
		report := cmd.ErrOrStderr() // standard output is the archive
		if args[0] == stdio {
			// A reader that ends early is an error, and no death that leaves copies of
			// tokens lying about.
			signal.Ignore(syscall.SIGPIPE)
		} else {
			opts.Out, report = args[0], cmd.OutOrStdout()
		}
		ctx, stop := untilHangup(cmd.Context())
		defer stop()
		made, err := backup.Make(ctx, opts)
		if err != nil {
			return err
		}
		reportMade(report, made, args[0])
		if len(made.Unserved) > 0 {
			return fmt.Errorf("the backup was made, but without the keys of %s: the configuration does not serve these regions, and so does not say where their tokens are", strings.Join(made.Unserved, ", "))
		}
		if n := len(made.Lost); n > 0 {
			return fmt.Errorf("the backup was made, but %d keys are not in their token; `keyholdd doctor` says more", n)
		}
		return nil
	}
	return cmd
}

// untilHangup ends ctx also on SIGHUP, which a terminal that closes sends: it must not
// leave copies of tokens lying about. Under nohup, SIGHUP stays ignored.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return ctx, func() {}
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// onePath wants one argument.
func onePath(_ *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return errors.New(`name one archive, or "-" for a pipe`)
	}
	return nil
}

func reportMade(w io.Writer, made *backup.Made, out string) {
	m := made.Manifest
	fmt.Fprintf(w, "backup     %s, %d bytes, %d files\n", out, made.Bytes, len(m.Files))
	fmt.Fprintf(w, "manifest   %s\n", made.SHA256)
	fmt.Fprintf(w, "store      installation %s as of %s: %d keys, %d aliases, schema %d\n", m.Store.Instance, m.Created.Format(time.RFC3339), m.Store.Keys, m.Store.Aliases, m.Store.Schema)
	fmt.Fprintf(w, "audit log  %s\n", m.Journal.End)
	for _, t := range m.Tokens {
		what := "in the backup"
		if t.Folder == "" {
			what = "NOT in the backup: use its vendor's tools, now"
		}
		fmt.Fprintf(w, "token      %s (label %q, serial %s): %d keys, %s\n", t.Name, t.Label, t.Serial, t.Keys, what)
	}
	for _, e := range m.Elsewhere {
		fmt.Fprintf(w, "not in it  %s\n", e)
	}
	for _, region := range made.Unserved {
		fmt.Fprintf(w, "UNSERVED   the store has keys in %s, which the configuration does not serve: its token is NOT in the backup\n", region)
	}
	for _, o := range made.Lost {
		fmt.Fprintf(w, "LOST       key %s: its material %x is not in the token of %s\n", o.KeyID, o.ObjectID, o.Region)
	}
}

func restoreCommand() *cobra.Command {
	var opts backup.RestoreOptions
	var since string
	var sealed uint64
	cmd := &cobra.Command{
		Use:   "restore --config FILE IN",
		Short: "Put a backup in place, in empty folders",
		Long: `Puts what keyholdd backup wrote in place: the database into data_dir, the audit log
into audit.dir, and SoftHSM tokens where SoftHSM's configuration says. IN is the tar
file, or "-" for standard input. Configuration, certificates and PIN files must be
there before; the first two can be taken from the archive with tar.

Nothing is overwritten: folders that hold an installation are refused. Everything
is made ready and verified first: the manifest, each file's SHA-256, the database,
the audit log's chain, and that the tokens hold the keys. Then all of it is put in
place, or nothing. The daemon does not start on a restore that was interrupted; the
next restore takes back what that one did.

How often keys have encrypted since the backup is not known to it, and a version of
a key must not encrypt more than 2^32 times: each is counted as having done so
--sealed-since times since. Always enough is the number of audit records since, and
sealsCounted of each event RestoreBackup among them.

Nor is it known which access keys were deactivated or deleted since: all are set
inactive, and listed. Activate what may sign, as its principal or as the root of the
account, or say --keep-access-keys-active.

An HSM's own backup is restored with its vendor's tools, before this. Where only the
database is lost, --keep-audit-log and --keep-tokens leave the newer log and tokens in
place; the log tells then what the restored database does not know.
Run it as the daemon's user.`,
		Example: `  keyholdd restore --config keyholdd.yaml /srv/backup/keyhold-2026-01-31.tar
  age -d -i backup.key keyhold-2026-01-31.tar.age | keyholdd restore --config keyholdd.yaml -`,
	}
	load := configFlag(cmd)
	cmd.Args = onePath
	flags := cmd.Flags()
	flags.StringVar(&opts.Manifest, "manifest", "", "SHA-256 that keyholdd backup printed: refuse another backup")
	flags.StringVar(&since, "since", "", "anchor of the audit log, COUNT:HASH, kept elsewhere: refuse a log that does not contain it")
	flags.Uint64Var(&sealed, "sealed-since", backup.DefaultSealedSince, "how often a version of a key may have encrypted since the backup; what an audit log that is kept tells, if that is")
	flags.BoolVar(&opts.KeepJournal, "keep-audit-log", false, "the audit log is not lost: leave it in place, and go on in it")
	flags.BoolVar(&opts.KeepTokens, "keep-tokens", false, "SoftHSM's tokens are not lost: leave them in place")
	flags.BoolVar(&opts.KeepAccessKeys, "keep-access-keys-active", false, "leave access keys active that were so when the backup was made, though they may have been deactivated or deleted since")
	flags.BoolVar(&opts.AllowMissing, "allow-missing-keys", false, "restore records of keys that are not in their token")
	flags.BoolVar(&opts.SkipTokens, "skip-token-check", false, "do not log in to the tokens to see that they hold the keys")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if since != "" {
			anchor, err := audit.ParseAnchor(since)
			if err != nil {
				return usageError{fmt.Errorf("--since: %w", err)}
			}
			opts.Since = &anchor
		}
		if flags.Changed("sealed-since") {
			opts.SealedSince = &sealed
		}
		var err error
		if opts.Config, err = load(); err != nil {
			return err
		}
		return runRestore(cmd, opts, args[0])
	}
	return cmd
}

func runRestore(cmd *cobra.Command, opts backup.RestoreOptions, in string) error {
	// It reads PINs.
	forbidCoreDumps(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
	opts.Program, opts.In = "keyholdd "+version, cmd.InOrStdin()
	if in != stdio {
		f, err := os.Open(in)
		if err != nil {
			return fmt.Errorf("open the backup: %w", err)
		}
		defer f.Close()
		opts.In = f
	}
	ctx, stop := untilHangup(cmd.Context())
	defer stop()
	restored, err := backup.Restore(ctx, opts)
	if restored != nil {
		reportRestored(cmd.OutOrStdout(), restored, opts, cmd.Flag("config").Value.String())
	}
	return err
}

func reportRestored(w io.Writer, r *backup.Restored, opts backup.RestoreOptions, config string) {
	m := r.Manifest
	fmt.Fprintf(w, "restored   installation %s as of %s: %d keys, %d aliases\n", m.Store.Instance, m.Created.Format(time.RFC3339), m.Store.Keys, m.Store.Aliases)
	for _, p := range r.Places {
		fmt.Fprintf(w, "placed     %s\n", p)
	}
	fmt.Fprintf(w, "audit log  continues from %s\n           and stands at %s, with the event RestoreBackup\n", r.End, r.Now)
	fmt.Fprintf(w, "seals      %d counted for each of %d versions of AES keys; %d of them encrypt no more\n", r.SealedSince, r.Versions, r.Spent)
	if opts.SkipTokens {
		fmt.Fprintln(w, "tokens     NOT looked at")
	}
	for _, o := range r.Orphans {
		note := "older than the backup, or made since; `keyholdd orphans` lists it"
		switch o.Kind {
		case kms.OrphanRecord:
			note = "the key is unavailable"
		case kms.OrphanIntent:
			note = "not finished when the backup was made; it may have been finished since"
		}
		fmt.Fprintf(w, "orphan     %s: object %x, key %s: %s\n", o.Kind, o.ObjectID, o.KeyID, note)
	}
	for _, k := range r.Pending {
		fmt.Fprintf(w, "pending    %s is deleted after %s, unless that is cancelled\n", k.ARN(), k.DeletionDate.UTC().Format(time.RFC3339))
	}
	status := "set inactive: it may have been deactivated or deleted since; keyhold access-key activate"
	if opts.KeepAccessKeys {
		status = "ACTIVE, though it may have been deactivated or deleted since"
	}
	for _, k := range r.AccessKeys {
		fmt.Fprintf(w, "access key %s of %s: %s\n", k.ID, k.Principal, status)
	}
	for _, c := range r.Unsure {
		note := "recorded after the store was copied: do it again if it must hold"
		if c.Name == "CreateKey" {
			note = "recorded after the store was copied: the key is NOT in it"
		}
		fmt.Fprintf(w, "unsure     %s %s %s: %s\n", c.Time.Format(time.RFC3339), c.Name, c.Resource, note)
	}
	if n := r.Recorded - len(r.Unsure); n > 0 {
		fmt.Fprintf(w, "unsure     and %d more, in the audit log\n", n)
	}
	if len(r.Unserved) > 0 {
		fmt.Fprintf(w, "unserved   the configuration lacks regions that have keys: %s\n", strings.Join(r.Unserved, ", "))
	}
	fork := `- the audit log of that time is another one: an anchor of it does not verify here.
  Keep what is left of it.
`
	if opts.KeepJournal {
		fork = "- the audit log tells of it: see the lines \"unsure\" above.\n"
	}
	fmt.Fprintf(w, `
What happened after %s is not in it:
- keys made since are in no record. In an HSM their objects are orphans, and what
  they encrypted does not open; do not destroy them before you know.
- keys deleted since are back with SoftHSM; in an HSM they are gone, and their
  records unavailable. Disabled keys may be enabled, and aliases where they were.
- deletions that were cancelled since are scheduled again. None is carried out
  before you run keyholdd confirm-clock (unless trust_clock is set): look first.
- access keys that were made since are gone: what signs with them is refused.
%sNext: keyholdd doctor --config %s
`, m.Created.Format(time.RFC3339), fork, config)
}
