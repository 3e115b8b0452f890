package gosdk_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyhold/keyhold/interop/daemon"
)

func testCreateAndDescribe(t *tester) {
	started := time.Now()
	created := must[*kms.CreateKeyOutput](t)(t.CreateKey(t.Context(), &kms.CreateKeyInput{
		Description: aws.String("größe ☃"), Tags: []types.Tag{{TagKey: aws.String("team"), TagValue: aws.String("a b")}},
	})).KeyMetadata
	id, arn := *created.KeyId, *created.Arn
	if want := "arn:aws:kms:" + daemon.Region + ":" + daemon.Account + ":key/" + id; arn != want {
		t.Errorf("ARN %s; want %s", arn, want)
	}
	if *created.AWSAccountId != daemon.Account || *created.Description != "größe ☃" || !created.Enabled || created.KeyState != types.KeyStateEnabled ||
		created.KeyManager != types.KeyManagerTypeCustomer || created.KeySpec != types.KeySpecSymmetricDefault || created.Origin != types.OriginTypeAwsKms ||
		created.KeyUsage != types.KeyUsageTypeEncryptDecrypt || created.CustomerMasterKeySpec != types.CustomerMasterKeySpecSymmetricDefault ||
		!slices.Equal(created.EncryptionAlgorithms, []types.EncryptionAlgorithmSpec{types.EncryptionAlgorithmSpecSymmetricDefault}) {
		t.Errorf("metadata %+v", created)
	}
	if d := created.CreationDate.Sub(started); d < -time.Minute || d > time.Minute {
		t.Errorf("created %v from now", d)
	}
	alias := "alias/describe"
	must[*kms.CreateAliasOutput](t)(t.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: &id}))
	for _, form := range []string{id, arn, alias, strings.Replace(arn, "key/"+id, alias, 1)} {
		got := must[*kms.DescribeKeyOutput](t)(t.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &form, GrantTokens: []string{"token"}}))
		if *got.KeyMetadata.Arn != arn || !got.KeyMetadata.CreationDate.Equal(*created.CreationDate) {
			t.Errorf("%s: %+v", form, got.KeyMetadata)
		}
	}
	old := must[*kms.CreateKeyOutput](t)(t.CreateKey(t.Context(), &kms.CreateKeyInput{
		CustomerMasterKeySpec: types.CustomerMasterKeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify,
	})).KeyMetadata
	if old.KeySpec != types.KeySpecEccNistP256 || !slices.Equal(old.SigningAlgorithms, []types.SigningAlgorithmSpec{types.SigningAlgorithmSpecEcdsaSha256}) {
		t.Errorf("the old name of KeySpec made %+v", old)
	}
}

func testStates(t *tester) {
	id := t.key("", "")
	state := func(want types.KeyState) *types.KeyMetadata {
		t.Helper()
		got := must[*kms.DescribeKeyOutput](t)(t.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &id})).KeyMetadata
		if got.KeyState != want {
			t.Errorf("state %s; want %s", got.KeyState, want)
		}
		return got
	}
	encrypt := func() error {
		_, err := t.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	must[*kms.DisableKeyOutput](t)(t.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &id}))
	state(types.KeyStateDisabled)
	wantAs[*types.DisabledException](t, encrypt())
	must[*kms.EnableKeyOutput](t)(t.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &id}))
	state(types.KeyStateEnabled)
	due := must[*kms.ScheduleKeyDeletionOutput](t)(t.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: aws.Int32(7)}))
	if due.KeyState != types.KeyStatePendingDeletion || *due.PendingWindowInDays != 7 || time.Until(*due.DeletionDate).Round(time.Hour) != 7*24*time.Hour || !strings.HasSuffix(*due.KeyId, ":key/"+id) {
		t.Errorf("scheduled: %+v", due)
	}
	if got := state(types.KeyStatePendingDeletion); !got.DeletionDate.Equal(*due.DeletionDate) {
		t.Errorf("due at %v; want %v", got.DeletionDate, due.DeletionDate)
	}
	wantAs[*types.KMSInvalidStateException](t, encrypt())
	cancelled := must[*kms.CancelKeyDeletionOutput](t)(t.CancelKeyDeletion(t.Context(), &kms.CancelKeyDeletionInput{KeyId: &id}))
	if !strings.HasSuffix(*cancelled.KeyId, ":key/"+id) {
		t.Errorf("cancelled %s", *cancelled.KeyId)
	}
	if got := state(types.KeyStateDisabled); got.DeletionDate != nil {
		t.Errorf("still due at %v", got.DeletionDate)
	}
	must[*kms.EnableKeyOutput](t)(t.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &id}))
	if err := encrypt(); err != nil {
		t.Error(err)
	}
	must[*kms.UpdateKeyDescriptionOutput](t)(t.UpdateKeyDescription(t.Context(), &kms.UpdateKeyDescriptionInput{KeyId: &id, Description: aws.String("new")}))
	if got := state(types.KeyStateEnabled); *got.Description != "new" {
		t.Errorf("description %q", *got.Description)
	}
}

// testAliasesAndPages: aliases, and the paginators with small pages.
func testAliasesAndPages(t *tester) {
	first, second := t.key("", ""), t.key("", "")
	want := map[string]string{}
	for i := range 5 {
		name := fmt.Sprintf("alias/pages/%d", i)
		want[name] = first
		must[*kms.CreateAliasOutput](t)(t.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: &name, TargetKeyId: &first}))
	}
	_, err := t.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/pages/0"), TargetKeyId: &second})
	wantAs[*types.AlreadyExistsException](t, err)
	must[*kms.UpdateAliasOutput](t)(t.UpdateAlias(t.Context(), &kms.UpdateAliasInput{AliasName: aws.String("alias/pages/1"), TargetKeyId: &second}))
	must[*kms.DeleteAliasOutput](t)(t.DeleteAlias(t.Context(), &kms.DeleteAliasInput{AliasName: aws.String("alias/pages/2")}))
	delete(want, "alias/pages/1")
	delete(want, "alias/pages/2")
	got, pages := map[string]string{}, 0
	for p := kms.NewListAliasesPaginator(t, &kms.ListAliasesInput{KeyId: &first, Limit: aws.Int32(2)}); p.HasMorePages(); pages++ {
		for _, a := range must[*kms.ListAliasesOutput](t)(p.NextPage(t.Context())).Aliases {
			got[*a.AliasName] = *a.TargetKeyId
			if !strings.HasSuffix(*a.AliasArn, ":"+*a.AliasName) || a.CreationDate == nil || a.LastUpdatedDate == nil {
				t.Errorf("alias %+v", a)
			}
		}
	}
	if !maps.Equal(got, want) || pages != 2 {
		t.Errorf("%d pages of %v; want 2 of %v", pages, got, want)
	}
	seen := map[string]int{}
	for p := kms.NewListKeysPaginator(t, &kms.ListKeysInput{Limit: aws.Int32(1)}); p.HasMorePages(); {
		for _, k := range must[*kms.ListKeysOutput](t)(p.NextPage(t.Context())).Keys {
			seen[*k.KeyId]++
			if !strings.HasSuffix(*k.KeyArn, ":key/"+*k.KeyId) {
				t.Errorf("key %s has the ARN %s", *k.KeyId, *k.KeyArn)
			}
		}
	}
	if seen[first] != 1 || seen[second] != 1 {
		t.Errorf("pages of keys have %v", seen)
	}
	_, err = t.ListKeys(t.Context(), &kms.ListKeysInput{Marker: aws.String("no marker")})
	wantAs[*types.InvalidMarkerException](t, err)
}

func testTagsAndPolicies(t *tester) {
	id := t.key("", "")
	var tags []types.Tag
	want := map[string]string{}
	for i := range 5 {
		k, v := fmt.Sprintf("k%d", i), fmt.Sprintf("v %d", i)
		tags, want[k] = append(tags, types.Tag{TagKey: &k, TagValue: &v}), v
	}
	must[*kms.TagResourceOutput](t)(t.TagResource(t.Context(), &kms.TagResourceInput{KeyId: &id, Tags: tags}))
	must[*kms.UntagResourceOutput](t)(t.UntagResource(t.Context(), &kms.UntagResourceInput{KeyId: &id, TagKeys: []string{"k1", "no such tag"}}))
	delete(want, "k1")
	got := map[string]string{}
	for p := kms.NewListResourceTagsPaginator(t, &kms.ListResourceTagsInput{KeyId: &id, Limit: aws.Int32(3)}); p.HasMorePages(); {
		for _, tag := range must[*kms.ListResourceTagsOutput](t)(p.NextPage(t.Context())).Tags {
			got[*tag.TagKey] = *tag.TagValue
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("tags %v; want %v", got, want)
	}
	_, err := t.TagResource(t.Context(), &kms.TagResourceInput{KeyId: &id, Tags: []types.Tag{{TagKey: aws.String("aws:x"), TagValue: aws.String("")}}})
	wantAs[*types.TagException](t, err)

	var names []string
	for p := kms.NewListKeyPoliciesPaginator(t, &kms.ListKeyPoliciesInput{KeyId: &id}); p.HasMorePages(); {
		names = append(names, must[*kms.ListKeyPoliciesOutput](t)(p.NextPage(t.Context())).PolicyNames...)
	}
	if !slices.Equal(names, []string{"default"}) {
		t.Errorf("policies %v", names)
	}
	policy := must[*kms.GetKeyPolicyOutput](t)(t.GetKeyPolicy(t.Context(), &kms.GetKeyPolicyInput{KeyId: &id}))
	var parsed struct{ Statement []struct{ Effect string } }
	if err := json.Unmarshal([]byte(*policy.Policy), &parsed); err != nil || *policy.PolicyName != "default" || len(parsed.Statement) != 1 {
		t.Errorf("policy %+v: %v", policy, err)
	}
}

// testNotThere: the typed errors about what is named wrongly.
func testNotThere(t *tester) {
	gone := "1234abcd-12ab-34cd-56ef-1234567890ab"
	for _, id := range []string{gone, "arn:aws:kms:" + daemon.Region + ":" + daemon.Account + ":key/" + gone, "alias/not-there"} {
		_, err := t.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &id})
		wantAs[*types.NotFoundException](t, err)
	}
	_, err := t.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: aws.String("arn:aws:s3:::bucket")})
	if err == nil {
		t.Error("the ARN of a bucket is a key")
	}
	_, err = t.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/aws/mine"), TargetKeyId: aws.String(t.key("", ""))})
	if err == nil {
		t.Error("an alias of AWS's own was made")
	}
	_, err = t.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: "NO_SUCH_SPEC"})
	if got := codeOf(err); got != "ValidationException" || !strings.Contains(err.Error(), "1 validation error detected") {
		t.Errorf("%v", err)
	}
	_, err = t.DeleteAlias(t.Context(), &kms.DeleteAliasInput{AliasName: aws.String("alias/not-there")})
	wantAs[*types.NotFoundException](t, err)
}
