package kms_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// A dry run says that the request would have succeeded, and nothing else
// happens: no seal is counted and the key store is not called. What the
// operation would refuse, the dry run refuses.
func TestDryRun(t *testing.T) {
	t.Parallel()
	db := &faultyDB{}
	w, fake := newFakeWorld(t, func(w *world) { db.Store = w.db; w.cfg.Store = db })
	signer := &fakeSigner{fakeStore: fake}
	w.cfg.Regions[testRegion] = signer
	w.start()
	aes, off, mac, sign := w.newAESKey(), w.newAESKey(), w.newKey(hmac256, usageMac), w.newKey(p256, usageSign)
	agree, wrap := w.newKey(p256, usageAgree), w.newKey(symmetric, usageWrap)
	blob := w.encrypt(aes, []byte("x"), nil)
	w.inState(off, disabled)
	requests := dryRequests(blob)
	public := do[*keyholdv1.GetPublicKeyResponse](w, &keyholdv1.GetPublicKeyRequest{KeyId: agree}).GetPublicKey()
	requests["DeriveSharedSecret"] = func(key string) proto.Message {
		return &keyholdv1.DeriveSharedSecretRequest{KeyId: key, KeyAgreementAlgorithm: algECDH, PublicKey: public}
	}
	requests["ExportKey"] = func(key string) proto.Message {
		return &keyholdv1.ExportKeyRequest{KeyId: key, WrappingKeyId: wrap}
	}
	dry := func(key, op string) proto.Message {
		req := requests[op](key)
		m := req.ProtoReflect()
		m.Set(m.Descriptor().Fields().ByName("dry_run"), valueTrue)
		return req
	}
	good := map[string]string{
		"Sign": sign, "Verify": sign, "GenerateMac": mac, "VerifyMac": mac, "DeriveSharedSecret": agree,
		"WrapKey": wrap, "UnwrapKey": wrap, "ExportKey": w.newExportableKey(symmetric, usageEncrypt),
	}
	for op, md := range methods() {
		if md.Input().Fields().ByName("dry_run") == nil || operationSpec(op).GetUnbuilt() {
			continue
		}
		if requests[op] == nil {
			t.Errorf("%s has a dry run and no test", op)
			continue
		}
		key := good[op]
		if key == "" {
			key = aes
		}
		calls, leases := fake.total(), db.count("LeaseSeals")
		refuse(w, dry(key, op), kms.CodeDryRun)
		refuse(w, dry(unknownID, op), kms.CodeNotFound)
		refuse(w, dry(arnOfForeign+"key/"+unknownID, op), kms.CodeAccessDenied)
		if good[op] == "" {
			want := kms.CodeDisabled
			if op == "Decrypt" {
				want = kms.CodeIncorrectKey
			}
			refuse(w, dry(off, op), want)
			refuse(w, dry(mac, op), kms.CodeInvalidKeyUsage)
		} else {
			refuse(w, dry(aes, op), kms.CodeInvalidKeyUsage)
		}
		if got := fake.total(); got != calls {
			t.Errorf("the dry run of %s called the key store %d times", op, got-calls)
		}
		if got := db.count("LeaseSeals"); got != leases {
			t.Errorf("the dry run of %s leased seals", op)
		}
		// dry_run: false is none.
		req := requests[op](key)
		m := req.ProtoReflect()
		m.Set(m.Descriptor().Fields().ByName("dry_run"), valueFalse)
		if _, err := try[proto.Message](w, req); err != nil && err.Code == kms.CodeDryRun {
			t.Errorf("%s took false for true", op)
		}
	}
	// Every dry run is in the log, as a refusal.
	events := w.eventsOf(func() { refuse(w, dry(aes, "Encrypt"), kms.CodeDryRun) })
	if len(events) != 1 || events[0].ErrorCode != string(kms.CodeDryRun) {
		t.Errorf("the log has %+v", events)
	}
}

// dryRequests makes a request of each operation that has a dry run, with the
// given key.
func dryRequests(blob []byte) map[string]func(key string) proto.Message {
	return map[string]func(key string) proto.Message{
		"Encrypt": func(key string) proto.Message { return &keyholdv1.EncryptRequest{KeyId: key, Plaintext: []byte("x")} },
		"Decrypt": func(key string) proto.Message { return &keyholdv1.DecryptRequest{KeyId: &key, CiphertextBlob: blob} },
		"ReEncrypt": func(key string) proto.Message {
			return &keyholdv1.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: key}
		},
		"GenerateDataKey": func(key string) proto.Message { return &keyholdv1.GenerateDataKeyRequest{KeyId: key, KeySpec: 1} },
		"GenerateDataKeyWithoutPlaintext": func(key string) proto.Message {
			return &keyholdv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: key, KeySpec: 1}
		},
		"WrapKey": func(key string) proto.Message {
			return &keyholdv1.WrapKeyRequest{KeyId: key, PlaintextKey: make([]byte, 32)}
		},
		"UnwrapKey": func(key string) proto.Message {
			return &keyholdv1.UnwrapKeyRequest{KeyId: key, WrappedKey: make([]byte, 40)}
		},
		"GenerateDataKeyPair": func(key string) proto.Message {
			return &keyholdv1.GenerateDataKeyPairRequest{KeyId: key, KeyPairSpec: pairP256}
		},
		"GenerateDataKeyPairWithoutPlaintext": func(key string) proto.Message {
			return &keyholdv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: key, KeyPairSpec: pairP256}
		},
		"Sign": func(key string) proto.Message {
			return &keyholdv1.SignRequest{KeyId: key, Message: []byte("x"), SigningAlgorithm: ecdsa256}
		},
		"Verify": func(key string) proto.Message {
			return &keyholdv1.VerifyRequest{KeyId: key, Message: []byte("x"), Signature: []byte("x"), SigningAlgorithm: ecdsa256}
		},
		"GenerateMac": func(key string) proto.Message {
			return &keyholdv1.GenerateMacRequest{KeyId: key, Message: []byte("x"), MacAlgorithm: macSHA256}
		},
		"VerifyMac": func(key string) proto.Message {
			return &keyholdv1.VerifyMacRequest{KeyId: key, Message: []byte("x"), Mac: []byte("x"), MacAlgorithm: macSHA256}
		},
	}
}

var valueTrue, valueFalse = protoreflect.ValueOfBool(true), protoreflect.ValueOfBool(false)
