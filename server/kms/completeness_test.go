package kms_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// methods returns the descriptors of all operations.
func methods() map[string]protoreflect.MethodDescriptor {
	out := make(map[string]protoreflect.MethodDescriptor)
	for _, sd := range kms.Services() {
		for i := range sd.Methods().Len() {
			md := sd.Methods().Get(i)
			out[string(md.Name())] = md
		}
	}
	return out
}

func operationSpec(name string) *keyholdv1.Operation {
	return proto.GetExtension(methods()[name].Options(), keyholdv1.E_Operation).(*keyholdv1.Operation)
}

// Every operation of the proto is implemented, needs a permission of its own
// name, and declares errors that exist.
func TestOperationsAreComplete(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	have := w.svc.Operations()
	if len(have) != len(methods()) {
		t.Errorf("%d operations, %d methods", len(have), len(methods()))
	}
	for name, md := range methods() {
		if !slices.Contains(have, name) {
			t.Errorf("%s is not implemented", name)
		}
		if got := string(md.Input().Name()); got != name+"Request" || string(md.Output().Name()) != name+"Response" {
			t.Errorf("%s takes %s and answers %s", name, got, md.Output().Name())
		}
		spec := operationSpec(name)
		for _, p := range spec.GetPermissions() {
			want := "kms:" + name
			switch {
			case name == "GetCallerIdentity":
				want = "sts:" + name
			case ofAccessKeys(name):
				want = "iam:" + name
			}
			if two, ok := map[string]map[string]string{
				"ReEncrypt": {"ciphertext_blob": "kms:ReEncryptFrom", "destination_key_id": "kms:ReEncryptTo"},
				"ExportKey": {"key_id": "kms:ExportKey", "wrapping_key_id": "kms:WrapKey"},
			}[name]; ok {
				want = two[p.GetResourceField()]
			}
			if p.GetAction() != want {
				t.Errorf("%s needs %s, want %s", name, p.GetAction(), want)
			}
		}
		// Each field that names a key or an alias is a resource of a
		// permission, or a second name of one.
		second := []string{"Decrypt.key_id", "ReEncrypt.source_key_id", "ListAliases.key_id", "CreateKey.xks_key_id"}
		for i := range md.Input().Fields().Len() {
			fd := string(md.Input().Fields().Get(i).Name())
			if !strings.HasSuffix(fd, "key_id") && fd != "alias_name" && fd != "ciphertext_blob" || slices.Contains(second, name+"."+fd) {
				continue
			}
			if !slices.ContainsFunc(spec.GetPermissions(), func(p *keyholdv1.Permission) bool { return p.GetResourceField() == fd }) {
				t.Errorf("%s.%s is nobody's resource", name, fd)
			}
		}
		for _, e := range spec.GetErrors() {
			if !slices.Contains(kms.Codes(), kms.Code(e)) && !slices.Contains(kms.DeclaredCodes(), kms.Code(e)) {
				t.Errorf("%s declares %s, which is no code", name, e)
			}
		}
		if !slices.Contains(spec.GetErrors(), string(kms.CodeInternal)) {
			t.Errorf("%s does not declare %s", name, kms.CodeInternal)
		}
		if spec.GetBatch() != (len(spec.GetPermissions()) == 0) {
			t.Errorf("%s needs no permission", name)
		}
		dry := md.Input().Fields().ByName("dry_run") != nil
		if dry != slices.Contains(spec.GetErrors(), string(kms.CodeDryRun)) {
			t.Errorf("%s: dry_run %v, and declares %v", name, dry, spec.GetErrors())
		}
		if spec.GetPlane() == keyholdv1.Plane_PLANE_DATA && !spec.GetReadOnly() {
			t.Errorf("%s is of the data plane and changes something", name)
		}
	}
}

func TestCodesAreClosed(t *testing.T) {
	t.Parallel()
	seen := make(map[kms.Code]bool)
	for _, c := range slices.Concat(kms.Codes(), kms.DeclaredCodes()) {
		if seen[c] || !strings.HasSuffix(string(c), "Exception") {
			t.Errorf("code %q", c)
		}
		seen[c] = true
	}
}

// Secrets are marked, and what bears the mark is bytes, which can be wiped: the
// texts are those of operations that are not built, and are not kept. What is
// not marked among bytes is public or a ciphertext.
func TestSecretsAreMarked(t *testing.T) {
	t.Parallel()
	public := []string{
		"EncryptResponse.ciphertext_blob", "DecryptRequest.ciphertext_blob", "ReEncryptRequest.ciphertext_blob", "ReEncryptResponse.ciphertext_blob",
		"GenerateDataKeyResponse.ciphertext_blob", "GenerateDataKeyWithoutPlaintextResponse.ciphertext_blob", "SignResponse.signature", "VerifyRequest.signature",
		"GetPublicKeyResponse.public_key", "DeriveSharedSecretRequest.public_key",
		"WrapKeyResponse.wrapped_key", "UnwrapKeyRequest.wrapped_key", "ExportKeyResponse.wrapped_key",
		"GetParametersForImportResponse.import_token", "GetParametersForImportResponse.public_key",
		"ImportKeyMaterialRequest.import_token", "ImportKeyMaterialRequest.encrypted_key_material", "RecipientInfo.attestation_document",
		"DecryptResponse.ciphertext_for_recipient", "GenerateDataKeyResponse.ciphertext_for_recipient", "GenerateDataKeyPairResponse.ciphertext_for_recipient",
		"DeriveSharedSecretResponse.ciphertext_for_recipient", "GenerateRandomResponse.ciphertext_for_recipient",
		"GenerateDataKeyPairResponse.private_key_ciphertext_blob", "GenerateDataKeyPairResponse.public_key",
		"GenerateDataKeyPairWithoutPlaintextResponse.private_key_ciphertext_blob", "GenerateDataKeyPairWithoutPlaintextResponse.public_key",
	}
	texts := []string{"CreateCustomKeyStoreRequest.key_store_password", "UpdateCustomKeyStoreRequest.key_store_password"}
	marked := 0
	for _, md := range methods() {
		for _, m := range []protoreflect.MessageDescriptor{md.Input(), md.Output()} {
			for i := range m.Fields().Len() {
				fd := m.Fields().Get(i)
				name := string(m.Name()) + "." + string(fd.Name())
				redact := fd.Options().(*descriptorpb.FieldOptions).GetDebugRedact()
				if redact {
					marked++
				}
				if redact && fd.Kind() != protoreflect.BytesKind && !slices.Contains(texts, name) {
					t.Errorf("%s is marked and is %s", name, fd.Kind())
				}
				if !redact && fd.Kind() == protoreflect.BytesKind && !slices.Contains(public, name) {
					t.Errorf("%s holds bytes without debug_redact", name)
				}
			}
		}
	}
	if marked == 0 {
		t.Error("no field bears debug_redact")
	}
}

// Wipe zeroes what bears the mark, and every other bytes field.
func TestWipe(t *testing.T) {
	t.Parallel()
	for _, md := range methods() {
		req := sampleRequest(t, string(md.Name()))
		var held [][]byte
		err := protorange.Range(req.ProtoReflect(), func(p protopath.Values) error {
			if b, ok := p.Index(-1).Value.Interface().([]byte); ok {
				held = append(held, b)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if string(md.Name()) == "Batch" && len(held) == 0 {
			t.Error("the batch has no bytes to wipe")
		}
		kms.Wipe(req)
		for _, b := range held {
			if !slices.Equal(b, make([]byte, len(b))) {
				t.Errorf("%s: %q is still there", md.Name(), b)
			}
		}
	}
	kms.Wipe(nil)
	kms.Wipe((*keyholdv1.EncryptRequest)(nil))
}
