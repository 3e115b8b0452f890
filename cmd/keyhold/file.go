package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/client/filecrypt"
)

// copyBytes is how much of a file is read at once.
const copyBytes = 256 << 10

// defaultSuffix marks encrypted files.
const defaultSuffix = ".kh"

// fileVerb is encrypting or decrypting, with what it was told.
type fileVerb struct {
	key     string
	context pairsFlag
	out     string
	suffix  string
	force   bool
	quiet   bool

	participle string // "encrypted"
	folderHint string // what to do with a folder

	// target returns the name of the file that src becomes.
	target func(src string) (string, error)

	// prepare looks at src and returns what writes the result. It does not
	// touch the target, so that what cannot succeed leaves no trace.
	prepare func(ctx context.Context, c *client.Client, src *source) (func(dst io.Writer) error, error)
}

func (a *app) fileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "file",
		Short: "Encrypt and decrypt files of any size",
	}
	cmd.AddCommand(a.fileEncryptCommand(), a.fileDecryptCommand())
	return cmd
}

func (a *app) fileEncryptCommand() *cobra.Command {
	v := fileVerb{
		context: pairsFlag{}, participle: "encrypted",
		folderHint: "`tar c FOLDER | keyhold file encrypt --key KEY > FOLDER.tar" + defaultSuffix + "` takes all of it",
	}
	cmd := &cobra.Command{
		Use:   "encrypt --key KEY [FILE...]",
		Short: "Encrypt files of any size, or a pipe",
		Long: `Encrypt each FILE into FILE` + defaultSuffix + `, or standard input to standard output. FILE stays
as it is.

A data key from the token encrypts each file here, in little memory; the file
itself does not go to the server. The encrypted data key and the encryption
context stand at the file's beginning: the context can be read by everyone who
has the file. Put no secret into it.

The new file has the permissions of FILE, or mode 0600 if it comes from standard
input. It appears under its name when it is
complete; until then it is ` + partialPattern + ` in the same folder, which only a
kill (SIGKILL) or a loss of power leaves behind. Nothing is overwritten without
--force.`,
		Example: `  keyhold file encrypt --key alias/backup --context host=db1 dump.sql
  tar c /srv | keyhold file encrypt --key alias/backup > srv.tar.kh`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.files(cmd.Context(), &v, args) },
	}
	v.target = func(src string) (string, error) {
		if strings.HasSuffix(src, v.suffix) {
			return "", withHint(fmt.Errorf("its name ends in %s already", v.suffix), "with --out it is encrypted all the same")
		}
		return src + v.suffix, nil
	}
	v.prepare = func(ctx context.Context, c *client.Client, src *source) (func(io.Writer) error, error) {
		return func(dst io.Writer) error {
			w, err := filecrypt.NewWriter(ctx, c.Crypto, dst, filecrypt.WriterOptions{KeyID: v.key, Context: v.context})
			if err != nil {
				return rpcError(err)
			}
			if err := copyAll(w, src); err != nil {
				return err // without Close: a part must not pass for the whole
			}
			return w.Close()
		}, nil
	}
	cmd.Flags().StringVar(&v.key, "key", "", "the key: id, ARN, alias/NAME or alias ARN")
	requireFlags(cmd, "key")
	contextVar(cmd, v.context, "context", "pair of the encryption context, which stands in the file, readable")
	v.declare(cmd, "put behind the file's name")
	return cmd
}

func (a *app) fileDecryptCommand() *cobra.Command {
	v := fileVerb{
		context: pairsFlag{}, participle: "decrypted",
		folderHint: "`keyhold file decrypt FOLDER/*" + defaultSuffix + "` takes the files in it",
	}
	cmd := &cobra.Command{
		Use:   "decrypt [FILE...]",
		Short: "Decrypt what file encrypt made",
		Long: `Decrypt each FILE` + defaultSuffix + ` into FILE, or standard input to standard output. The file
names its key and has its encryption context with it. --key and --context say
what they must be; without them, a file that someone else encrypted under
another key that you may use opens as well. The context may have more pairs.

Into a file: it has the permissions of FILE` + defaultSuffix + `, or mode 0600 if it comes from
standard input, and appears under its name when
all of it was authenticated. Until then it is ` + partialPattern + ` in the same folder,
for you only, and removed on failure; what a kill (SIGKILL) or a loss of power
leaves behind is a part of the plaintext, and can be deleted.

To standard output: nothing is written that was not authenticated, but whether
the end is missing is known only at the end. Use what came out only if the exit
code is 0:

  keyhold file decrypt < dump.sql.kh > dump.sql && psql < dump.sql   # right
  keyhold file decrypt < dump.sql.kh | psql                          # may run a part`,
		Example: `  keyhold file decrypt dump.sql.kh
  keyhold file decrypt --key alias/backup --context host=db1 --out restored.sql dump.sql.kh
  keyhold file decrypt < srv.tar.kh > srv.tar`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.files(cmd.Context(), &v, args) },
	}
	v.target = func(src string) (string, error) {
		name, ok := strings.CutSuffix(src, v.suffix)
		if !ok || name == "" || strings.HasSuffix(name, string(filepath.Separator)) {
			return "", withHint(fmt.Errorf("its name does not end in %s, so the new file has no name", v.suffix), "give it one with --out")
		}
		return name, nil
	}
	v.prepare = func(ctx context.Context, c *client.Client, src *source) (func(io.Writer) error, error) {
		r, err := filecrypt.NewReader(ctx, c.Crypto, src, filecrypt.ReaderOptions{KeyID: v.key, Context: v.context})
		if err != nil {
			return nil, explainHeader(rpcError(err), src)
		}
		return func(dst io.Writer) error { return copyAll(dst, r) }, nil
	}
	cmd.Flags().StringVar(&v.key, "key", "", "the key that it must be encrypted under")
	contextVar(cmd, v.context, "context", "pair that the encryption context must have")
	v.declare(cmd, "taken off the file's name")
	return cmd
}

func (v *fileVerb) declare(cmd *cobra.Command, suffixUsage string) {
	cmd.Flags().StringVar(&v.out, "out", "", "write to this file; - is standard output. For one FILE, or standard input")
	cmd.Flags().StringVar(&v.suffix, "suffix", defaultSuffix, suffixUsage)
	cmd.Flags().BoolVar(&v.force, "force", false, "replace files that exist")
	cmd.Flags().BoolVar(&v.quiet, "quiet", false, "no progress bar")
}

// explainHeader adds what to do when the header of src does not open.
func explainHeader(err error, src *source) error {
	var e *client.Error
	switch {
	// Itself: what is around it tells that file encrypt made this. And what
	// encrypt makes is small, where the size is known, and not empty.
	case err == filecrypt.ErrFormat && src.read.Load() > 0 && (!src.regular() || src.info.Size() <= maxCiphertextBytes): //nolint:errorlint // see above
		return withHint(err, "what `keyhold encrypt` made is decrypted by `keyhold decrypt`")
	case errors.As(err, &e) && e.Exception == "InvalidCiphertextException":
		return withHint(err, "the service does not open the data key at the file's beginning: that is damaged, or was made by another server")
	}
	return err
}

// copyAll copies src to dst and leaves no plaintext in its buffer.
func copyAll(dst io.Writer, src io.Reader) error {
	buf := make([]byte, copyBytes)
	defer clear(buf)
	// Bare: neither may bring a way of copying, with a buffer, of its own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
	return err
}

// files carries a verb out on each file. What fails does not stop the others;
// each failure is named.
func (a *app) files(ctx context.Context, v *fileVerb, names []string) error {
	if err := v.check(names); err != nil {
		return err
	}
	if len(names) == 0 {
		names = []string{"-"}
	}
	conf, err := a.loadConfig()
	if err != nil {
		return err
	}
	return a.withClient(func(c *client.Client) error {
		if len(names) == 1 {
			return a.file(ctx, c, v, names[0])
		}
		failed := 0
		for _, name := range names {
			err := a.file(ctx, c, v, name)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				failed++
				printError(a.stderr, addConnectionHint(err, conf))
			}
		}
		if failed > 0 {
			return fmt.Errorf("%d of %d files were not %s", failed, len(names), v.participle)
		}
		return nil
	})
}

// check refuses command lines that make no sense.
func (v *fileVerb) check(names []string) error {
	switch {
	case v.suffix == "" || strings.ContainsRune(v.suffix, filepath.Separator) || strings.Contains(v.suffix, "/"):
		return usagef("--suffix %q cannot be the end of a file's name", v.suffix)
	case len(names) > 1 && v.out != "":
		return usagef("--out is for one file, and there are %d", len(names))
	}
	for _, name := range names {
		if name == "" {
			return usagef("a file's name is empty")
		}
		if name == "-" && len(names) > 1 {
			return usagef("standard input (-) cannot be mixed with files")
		}
	}
	return nil
}

// file carries a verb out on one file.
func (a *app) file(ctx context.Context, c *client.Client, v *fileVerb, name string) (err error) {
	defer func() {
		if err != nil && name != "-" {
			err = fmt.Errorf("%s: %w", name, withoutPath(err, name))
		}
	}()
	src, err := a.openSource(ctx, name, v)
	if err != nil {
		return err
	}
	defer src.close()
	out := v.out
	switch {
	case name == "-" && out == "":
		out = "-"
	case out == "":
		if out, err = v.target(name); err != nil {
			return err
		}
	}
	dst, err := a.findTarget(out, src, v)
	if err != nil {
		return err
	}
	bar := a.newProgress(src, v.quiet)
	abandon := func() {
		dst.discard()
		bar.stop()
	}
	return interruptible(ctx, abandon, func() error {
		defer bar.stop()
		write, err := v.prepare(ctx, c, src)
		if err != nil {
			return err
		}
		return dst.write(func(w io.Writer) error {
			bar.start()
			return write(w)
		})
	})
}

// withoutPath takes a file's name out of an error of the operating system, if
// it is to be put in front of all of it.
func withoutPath(err error, name string) error {
	var pe *fs.PathError
	if errors.As(err, &pe) && pe.Path == name && error(pe) == err { //nolint:errorlint // only if nothing is around it
		return pe.Err
	}
	return err
}

// interruptible calls do and waits for it, but not longer than ctx lasts: do
// may hang in a pipe. It calls abandon then, and do must come to nothing.
func interruptible(ctx context.Context, abandon func(), do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		abandon()
		return ctx.Err()
	}
}
