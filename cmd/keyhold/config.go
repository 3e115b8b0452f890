package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyhold/keyhold/client"
)

// maxConfigBytes is the size that a configuration file or dev.env may have.
const maxConfigBytes = 64 << 10

// devEnvFile is where `keyholdd dev` says how to reach it, from its default
// --dir.
const devEnvFile = ".keyhold/dev.env"

// setting is one thing that the connection depends on, with its three names.
type setting struct {
	flag  string // --flag
	env   string // environment variable, also in dev.env
	yaml  string // key in config.yaml
	usage string
	path  bool // names a file: relative to config.yaml when it stands there
}

// The settings, by their flags.
const (
	setAddr       = "addr"
	setCA         = "ca"
	setCert       = "cert"
	setKey        = "key-file"
	setServerName = "server-name"
	setRegion     = "region"
	setTimeout    = "timeout"
	setAdminURL   = "admin-url"
)

func settings() []setting {
	return []setting{
		{setAddr, "KEYHOLD_ADDR", "addr", "the server's host:port", false},
		{setCA, "KEYHOLD_CA", "ca", "PEM file with the CA certificates of the server", true},
		{setCert, "KEYHOLD_CERT", "cert", "PEM file with your certificate", true},
		{setKey, "KEYHOLD_KEY", "key", "PEM file with your certificate's private key", true},
		{setServerName, "KEYHOLD_SERVER_NAME", "server_name", "name that the server's certificate must carry", false},
		{setRegion, "KEYHOLD_REGION", "region", "region of the keys; the server has a default", false},
		{setTimeout, "KEYHOLD_TIMEOUT", "timeout", "how long one call may take, such as 30s, which is the default", false},
		{setAdminURL, "KEYHOLD_ADMIN_URL", "admin_url", "URL of the server's admin listener, for status and bench", false},
	}
}

// value is a setting in effect. An empty text means that it is not set.
type value struct{ text, source string }

// config is the settings in effect, by their flags.
type config struct {
	values map[string]value
	// notes say what was looked at, for --verbose; devEnv why dev.env was not
	// used, if it is there and could have been.
	notes  []string
	devEnv error
}

func (c *config) text(flag string) string   { return c.values[flag].text }
func (c *config) source(flag string) string { return c.values[flag].source }

// fill sets what is not set yet.
func (c *config) fill(source string, get func(setting) string) {
	for _, s := range settings() {
		if text := get(s); text != "" && c.text(s.flag) == "" {
			c.values[s.flag] = value{text, source}
		}
	}
}

// loadConfig takes each setting from the first place that has it: flags,
// environment, file. Empty counts as not set. dev.env is used only if none of
// them says anything about the server or the caller's identity, so that a
// folder one happens to stand in never mixes with a configuration.
func (a *app) loadConfig() (*config, error) {
	if a.config != nil {
		return a.config, nil
	}
	c := &config{values: map[string]value{}}
	c.fill("flag", func(s setting) string { return *a.flags[s.flag] })
	c.fill("environment", func(s setting) string { return a.getenv(s.env) })
	if err := a.loadConfigFile(c); err != nil {
		return nil, err
	}
	if c.text(setAddr) == "" && c.text(setCA) == "" && c.text(setCert) == "" && c.text(setKey) == "" {
		vars, err := readDevEnv(devEnvFile)
		switch {
		case err == nil:
			c.fill(devEnvFile, func(s setting) string { return vars[s.env] })
			c.notes = append(c.notes, "nothing else is set: taken from "+devEnvFile)
		case !errors.Is(err, fs.ErrNotExist):
			c.devEnv = err
		}
	}
	if a.verbose {
		for _, note := range c.notes {
			fmt.Fprintf(a.stderr, "keyhold: settings: %s\n", printable(note))
		}
	}
	if _, err := c.parseTimeout(); err != nil {
		return nil, err
	}
	a.config = c
	return c, nil
}

// loadConfigFile reads $KEYHOLD_CONFIG, which must be there if it is set, or
// ~/.config/keyhold/config.yaml, which need not.
func (a *app) loadConfigFile(c *config) error {
	path, mustExist := a.getenv("KEYHOLD_CONFIG"), true
	if path == "" {
		home := a.getenv("HOME")
		if home == "" {
			var err error
			if home, err = os.UserHomeDir(); err != nil {
				return nil //nolint:nilerr // no home, so no file in it
			}
		}
		path, mustExist = filepath.Join(home, ".config", "keyhold", "config.yaml"), false
	}
	raw, err := readSmallFile(path, anyFile)
	if errors.Is(err, fs.ErrNotExist) && !mustExist {
		return nil
	}
	if err != nil {
		return withHint(fmt.Errorf("read configuration: %w", err), "unset KEYHOLD_CONFIG, or let it name a file")
	}
	values, err := parseConfigFile(raw, filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("read configuration %s: %w", path, err)
	}
	c.fill(path, func(s setting) string { return values[s.yaml] })
	c.notes = append(c.notes, "read "+path)
	return nil
}

// anyFile trusts a file that the caller has named.
func anyFile(fs.FileInfo) error { return nil }

// parseConfigFile reads YAML strictly: one document, one flat mapping, known
// keys only, none twice. Paths are taken relative to dir.
func parseConfigFile(raw []byte, dir string) (map[string]string, error) {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	values := map[string]string{}
	switch err := dec.Decode(&values); {
	case errors.Is(err, io.EOF):
		return values, nil // nothing but comments
	case err != nil:
		return nil, err
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one YAML document")
	}
	known := map[string]setting{}
	var names []string
	for _, s := range settings() {
		known[s.yaml] = s
		names = append(names, s.yaml)
	}
	for key, text := range values {
		s, ok := known[key]
		if !ok {
			return nil, fmt.Errorf("unknown setting %q; there are %s", key, strings.Join(names, ", "))
		}
		if s.path && text != "" && !filepath.IsAbs(text) {
			values[key] = filepath.Join(dir, text)
		}
	}
	return values, nil
}

// client returns the configuration of the connection, or what is missing in
// it and how to set it.
func (c *config) client() (client.Config, error) {
	for _, flag := range []string{setAddr, setCert, setKey} {
		if c.text(flag) != "" {
			continue
		}
		var env string
		for _, s := range settings() {
			if s.flag == flag {
				env = s.env
			}
		}
		err := fmt.Errorf("%s is not set. Start `keyholdd dev` and run `set -a; . %s; set +a`, or pass --%s", env, devEnvFile, flag)
		if c.devEnv != nil {
			return client.Config{}, withHint(err, "%v", c.devEnv)
		}
		return client.Config{}, err
	}
	return client.Config{
		Addr:       c.text(setAddr),
		CAFile:     c.text(setCA),
		CertFile:   c.text(setCert),
		KeyFile:    c.text(setKey),
		ServerName: c.text(setServerName),
		Region:     c.text(setRegion),
		Timeout:    c.timeout(),
	}, nil
}

func (c *config) parseTimeout() (time.Duration, error) {
	text := c.text(setTimeout)
	if text == "" {
		return client.DefaultTimeout, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("timeout %q (%s) is not a duration above zero, such as 30s or 2m", text, c.source(setTimeout))
	}
	return d, nil
}

// timeout returns how long a call may take. loadConfig has checked it.
func (c *config) timeout() time.Duration {
	d, err := c.parseTimeout()
	if err != nil {
		return client.DefaultTimeout
	}
	return d
}

// readSmallFile reads a file of at most maxConfigBytes. The check sees the
// file that was opened, whatever its name means by then.
func readSmallFile(path string, check func(fs.FileInfo) error) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := check(info); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxConfigBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxConfigBytes)
	}
	return raw, nil
}
