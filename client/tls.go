package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSConfig returns what Dial connects with: TLS 1.3, the roots of CAFile, and
// the certificate of CertFile and KeyFile, which is loaded once here, so that
// a mistake shows at once, and again at each handshake. Programs use it to
// reach other listeners of the same server.
func TLSConfig(cfg Config) (*tls.Config, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: cfg.ServerName,
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CA certificates: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA certificates: %s has no certificate in PEM", cfg.CAFile)
		}
	}
	if cfg.CertFile == "" || cfg.KeyFile == "" {
		return nil, errors.New("a client certificate and its private key are needed: the server knows its callers by them")
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read client certificate %s with key %s: %w", cfg.CertFile, cfg.KeyFile, err)
		}
		return &cert, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return conf, nil
}
