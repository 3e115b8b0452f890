package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/identity"
)

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// minSegmentBytes keeps segments large enough for the largest record there can
// be (some 180 KB): a change that cannot be recorded would be made and not
// answered.
const minSegmentBytes = 256 << 10

// maxAccessKeysPerPrincipal keeps the list of a principal's keys one answer.
const maxAccessKeysPerPrincipal = 100

// Config is a configuration file. Its comments are the manual: every field
// says what it means, its unit and its default. Unknown fields are refused.
// Secrets are never in it; it says where they are.
type Config struct {
	// DataDir is the folder of the database and, unless audit.dir says
	// otherwise, of the audit log. Mode 0700. Made by `keyholdd init`.
	DataDir string `yaml:"data_dir,omitempty"`

	// Regions are the regions that are served, each with the token that makes
	// its keys. At least one.
	Regions []RegionConfig `yaml:"regions,omitempty"`

	// Tokens are the PKCS#11 tokens. At least one.
	Tokens []TokenConfig `yaml:"tokens,omitempty"`

	// Principals say who may call: each principal with the subjects of the
	// client certificates that are its.
	Principals []PrincipalConfig `yaml:"principals,omitempty"`

	GRPC  GRPCConfig  `yaml:"grpc,omitempty"`
	AWS   AWSConfig   `yaml:"aws,omitempty"`
	Admin AdminConfig `yaml:"admin,omitempty"`
	Audit AuditConfig `yaml:"audit,omitempty"`

	// Limits is optional.
	Limits LimitsConfig `yaml:"limits,omitempty"`

	// Log is optional.
	Log LogConfig `yaml:"log,omitempty"`

	// ShutdownGrace is how long requests under way may take to finish when
	// the daemon is told to stop. Optional: 15s.
	ShutdownGrace time.Duration `yaml:"shutdown_grace,omitempty"`

	// TrustClock lets deletions go on after the clock jumped or the daemon
	// did not run for more than an hour, without `keyholdd confirm-clock`.
	// For development. Optional: false.
	TrustClock bool `yaml:"trust_clock,omitempty"`
}

// RegionConfig is one region.
type RegionConfig struct {
	// Name is the region's name in ARNs, such as us-east-1. The first region
	// is that of requests which name none.
	Name string `yaml:"name,omitempty"`
	// Token is the name of the token that makes and holds its keys.
	Token string `yaml:"token,omitempty"`
}

// TokenConfig is one token: a pkcs11: URI, or the same as fields.
type TokenConfig struct {
	// Name is what the rest of the file calls it.
	Name string `yaml:"name,omitempty"`
	// URI is an RFC 7512 URI with token or serial, module-path and
	// pin-source. pin-value is refused. Instead of the fields below it.
	URI string `yaml:"uri,omitempty"`
	// Module is the absolute path of the PKCS#11 library.
	Module string `yaml:"module,omitempty"`
	// Label and Serial name the token; one of them, or both.
	Label  string `yaml:"label,omitempty"`
	Serial string `yaml:"serial,omitempty"`
	// PINSource says where the PIN is: file:/path (mode 0600), env:NAME or
	// credential:NAME (systemd).
	PINSource string `yaml:"pin_source,omitempty"`

	// MaxSessions is how many calls the token does at once. Optional: 16.
	MaxSessions int `yaml:"max_sessions,omitempty"`
	// MaxCopies is how many keys are kept as session copies, where the token
	// allows; -1 for none. Optional: 16384.
	MaxCopies int `yaml:"max_copies,omitempty"`
	// CallTimeout bounds one call of the library. Optional: 10s.
	CallTimeout time.Duration `yaml:"call_timeout,omitempty"`
	// GenerateTimeout bounds making a key. Optional: 60s.
	GenerateTimeout time.Duration `yaml:"generate_timeout,omitempty"`
	// HealthInterval is the time between canary operations. Optional: 2s.
	HealthInterval time.Duration `yaml:"health_interval,omitempty"`
	// Environment is set before the library is loaded, such as
	// SOFTHSM2_CONF. It holds for the whole process. Optional.
	Environment map[string]string `yaml:"environment,omitempty"`
}

// PrincipalConfig binds certificate subjects to a principal. One that is listed
// several times has the subjects of all of its entries; no subject may be in two.
type PrincipalConfig struct {
	// ARN is arn:aws:iam::<account>:user/<name>, :role/<name> or :root.
	ARN string `yaml:"arn,omitempty"`
	// Subjects are spiffe://<trust domain>/<path>, dns:<name> or cn:<name>.
	Subjects []string `yaml:"subjects,omitempty"`
}

// GRPCConfig is the gRPC door.
type GRPCConfig struct {
	// Listen is host:port. Optional: 127.0.0.1:9443.
	Listen string `yaml:"listen,omitempty"`
	// Cert and Key are the server's certificate chain and key, PEM. Read
	// again when they change.
	Cert string `yaml:"cert,omitempty"`
	Key  string `yaml:"key,omitempty"`
	// ClientCA is who may issue client certificates, PEM. Read again when it
	// changes.
	ClientCA string `yaml:"client_ca,omitempty"`
	// MaxConnections bounds the connections that are open, those of clients that
	// are not authenticated yet included. More wait. Optional: 1024.
	MaxConnections int `yaml:"max_connections,omitempty"`
}

// AWSConfig is the AWS door: the AWS KMS API, signed with access keys
// (`keyhold access-key create`).
type AWSConfig struct {
	// Listen is host:port, such as 0.0.0.0:8443. Optional: without it there is no
	// such door.
	Listen string `yaml:"listen,omitempty"`
	// Cert and Key are the server's certificate chain and key, PEM; they may be
	// those of the gRPC door. Read again when they change. Without them the door
	// speaks plain HTTP, which is allowed on loopback only: plaintexts cross the
	// connection. With them it speaks TLS 1.2 and 1.3.
	Cert string `yaml:"cert,omitempty"`
	Key  string `yaml:"key,omitempty"`
	// MaxConnections bounds the connections that are open, those of clients that
	// are not authenticated yet included. More wait. Optional: 1024.
	MaxConnections int `yaml:"max_connections,omitempty"`
}

// AdminConfig is the admin listener: metrics, health, readiness. It has no
// authentication.
type AdminConfig struct {
	// Listen is host:port, on loopback. Optional: 127.0.0.1:9090.
	Listen string `yaml:"listen,omitempty"`
	// AllowRemote allows an address that is not loopback. Optional: false.
	AllowRemote bool `yaml:"allow_remote,omitempty"`
}

// AuditConfig is the audit log.
type AuditConfig struct {
	// Dir is its folder. Optional: audit below data_dir.
	Dir string `yaml:"dir,omitempty"`
	// Durability of data-plane records: synced (survives the power) or
	// written (survives the process). Changes of keys and refusals are always
	// synced. Optional: synced.
	Durability string `yaml:"durability,omitempty"`
	// SegmentBytes is the size of one file, allocated ahead. A multiple of
	// 4096, at least 256 KiB. Optional: 64 MiB.
	SegmentBytes int64 `yaml:"segment_bytes,omitempty"`
}

// LimitsConfig bounds accounts. Zero means the default.
type LimitsConfig struct {
	// KeysPerAccount bounds an account's keys in a region. Default 100000.
	KeysPerAccount int `yaml:"keys_per_account,omitempty"`
	// AliasesPerKey bounds a key's aliases. Default 50.
	AliasesPerKey int `yaml:"aliases_per_key,omitempty"`
	// InFlight bounds the requests under way: a batch is one, and each of its
	// items is one more while it is checked. Default 4096.
	InFlight int `yaml:"in_flight,omitempty"`
	// DataPerSecond and ControlPerSecond bound an account's requests per
	// second to the data plane and the control plane. Default: unlimited.
	DataPerSecond    int `yaml:"data_per_second,omitempty"`
	ControlPerSecond int `yaml:"control_per_second,omitempty"`
	// AccessKeysPerPrincipal bounds a principal's access keys, active or not, 1
	// to 100. Default 2: one can be replaced by the other without a gap, and
	// there is nothing to forget.
	AccessKeysPerPrincipal int `yaml:"access_keys_per_principal,omitempty"`
}

// LogConfig is the log on standard error.
type LogConfig struct {
	// Level is debug, info, warn or error. Optional: info.
	Level string `yaml:"level,omitempty"`
	// Format is text or json. Optional: text.
	Format string `yaml:"format,omitempty"`
}

// LoadConfig reads and checks a configuration file.
func LoadConfig(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("configuration %s is larger than %d bytes", path, maxConfigBytes)
	}
	c, err := ParseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// ParseConfig reads and checks a configuration.
func ParseConfig(b []byte) (*Config, error) {
	c := &Config{}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one YAML document in it")
	}
	c.setDefaults()
	if err := c.Check(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) setDefaults() {
	orDefault(&c.GRPC.Listen, "127.0.0.1:9443")
	orDefault(&c.Admin.Listen, "127.0.0.1:9090")
	orDefault(&c.GRPC.MaxConnections, 1024)
	orDefault(&c.AWS.MaxConnections, 1024)
	orDefault(&c.Audit.Durability, audit.Synced.String())
	orDefault(&c.Log.Level, "info")
	orDefault(&c.Log.Format, "text")
	orDefault(&c.ShutdownGrace, 15*time.Second)
	if c.Audit.Dir == "" && c.DataDir != "" {
		c.Audit.Dir = filepath.Join(c.DataDir, "audit")
	}
}

func orDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Check reports everything that is wrong with the configuration, without
// touching what it names.
func (c *Config) Check() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.DataDir == "" {
		fail("data_dir is missing: name the folder for the database")
	}
	for _, f := range []struct{ name, value string }{{"grpc.cert", c.GRPC.Cert}, {"grpc.key", c.GRPC.Key}, {"grpc.client_ca", c.GRPC.ClientCA}} {
		if f.value == "" {
			fail("%s is missing: name a PEM file", f.name)
		}
	}
	if _, err := listenHost(c.GRPC.Listen); err != nil {
		fail("grpc.listen: %w", err)
	}
	if c.GRPC.MaxConnections < 1 {
		fail("grpc.max_connections is negative")
	}
	c.AWS.check(fail)
	if host, err := listenHost(c.Admin.Listen); err != nil {
		fail("admin.listen: %w", err)
	} else if !loopback(host) && !c.Admin.AllowRemote {
		fail("admin.listen is %s, which others may reach, and the listener has no authentication: use 127.0.0.1, or set admin.allow_remote", c.Admin.Listen)
	}
	if _, err := audit.ParseDurability(c.Audit.Durability); err != nil {
		fail("audit.durability: %w", err)
	}
	if n := c.Audit.SegmentBytes; n != 0 && (n < minSegmentBytes || n%4096 != 0) {
		fail("audit.segment_bytes is %d: it must be a multiple of 4096 and at least %d", n, minSegmentBytes)
	}
	if _, err := logLevel(c.Log.Level); err != nil {
		fail("log.level: %w", err)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		fail("log.format is %q: use text or json", c.Log.Format)
	}
	if c.ShutdownGrace < 0 {
		fail("shutdown_grace is negative")
	}
	l := c.Limits
	if min(l.KeysPerAccount, l.AliasesPerKey, l.InFlight, l.DataPerSecond, l.ControlPerSecond, l.AccessKeysPerPrincipal) < 0 {
		fail("limits: a limit is negative; leave it out for the default")
	}
	if l.AccessKeysPerPrincipal > maxAccessKeysPerPrincipal {
		fail("limits.access_keys_per_principal is %d: at most %d are possible", l.AccessKeysPerPrincipal, maxAccessKeysPerPrincipal)
	}
	if _, err := c.directory(); err != nil {
		fail("principals: %w", err)
	}
	if len(c.Principals) == 0 {
		fail("principals is empty: nobody could call")
	}
	c.checkTokens(fail)
	return errors.Join(errs...)
}

// listenHost returns the host of an address to listen on, whose port must be one.
func listenHost(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.DefaultResolver.LookupPort(context.Background(), "tcp", port)
	}
	return host, err
}

func (a AWSConfig) check(fail func(string, ...any)) {
	if a.MaxConnections < 1 {
		fail("aws.max_connections is negative")
	}
	if (a.Cert == "") != (a.Key == "") {
		fail("aws.cert and aws.key: give both or neither")
	}
	if a.Listen == "" {
		return
	}
	if host, err := listenHost(a.Listen); err != nil {
		fail("aws.listen: %w", err)
	} else if a.Cert == "" && !loopback(host) {
		fail("aws.listen is %s, which others may reach, without a certificate: plaintexts would cross the network in the clear; use 127.0.0.1, or set aws.cert and aws.key", a.Listen)
	}
}

func (c *Config) checkTokens(fail func(string, ...any)) {
	names := make(map[string]bool)
	environment := make(map[string]string)
	for i, t := range c.Tokens {
		for name, value := range t.Environment {
			// What os.Setenv and C take.
			if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
				fail("tokens[%d] (%s): environment: %q is not a name, or its value holds a zero byte", i, t.Name, name)
			}
			if other, set := environment[name]; set && other != value {
				fail("tokens[%d] (%s): environment: %s has another value for an earlier token, and the process has only one environment", i, t.Name, name)
			}
			environment[name] = value
		}
		if t.Name == "" || names[t.Name] {
			fail("tokens[%d]: its name %q is empty or taken", i, t.Name)
		}
		names[t.Name] = true
		if _, err := t.HSM(); err != nil {
			fail("tokens[%d] (%s): %w", i, t.Name, err)
		}
	}
	if len(c.Tokens) == 0 {
		fail("tokens is empty: name at least one PKCS#11 token")
	}
	if len(c.Regions) == 0 {
		fail("regions is empty: name at least one region and its token")
	}
	var seen []string
	for i, r := range c.Regions {
		if !regionName(r.Name) || slices.Contains(seen, r.Name) {
			fail("regions[%d]: its name %q is taken, or is not of small letters, digits and dashes, such as us-east-1", i, r.Name)
		}
		seen = append(seen, r.Name)
		if !names[r.Token] {
			fail("regions[%d] (%s): there is no token named %q", i, r.Name, r.Token)
		}
	}
}

func regionName(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// HSM gives the token layer's configuration of the token, checked but untouched.
func (t TokenConfig) HSM() (hsm.Config, error) {
	var cfg hsm.Config
	if t.URI != "" {
		if t.Module != "" || t.Label != "" || t.Serial != "" || t.PINSource != "" {
			return cfg, errors.New("give either uri or module, label, serial and pin_source, not both")
		}
		var err error
		if cfg, err = hsm.ParseURI(t.URI); err != nil {
			return cfg, err
		}
	} else {
		pin, err := hsm.ParsePINSource(t.PINSource)
		if err != nil {
			return cfg, fmt.Errorf("pin_source: %w", err)
		}
		cfg = hsm.Config{Module: t.Module, TokenLabel: t.Label, TokenSerial: t.Serial, PIN: pin}
	}
	cfg.MaxSessions, cfg.MaxCopies, cfg.CallTimeout = t.MaxSessions, t.MaxCopies, t.CallTimeout
	cfg.GenerateTimeout, cfg.HealthInterval = t.GenerateTimeout, t.HealthInterval
	return cfg, cfg.Check()
}

// directory gives the principals.
func (c *Config) directory() (*identity.Directory, error) {
	bindings := make([]identity.Binding, 0, len(c.Principals))
	for _, p := range c.Principals {
		bindings = append(bindings, identity.Binding{Principal: p.ARN, Subjects: p.Subjects})
	}
	return identity.NewDirectory(bindings)
}
