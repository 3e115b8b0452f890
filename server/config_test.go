package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/server"
)

const valid = `
data_dir: /var/lib/keyhold
regions:
  - {name: us-east-1, token: home}
tokens:
  - name: home
    uri: "pkcs11:token=keyhold?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/keyhold/pin"
principals:
  - arn: arn:aws:iam::123456789012:role/app
    subjects: ["spiffe://example.org/app"]
grpc: {cert: a, key: b, client_ca: c}
`

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	c, err := server.ParseConfig([]byte(valid))
	if err != nil {
		t.Fatal(err)
	}
	if c.GRPC.Listen != "127.0.0.1:9443" || c.Admin.Listen != "127.0.0.1:9090" || c.Audit.Dir != "/var/lib/keyhold/audit" ||
		c.Audit.Durability != "synced" || c.ShutdownGrace != 15*time.Second || c.TrustClock {
		t.Errorf("defaults are %+v", c)
	}
}

// TestConfigRefusals: each mistake is found and named.
func TestConfigRefusals(t *testing.T) {
	t.Parallel()
	replace := func(from, to string) string {
		if !strings.Contains(valid, from) {
			t.Fatalf("%q is not in the valid configuration", from)
		}
		return strings.Replace(valid, from, to, 1)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "data_dir is missing"},
		{"no YAML", "{", "yaml"},
		{"two documents", valid + "\n---\na: b\n", "more than one"},
		{"unknown field", valid + "nonsense: 1\n", "nonsense"},
		{"unknown nested field", replace("cert: a", "cert: a, tls: no"), "tls"},
		{"wrong type", replace("grpc:", "shutdown_grace: soon\ngrpc:"), "line 11"},
		{"negative time", replace("grpc:", "shutdown_grace: -1s\ngrpc:"), "shutdown_grace"},
		{"PIN in the URI", replace("&pin-source=file:/etc/keyhold/pin", "&pin-value=123456"), "pin-value"},
		{"uri and fields", replace("    uri:", "    label: x\n    uri:"), "either uri or"},
		{"slot number", replace("pkcs11:token=keyhold", "pkcs11:slot-id=1"), "slot"},
		{"relative module", replace("module-path=/usr/lib/", "module-path="), "absolute"},
		{"unknown token", replace("token: home}", "token: other}"), `no token named "other"`},
		{"no regions", replace("  - {name: us-east-1, token: home}", ""), "regions is empty"},
		{"bad region", replace("us-east-1", "US East"), "its name"},
		{"region twice", replace("  - {name: us-east-1, token: home}", "  - {name: a, token: home}\n  - {name: a, token: home}"), "taken"},
		{"bad principal", replace("123456789012:role/app", "12:role/app"), "principal"},
		{"bad subject", replace("spiffe://example.org/app", "app"), "subject"},
		{"subject twice", replace(`["spiffe://example.org/app"]`, `["cn:a", "cn:a"]`), "bound twice"},
		{"admin for all", replace("grpc:", "admin: {listen: \"0.0.0.0:9090\"}\ngrpc:"), "allow_remote"},
		{"admin on a name", replace("grpc:", "admin: {listen: \"example.org:9090\"}\ngrpc:"), "allow_remote"},
		{"no port", replace("cert: a", "cert: a, listen: localhost"), "grpc.listen"},
		{"no such port", replace("cert: a", "cert: a, listen: \"127.0.0.1:99999\""), "grpc.listen"},
		{"a port's name that nobody knows", replace("grpc:", "aws: {listen: \"127.0.0.1:bar\"}\ngrpc:"), "aws.listen"},
		{"no certificate", replace("cert: a, ", ""), "grpc.cert"},
		{"bad durability", replace("grpc:", "audit: {durability: perhaps}\ngrpc:"), "durability"},
		{"small segments", replace("grpc:", "audit: {segment_bytes: 258048}\ngrpc:"), "audit.segment_bytes"},
		{"odd segments", replace("grpc:", "audit: {segment_bytes: 262145}\ngrpc:"), "audit.segment_bytes"},
		{"environment without a name", replace("    uri:", "    environment: {\"A=B\": c}\n    uri:"), "environment"},
		{"environment that differs", replace("principals:", "  - {name: b, module: /a, label: b, pin_source: \"env:B\", environment: {X: b}}\n  - {name: c, module: /a, label: c, pin_source: \"env:C\", environment: {X: c}}\nprincipals:"), "only one environment"},
		{"negative connections", replace("cert: a", "cert: a, max_connections: -1"), "max_connections"},
		{"bad log level", replace("grpc:", "log: {level: loud}\ngrpc:"), "log.level"},
		{"bad log format", replace("grpc:", "log: {format: xml}\ngrpc:"), "log.format"},
		{"negative limit", replace("grpc:", "limits: {in_flight: -1}\ngrpc:"), "limits"},
		{"too many sessions", replace("    uri:", "    max_sessions: 100000\n    uri:"), "MaxSessions"},
	} {
		_, err := server.ParseConfig([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "123456\"") {
			t.Errorf("%s: the error repeats a PIN: %v", tt.name, err)
		}
	}
}

func TestConfigAcceptances(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"smallest segments":        valid + "audit: {segment_bytes: 262144}\n",
		"tokens that share a word": strings.Replace(valid, "principals:", "  - {name: b, module: /a, label: b, pin_source: \"env:B\", environment: {X: b}}\n  - {name: c, module: /a, label: c, pin_source: \"env:C\", environment: {X: b, Y: c}}\nprincipals:", 1),
	} {
		if _, err := server.ParseConfig([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestConfigAllAtOnce: an operator sees every mistake in one go.
func TestConfigAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := server.ParseConfig([]byte("log: {level: loud}\n"))
	for _, want := range []string{"data_dir", "regions", "tokens", "principals", "grpc.cert", "log.level"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
}

func TestLoadConfig(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if _, err := server.LoadConfig(path); err == nil {
		t.Error("a missing file was loaded")
	}
	for size, ok := range map[int]bool{1 << 20: true, 1<<20 + 1: false} {
		text := valid + "#" + strings.Repeat("x", size-len(valid)-2) + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := server.LoadConfig(path); (err == nil) != ok {
			t.Errorf("a file of %d bytes: %v", size, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte("tokens: [{name: a, module: /x, label: y, pin_source: env:PIN}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := server.ParseConfig(b)
		if err == nil && c.Check() != nil {
			t.Error("what was parsed does not pass its check")
		}
	})
}
