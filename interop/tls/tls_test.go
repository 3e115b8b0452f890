// Package tls_test runs clients over TLS against `keyholdd serve`, whose
// certificate is from an authority of our own: AWS_CA_BUNDLE names it.
package tls_test

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	smithymiddleware "github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/keyhold/keyhold/interop/daemon"
)

var running *daemon.Daemon

func TestMain(m *testing.M) {
	os.Exit(daemon.Main(m, func(d *daemon.Daemon) error {
		running = d
		return d.RestartTLS()
	}))
}

// client is the Go SDK's, of the environment.
func client(t *testing.T, more ...string) *kms.Client {
	t.Helper()
	for _, s := range append(running.Env(), more...) {
		name, value, _ := strings.Cut(s, "=")
		t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return kms.NewFromConfig(cfg, func(o *kms.Options) { o.Retryer = aws.NopRetryer{} })
}

// TestGoSDK: HTTP/2, and no answer from a door whose authority is unknown.
func TestGoSDK(t *testing.T) {
	c := client(t, "AWS_CA_BUNDLE="+running.CA)
	out, err := c.ListKeys(t.Context(), &kms.ListKeysInput{})
	if err != nil {
		t.Fatal(err)
	}
	if got := protocol(out.ResultMetadata); got != "HTTP/2.0" {
		t.Errorf("spoke %s", got)
	}
	t.Setenv("AWS_CA_BUNDLE", "")
	if _, err := client(t).ListKeys(t.Context(), &kms.ListKeysInput{}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without the authority: %v", err)
	}
}

func protocol(md smithymiddleware.Metadata) string {
	switch r := middleware.GetRawResponse(md).(type) {
	case *smithyhttp.Response:
		return r.Proto
	case *http.Response:
		return r.Proto
	}
	return ""
}

// TestPrograms: each reads the same variables, but for Node.js.
func TestPrograms(t *testing.T) {
	bundle := "AWS_CA_BUNDLE=" + running.CA
	id := strings.TrimSpace(running.Script(t, createKey, bundle, "bash", "-euo", "pipefail", "-s"))
	for name, c := range map[string]struct {
		program []string
		text    string
	}{
		"AWS CLI": {[]string{bundle, "bash", "-euo", "pipefail", "-s"}, cli},
		"boto3":   {[]string{bundle, "python3", "-"}, boto3},
		"node":    {[]string{"NODE_EXTRA_CA_CERTS=" + running.CA, "node", "-"}, node},
		"curl":    {[]string{"CURL_CA_BUNDLE=" + running.CA, "bash", "-euo", "pipefail", "-s"}, curl},
		"sops":    {[]string{bundle, "bash", "-euo", "pipefail", "-s"}, sops},
	} {
		t.Run(name, func(t *testing.T) {
			got := running.Script(t, c.text, append([]string{"KEY=" + id}, c.program...)...)
			if got != "attack at dawn\n" {
				t.Errorf("%q", got)
			}
		})
	}
}

const createKey = `aws --endpoint-url "$AWS_ENDPOINT_URL" kms create-key --query KeyMetadata.Arn --output text`

const cli = `
printf 'attack at dawn\n' > plain
aws --endpoint-url "$AWS_ENDPOINT_URL" kms encrypt --key-id "$KEY" --plaintext fileb://plain --query CiphertextBlob --output text | base64 -d > sealed
aws --endpoint-url "$AWS_ENDPOINT_URL" kms decrypt --ciphertext-blob fileb://sealed --query Plaintext --output text | base64 -d
`

const boto3 = `
import boto3, os
kms = boto3.client("kms", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
sealed = kms.encrypt(KeyId=os.environ["KEY"], Plaintext=b"attack at dawn")["CiphertextBlob"]
print(kms.decrypt(CiphertextBlob=sealed)["Plaintext"].decode())
`

const node = `
const { KMS } = require("@aws-sdk/client-kms");
(async () => {
  const kms = new KMS({});
  const { CiphertextBlob } = await kms.encrypt({ KeyId: process.env.KEY, Plaintext: Buffer.from("attack at dawn") });
  console.log(Buffer.from((await kms.decrypt({ CiphertextBlob })).Plaintext).toString());
})();
`

const curl = `
call() {
  curl --silent --show-error --aws-sigv4 "aws:amz:$AWS_REGION:kms" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \
    --header 'Content-Type: application/x-amz-json-1.1' --header "X-Amz-Target: TrentService.$1" --data "$2" "$AWS_ENDPOINT_URL/"
}
sealed=$(call Encrypt "{\"KeyId\":\"$KEY\",\"Plaintext\":\"YXR0YWNrIGF0IGRhd24K\"}" | jq -r .CiphertextBlob)
call Decrypt "{\"CiphertextBlob\":\"$sealed\"}" | jq -r .Plaintext | base64 -d
`

const sops = `
echo 'attack at dawn' > secret.txt
sops encrypt --kms "$KEY" --in-place secret.txt
sops decrypt secret.txt
`
