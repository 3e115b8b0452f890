package door

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// TLSFiles is where a door's certificate and the authority of its clients are,
// and what it speaks. Files are read again when they change; files that do not fit
// together leave the old ones in use.
type TLSFiles struct {
	// Cert and Key are PEM: the server's chain, leaf first, and its key.
	Cert, Key string
	// ClientCA is PEM: who may issue client certificates, which are required then.
	// Empty: clients have none.
	ClientCA string
	// MinVersion is tls.VersionTLS12 or later.
	MinVersion uint16
	// Protocols are what is spoken over the connection, by ALPN name.
	Protocols []string
	// CheckInterval is how old a look at the files may be when a client
	// connects. Zero: 5 s; negative: look each time.
	CheckInterval time.Duration
}

const defaultCheckInterval = 5 * time.Second

type tlsReloader struct {
	files TLSFiles
	log   *slog.Logger

	mu      sync.Mutex
	config  *tls.Config
	stamp   string
	checked time.Time
}

// NewTLS reads the files and returns a configuration that follows them.
func NewTLS(files TLSFiles, log *slog.Logger) (*tls.Config, error) {
	if files.CheckInterval == 0 {
		files.CheckInterval = defaultCheckInterval
	}
	r := &tlsReloader{files: files, log: log}
	var err error
	if r.stamp, err = r.look(); err != nil {
		return nil, err
	}
	if r.config, err = r.load(); err != nil {
		return nil, err
	}
	r.checked = time.Now()
	outer := r.config.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return r.current(), nil }
	return outer, nil
}

// current returns the configuration for a new connection.
func (r *tlsReloader) current() *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.checked) < r.files.CheckInterval {
		return r.config
	}
	r.checked = time.Now()
	stamp, err := r.look()
	if err == nil && stamp == r.stamp {
		return r.config
	}
	var c *tls.Config
	if err == nil {
		c, err = r.load()
	}
	if err != nil {
		r.log.Error("certificates not reloaded, the old ones stay in use", "err", err)
		return r.config
	}
	r.log.Info("certificates reloaded", "cert", r.files.Cert)
	r.config, r.stamp = c, stamp
	return c
}

// look tells whether the files changed.
func (r *tlsReloader) look() (string, error) {
	stamp := ""
	for _, f := range []string{r.files.Cert, r.files.Key, r.files.ClientCA} {
		if f == "" {
			continue
		}
		fi, err := os.Stat(f)
		if err != nil {
			return "", fmt.Errorf("look at the TLS files: %w", err)
		}
		stamp += fmt.Sprintf("%d/%d ", fi.ModTime().UnixNano(), fi.Size())
	}
	return stamp, nil
}

func (r *tlsReloader) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(r.files.Cert, r.files.Key)
	if err != nil {
		return nil, fmt.Errorf("load the server's certificate %s and key %s: %w", r.files.Cert, r.files.Key, err)
	}
	c := &tls.Config{MinVersion: max(r.files.MinVersion, tls.VersionTLS12), Certificates: []tls.Certificate{cert}, NextProtos: r.files.Protocols}
	if r.files.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(r.files.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("load the clients' authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("load the clients' authority: no certificate in " + r.files.ClientCA)
	}
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool
	return c, nil
}
