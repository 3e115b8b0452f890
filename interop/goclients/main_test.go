// Package goclients_test runs Go libraries that use AWS KMS, as their users call
// them, against a real daemon. They learn of it from the environment alone. Each
// test begins with what docs/clients.md shows, letter by letter.
package goclients_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyhold/keyhold/interop/daemon"
)

func TestMain(m *testing.M) { os.Exit(daemon.Main(m, setUp)) }

// setUp gives this process the settings of dev.env, and makes alias/app.
func setUp(d *daemon.Daemon) error {
	for _, s := range os.Environ() {
		if name, _, _ := strings.Cut(s, "="); strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "VAULT_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	for _, s := range d.Env() {
		name, value, _ := strings.Cut(s, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	c := kms.NewFromConfig(cfg)
	key, err := c.CreateKey(ctx, &kms.CreateKeyInput{})
	if err != nil {
		return err
	}
	_, err = c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/app"), TargetKeyId: key.KeyMetadata.KeyId})
	return err
}

// client is the SDK's, for what the libraries do not do themselves.
func client(t *testing.T) *kms.Client {
	t.Helper()
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return kms.NewFromConfig(cfg)
}

// newKey makes a key and returns its ARN.
func newKey(t *testing.T, spec types.KeySpec, usage types.KeyUsageType) string {
	t.Helper()
	key, err := client(t).CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage})
	if err != nil {
		t.Fatal(err)
	}
	return *key.KeyMetadata.Arn
}
