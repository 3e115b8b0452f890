package goclients_test

import (
	"os"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"
)

// TestVault: the seal of Vault and OpenBao, and Boundary's keys. It is built on
// aws-sdk-go v1.
func TestVault(t *testing.T) {
	ctx := t.Context()
	wrapper := awskms.NewWrapper()
	if _, err := wrapper.SetConfig(ctx, wrapping.WithKeyId("alias/app"), awskms.WithEndpoint(os.Getenv("AWS_ENDPOINT_URL"))); err != nil {
		t.Fatal(err)
	}
	sealed, err := wrapper.Encrypt(ctx, []byte("attack at dawn"))
	if err != nil {
		t.Fatal(err)
	}

	opened, err := wrapper.Decrypt(ctx, sealed)
	if err != nil || string(opened) != "attack at dawn" {
		t.Errorf("%q %v", opened, err)
	}
	if id, err := wrapper.KeyId(ctx); err != nil || !strings.HasPrefix(id, "arn:aws:kms:") {
		t.Errorf("key id %q %v", id, err)
	}
	sealed.GetKeyInfo().WrappedKey[40] ^= 1
	if _, err := wrapper.Decrypt(ctx, sealed); err == nil || !strings.Contains(err.Error(), "InvalidCiphertextException") {
		t.Errorf("a changed wrapped key: %v", err)
	}
}
