package kms_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

const (
	arnOfTest    = "arn:aws:kms:us-east-1:" + testAccount + ":"
	arnOfForeign = "arn:aws:kms:us-east-1:" + foreignAccount + ":"
	unknownID    = "00000000-0000-4000-8000-00000000dead"
)

// createAlias makes an alias.
func (w *world) createAlias(name, key string) {
	w.t.Helper()
	do[*keyholdv1.CreateAliasResponse](w, &keyholdv1.CreateAliasRequest{AliasName: name, TargetKeyId: key})
}

// named returns requests that name a key: by the operations that take any of
// the four forms, and by those that take no alias.
func named(key string, blob []byte) (any, idOnly []proto.Message) {
	return []proto.Message{
		&keyholdv1.DescribeKeyRequest{KeyId: key},
		&keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x")},
		&keyholdv1.DecryptRequest{KeyId: &key, CiphertextBlob: blob},
		&keyholdv1.ReEncryptRequest{CiphertextBlob: blob, SourceKeyId: &key, DestinationKeyId: key},
		&keyholdv1.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: key},
		&keyholdv1.GenerateDataKeyRequest{KeyId: key, NumberOfBytes: ptr(int32(16))},
		&keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: key, NumberOfBytes: ptr(int32(16))},
	}, []proto.Message{
		&keyholdv1.EnableKeyRequest{KeyId: key},
		&keyholdv1.DisableKeyRequest{KeyId: key},
		&keyholdv1.UpdateKeyDescriptionRequest{KeyId: key, Description: ptr("d")},
		&keyholdv1.ScheduleKeyDeletionRequest{KeyId: key},
		&keyholdv1.CancelKeyDeletionRequest{KeyId: key},
		&keyholdv1.ListAliasesRequest{KeyId: &key},
		&keyholdv1.CreateAliasRequest{AliasName: "alias/new", TargetKeyId: key},
		&keyholdv1.UpdateAliasRequest{AliasName: "alias/mine", TargetKeyId: key},
	}
}

func TestKeyNames(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	w.createAlias("alias/mine", id)
	blob := w.encrypt(id, []byte("x"), nil)
	for _, name := range []string{id, arnOfTest + "key/" + id, "alias/mine", arnOfTest + "alias/mine"} {
		some, idOnly := named(name, blob)
		for _, req := range some {
			do[proto.Message](w, req)
		}
		for _, req := range idOnly {
			if strings.Contains(name, "alias/") {
				want := kms.CodeNotFound
				if strings.HasPrefix(name, "arn:") && declares(req, kms.CodeInvalidArn) {
					want = kms.CodeInvalidArn
				}
				refuse(w, req, want)
				continue
			}
			if _, ok := req.(*keyholdv1.CancelKeyDeletionRequest); ok {
				do[proto.Message](w, req)
				do[proto.Message](w, &keyholdv1.EnableKeyRequest{KeyId: id})
				continue
			}
			do[proto.Message](w, req)
			if _, ok := req.(*keyholdv1.CreateAliasRequest); ok {
				do[proto.Message](w, &keyholdv1.DeleteAliasRequest{AliasName: "alias/new"})
			}
		}
		// An answer names the key by its ARN, however it was asked for.
		if got := do[*keyholdv1.EncryptResponse](w, &keyholdv1.EncryptRequest{KeyId: name, Plaintext: []byte("x")}).GetKeyId(); got != arnOfTest+"key/"+id {
			t.Errorf("for %q the answer names %q", name, got)
		}
	}
}

// declares reports whether the proto lets the operation answer with a code.
func declares(req proto.Message, code kms.Code) bool {
	return slices.Contains(operationSpec(operationOf(req)).GetErrors(), string(code))
}

func TestNamesThatNameNothing(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	w.createAlias("alias/mine", id)
	blob := w.encrypt(id, []byte("x"), nil)
	for _, name := range []string{
		unknownID, arnOfTest + "key/" + unknownID, "alias/none", arnOfTest + "alias/none",
		"garbage", strings.ToUpper(id), " " + id, id + " ", "{" + id + "}", "urn:uuid:" + id, strings.ReplaceAll(id, "-", ""), "key/" + id, "mrk-" + strings.ReplaceAll(id, "-", ""),
		"mine", "Alias/mine", "alias/Mine", "alias/", "alias/mine/", "alias/mine\x00", "\x00",
		"arn:", "arn:aws:kms:us-east-1:" + testAccount, arnOfTest, arnOfTest + id, arnOfTest + "key/", arnOfTest + "key/alias/mine", arnOfTest + "key/key/" + id, arnOfTest + "KEY/" + id,
		"arn:aws:kms:eu-west-1:" + testAccount + ":key/" + id, "arn:aws:kms::" + testAccount + ":key/" + id, "arn:aws:kms:us-east-1::key/" + id, "arn:aws:kms:us-east-1:11112222333:key/" + id,
		"arn:aws:kms:us-east-1:1111222233334:key/" + id, "arn:aws:s3:us-east-1:" + testAccount + ":key/" + id, "arn:aws-cn:kms:us-east-1:" + testAccount + ":key/" + id, "ARN:aws:kms:us-east-1:" + testAccount + ":key/" + id,
		strings.Repeat("é", 2048), "alias/" + strings.Repeat("x", 2000), "arn:" + strings.Repeat(":", 2000),
	} {
		some, idOnly := named(name, blob)
		for _, req := range slices.Concat(some, idOnly) {
			_, err := try[proto.Message](w, req)
			if err == nil {
				t.Errorf("%s takes %q for a key", operationOf(req), name)
				continue
			}
			arn := strings.HasPrefix(name, "arn:")
			switch {
			case err.Code == kms.CodeNotFound && (!arn || !declares(req, kms.CodeInvalidArn) || strings.Contains(err.Message, "does not exist") || strings.Contains(err.Message, "is not found")), err.Code == kms.CodeInvalidArn && arn && declares(req, kms.CodeInvalidArn):
			default:
				t.Errorf("%s(%q): %s", operationOf(req), name, describe(err))
			}
			if len(err.Message) > 1000 {
				t.Errorf("%s: the refusal has %d bytes", operationOf(req), len(err.Message))
			}
		}
	}
	if w.metadata(id).GetKeyState() != enabled || w.metadata(id).GetDescription() != "" {
		t.Error("something happened to the key")
	}
}

// What belongs to another account is denied in the same words whether it is
// there or not, and whatever else is wrong with the request.
func TestForeignAccount(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	mine := w.newAESKey()
	w.createAlias("alias/mine", mine)
	blob := w.encrypt(mine, []byte("x"), nil)
	create := func(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) string {
		resp, err := tryAs[*keyholdv1.CreateKeyResponse](w, mallory(), &keyholdv1.CreateKeyRequest{KeySpec: spec, KeyUsage: usage})
		if err != nil {
			t.Fatal(describe(err))
		}
		return resp.GetKeyMetadata().GetKeyId()
	}
	ask := func(req proto.Message) proto.Message {
		resp, err := tryAs[proto.Message](w, mallory(), req)
		if err != nil {
			t.Fatal(describe(err))
		}
		return resp
	}
	theirs, theirMac, theirGone := create(symmetric, usageEncrypt), create(hmac256, usageMac), create(symmetric, usageEncrypt)
	theirBlob := ask(&keyholdv1.EncryptRequest{KeyId: theirs, Plaintext: []byte("x")}).(*keyholdv1.EncryptResponse).GetCiphertextBlob()
	ask(&keyholdv1.CreateAliasRequest{AliasName: "alias/theirs", TargetKeyId: theirs})
	ask(&keyholdv1.DisableKeyRequest{KeyId: theirGone})

	for _, b := range [][]byte{blob, theirBlob, []byte("garbage"), make([]byte, 256)} {
		existing := []string{arnOfForeign + "key/" + theirs, arnOfForeign + "key/" + theirMac, arnOfForeign + "key/" + theirGone, arnOfForeign + "alias/theirs"}
		some, idOnly := named(arnOfForeign+"key/"+unknownID, b)
		for i, req := range slices.Concat(some, idOnly) {
			code := kms.CodeAccessDenied
			if r, ok := req.(*keyholdv1.ReEncryptRequest); ok && r.SourceKeyId == nil && len(b) != len(blob) {
				code = kms.CodeInvalidCiphertext // said before the destination is looked at
			}
			want := refuse(w, req, code)
			for _, name := range existing {
				some, idOnly := named(name, b)
				byAlias := strings.Contains(name, "alias/")
				if byAlias && i >= len(some) {
					continue // no alias names a key there, foreign or not
				}
				got := refuse(w, slices.Concat(some, idOnly)[i], code)
				if d := cmp.Diff(want.Error(), got.Error()); d != "" {
					t.Errorf("%s tells %s from one that is not there:\n%s", operationOf(req), name, d)
				}
			}
		}
		none := refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: arnOfForeign + "alias/none"}, kms.CodeAccessDenied)
		some2 := refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: arnOfForeign + "alias/theirs"}, kms.CodeAccessDenied)
		if none.Error() != some2.Error() {
			t.Error("a foreign alias that exists is told from one that does not")
		}
	}
	// RSA ciphertexts name no key, so the named one is all there is.
	for _, alg := range []keyholdv1.EncryptionAlgorithmSpec{oaepSHA1, oaepSHA256} {
		for _, key := range []string{theirs, theirMac, unknownID} {
			refuse(w, &keyholdv1.DecryptRequest{KeyId: ptr(arnOfForeign + "key/" + key), CiphertextBlob: make([]byte, 256), EncryptionAlgorithm: alg}, kms.CodeAccessDenied)
		}
	}
	// A bare id means one's own account; there it is not found.
	for _, id := range []string{theirs, unknownID} {
		if e := refuse(w, &keyholdv1.DescribeKeyRequest{KeyId: id}, kms.CodeNotFound); e.Message != "Key '"+arnOfTest+"key/"+id+"' does not exist" {
			t.Errorf("the refusal says %q", e.Message)
		}
	}
	w.refuseForeignCiphertexts(mine, theirs, blob, theirBlob)
	if m := ask(&keyholdv1.DescribeKeyRequest{KeyId: theirs}).(*keyholdv1.DescribeKeyResponse).GetKeyMetadata(); m.GetKeyState() != enabled || m.GetDescription() != "" {
		t.Errorf("something happened to the foreign key: %v", m)
	}
}

// refuseForeignCiphertexts: a ciphertext of a foreign key is that of an unknown
// one, in AWS's words.
func (w *world) refuseForeignCiphertexts(mine, theirs string, blob, theirBlob []byte) {
	w.t.Helper()
	const words = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access."
	unknown := slices.Clone(theirBlob)
	unknown[1] ^= 0x80
	for _, b := range [][]byte{theirBlob, unknown} {
		for _, req := range []proto.Message{&keyholdv1.DecryptRequest{CiphertextBlob: b}, &keyholdv1.ReEncryptRequest{CiphertextBlob: b, DestinationKeyId: mine}} {
			if e := refuse(w, req, kms.CodeAccessDenied); e.Message != words {
				w.t.Errorf("the refusal says %q", e.Message)
			}
		}
		for _, req := range []proto.Message{&keyholdv1.DecryptRequest{KeyId: &mine, CiphertextBlob: b}, &keyholdv1.ReEncryptRequest{SourceKeyId: &mine, CiphertextBlob: b, DestinationKeyId: mine}} {
			if e := refuse(w, req, kms.CodeIncorrectKey); e.Message != "The key ID in the request does not identify a CMK that can perform this operation." {
				w.t.Errorf("the refusal says %q", e.Message)
			}
		}
	}
	// And the other way round.
	refuseAs(w, mallory(), &keyholdv1.DecryptRequest{CiphertextBlob: blob}, kms.CodeAccessDenied)
	refuseAs(w, mallory(), &keyholdv1.DecryptRequest{KeyId: &theirs, CiphertextBlob: blob}, kms.CodeIncorrectKey)
}

// A region is a wall of its own.
func TestRegions(t *testing.T) {
	t.Parallel()
	fake := newFakeStore()
	w := buildWorld(t, fake, withConfig(func(c *kms.Config) { c.Regions[otherRegion] = fake }))
	id := w.newAESKey()
	w.createAlias("alias/mine", id)
	blob := w.encrypt(id, []byte("x"), nil)
	there := alice()
	there.Region = otherRegion
	refuseAs(w, there, &keyholdv1.DescribeKeyRequest{KeyId: id}, kms.CodeNotFound)
	refuseAs(w, there, &keyholdv1.DescribeKeyRequest{KeyId: "alias/mine"}, kms.CodeNotFound)
	refuseAs(w, there, &keyholdv1.DescribeKeyRequest{KeyId: arnOfTest + "key/" + id}, kms.CodeInvalidArn)
	refuseAs(w, there, &keyholdv1.EncryptRequest{KeyId: arnOfTest + "key/" + id, Plaintext: []byte("x")}, kms.CodeNotFound)
	refuseAs(w, there, &keyholdv1.DecryptRequest{CiphertextBlob: blob}, kms.CodeAccessDenied)
	resp, err := tryAs[*keyholdv1.ListKeysResponse](w, there, &keyholdv1.ListKeysRequest{})
	if err != nil || len(resp.GetKeys()) != 0 || resp.GetTruncated() {
		t.Errorf("the other region lists %v, %v", resp, err)
	}
	made, err := tryAs[*keyholdv1.CreateKeyResponse](w, there, &keyholdv1.CreateKeyRequest{})
	if err != nil {
		t.Fatal(describe(err))
	}
	if want := "arn:aws:kms:" + otherRegion + ":" + testAccount + ":key/"; !strings.HasPrefix(made.GetKeyMetadata().GetArn(), want) {
		t.Errorf("a key of the other region is %s", made.GetKeyMetadata().GetArn())
	}
	// Two regions over one token are not each other's orphans.
	if orphans, err := w.svc.Reconcile(t.Context()); err != nil || len(orphans) != 0 {
		t.Errorf("orphans %v, %v", orphans, err)
	}
	nowhere := alice()
	nowhere.Region = "mars-1"
	for _, op := range w.svc.Operations() {
		refuseAs(w, nowhere, sampleRequest(t, op), kms.CodeAccessDenied)
	}
}
