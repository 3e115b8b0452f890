package dev

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func load(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	der, err := readPEM(file)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCertificates: what is made verifies for its use, is used again while it
// lasts, and is made anew in time.
func TestCertificates(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tls")
	now := time.Now()
	ensure := func(host string, at time.Time) certificates {
		t.Helper()
		c, err := ensureCertificates(dir, host, at)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := ensure("127.0.0.1", now)
	ca, server, client := load(t, c.ca), load(t, c.serverCert), load(t, c.clientCert)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
			t.Errorf("server certificate for %s: %v", name, err)
		}
	}
	if _, err := server.Verify(x509.VerifyOptions{Roots: pool, DNSName: "example.org"}); err == nil {
		t.Error("the server certificate is good for any name")
	}
	if _, err := client.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("client certificate: %v", err)
	}
	if _, err := client.Verify(x509.VerifyOptions{Roots: pool}); err == nil {
		t.Error("the client certificate is good for servers")
	}
	if len(client.URIs) != 1 || client.URIs[0].String() != rootSubject {
		t.Errorf("the client certificate names %v", client.URIs)
	}
	for _, file := range []string{c.serverKey, c.clientKey, filepath.Join(dir, "ca.key")} {
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", file, fi, err)
		}
	}

	serial := func(file string) string { return load(t, file).SerialNumber.String() }
	first := []string{serial(c.ca), serial(c.serverCert), serial(c.clientCert)}
	ensure("127.0.0.1", now.Add(leafLifetime-renewBefore-time.Hour))
	if again := []string{serial(c.ca), serial(c.serverCert), serial(c.clientCert)}; again[0] != first[0] || again[1] != first[1] || again[2] != first[2] {
		t.Error("certificates were made anew while they lasted")
	}
	ensure("127.0.0.1", now.Add(leafLifetime-renewBefore+2*time.Hour))
	if serial(c.ca) != first[0] || serial(c.serverCert) == first[1] || serial(c.clientCert) == first[2] {
		t.Error("leaf certificates that run out were not made anew by the same authority")
	}
	ensure("keyhold.test", now)
	if _, err := load(t, c.serverCert).Verify(x509.VerifyOptions{Roots: pool, DNSName: "keyhold.test"}); err != nil {
		t.Errorf("after the address changed: %v", err)
	}
	ensure("127.0.0.1", now.Add(caLifetime-leafLifetime+time.Hour))
	if serial(c.ca) == first[0] {
		t.Error("the authority that cannot outlive its leaves was not made anew")
	}
}

// TestBrokenAuthority: a key that is not the certificate's is not papered
// over, since clients may trust the certificate.
func TestBrokenAuthority(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tls")
	c, err := ensureCertificates(dir, "127.0.0.1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(c.serverKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ensureCertificates(dir, "127.0.0.1", time.Now()); err == nil {
		t.Error("an authority with another's key was accepted")
	}
}
