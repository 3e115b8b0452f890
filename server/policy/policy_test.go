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
	} {
		got := policy.Decide(c.request)
		if got.Allowed != c.allowed || got.Reason == "" {
			t.Errorf("%+v: %+v", c.request, got)
		}
	}
}

// No request is allowed across accounts, or without one.
func FuzzDecide(f *testing.F) {
	f.Add("arn:aws:iam::111122223333:root", "111122223333", "kms:Encrypt", "*", "111122223333")
	f.Add("", "", "", "", "")
	f.Fuzz(func(t *testing.T, arn, principal, action, resource, owner string) {
		d := policy.Decide(policy.Request{PrincipalARN: arn, PrincipalAccount: principal, Action: action, ResourceARN: resource, ResourceAccount: owner})
		if d.Allowed != (principal == owner && owner != "" && action != "") || d.Reason == "" {
			t.Errorf("%q of %q on %q of %q: %+v", principal, action, resource, owner, d)
		}
	})
}
