package kms_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
)

// Nobody reaches principals and keys of another account, or learns whether they
// exist.
func TestAccessKeysOfOthers(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	k := w.createAccessKey()
	for _, arn := range []string{alice().Principal.ARN, "arn:aws:iam::" + testAccount + ":root", "arn:aws:iam::" + testAccount + ":user/nobody"} {
		a := refuseAs(w, mallory(), &keyholdv1.CreateAccessKeyRequest{PrincipalArn: &arn}, kms.CodeAccessDenied)
		b := refuseAs(w, mallory(), &keyholdv1.ListAccessKeysRequest{PrincipalArn: &arn}, kms.CodeAccessDenied)
		if !strings.Contains(a.Message, "iam:CreateAccessKey") || !strings.Contains(b.Message, "iam:ListAccessKeys") {
			t.Errorf("refused with %q and %q", a.Message, b.Message)
		}
	}
	unknown := "AKIA" + strings.Repeat("Q", 16)
	for _, req := range []func(id string) proto.Message{
		func(id string) proto.Message {
			return &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: inactive}
		},
		func(id string) proto.Message { return &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id} },
		func(id string) proto.Message { return &keyholdv1.GetAccessKeyLastUsedRequest{AccessKeyId: id} },
	} {
		foreign := refuseAs(w, mallory(), req(k.GetAccessKeyId()), kms.CodeNotFound)
		none := refuseAs(w, mallory(), req(unknown), kms.CodeNotFound)
		if strings.ReplaceAll(foreign.Message, k.GetAccessKeyId(), unknown) != none.Message {
			t.Errorf("%q tells a foreign key from none: %q", foreign.Message, none.Message)
		}
	}
	if list := w.accessKeys(); len(list) != 1 || list[0].GetStatus() != active {
		t.Errorf("alice has %v", list)
	}
	for _, arn := range []string{"alice", "arn:aws:iam::1:root", "arn:aws:iam::" + testAccount + ":group/x", strings.Repeat("a", 2049)} {
		refuse(w, &keyholdv1.CreateAccessKeyRequest{PrincipalArn: &arn}, kms.CodeValidation)
	}
	nobody := "arn:aws:iam::" + testAccount + ":user/nobody"
	refuseAs(w, another("root"), &keyholdv1.CreateAccessKeyRequest{PrincipalArn: &nobody}, kms.CodeNotFound)
	refuseAs(w, another("root"), &keyholdv1.ListAccessKeysRequest{PrincipalArn: &nobody}, kms.CodeNotFound)
	refuse(w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: k.GetAccessKeyId()}, kms.CodeValidation)
	refuse(w, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: k.GetAccessKeyId(), Status: 3}, kms.CodeValidation)
	for n, want := range map[int]kms.Code{0: kms.CodeValidation, 1: kms.CodeNotFound, 128: kms.CodeNotFound, 129: kms.CodeValidation} {
		refuse(w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: strings.Repeat("A", n)}, want)
	}
	refuse(w, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: "AKIA'; DROP"}, kms.CodeValidation)
}

// Who makes an access key for somebody can be that somebody: within an account a
// principal has to do with its own, and the account's root with all.
func TestAccessKeysWithinAnAccount(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	root, bob, role := another("root"), another("user/bob"), another("role/tests/caller")
	w.setPrincipals(alice(), root, bob, role)
	k := w.createAccessKey()
	of := func(c *identity.Caller) *string { return ptr(c.Principal.ARN) }
	id := k.GetAccessKeyId()
	for _, c := range []*identity.Caller{bob, role} {
		for _, whose := range []*identity.Caller{alice(), root, another("user/nobody")} {
			refuseAs(w, c, &keyholdv1.CreateAccessKeyRequest{PrincipalArn: of(whose)}, kms.CodeAccessDenied)
			refuseAs(w, c, &keyholdv1.ListAccessKeysRequest{PrincipalArn: of(whose)}, kms.CodeAccessDenied)
		}
		refuseAs(w, c, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: inactive}, kms.CodeAccessDenied)
		refuseAs(w, c, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id}, kms.CodeAccessDenied)
		refuseAs(w, c, &keyholdv1.GetAccessKeyLastUsedRequest{AccessKeyId: id}, kms.CodeAccessDenied)
	}
	refuseAs(w, alice(), &keyholdv1.CreateAccessKeyRequest{PrincipalArn: of(root)}, kms.CodeAccessDenied)
	if list := w.accessKeys(); len(list) != 1 || list[0].GetStatus() != active {
		t.Errorf("alice has %v", list)
	}
	for _, c := range []struct {
		by  *identity.Caller
		req proto.Message
	}{
		{bob, &keyholdv1.CreateAccessKeyRequest{}},
		{role, &keyholdv1.CreateAccessKeyRequest{PrincipalArn: of(role)}},
		{bob, &keyholdv1.ListAccessKeysRequest{PrincipalArn: of(bob)}},
		{root, &keyholdv1.CreateAccessKeyRequest{PrincipalArn: of(alice())}},
		{root, &keyholdv1.ListAccessKeysRequest{PrincipalArn: of(bob)}},
		{root, &keyholdv1.GetAccessKeyLastUsedRequest{AccessKeyId: id}},
		{root, &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: inactive}},
		{alice(), &keyholdv1.UpdateAccessKeyRequest{AccessKeyId: id, Status: active}},
		{root, &keyholdv1.DeleteAccessKeyRequest{AccessKeyId: id}},
	} {
		if _, err := tryAs[proto.Message](w, c.by, c.req); err != nil {
			t.Errorf("%s by %s: %s", operationOf(c.req), c.by.Principal.ARN, describe(err))
		}
	}
}
