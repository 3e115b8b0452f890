package goclients_test

import (
	"bytes"
	"testing"

	"github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
)

func TestTink(t *testing.T) {
	ctx, arn := t.Context(), newKey(t, "", "")

	client, err := awskms.NewClientWithOptions(ctx, "aws-kms://"+arn)
	if err != nil {
		t.Fatal(err)
	}
	root, err := client.GetAEAD("aws-kms://" + arn)
	if err != nil {
		t.Fatal(err)
	}
	envelope := aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), root)
	sealed, err := envelope.Encrypt([]byte("attack at dawn"), []byte("associated"))
	if err != nil {
		t.Fatal(err)
	}

	opened, err := envelope.Decrypt(sealed, []byte("associated"))
	if err != nil || string(opened) != "attack at dawn" {
		t.Errorf("%q %v", opened, err)
	}
	if _, err := envelope.Decrypt(sealed, []byte("other")); err == nil {
		t.Error("decrypted with other associated data")
	}
	// Directly, with associated data in the encryption context.
	direct, err := root.Encrypt([]byte("small"), []byte("associated"))
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := root.Decrypt(direct, []byte("associated")); err != nil || string(opened) != "small" {
		t.Errorf("%q %v", opened, err)
	}
	if _, err := root.Decrypt(direct, []byte("other")); err == nil {
		t.Error("decrypted with another encryption context")
	}
	// A keyset, encrypted by the root key.
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := handle.WriteWithAssociatedData(keyset.NewBinaryWriter(&file), root, []byte("keyset")); err != nil {
		t.Fatal(err)
	}
	again, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(&file), root, []byte("keyset"))
	if err != nil || again.KeysetInfo().GetPrimaryKeyId() != handle.KeysetInfo().GetPrimaryKeyId() {
		t.Errorf("keyset: %v", err)
	}
}
