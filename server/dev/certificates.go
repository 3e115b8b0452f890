package dev

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Lifetimes of what is made here.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 365 * 24 * time.Hour
	renewBefore  = 30 * 24 * time.Hour
)

// certificates are the PEM files of a development installation.
type certificates struct{ ca, serverCert, serverKey, clientCert, clientKey string }

// ensureCertificates makes what is missing or about to expire: an authority, a
// server certificate for loopback and for host, and a client certificate for
// the root principal.
func ensureCertificates(dir, host string, now time.Time) (certificates, error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	c := certificates{at("ca.pem"), at("server.pem"), at("server.key"), at("client.pem"), at("client.key")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return c, fmt.Errorf("make the folder for certificates: %w", err)
	}
	ca, caKey, err := ensureCA(c.ca, at("ca.key"), now)
	if err != nil {
		return c, err
	}
	server := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "keyholdd dev"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsLoopback() && !ip.IsUnspecified() {
		server.IPAddresses = append(server.IPAddresses, ip)
	} else if ip == nil && host != "" && host != "localhost" {
		server.DNSNames = append(server.DNSNames, host)
	}
	root, err := url.Parse(rootSubject)
	if err != nil {
		return c, err
	}
	client := &x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, URIs: []*url.URL{root}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := ensureLeaf(c.serverCert, c.serverKey, server, ca, caKey, now); err != nil {
		return c, err
	}
	return c, ensureLeaf(c.clientCert, c.clientKey, client, ca, caKey, now)
}

func ensureCA(certFile, keyFile string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	cert, key, err := readPair(certFile, keyFile)
	switch {
	case err == nil && now.Before(cert.NotAfter.Add(-leafLifetime)):
		return cert, key, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%w; remove the folder %s to have new certificates made", err, filepath.Dir(certFile))
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Keyhold development authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLifetime), MaxPathLenZero: true,
	}
	return makePair(certFile, keyFile, template, nil, nil)
}

func ensureLeaf(certFile, keyFile string, template, ca *x509.Certificate, caKey *ecdsa.PrivateKey, now time.Time) error {
	cert, _, err := readPair(certFile, keyFile)
	if err == nil && now.Before(cert.NotAfter.Add(-renewBefore)) && cert.CheckSignatureFrom(ca) == nil &&
		slices.Equal(cert.DNSNames, template.DNSNames) && slices.EqualFunc(cert.IPAddresses, template.IPAddresses, net.IP.Equal) {
		return nil
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(leafLifetime)
	_, _, err = makePair(certFile, keyFile, template, ca, caKey)
	return err
}

// makePair signs template with the authority's key, or with its own.
func makePair(certFile, keyFile string, template, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	if ca == nil {
		ca, caKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s: %w", certFile, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	// The key first: a certificate without its key would be used.
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// readPair reads a certificate and its key, which must fit.
func readPair(certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certDER, err := readPEM(certFile)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := readPEM(keyFile)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", certFile, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, fmt.Errorf("%s is not the key of %s", keyFile, certFile)
	}
	return cert, ec, nil
}

func readPEM(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM", file)
	}
	return block.Bytes, nil
}
