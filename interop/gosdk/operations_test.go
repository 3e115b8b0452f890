package gosdk_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestEveryOperation calls every operation that the SDK has. Those that
// docs/aws-compat.md calls built succeed at least once; all others answer
// UnsupportedOperationException, and those that are newer than the page
// UnknownOperationException.
func TestEveryOperation(t *testing.T) {
	c := newTester(t)
	c.sub("create and describe", testCreateAndDescribe)
	c.sub("states", testStates)
	c.sub("aliases and pages", testAliasesAndPages)
	c.sub("tags and policies", testTagsAndPolicies)
	c.sub("not there", testNotThere)
	c.sub("encrypt", testEncrypt)
	c.sub("encrypt RSA", testEncryptRSA)
	c.sub("data keys", testDataKeys)
	c.sub("sign", testSign)
	c.sub("MAC", testMAC)
	c.sub("derive", testDerive)
	c.sub("not built", testNotBuilt)

	built := builtOperations(t)
	n := 0
	methods := reflect.TypeFor[*kms.Client]()
	for i := range methods.NumMethod() {
		m := methods.Method(i)
		if m.Type.NumIn() != 4 { // the receiver, a context, an input, options
			continue
		}
		n++
		want := "UnknownOperationException"
		if is, there := built[m.Name]; is {
			want = ""
		} else if there {
			want = "UnsupportedOperationException"
		}
		if !c.outcomes.saw(m.Name, want) {
			t.Errorf("%s never answered %q, but %v", m.Name, want, c.outcomes.by[m.Name])
		}
		delete(built, m.Name)
	}
	if len(built) > 0 {
		t.Errorf("docs/aws-compat.md has operations that the SDK lacks: %v", built)
	}
	t.Logf("%d operations", n)
}

// builtOperations reads docs/aws-compat.md: whether each operation is built.
func builtOperations(t *testing.T) map[string]bool {
	t.Helper()
	page, err := os.ReadFile("../../docs/aws-compat.md")
	if err != nil {
		t.Fatal(err)
	}
	built := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([A-Z]\w+) \| (built|not built) \|`).FindAllStringSubmatch(string(page), -1) {
		built[m[1]] = m[2] == "built"
	}
	if len(built) != 54 {
		t.Fatalf("docs/aws-compat.md has %d operations", len(built))
	}
	return built
}

// testNotBuilt calls what is not built with a valid request. Nothing of it may
// take effect.
func testNotBuilt(t *tester) {
	id := aws.String(t.key("", ""))
	store := aws.String("cks-1234567890abcdef0")
	hash := aws.String(strings.Repeat("0a", 32))
	ctx := t.Context()
	calls := map[string]error{}
	note := func(name string) func(any, error) {
		return func(_ any, err error) { calls[name] = err }
	}
	note("ConnectCustomKeyStore")(t.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: store}))
	note("CreateCustomKeyStore")(t.CreateCustomKeyStore(ctx, &kms.CreateCustomKeyStoreInput{CustomKeyStoreName: aws.String("store")}))
	note("CreateGrant")(t.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: id, GranteePrincipal: aws.String("arn:aws:iam::111122223333:role/app"), Operations: []types.GrantOperation{types.GrantOperationDecrypt}}))
	note("DeleteCustomKeyStore")(t.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: store}))
	note("DeleteImportedKeyMaterial")(t.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: id}))
	note("DescribeCustomKeyStores")(t.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{}))
	note("DisableKeyRotation")(t.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: id}))
	note("DisconnectCustomKeyStore")(t.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: store}))
	note("EnableKeyRotation")(t.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: id}))
	note("GetKeyLastUsage")(t.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: id}))
	note("GetKeyRotationStatus")(t.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: id}))
	note("GetParametersForImport")(t.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa2048}))
	note("ImportKeyMaterial")(t.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{KeyId: id, EncryptedKeyMaterial: []byte("x"), ImportToken: []byte("x")}))
	note("ListGrants")(t.ListGrants(ctx, &kms.ListGrantsInput{KeyId: id}))
	note("ListKeyRotations")(t.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: id}))
	note("ListRetirableGrants")(t.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{RetiringPrincipal: aws.String("arn:aws:iam::111122223333:role/app")}))
	note("PutKeyPolicy")(t.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: id, Policy: aws.String("{}")}))
	note("ReplicateKey")(t.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: id, ReplicaRegion: aws.String("us-east-1")}))
	note("RetireGrant")(t.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: id, GrantId: hash}))
	note("RevokeGrant")(t.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: id, GrantId: hash}))
	note("RotateKeyOnDemand")(t.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: id}))
	note("UpdateCustomKeyStore")(t.UpdateCustomKeyStore(ctx, &kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: store}))
	note("UpdatePrimaryRegion")(t.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: id, PrimaryRegion: aws.String("us-east-1")}))
	// The SDK has operations that are newer than Keyhold's model.
	_, err := t.Encapsulate(ctx, &kms.EncapsulateInput{KeyId: id, EncapsulationAlgorithm: types.EncapsulationAlgorithmSpec("ML_KEM")})
	if codeOf(err) != "UnknownOperationException" {
		t.Errorf("Encapsulate: %v", err)
	}
	_, err = t.Decapsulate(ctx, &kms.DecapsulateInput{KeyId: id, EncapsulationAlgorithm: types.EncapsulationAlgorithmSpec("ML_KEM"), SharedSecretCiphertextBlob: []byte("x")})
	if codeOf(err) != "UnknownOperationException" {
		t.Errorf("Decapsulate: %v", err)
	}
	for name, err := range calls {
		if codeOf(err) == "UnsupportedOperationException" {
			wantAs[*types.UnsupportedOperationException](t, err)
		} else {
			t.Errorf("%s: %v", name, err)
		}
	}
}
