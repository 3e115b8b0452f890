// Package softhsmconfig finds SoftHSM2, writes its configuration from the one
// template that development, tests and deployment share, and initialises
// tokens with random PINs.
//
// It promises:
//
//   - a token is complete or absent: it is made in a staging folder, made
//     durable, and moved to its place with one rename, so that a crash at any
//     moment is repaired by calling [Init] again;
//   - PINs are random, live in files of mode 0600 and are never in an argument,
//     an environment variable or a log;
//   - nothing outside the given directory is written, and SOFTHSM2_CONF is
//     changed for this process only. The user's own SoftHSM configuration and
//     tokens are not read either.
//
// It does not install SoftHSM (install.sh beside it does), does not open
// tokens (package hsm does), and never deletes a token.
package softhsmconfig

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// EnvModule names the environment variable that overrides where the SoftHSM
// library is looked for.
const EnvModule = "KEYHOLD_SOFTHSM_MODULE"

// EnvConf names the environment variable through which SoftHSM finds its
// configuration. The library reads it in C_Initialize, each time.
const EnvConf = "SOFTHSM2_CONF"

// Names inside the directory that [Init] is given.
const (
	confName     = "softhsm2.conf"
	tokenDirName = "tokens"
	stageName    = "tokens.new"
	pinName      = "pin" // only within the staging folder
	soPINName    = "so-pin"
)

// maxConfLineBytes is SoftHSM's own limit: it reads lines into 1024 bytes and
// takes the rest of a longer line for another line.
const maxConfLineBytes = 1000

//go:embed softhsm2.conf
var confTemplate string

//go:embed module-paths.txt
var modulePaths string

// ErrNotInstalled says that no SoftHSM library was found. The message of the
// error that wraps it names the remedy.
var ErrNotInstalled = errors.New("SoftHSM2 not found")

// Locate returns the path of the SoftHSM PKCS#11 library: what
// KEYHOLD_SOFTHSM_MODULE says, else the first of the known places (Debian,
// Ubuntu, Fedora, Alpine, macOS with Homebrew) that holds one. Without one the
// error is [ErrNotInstalled].
func Locate() (string, error) {
	return locate(os.Getenv(EnvModule), modulePaths)
}

func locate(override, patterns string) (string, error) {
	if override != "" {
		if info, err := os.Stat(override); err != nil || !info.Mode().IsRegular() {
			return "", fmt.Errorf("%w: %s names %s, which is not a file; correct or unset it", ErrNotInstalled, EnvModule, override)
		}
		return override, nil
	}
	for line := range strings.Lines(patterns) {
		pattern := strings.TrimSpace(line)
		if pattern == "" || strings.HasPrefix(pattern, "#") {
			continue
		}
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("pattern %q in module-paths.txt: %w", pattern, err)
		}
		for _, path := range matches {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%w: run softhsm-config/install.sh (apt: softhsm2, dnf, apk and brew: softhsm), or set %s to the path of libsofthsm2.so", ErrNotInstalled, EnvModule)
}

// Config returns the text of a configuration whose tokens live in tokenDir,
// which must be absolute and free of what SoftHSM's reader cannot carry.
func Config(tokenDir string) (string, error) {
	switch {
	case !filepath.IsAbs(tokenDir):
		return "", fmt.Errorf("token directory %q: not an absolute path", tokenDir)
	case len(tokenDir) > maxConfLineBytes:
		return "", fmt.Errorf("token directory: path of %d bytes, SoftHSM reads at most %d", len(tokenDir), maxConfLineBytes)
	case strings.ContainsAny(tokenDir, "#=\r\n\x00") || strings.TrimSpace(tokenDir) != tokenDir:
		return "", fmt.Errorf("token directory %q: SoftHSM's configuration cannot hold #, =, line ends, or spaces at either end; choose another directory", tokenDir)
	}
	return strings.ReplaceAll(confTemplate, "@TOKENDIR@", tokenDir), nil
}

// WriteConfig writes dir/softhsm2.conf (0600) for tokens in dir/tokens (0700,
// created when missing) and returns the file's path. An existing file of other
// content is replaced: it is Keyhold's own, not the user's.
func WriteConfig(dir string) (conf string, err error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("directory %s: %w", dir, err)
	}
	return writeConfig(filepath.Join(abs, confName), filepath.Join(abs, tokenDirName))
}

func writeConfig(conf, tokenDir string) (string, error) {
	text, err := Config(tokenDir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(tokenDir, 0o700); err != nil {
		return "", fmt.Errorf("create token directory: %w", err)
	}
	if old, err := os.ReadFile(conf); err == nil && string(old) == text {
		return conf, nil
	}
	if err := writeFileDurably(conf, []byte(text)); err != nil {
		return "", fmt.Errorf("write SoftHSM configuration: %w", err)
	}
	return conf, nil
}

// writeFileDurably replaces path by a file of mode 0600 that is whole or
// absent after a crash. The caller owns the directory.
func writeFileDurably(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when the rename was reached
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
