package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhold/keyhold/server"
)

// TestAWSDoorOverTLS serves the AWS door with a certificate, as production does,
// and comes in with the access key that was made before.
func TestAWSDoorOverTLS(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	d := start(t, dir)
	d.stop(t)
	listen := freePorts(t, 1)[0]
	config := writeConfig(t, filepath.Join(dir, "keyholdd.yaml"), func(c *server.Config) {
		c.AWS = server.AWSConfig{Listen: listen, Cert: c.GRPC.Cert, Key: c.GRPC.Key, MaxConnections: 16}
	})
	s := startServe(t, config, d.env)
	s.untilReady(t, true, "ready")
	bench := func() (string, error) {
		out, err := s.keyhold(t.Context(), nil, "bench", "--door", "aws", "--op", "ping,encrypt", "--duration", "200ms", "--warmup", "0s", "--concurrency", "4", "--output", "json")
		return string(out), err
	}
	s.env["AWS_ENDPOINT_URL"], s.env["AWS_ENDPOINT_URL_KMS"] = "https://"+listen, ""
	s.env["AWS_CA_BUNDLE"] = ""
	if _, err := bench(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without the authority: %v", err)
	}
	s.env["AWS_CA_BUNDLE"] = s.env["KEYHOLD_CA"]
	out, err := bench()
	if err != nil || strings.Count(out, `"door":"aws"`) != 2 || strings.Count(out, `"errors":0`) != 2 {
		t.Errorf("%s, %v", out, err)
	}
	if !haveAWSCLI(t) {
		t.Log("the AWS CLI is not installed (apt install awscli): not tried")
	} else if out, err := s.keyhold(t.Context(), nil, "aws", "--", "kms", "describe-key", "--key-id", "alias/keyhold-bench/SYMMETRIC_DEFAULT-1", "--query", "KeyMetadata.KeyState", "--output", "text"); err != nil || string(out) != "Enabled\n" {
		t.Errorf("aws kms describe-key: %q, %v", out, err)
	}
	// Plain HTTP is no way in.
	s.env["AWS_ENDPOINT_URL"] = "http://" + listen
	if out, err := bench(); err == nil {
		t.Errorf("plain HTTP: %s", out)
	}
	s.stop(t)
	verifyAudit(t, dir)
}
