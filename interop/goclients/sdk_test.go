package goclients_test

import (
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestSDK(t *testing.T) {
	ctx := t.Context()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		t.Fatal(err)
	}
	client := kms.NewFromConfig(cfg)
	sealed, err := client.Encrypt(ctx, &kms.EncryptInput{
		KeyId: aws.String("alias/app"), Plaintext: []byte("attack at dawn"),
		EncryptionContext: map[string]string{"purpose": "war"},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
	var wrong *types.InvalidCiphertextException
	if !errors.As(err, &wrong) {
		t.Errorf("decrypted without its encryption context: %v", err)
	}
}
