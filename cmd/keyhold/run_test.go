package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// invocation runs the tool within the test's process.
type invocation struct {
	env            map[string]string
	stdin          io.Reader
	stdout, stderr io.Writer
	terminals      []any // which of the three are terminals
}

func (v *invocation) run(ctx context.Context, args ...string) int {
	return run(ctx, args, v.app())
}

func (v *invocation) app() *app {
	return &app{
		stdin: v.stdin, stdout: v.stdout, stderr: v.stderr,
		getenv: func(name string) string { return v.env[name] },
		isTerminal: func(file any) bool {
			for _, t := range v.terminals {
				if t == file {
					return true
				}
			}
			return false
		},
		version: "v0.0.0-test",
	}
}

// mustRun runs the tool and returns what it wrote to standard output.
func mustRun(t *testing.T, env map[string]string, stdin string, terminal bool, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	v := &invocation{env: env, stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr}
	if terminal {
		v.terminals = []any{&stdout}
	}
	if code := v.run(t.Context(), args...); code != exitOK {
		t.Fatalf("keyhold %s: exit code %d\n%s", strings.Join(args, " "), code, stderr.String())
	}
	return stdout.String()
}

// On a terminal bytes come in base64, but what was encrypted as text is text
// again.
func TestTerminalOutput(t *testing.T) {
	_, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")

	for _, tt := range []struct {
		name, plaintext string
		args            []string
		terminal        bool
		want            string
	}{
		{"text on a terminal", "grüße\n\tx", nil, true, "grüße\n\tx\n"},
		{"text with a line feed", "hello\n", nil, true, "hello\n"},
		{"bytes on a terminal", "a\x00b", nil, true, "YQBi\n"},
		{"escapes on a terminal", "\x1b[31m", nil, true, "G1szMW0=\n"},
		{"C1 controls on a terminal", "\u009b31m", nil, true, "wpszMW0=\n"},
		{"not UTF-8", "\xff", nil, true, "/w==\n"},
		{"raw by wish", "a\x00b", []string{"--encoding", "raw"}, true, "a\x00b"},
		{"hex by wish", "text", []string{"--encoding", "hex"}, true, "74657874\n"},
		{"bytes in a pipe", "a\x00b", nil, false, "a\x00b"},
		{"text in a pipe", "hello", nil, false, "hello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := mustRun(t, env, tt.plaintext, false, "encrypt", "--key", "alias/app")
			got := mustRun(t, env, raw, tt.terminal, append([]string{"decrypt"}, tt.args...)...)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("ciphertext on a terminal", func(t *testing.T) {
		text := mustRun(t, env, "x", true, "encrypt", "--key", "alias/app")
		if got := mustRun(t, env, text, false, "decrypt", "--input-encoding", "base64"); got != "x" {
			t.Errorf("got %q, want x", got)
		}
	})
	t.Run("random on a terminal", func(t *testing.T) {
		if got := mustRun(t, env, "", true, "random", "3"); got != "paWl\n" {
			t.Errorf("got %q, want paWl", got)
		}
	})
}

// A person at a terminal is told that input is awaited.
func TestTerminalInput(t *testing.T) {
	_, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")
	var stdout, stderr bytes.Buffer
	stdin := strings.NewReader("typed")
	v := &invocation{env: env, stdin: stdin, stdout: &stdout, stderr: &stderr, terminals: []any{stdin}}
	if code := v.run(t.Context(), "encrypt", "--key", "alias/app"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	if !strings.Contains(stderr.String(), "reading the plaintext from the terminal") {
		t.Errorf("stderr = %q", stderr.String())
	}
}

// notifyingReader tells when it is first read, and never ends.
type notifyingReader struct {
	reading chan struct{}
	never   chan struct{}
}

func (r *notifyingReader) Read([]byte) (int, error) {
	close(r.reading)
	<-r.never
	return 0, io.EOF
}

// A signal ends the wait for the server, for input and for a confirmation.
func TestInterrupt(t *testing.T) {
	s, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"during a call", []string{"key", "describe", "slow"}},
		{"during input", []string{"encrypt", "--key", "alias/app"}},
		{"during confirmation", []string{"key", "schedule-deletion", "alias/app"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stdin := &notifyingReader{reading: make(chan struct{}), never: make(chan struct{})}
			defer close(stdin.never)
			go func() {
				select {
				case <-stdin.reading:
				case <-s.blocked:
				case <-ctx.Done():
				}
				cancel()
			}()
			var stdout, stderr bytes.Buffer
			v := &invocation{env: env, stdin: stdin, stdout: &stdout, stderr: &stderr, terminals: []any{stdin}}
			if code := v.run(ctx, tt.args...); code != exitFailure {
				t.Errorf("exit code %d, want %d", code, exitFailure)
			}
			if !strings.HasSuffix(stderr.String(), "keyhold: interrupted\n") || stdout.Len() > 0 {
				t.Errorf("stdout = %q, stderr = %q", stdout.String(), stderr.String())
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	s, env := newFake(t)
	var stderr bytes.Buffer
	v := &invocation{env: env, stdin: strings.NewReader(""), stdout: io.Discard, stderr: &stderr}
	if code := v.run(t.Context(), "key", "describe", "slow", "--timeout", "50ms"); code != exitFailure {
		t.Errorf("exit code %d, want %d", code, exitFailure)
	}
	// Under load the call may end before it has reached the server.
	select {
	case <-s.blocked:
	default:
	}
	if got := stderr.String(); !strings.Contains(got, "hint: there was no answer within 50ms; --timeout allows more.") {
		t.Errorf("stderr = %q", got)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk is full") }

// What could not be written is a failure, for each way of printing.
func TestOutputFails(t *testing.T) {
	_, env := newFake(t)
	mustRun(t, env, "", false, "key", "create", "--alias", "app")
	for _, args := range [][]string{
		{"random", "8"},
		{"random", "8", "--output", "json"},
		{"key", "list"},
		{"key", "describe", "alias/app"},
		{"env", "--shell"},
		{"version"},
	} {
		var stderr bytes.Buffer
		v := &invocation{env: env, stdin: strings.NewReader(""), stdout: failingWriter{}, stderr: &stderr}
		if code := v.run(t.Context(), args...); code != exitFailure || !strings.Contains(stderr.String(), "disk is full") {
			t.Errorf("%v: exit code %d, stderr %q", args, code, stderr.String())
		}
	}
}

// Buffers of plaintext that are the tool's own are empty afterwards.
func TestPlaintextIsCleared(t *testing.T) {
	a := &app{stdout: io.Discard, isTerminal: func(any) bool { return false }}
	zero := make([]byte, 6)
	for _, terminal := range []bool{false, true} {
		for _, output := range []outputFormat{outputTable, outputJSON} {
			a.isTerminal, a.output = func(any) bool { return terminal }, output
			secret := []byte("secret")
			if err := a.printPlaintext(&keyholdv1.DecryptResponse{Plaintext: secret}, "", ""); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(secret, zero) {
				t.Errorf("terminal=%t output=%s: plaintext is still %q", terminal, output, secret)
			}
		}
	}
	secret := []byte("secret")
	if err := a.writeBytes(secret, filepath.Join(t.TempDir(), "f"), encodingBase64); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(secret, zero) {
		t.Errorf("into a file: plaintext is still %q", secret)
	}
	raw := []byte("c2VjcmV0 \n c2VjcmV0!")
	if _, err := decode(raw, encodingBase64); err == nil || len(bytes.Trim(raw, "\x00")) > 0 {
		t.Errorf("refused input is still %q", raw)
	}
}

// A file is there as a whole or not at all, for its owner only; devices are
// written to.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	if err := os.WriteFile(path, []byte("a longer old text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != "new" {
		t.Errorf("file holds %q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := writeFile(os.DevNull, []byte("x")); err != nil {
		t.Errorf("device: %v", err)
	}
	if err := writeFile(filepath.Join(dir, "no", "folder"), []byte("x")); err == nil {
		t.Error("a folder that is not there: no error")
	}
	if err := writeFile(dir, []byte("x")); err == nil {
		t.Error("a folder in place of a file: no error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A server that always says that there is more does not keep the tool for ever.
func TestPagesEnd(t *testing.T) {
	calls := 0
	err := pages(func(*string) (string, bool, error) {
		calls++
		return "same", true, nil
	})
	if err == nil || calls != 2 {
		t.Errorf("err = %v after %d calls", err, calls)
	}
	if err := pages(func(*string) (string, bool, error) { return "", true, nil }); err == nil {
		t.Error("more, but no marker: no error")
	}
}

func TestReadAtMost(t *testing.T) {
	for _, tt := range []struct {
		n    int
		fits bool
	}{{0, true}, {9, true}, {10, true}, {11, false}, {1 << 20, false}} {
		got, err := readAtMost(t.Context(), strings.NewReader(strings.Repeat("x", tt.n)), 10)
		if tt.fits != (err == nil) || tt.fits && len(got) != tt.n {
			t.Errorf("%d bytes with a limit of 10: %d bytes, %v", tt.n, len(got), err)
		}
		if !tt.fits && !errors.Is(err, errTooLarge) {
			t.Errorf("%d bytes: %v, want errTooLarge", tt.n, err)
		}
	}
	// No more than one byte too many is taken: the rest stays in the pipe.
	r := strings.NewReader(strings.Repeat("x", 20))
	if _, err := readAtMost(t.Context(), r, 10); err == nil || r.Len() != 9 {
		t.Errorf("%v, and %d bytes are left; want 9", err, r.Len())
	}
	if _, err := readAtMost(t.Context(), io.MultiReader(strings.NewReader("x"), failingReader{}), 10); err == nil || errors.Is(err, errTooLarge) {
		t.Errorf("reader fails: %v", err)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("device is gone") }

// Encoded input obeys the same limits once it is decoded.
func TestEncodedInputLimit(t *testing.T) {
	a := &app{isTerminal: func(any) bool { return false }}
	for _, enc := range []encoding{encodingBase64, encodingHex} {
		for _, n := range []int{maxCiphertextBytes, maxCiphertextBytes + 1} {
			a.stdin = bytes.NewReader(encode(make([]byte, n), enc))
			_, err := a.readInput(t.Context(), "", inputSpec{name: "ciphertext", limit: maxCiphertextBytes, enc: enc})
			if (err == nil) != (n <= maxCiphertextBytes) {
				t.Errorf("%s, %d bytes: %v", enc, n, err)
			}
		}
	}
}

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain é 漢 🔑", "plain é 漢 🔑"},
		{"a\nb\tc\r", `a\nb\tc\u000d`},
		{"\x1b[2J\x7f\u009b", `\u001b[2J\u007f\u009b`},
		{"\u202egnp.exe\u2066", `\u202egnp.exe\u2066`},
		{"\xff\ufffd", "\\xff\ufffd"},
	} {
		if got := printable(tt.in); got != tt.want {
			t.Errorf("printable(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// What is not UTF-8 is said to be, and not by gRPC's encoder.
func TestArgumentsInUTF8(t *testing.T) {
	_, env := newFake(t)
	for _, args := range [][]string{
		{"encrypt", "--key", "alias/\xff"},
		{"encrypt", "--key", "alias/app", "--context", "a=\xff"},
		{"key", "create", "--description", "\xff"},
		{"key", "create", "--tag", "a=\xff"},
	} {
		var stderr bytes.Buffer
		v := &invocation{env: env, stdin: strings.NewReader("x"), stdout: io.Discard, stderr: &stderr}
		if code := v.run(t.Context(), args...); code != exitUsage || !strings.Contains(stderr.String(), "an argument is not UTF-8") {
			t.Errorf("%q: exit code %d, %s", args, code, stderr.String())
		}
	}
}
