package backup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keyhold/keyhold/server"
)

// TestConfigurationFiles: what the configuration names is in the backup, keys only
// where secrets were asked for; an AWS door has files of its own, or none.
func TestConfigurationFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := &server.Config{GRPC: server.GRPCConfig{Cert: file("g.pem"), Key: file("g.key"), ClientCA: file("ca.pem")}}
	o := Options{Config: c, ConfigFile: file("keyholdd.yaml")}
	public := []string{"config/keyholdd.yaml", "config/server-cert.pem", "config/client-ca.pem"}
	check := func(want, elsewhere []string) {
		t.Helper()
		m := &maker{o: o}
		if err := m.configuration(t.Context()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range m.sources {
			got = append(got, s.Name)
		}
		if !slices.Equal(got, want) || !slices.Equal(m.manifest.Elsewhere, elsewhere) {
			t.Errorf("%q, and elsewhere %q; want %q and %q", got, m.manifest.Elsewhere, want, elsewhere)
		}
	}
	check(public, []string{c.GRPC.Key})
	c.AWS = server.AWSConfig{Listen: "127.0.0.1:8443", Cert: file("a.pem"), Key: file("a.key")}
	check(append(slices.Clone(public), "config/aws-cert.pem"), []string{c.GRPC.Key, c.AWS.Key})
	o.Secrets = true
	check(append(slices.Clone(public), "config/server-key.pem", "config/aws-cert.pem", "config/aws-key.pem"), nil)
}
