package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Limits of the API, in bytes.
const (
	maxPlaintextBytes  = 4096
	maxMessageBytes    = 4096
	maxCiphertextBytes = 6144
	maxSignatureBytes  = 6144
	maxMACBytes        = 6144
)

// encoding is how bytes stand in a file or on a terminal. The zero value means
// that the user did not say.
type encoding string

const (
	encodingRaw    encoding = "raw"
	encodingBase64 encoding = "base64"
	encodingHex    encoding = "hex"
)

func (e *encoding) String() string { return string(*e) }
func (e *encoding) Type() string   { return "encoding" }

// Set parses raw, base64 or hex.
func (e *encoding) Set(s string) error {
	switch v := encoding(s); v {
	case encodingRaw, encodingBase64, encodingHex:
		*e = v
		return nil
	}
	return errors.New("must be raw, base64 or hex")
}

func encodingVar(cmd *cobra.Command, p *encoding, name, usage string) {
	cmd.Flags().Var(p, name, usage)
	completeWords(cmd, name, string(encodingRaw), string(encodingBase64), string(encodingHex))
}

// inputSpec says what a command reads.
type inputSpec struct {
	name   string // "plaintext"
	limit  int    // in bytes, after decoding
	remedy string // what to do with more, may be empty
	enc    encoding
}

func (s inputSpec) tooLarge() error {
	err := fmt.Errorf("%s is larger than %d bytes", s.name, s.limit)
	if s.remedy != "" {
		err = fmt.Errorf("%w; %s", err, s.remedy)
	}
	return err
}

// readInput reads the file that is named, or standard input if none is or its
// name is "-". Nothing at all is refused, and so is more than the limit, of
// which no more than one byte is read. The caller clears the bytes if they
// are secret; this function leaves no copy.
func (a *app) readInput(ctx context.Context, file string, spec inputSpec) ([]byte, error) {
	src := a.stdin
	if file != "" && file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", spec.name, err)
		}
		defer f.Close()
		src = f
	} else if a.isTerminal(a.stdin) {
		fmt.Fprintf(a.stderr, "keyhold: reading the %s from the terminal; Ctrl-D ends it\n", spec.name)
	}
	limit := spec.limit
	if spec.enc == encodingBase64 || spec.enc == encodingHex {
		limit = 4*limit + 1024 // room for line breaks, too; the exact limit is checked below
	}
	raw, err := readAtMost(ctx, src, limit)
	if err != nil {
		if errors.Is(err, errTooLarge) {
			return nil, spec.tooLarge()
		}
		return nil, fmt.Errorf("read %s: %w", spec.name, err)
	}
	data, err := decode(raw, spec.enc)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", spec.name, err)
	}
	switch {
	case len(data) > spec.limit:
		clear(data)
		return nil, spec.tooLarge()
	case len(data) == 0:
		return nil, fmt.Errorf("the %s is empty", spec.name)
	}
	return data, nil
}

// fileArgument returns the file of a command's optional argument.
func fileArgument(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

var errTooLarge = errors.New("input is too large")

// readAtMost reads r to its end into one buffer of limit+1 bytes, so that no
// copies of a secret are left behind by a growing one. A cancelled ctx ends
// the wait; the read itself then ends with the process.
func readAtMost(ctx context.Context, r io.Reader, limit int) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		buf := make([]byte, limit+1)
		n, err := io.ReadFull(r, buf)
		switch {
		case err == nil:
			clear(buf)
			done <- result{nil, errTooLarge}
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			done <- result{buf[:n], nil}
		default:
			clear(buf)
			done <- result{nil, err}
		}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// decode decodes in place, so that there is one buffer to clear. White space
// is ignored in base64 and hex.
func decode(raw []byte, enc encoding) ([]byte, error) {
	if enc != encodingBase64 && enc != encodingHex {
		return raw, nil
	}
	text := raw[:0]
	for _, c := range raw {
		if c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			text = append(text, c)
		}
	}
	clear(raw[len(text):])
	var n int
	var err error
	if enc == encodingHex {
		n, err = hex.Decode(text, text)
	} else {
		n, err = base64.StdEncoding.Decode(text, text)
	}
	if err != nil {
		clear(raw)
		return nil, fmt.Errorf("it is not %s", enc)
	}
	clear(text[n:])
	return text[:n], nil
}

// confirm asks the user to type word. Only a terminal is asked.
func (a *app) confirm(ctx context.Context, question, word string) error {
	if !a.isTerminal(a.stdin) {
		return usagef("standard input is no terminal, so nobody can be asked: confirm with --yes")
	}
	fmt.Fprintf(a.stderr, "%s\nType %s to confirm: ", printable(question), printable(word))
	line, err := readLine(ctx, a.stdin)
	if err != nil {
		return fmt.Errorf("read confirmation: %w", err)
	}
	if strings.TrimSpace(line) != word {
		return errors.New("not confirmed: nothing was done")
	}
	return nil
}

// readLine reads one line of at most 4,096 bytes.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	line := make(chan string, 1)
	go func() {
		var b strings.Builder
		var c [1]byte
		for b.Len() < 4096 {
			if n, err := r.Read(c[:]); n == 0 && err != nil || n == 1 && c[0] == '\n' {
				break
			} else if n == 1 {
				b.WriteByte(c[0])
			}
		}
		line <- b.String()
	}()
	select {
	case s := <-line:
		return s, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
