package policy_test

import (
	"testing"

	"github.com/keyhold/keyhold/server/policy"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	const mine, theirs = "111122223333", "444455556666"
	for _, c := range []struct {
		request policy.Request
		allowed bool
	}{
		{policy.Request{PrincipalAccount: mine, ResourceAccount: mine, Action: "kms:Encrypt"}, true},
		{policy.Request{PrincipalAccount: mine, ResourceAccount: mine, Action: "kms:Encrypt", ResourceARN: "*"}, true},
		{policy.Request{PrincipalAccount: mine, ResourceAccount: theirs, Action: "kms:Encrypt"}, false},
		{policy.Request{PrincipalAccount: theirs, ResourceAccount: mine, Action: "kms:Encrypt"}, false},
		{policy.Request{PrincipalAccount: mine, Action: "kms:Encrypt"}, false},
		{policy.Request{ResourceAccount: mine, Action: "kms:Encrypt"}, false},
		{policy.Request{Action: "kms:Encrypt"}, false},
		{policy.Request{PrincipalAccount: mine, ResourceAccount: mine}, false},
		{policy.Request{PrincipalAccount: mine, ResourceAccount: mine + " ", Action: "kms:Encrypt"}, false},
		{policy.Request{}, false},
		{policy.Request{PrincipalARN: "a", PrincipalAccount: mine, ResourceARN: "a", ResourceAccount: mine, Action: "iam:CreateAccessKey"}, true},
		{policy.Request{PrincipalARN: "a", PrincipalAccount: mine, ResourceARN: "b", ResourceAccount: mine, Action: "iam:CreateAccessKey"}, false},
		{policy.Request{PrincipalARN: "a", PrincipalAccount: mine, ResourceARN: "b", ResourceAccount: mine, Action: "iam:ListAccessKeys"}, false},
		{policy.Request{PrincipalARN: "a", PrincipalAccount: mine, ResourceARN: "*", ResourceAccount: mine, Action: "iam:Anything"}, false},
		{policy.Request{PrincipalAccount: mine, ResourceAccount: mine, Action: "iam:CreateAccessKey"}, false},
		{policy.Request{PrincipalARN: "a", PrincipalAccount: mine, PrincipalRoot: true, ResourceARN: "b", ResourceAccount: mine, Action: "iam:CreateAccessKey"}, true},
		{policy.Request{PrincipalARN: "a", PrincipalAccount: mine, PrincipalRoot: true, ResourceARN: "a", ResourceAccount: theirs, Action: "iam:CreateAccessKey"}, false},
	} {
		got := policy.Decide(c.request)
		if got.Allowed != c.allowed || got.Reason == "" {
			t.Errorf("%+v: %+v", c.request, got)
		}
	}
}

// No request is allowed across accounts, or without one, nor one about access keys
// of others but by the root.
func FuzzDecide(f *testing.F) {
	f.Add("arn:aws:iam::111122223333:root", "111122223333", "kms:Encrypt", "*", "111122223333", true)
	f.Add("arn:aws:iam::111122223333:user/a", "111122223333", "iam:CreateAccessKey", "arn:aws:iam::111122223333:user/b", "111122223333", false)
	f.Add("", "", "", "", "", false)
	f.Fuzz(func(t *testing.T, arn, principal, action, resource, owner string, root bool) {
		d := policy.Decide(policy.Request{PrincipalARN: arn, PrincipalAccount: principal, PrincipalRoot: root, Action: action, ResourceARN: resource, ResourceAccount: owner})
		want := principal == owner && owner != "" && action != ""
		if len(action) >= 4 && action[:4] == "iam:" {
			want = want && (root || arn != "" && arn == resource)
		}
		if d.Allowed != want || d.Reason == "" {
			t.Errorf("%q of %q on %q of %q: %+v", principal, action, resource, owner, d)
		}
	})
}
