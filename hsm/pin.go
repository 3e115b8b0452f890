package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxPINBytes bounds what is read from a PIN source. Tokens accept far less (SoftHSM 255).
const maxPINBytes = 512

type pinKind uint8

const (
	pinNone pinKind = iota
	pinFile
	pinEnv
	pinCredential
)

// PINSource says where the user's PIN is; it never holds the PIN. The zero value is no source.
type PINSource struct {
	kind pinKind
	name string
}

// PINFile is a file that holds the PIN and nothing else but an optional line end. It must be readable by its owner only.
func PINFile(path string) PINSource { return PINSource{pinFile, path} }

// PINEnv is a variable of the environment. Prefer a file or a credential: the environment is inherited by child processes and shown by /proc
// to programs of the same user.
func PINEnv(name string) PINSource { return PINSource{pinEnv, name} }

// PINCredential is a systemd credential (LoadCredential=, LoadCredentialEncrypted=), a file below $CREDENTIALS_DIRECTORY.
func PINCredential(name string) PINSource { return PINSource{pinCredential, name} }

// String tells where the PIN is, in the form that pin-source of a pkcs11: URI takes. It never tells the PIN.
func (p PINSource) String() string {
	switch p.kind {
	case pinFile:
		return "file:" + p.name
	case pinEnv:
		return "env:" + p.name
	case pinCredential:
		return "credential:" + p.name
	}
	return "none"
}

// check refuses names that cannot be a source.
func (p PINSource) check() error {
	switch {
	case p.name == "" || strings.ContainsRune(p.name, 0):
		return errors.New("hsm: the PIN source has no usable name")
	case p.kind == pinFile && !filepath.IsAbs(p.name):
		return fmt.Errorf("hsm: PIN file %q: give an absolute path", p.name)
	case p.kind == pinEnv && strings.ContainsRune(p.name, '='):
		return fmt.Errorf("hsm: PIN variable %q: a variable's name has no '='", p.name)
	case p.kind == pinCredential && (p.name != filepath.Base(p.name) || p.name == "." || p.name == ".."):
		return fmt.Errorf("hsm: PIN credential %q: give the credential's name, not a path", p.name)
	}
	return nil
}

// Read returns the PIN, without the line end of a text file. The caller zeroes it. Errors name the source and the remedy, never the content.
func (p PINSource) Read() ([]byte, error) {
	if p.kind == pinNone {
		return nil, errors.New("hsm: no source for the PIN")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	switch p.kind {
	case pinEnv:
		v, ok := os.LookupEnv(p.name)
		if !ok {
			return nil, fmt.Errorf("hsm: PIN variable %s is not set", p.name)
		}
		return trimPIN([]byte(v), p.String())
	case pinCredential:
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, fmt.Errorf("hsm: PIN credential %s: CREDENTIALS_DIRECTORY is not set; add LoadCredential=%s:… to the systemd unit", p.name, p.name)
		}
		return readPINFile(filepath.Join(dir, p.name), p.String(), credentialFileMode)
	}
	return readPINFile(p.name, p.String(), secretFileMode)
}

// The permissions that may not be set on a PIN's file.
const (
	secretFileMode fs.FileMode = 0o077
	// systemd hands credentials out as 0400 or 0440, in a folder that only the service may enter.
	credentialFileMode fs.FileMode = 0o037
)

// readPINFile reads a PIN from a file that nobody else may read. It looks at the open file, so that it cannot be swapped in between.
func readPINFile(path, source string, forbidden fs.FileMode) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO without a writer would hang; it is refused below for not being a regular file.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("hsm: read PIN from %s: %w", source, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("hsm: read PIN from %s: %w", source, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("hsm: PIN source %s is not a regular file", source)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return nil, fmt.Errorf("hsm: PIN file %s has mode %04o, others may read it: run chmod 0600 %s, and change the PIN if they may have", source, mode, path)
	}
	buf := make([]byte, maxPINBytes+3)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		clear(buf)
		return nil, fmt.Errorf("hsm: read PIN from %s: %w", source, err)
	}
	return trimPIN(buf[:n], source)
}

// trimPIN cuts one line end off and checks what is left. It zeroes b when it refuses it.
func trimPIN(b []byte, source string) ([]byte, error) {
	pin := b
	if cut, ok := bytes.CutSuffix(pin, []byte("\n")); ok {
		pin, _ = bytes.CutSuffix(cut, []byte("\r"))
	}
	var problem string
	switch {
	case len(pin) == 0:
		problem = "is empty"
	case len(pin) > maxPINBytes:
		problem = fmt.Sprintf("is longer than %d bytes", maxPINBytes)
	case bytes.ContainsAny(pin, "\x00\r\n"):
		problem = "holds more than one line"
	default:
		return pin, nil
	}
	clear(b)
	return nil, fmt.Errorf("hsm: PIN source %s %s: it must hold the PIN alone", source, problem)
}
