package dev

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyhold/keyhold/server/identity"
)

// The environment's names of the root principal's access key.
const (
	EnvAccessKeyID     = "KEYHOLD_DEV_ACCESS_KEY_ID"
	EnvSecretAccessKey = "KEYHOLD_DEV_SECRET_ACCESS_KEY" //nolint:gosec // a name, not a secret
)

// accessKeyFile holds the id and, unless the environment gives it, the secret, a
// line each.
const accessKeyFile = "root-access-key"

// AccessKey is the root principal's.
type AccessKey struct {
	ID     string
	Secret identity.Secret
	// Replaces is the id of the key that it had at the last start, if another.
	Replaces string

	given bool // by the environment
}

// RootARN is the ARN of the root principal.
func (w *World) RootARN() string { return "arn:aws:iam::" + w.opts.Account + ":root" }

// AccessKey returns the root principal's access key: what the environment says,
// else what it was at the last start, else a new one, which is kept in the folder
// first. Once the service has it, KeepAccessKey must be called.
func (w *World) AccessKey(getenv func(string) string) (AccessKey, error) {
	old, err := w.readAccessKey()
	if err != nil {
		return AccessKey{}, err
	}
	k := AccessKey{ID: getenv(EnvAccessKeyID), Secret: identity.Secret(getenv(EnvSecretAccessKey))}
	switch {
	case (k.ID == "") != (len(k.Secret) == 0):
		return AccessKey{}, fmt.Errorf("%s and %s: set both or neither", EnvAccessKeyID, EnvSecretAccessKey)
	case k.ID != "":
		k.given = true
		if err := errors.Join(identity.CheckAccessKeyID(k.ID), k.plain()); err != nil {
			return AccessKey{}, fmt.Errorf("%s and %s: %w", EnvAccessKeyID, EnvSecretAccessKey, err)
		}
	case len(old.Secret) > 0:
		return old, nil
	default:
		k.ID, k.Secret = identity.NewAccessKeyID(), identity.NewSecret()
	}
	if old.ID != k.ID {
		k.Replaces = old.ID
	}
	if !k.given && k.Replaces == "" {
		return k, w.writeAccessKey(k)
	}
	return k, nil
}

// KeepAccessKey writes down which key the service has now.
func (w *World) KeepAccessKey(k AccessKey) error { return w.writeAccessKey(k) }

// Env returns the lines of dev.env that give the key to AWS's clients.
func (k AccessKey) Env() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + k.ID, "AWS_SECRET_ACCESS_KEY=" + string(k.Secret)}
}

// plain refuses secrets that a shell that sources dev.env would not take as they
// are.
func (k AccessKey) plain() error {
	if bytes.HasPrefix(k.Secret, []byte("~")) || bytes.ContainsFunc(k.Secret, func(r rune) bool { return r != '=' && needsQuoting(r) || r > '~' }) {
		return errors.New("a shell would not take the secret as it is: use letters, digits, + and /")
	}
	return nil
}

func (w *World) accessKeyPath() string { return filepath.Join(filepath.Dir(w.EnvFile), accessKeyFile) }

func (w *World) readAccessKey() (AccessKey, error) {
	b, err := os.ReadFile(w.accessKeyPath())
	if errors.Is(err, fs.ErrNotExist) {
		return AccessKey{}, nil
	}
	if err != nil {
		return AccessKey{}, fmt.Errorf("read the root access key: %w", err)
	}
	defer clear(b)
	id, secret, _ := bytes.Cut(b, []byte("\n"))
	k := AccessKey{ID: string(id), Secret: identity.Secret(bytes.Clone(bytes.TrimSpace(secret)))}
	if err := errors.Join(identity.CheckAccessKeyID(k.ID), k.plain()); err != nil {
		return AccessKey{}, fmt.Errorf("%s: %w; hint: remove the file, a new key is made", w.accessKeyPath(), err)
	}
	return k, nil
}

// writeAccessKey writes the file as a whole or not at all. What the environment
// gave stays there.
func (w *World) writeAccessKey(k AccessKey) error {
	b := append([]byte(strings.TrimSpace(k.ID)), '\n')
	if !k.given {
		b = append(append(b, k.Secret...), '\n')
	}
	defer clear(b)
	temporary := w.accessKeyPath() + ".new"
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("write the root access key: %w", err)
	}
	if err := os.Rename(temporary, w.accessKeyPath()); err != nil {
		return fmt.Errorf("write the root access key: %w", err)
	}
	return nil
}
