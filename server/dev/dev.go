// Package dev makes the world of `keyholdd dev` in one folder: a SoftHSM
// token per region with random PINs, certificates of an authority of its own,
// and a configuration for them. What exists is used again, so that a second
// start finds all keys.
//
// It is for development: everything that protects the keys lies in the folder
// beside them.
package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/identity"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// Options are the flags of `keyholdd dev`.
type Options struct {
	Dir              string
	GRPC, AWS, Admin string
	Account          string
	Regions          []string
	// AuditDurability is audit.durability of the configuration; empty is its
	// default.
	AuditDurability string
}

// World is a development installation.
type World struct {
	// Config is complete and checked; it is also in ConfigFile.
	Config     *server.Config
	ConfigFile string
	// EnvFile is where WriteEnv writes.
	EnvFile string
	// NewTokens is true where Prepare made a token.
	NewTokens bool

	opts   Options
	certs  certificates
	tokens []softhsmconfig.Token
}

// DataFolder is where the data of the service are in Options.Dir.
const DataFolder = "data"

// rootSubject is what the client certificate says its owner is.
const rootSubject = "spiffe://keyhold.dev/root"

// Prepare makes the world. It sets SOFTHSM2_CONF for this process. Two
// processes must not prepare one folder at once.
func Prepare(ctx context.Context, opts Options) (*World, error) {
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}
	if i := strings.IndexFunc(dir, needsQuoting); i >= 0 {
		return nil, fmt.Errorf("--dir %q: its path holds %q, which neither SoftHSM nor a shell that sources dev.env would take; use another folder", dir, dir[i:i+1])
	}
	if !identity.AccountID(opts.Account).Valid() {
		return nil, fmt.Errorf("--account %q is not 12 digits", opts.Account)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder: %w", err)
	}
	w := &World{opts: opts, ConfigFile: filepath.Join(dir, "keyholdd.yaml"), EnvFile: filepath.Join(dir, "dev.env")}
	host, _, err := net.SplitHostPort(opts.GRPC)
	if err != nil {
		return nil, fmt.Errorf("--grpc: %w", err)
	}
	if w.certs, err = ensureCertificates(filepath.Join(dir, "tls"), host, time.Now()); err != nil {
		return nil, err
	}
	for _, region := range opts.Regions {
		t, err := softhsmconfig.Init(ctx, softhsmconfig.Options{Dir: filepath.Join(dir, "softhsm"), Label: "keyhold-" + region})
		if err != nil {
			return nil, err
		}
		w.tokens = append(w.tokens, t)
		w.NewTokens = w.NewTokens || t.Created
	}
	if len(w.tokens) == 0 {
		return nil, errors.New("--region: at least one region is needed")
	}
	if err := w.configure(dir); err != nil {
		return nil, err
	}
	return w, nil
}

// needsQuoting tells what dev.env could not hold plainly. SoftHSM's
// configuration has no quoting at all.
func needsQuoting(r rune) bool {
	return r <= ' ' || strings.ContainsRune("\"'`$\\&|;<>()=", r)
}

// configure writes the configuration and reads it as `serve` would.
func (w *World) configure(dir string) error {
	c := server.Config{
		DataDir: filepath.Join(dir, DataFolder),
		GRPC:    server.GRPCConfig{Listen: w.opts.GRPC, Cert: w.certs.serverCert, Key: w.certs.serverKey, ClientCA: w.certs.ca},
		AWS:     server.AWSConfig{Listen: w.opts.AWS},
		Admin:   server.AdminConfig{Listen: w.opts.Admin},
		Principals: []server.PrincipalConfig{
			{ARN: w.RootARN(), Subjects: []string{rootSubject}},
		},
		Audit:      server.AuditConfig{Durability: w.opts.AuditDurability},
		TrustClock: true, // development machines sleep
	}
	for i, region := range w.opts.Regions {
		t := w.tokens[i]
		c.Regions = append(c.Regions, server.RegionConfig{Name: region, Token: t.Label})
		c.Tokens = append(c.Tokens, server.TokenConfig{
			Name: t.Label, Module: t.Module, Label: t.Label, PINSource: "file:" + t.PINFile,
			Environment: map[string]string{softhsmconfig.EnvConf: t.Conf},
		})
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	b = append([]byte("# Written by `keyholdd dev` at each start; changes are lost.\n"), b...)
	if err := os.WriteFile(w.ConfigFile, b, 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if w.Config, err = server.ParseConfig(b); err != nil {
		return err
	}
	return w.tokens[0].Use()
}

// ForgetEnv removes the file of an earlier run, so that its appearance says
// that the doors of this one answer.
func (w *World) ForgetEnv() error {
	if err := os.Remove(w.EnvFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the settings of the last run: %w", err)
	}
	return nil
}

// WriteEnv writes the settings that clients need, mode 0600, whole or not at
// all. key is the root principal's.
func (w *World) WriteEnv(a server.Addresses, key AccessKey) error {
	t := w.tokens[0]
	lines := append(key.Env(),
		"AWS_ENDPOINT_URL=http://"+a.AWS,
		"AWS_ENDPOINT_URL_KMS=http://"+a.AWS,
		"AWS_ACCOUNT_ID="+w.opts.Account,
		"AWS_DEFAULT_REGION="+w.opts.Regions[0],
		"AWS_REGION="+w.opts.Regions[0],
		"KEYHOLD_ADDR="+a.GRPC,
		"KEYHOLD_CA="+w.certs.ca,
		"KEYHOLD_CERT="+w.certs.clientCert,
		"KEYHOLD_KEY="+w.certs.clientKey,
		"KEYHOLD_ADMIN_URL=http://"+a.Admin,
		"KEYHOLD_TOKEN_MODULE="+t.Module,
		"KEYHOLD_TOKEN_LABEL="+t.Label,
		"KEYHOLD_TOKEN_PIN_FILE="+t.PINFile,
		softhsmconfig.EnvConf+"="+t.Conf,
	)
	temporary := w.EnvFile + ".new"
	if err := os.WriteFile(temporary, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the settings: %w", err)
	}
	if err := os.Rename(temporary, w.EnvFile); err != nil {
		return fmt.Errorf("write the settings: %w", err)
	}
	return nil
}
