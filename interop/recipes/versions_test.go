package recipes_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestVersions: the versions on the page are those that are pinned.
func TestVersions(t *testing.T) {
	page, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	for row, pin := range map[string]struct{ file, pattern string }{
		"aws-sdk-go-v2/service/kms":                 {"../go.mod", `aws-sdk-go-v2/service/kms v(\S+)`},
		"@aws-sdk/client-kms (Node.js)":             {"../js/package.json", `"@aws-sdk/client-kms": "(\S+)"`},
		"AWS Encryption SDK for JavaScript, for Go": {"../js/package.json", `"@aws-crypto/client-node": "(\S+)"`},
		"sops": {"../sops/go.mod", `getsops/sops/v3 v(\S+)`},
		"sigstore's kms/aws, the library that cosign signs with": {"../go.mod", `sigstore/pkg/signature/kms/aws v(\S+)`},
		"tink-go-awskms":             {"../go.mod", `tink-go-awskms/v3 v(\S+)`},
		"gocloud.dev/secrets/awskms": {"../go.mod", `gocloud.dev v(\S+)`},
		"go-kms-wrapping/wrappers/awskms, the seal of Vault and OpenBao (aws-sdk-go v1)": {"../go.mod", `wrappers/awskms/v2 v(\S+)`},
		"go.step.sm/crypto/kms/awskms, of step-ca":                                       {"../go.mod", `go.step.sm/crypto v(\S+)`},
	} {
		pins, err := os.ReadFile(pin.file)
		if err != nil {
			t.Fatal(err)
		}
		version := regexp.MustCompile(pin.pattern).FindStringSubmatch(string(pins))
		_, rest, ok := strings.Cut(string(page), "\n| "+row+" | ")
		said, _, _ := strings.Cut(rest, "\n")
		if version == nil || !ok || !strings.Contains(said, version[1]) {
			t.Errorf("%s: the page says %q; pinned is %v", row, said, version)
		}
	}
}
