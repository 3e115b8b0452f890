package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keyhold/keyhold/client/filecrypt"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/servertest"
)

// newFileDaemon starts a daemon with a key alias/file.
func newFileDaemon(t *testing.T) *daemon {
	t.Helper()
	d := start(t, filepath.Join(t.TempDir(), "dev"))
	if _, err := d.keyhold(t.Context(), nil, "key", "create", "--alias", "file"); err != nil {
		t.Fatal(err)
	}
	return d
}

// filler is data of n bytes in which no two segments are the same.
func filler(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

// names are what is in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestFileSession: files through the real service, and what it refuses.
func TestFileSession(t *testing.T) {
	t.Parallel()
	d := newFileDaemon(t)
	dir := t.TempDir()
	plain, sealed, opened := filepath.Join(dir, "dump.sql"), filepath.Join(dir, "dump.sql.kh"), filepath.Join(dir, "opened")
	want := filler(3 << 20)
	if err := os.WriteFile(plain, want, 0o640); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) error {
		_, err := d.keyhold(t.Context(), nil, append([]string{"file"}, args...)...)
		return err
	}
	if err := run("encrypt", "--key", "alias/file", "--context", "host=db1", plain); err != nil {
		t.Fatal(err)
	}
	if err := run("decrypt", "--key", "alias/file", "--context", "host=db1", "--out", opened, sealed); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(opened); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if info, err := os.Stat(opened); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, args := range [][]string{{"--alias", "elsewhere"}, {"--alias", "signer", "--spec", "ECC_NIST_P256"}} {
		if _, err := d.keyhold(t.Context(), nil, append([]string{"key", "create"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	wrong := filepath.Join(dir, "wrong")
	refused := func(want string, args ...string) {
		t.Helper()
		if err := run(append(args, "--out", wrong)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", args, err, want)
		}
	}
	refused("IncorrectKeyException", "decrypt", "--key", "alias/elsewhere", sealed)
	refused(`has host="db1", not "db2"`, "decrypt", "--context", "host=db2", sealed)
	refused("InvalidKeyUsageException", "encrypt", "--key", "alias/signer", plain)

	c := d.dial(t)
	meta, err := c.Keys.DescribeKey(t.Context(), &keyholdv1.DescribeKeyRequest{KeyId: "alias/file"})
	if err != nil {
		t.Fatal(err)
	}
	id := meta.GetKeyMetadata().GetKeyId()
	if _, err := c.Keys.DisableKey(t.Context(), &keyholdv1.DisableKeyRequest{KeyId: id}); err != nil {
		t.Fatal(err)
	}
	refused("DisabledException", "decrypt", sealed)
	refused("DisabledException", "encrypt", "--key", "alias/file", plain)
	if _, err := c.Keys.EnableKey(t.Context(), &keyholdv1.EnableKeyRequest{KeyId: id}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); fmt.Sprint(got) != "[dump.sql dump.sql.kh opened]" {
		t.Errorf("in the folder: %q", got)
	}
	d.stop(t)
	verifyAudit(t, d.dir)
}

// TestFileHeaderFlips: no byte of a header can be changed under the real
// service.
func TestFileHeaderFlips(t *testing.T) {
	t.Parallel()
	d := newFileDaemon(t)
	c := d.dial(t)
	var b bytes.Buffer
	w, err := filecrypt.NewWriter(t.Context(), c.Crypto, &b, filecrypt.WriterOptions{KeyID: "alias/file", Context: map[string]string{"host": "db1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("attack at dawn")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := b.Bytes()
	open := func() (string, error) {
		r, err := filecrypt.NewReader(t.Context(), c.Crypto, bytes.NewReader(file), filecrypt.ReaderOptions{})
		if err != nil {
			return "", err
		}
		got, err := io.ReadAll(r)
		return string(got), err
	}
	if got, err := open(); err != nil || got != "attack at dawn" {
		t.Fatalf("%q, %v", got, err)
	}
	for i := range file {
		file[i] ^= 0x20
		if got, err := open(); err == nil || got != "" {
			t.Errorf("byte %d of %d changed: %q, %v", i, len(file), got, err)
		}
		file[i] ^= 0x20
	}
	d.stop(t)
}

// feeding is `keyhold file` that reads standard input from the test.
type feeding struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr *bytes.Buffer
}

// feed starts `keyhold file encrypt` into a file in dir, writes head to it and
// waits until it has begun to write.
func (d *daemon) feed(t *testing.T, dir, out string, head []byte) *feeding {
	t.Helper()
	f := &feeding{cmd: exec.Command(binaries.keyhold, "file", "encrypt", "--key", "alias/file", "--out", filepath.Join(dir, out)), stderr: &bytes.Buffer{}}
	f.cmd.Env, f.cmd.Stderr = d.environ(), f.stderr
	before := partials(t, dir)
	var err error
	if f.stdin, err = f.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.stdin.Write(head); err != nil {
		t.Fatalf("%v: %s", err, f.stderr)
	}
	eventually(t, "a partial file grows", func() error {
		for path, size := range partials(t, dir) {
			if _, old := before[path]; !old && size > 0 {
				return nil
			}
		}
		return fmt.Errorf("there are %q", names(t, dir))
	})
	return f
}

// partials are the files of a folder that are being written, with their sizes.
func partials(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, ".keyhold-*.partial"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out[path] = info.Size()
	}
	return out
}

// end writes the rest and returns what the tool said if it failed.
func (f *feeding) end(rest []byte) error {
	_, err := f.stdin.Write(rest)
	f.stdin.Close()
	if waitErr := f.cmd.Wait(); waitErr != nil {
		return fmt.Errorf("%w: %s", waitErr, f.stderr)
	}
	return err
}

// TestFileServerGoesAway: the server is needed at the beginning only.
func TestFileServerGoesAway(t *testing.T) {
	t.Parallel()
	d := newFileDaemon(t)
	dir := t.TempDir()
	want := filler(1 << 20)
	f := d.feed(t, dir, "out.kh", want[:500_000])
	d.stop(t)
	if err := f.end(want[500_000:]); err != nil {
		t.Fatal(err)
	}
	if _, err := d.keyhold(t.Context(), nil, "file", "decrypt", filepath.Join(dir, "out.kh")); err == nil || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("decrypt without a server: %v", err)
	}
	if got := names(t, dir); fmt.Sprint(got) != "[out.kh]" {
		t.Errorf("in the folder: %q", got)
	}
	d = start(t, d.dir)
	got, err := d.keyhold(t.Context(), nil, "file", "decrypt", "--out", "-", filepath.Join(dir, "out.kh"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	d.stop(t)
}

// TestFileSignals: what ends the tool leaves no file under the name that was
// asked for; what can be caught leaves nothing at all.
func TestFileSignals(t *testing.T) {
	t.Parallel()
	d := newFileDaemon(t)
	for _, tt := range []struct {
		signal  syscall.Signal
		partial int
		says    string
	}{
		{syscall.SIGINT, 0, "keyhold: interrupted\n"},
		{syscall.SIGTERM, 0, "keyhold: interrupted\n"},
		{syscall.SIGKILL, 1, ""},
	} {
		dir := t.TempDir()
		f := d.feed(t, dir, "out.kh", filler(1<<20))
		if err := f.cmd.Process.Signal(tt.signal); err != nil {
			t.Fatal(err)
		}
		if err := f.cmd.Wait(); err == nil || f.stderr.String() != tt.says {
			t.Errorf("%v: %v, %q", tt.signal, err, f.stderr)
		}
		if got := names(t, dir); len(got) != tt.partial || len(partials(t, dir)) != tt.partial {
			t.Errorf("%v: in the folder: %q", tt.signal, got)
		}
		// What was left over is in nobody's way.
		f = d.feed(t, dir, "out.kh", filler(100_000))
		if err := f.end(nil); err != nil {
			t.Errorf("after %v: %v", tt.signal, err)
		}
	}
	d.stop(t)
}

// TestFileTwoProcesses: of two that write the same file, the first to end
// wins, and the second is refused.
func TestFileTwoProcesses(t *testing.T) {
	t.Parallel()
	d := newFileDaemon(t)
	dir := t.TempDir()
	first := d.feed(t, dir, "out.kh", filler(200_000))
	second := d.feed(t, dir, "out.kh", []byte(strings.Repeat("second", 50_000)))
	if err := first.end([]byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := second.end(nil); err == nil || !strings.Contains(err.Error(), "out.kh exists") {
		t.Errorf("the second: %v", err)
	}
	got, err := d.keyhold(t.Context(), nil, "file", "decrypt", "--out", "-", filepath.Join(dir, "out.kh"))
	if err != nil || !bytes.Equal(got, append(filler(200_000), "first"...)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got := names(t, dir); fmt.Sprint(got) != "[out.kh]" {
		t.Errorf("in the folder: %q", got)
	}
	d.stop(t)
}

// TestFileDiskFull: a full disk, and one that cannot be written, fail the
// command and leave nothing behind.
func TestFileDiskFull(t *testing.T) {
	t.Parallel()
	disk := servertest.SmallDisk(t, "1m")
	d := newFileDaemon(t)
	dir := t.TempDir()
	plain, sealed := filepath.Join(dir, "big"), filepath.Join(dir, "big.kh")
	if err := os.WriteFile(plain, filler(4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.keyhold(t.Context(), nil, "file", "encrypt", "--key", "alias/file", plain); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(disk, "out")
	verbs := [][]string{{"encrypt", "--key", "alias/file", "--out", out, plain}, {"decrypt", "--out", out, sealed}}
	for _, says := range []string{"no space left on device", "read-only file system"} {
		for _, verb := range verbs {
			if _, err := d.keyhold(t.Context(), nil, append([]string{"file"}, verb...)...); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v, want %s", verb[0], err, says)
			}
			if left := names(t, disk); len(left) > 0 {
				t.Errorf("%s, %s: left behind: %q", verb[0], says, left)
			}
		}
		if msg, err := exec.Command("mount", "-o", "remount,ro", disk).CombinedOutput(); err != nil {
			t.Fatalf("remount: %v\n%s", err, msg)
		}
	}
	// Standard output that is full is no success either.
	for _, verb := range []string{"encrypt --key alias/file", "decrypt"} {
		in := map[string]string{"decrypt": sealed}[verb]
		if in == "" {
			in = plain
		}
		cmd := exec.Command("sh", "-c", fmt.Sprintf("%s file %s --out - %s > /dev/full", binaries.keyhold, verb, in))
		cmd.Env = d.environ()
		if msg, err := cmd.CombinedOutput(); err == nil || !bytes.Contains(msg, []byte("no space left on device")) {
			t.Errorf("%s into a full disk: %v, %s", verb, err, msg)
		}
	}
	d.stop(t)
}
