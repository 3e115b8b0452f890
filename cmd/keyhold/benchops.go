package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// What the keys of benchmarks are known by. The description tells a key that
// bench made from one that somebody gave such an alias.
const (
	benchAliasPrefix = "keyhold-bench/"
	benchDescription = "keyhold bench"
)

// benchOp is an operation that can be measured.
type benchOp struct {
	name    string
	method  string
	usage   keyholdv1.KeyUsageType // of its keys; zero if it uses none
	spec    keyholdv1.KeySpec      // of its keys, unless another is asked for
	batches bool

	// request makes the request that is sent again and again.
	request func(ctx context.Context, c *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error)
}

func benchOps() []benchOp {
	const (
		encrypts  = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT
		signs     = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY
		macs      = keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC
		symmetric = keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT
		p256      = keyholdv1.KeySpec_KEY_SPEC_ECC_NIST_P256
	)
	return []benchOp{
		{"ping", grpc_health_v1.Health_Check_FullMethodName, 0, 0, false, pingRequest},
		{"encrypt", keyholdv1.CryptographyService_Encrypt_FullMethodName, encrypts, symmetric, true, encryptRequest},
		{"decrypt", keyholdv1.CryptographyService_Decrypt_FullMethodName, encrypts, symmetric, true, decryptRequest},
		{"reencrypt", keyholdv1.CryptographyService_ReEncrypt_FullMethodName, encrypts, symmetric, true, reencryptRequest},
		{"datakey", keyholdv1.CryptographyService_GenerateDataKey_FullMethodName, encrypts, symmetric, true, dataKeyRequest},
		{"sign", keyholdv1.CryptographyService_Sign_FullMethodName, signs, p256, true, signRequest},
		{"verify", keyholdv1.CryptographyService_Verify_FullMethodName, signs, p256, true, verifyRequest},
		{"mac", keyholdv1.CryptographyService_GenerateMac_FullMethodName, macs, keyholdv1.KeySpec_KEY_SPEC_HMAC_256, true, macRequest},
		{"verify-mac", keyholdv1.CryptographyService_VerifyMac_FullMethodName, macs, keyholdv1.KeySpec_KEY_SPEC_HMAC_256, true, verifyMacRequest},
		{"describe", keyholdv1.KeyManagementService_DescribeKey_FullMethodName, encrypts, symmetric, false, describeRequest},
		{"random", keyholdv1.CryptographyService_GenerateRandom_FullMethodName, 0, 0, false, randomRequest},
	}
}

// fits tells whether keys of a spec can be used for the operation. One that uses
// no key does not mind.
func (op *benchOp) fits(spec keyholdv1.KeySpec) bool {
	family, _, _ := strings.Cut(awsjson.EnumName(spec), "_")
	switch op.usage {
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT:
		return family == "SYMMETRIC" || family == "RSA" && op.name != "datakey"
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY:
		return family == "RSA" || family == "ECC"
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC:
		return family == "HMAC"
	}
	return true
}

func benchOpNames() []string {
	var names []string
	for _, op := range benchOps() {
		names = append(names, op.name)
	}
	return names
}

// findBenchOp returns the operation of a name, or nil.
func findBenchOp(name string) *benchOp {
	for _, op := range benchOps() {
		if op.name == name {
			return &op
		}
	}
	return nil
}

// first returns the first of a key's algorithms, or none.
func first[E enum](algorithms []E) E {
	if len(algorithms) == 0 {
		return 0
	}
	return algorithms[0]
}

func pingRequest(context.Context, *client.Client, *keyholdv1.KeyMetadata, []byte) (proto.Message, error) {
	return &grpc_health_v1.HealthCheckRequest{}, nil
}

func encryptRequest(_ context.Context, _ *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	return &keyholdv1.EncryptRequest{KeyId: key.GetKeyId(), Plaintext: payload, EncryptionAlgorithm: first(key.GetEncryptionAlgorithms())}, nil
}

// encrypted returns a ciphertext of the payload, and the key's id if Decrypt
// needs it.
func encrypted(ctx context.Context, c *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (blob []byte, id *string, err error) {
	resp, err := c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{
		KeyId: key.GetKeyId(), Plaintext: payload, EncryptionAlgorithm: first(key.GetEncryptionAlgorithms()),
	})
	if key.GetKeySpec() != keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT {
		id = proto.String(key.GetKeyId())
	}
	return resp.GetCiphertextBlob(), id, err
}

func decryptRequest(ctx context.Context, c *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	blob, id, err := encrypted(ctx, c, key, payload)
	return &keyholdv1.DecryptRequest{CiphertextBlob: blob, KeyId: id, EncryptionAlgorithm: first(key.GetEncryptionAlgorithms())}, err
}

func reencryptRequest(ctx context.Context, c *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	blob, id, err := encrypted(ctx, c, key, payload)
	algorithm := first(key.GetEncryptionAlgorithms())
	return &keyholdv1.ReEncryptRequest{
		CiphertextBlob: blob, SourceKeyId: id, SourceEncryptionAlgorithm: algorithm,
		DestinationKeyId: key.GetKeyId(), DestinationEncryptionAlgorithm: algorithm,
	}, err
}

func dataKeyRequest(_ context.Context, _ *client.Client, key *keyholdv1.KeyMetadata, _ []byte) (proto.Message, error) {
	return &keyholdv1.GenerateDataKeyRequest{KeyId: key.GetKeyId(), KeySpec: keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256}, nil
}

func signRequest(_ context.Context, _ *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	return &keyholdv1.SignRequest{KeyId: key.GetKeyId(), Message: payload, SigningAlgorithm: first(key.GetSigningAlgorithms())}, nil
}

func verifyRequest(ctx context.Context, c *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	algorithm := first(key.GetSigningAlgorithms())
	resp, err := c.Crypto.Sign(ctx, &keyholdv1.SignRequest{KeyId: key.GetKeyId(), Message: payload, SigningAlgorithm: algorithm})
	return &keyholdv1.VerifyRequest{KeyId: key.GetKeyId(), Message: payload, Signature: resp.GetSignature(), SigningAlgorithm: algorithm}, err
}

func macRequest(_ context.Context, _ *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	return &keyholdv1.GenerateMacRequest{KeyId: key.GetKeyId(), Message: payload, MacAlgorithm: first(key.GetMacAlgorithms())}, nil
}

func verifyMacRequest(ctx context.Context, c *client.Client, key *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	algorithm := first(key.GetMacAlgorithms())
	resp, err := c.Crypto.GenerateMac(ctx, &keyholdv1.GenerateMacRequest{KeyId: key.GetKeyId(), Message: payload, MacAlgorithm: algorithm})
	return &keyholdv1.VerifyMacRequest{KeyId: key.GetKeyId(), Message: payload, Mac: resp.GetMac(), MacAlgorithm: algorithm}, err
}

func describeRequest(_ context.Context, _ *client.Client, key *keyholdv1.KeyMetadata, _ []byte) (proto.Message, error) {
	return &keyholdv1.DescribeKeyRequest{KeyId: key.GetKeyId()}, nil
}

func randomRequest(_ context.Context, _ *client.Client, _ *keyholdv1.KeyMetadata, payload []byte) (proto.Message, error) {
	return &keyholdv1.GenerateRandomRequest{NumberOfBytes: proto.Int32(int32(len(payload)))}, nil
}

// batchItem makes a request part of a batch.
func batchItem(req proto.Message) (*keyholdv1.BatchItem, error) {
	switch r := req.(type) {
	case *keyholdv1.EncryptRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Encrypt{Encrypt: r}}, nil
	case *keyholdv1.DecryptRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Decrypt{Decrypt: r}}, nil
	case *keyholdv1.ReEncryptRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_ReEncrypt{ReEncrypt: r}}, nil
	case *keyholdv1.GenerateDataKeyRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_GenerateDataKey{GenerateDataKey: r}}, nil
	case *keyholdv1.SignRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Sign{Sign: r}}, nil
	case *keyholdv1.VerifyRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Verify{Verify: r}}, nil
	case *keyholdv1.GenerateMacRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_GenerateMac{GenerateMac: r}}, nil
	case *keyholdv1.VerifyMacRequest:
		return &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_VerifyMac{VerifyMac: r}}, nil
	}
	return nil, fmt.Errorf("a batch has no items of %s", req.ProtoReflect().Descriptor().Name())
}

// benchCleanup schedules the deletion of the keys that bench has made, and
// deletes their aliases.
func (a *app) benchCleanup(ctx context.Context, c *client.Client, yes bool) error {
	var doomed []*keyholdv1.AliasListEntry
	err := pages(func(marker *string) (string, bool, error) {
		page, err := c.Keys.ListAliases(ctx, &keyholdv1.ListAliasesRequest{Marker: marker})
		for _, alias := range page.GetAliases() {
			if strings.HasPrefix(alias.GetAliasName(), "alias/"+benchAliasPrefix) {
				doomed = append(doomed, alias)
			}
		}
		return page.GetNextMarker(), page.GetTruncated(), err
	})
	if err != nil {
		return err
	}
	if len(doomed) == 0 {
		fmt.Fprintln(a.stderr, "keyhold: there are no keys of benchmarks")
		return nil
	}
	if !yes {
		question := fmt.Sprintf("%d keys named alias/%s* become unusable now and are destroyed after 7 days.", len(doomed), benchAliasPrefix)
		if err := a.confirm(ctx, question, "delete"); err != nil {
			return err
		}
	}
	var failed error
	for _, alias := range doomed {
		if err := a.discardBenchKey(ctx, c, alias); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", alias.GetAliasName(), rpcError(err)))
		}
	}
	return failed
}

func (a *app) discardBenchKey(ctx context.Context, c *client.Client, alias *keyholdv1.AliasListEntry) error {
	resp, err := c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: alias.GetTargetKeyId()})
	if err != nil {
		return err
	}
	meta := resp.GetKeyMetadata()
	if meta.GetDescription() != benchDescription {
		return fmt.Errorf("the key %s was not made by bench (its description is not %q), so it stays", meta.GetArn(), benchDescription)
	}
	date := meta.GetDeletionDate()
	if meta.GetKeyState() != keyholdv1.KeyState_KEY_STATE_PENDING_DELETION {
		resp, err := c.Keys.ScheduleKeyDeletion(ctx, &keyholdv1.ScheduleKeyDeletionRequest{KeyId: meta.GetKeyId(), PendingWindowInDays: proto.Int32(7)})
		if err != nil {
			return err
		}
		date = resp.GetDeletionDate()
	}
	if _, err = c.Keys.DeleteAlias(ctx, &keyholdv1.DeleteAliasRequest{AliasName: alias.GetAliasName()}); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "keyhold: deleted %s; its key %s will be destroyed on %s\n",
		printable(alias.GetAliasName()), printable(meta.GetArn()), date.AsTime().Format(time.DateOnly))
	return nil
}
