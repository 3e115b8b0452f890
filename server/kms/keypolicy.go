package kms

import (
	"context"
	"strings"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// policyName is the only one there is, in AWS as here.
const policyName = "default"

// defaultPolicy is the key policy that AWS gives a key whose creator gave none,
// letter for letter: the account decides. Every key has it until policies are
// enforced, and policy.Decide does what it says.
const defaultPolicy = `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:aws:iam::ACCOUNT:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`

func (s *Service) getKeyPolicy(_ context.Context, c *call, r *keyholdv1.GetKeyPolicyRequest) (*keyholdv1.GetKeyPolicyResponse, error) {
	if r.PolicyName != nil && r.GetPolicyName() != policyName {
		return nil, errorf(CodeNotFound, "No such policy exists")
	}
	return &keyholdv1.GetKeyPolicyResponse{
		Policy: strings.Replace(defaultPolicy, "ACCOUNT", string(c.key(0).account), 1), PolicyName: policyName,
	}, nil
}

// validListKeyPolicies refuses every marker: there is never a second page, and
// AWS declares no exception for a marker here.
func validListKeyPolicies(r *keyholdv1.ListKeyPoliciesRequest) error {
	if r.Marker != nil {
		return invalidField("marker", "must be one that this operation answered with, and it answers with none")
	}
	return nil
}

func (s *Service) listKeyPolicies(_ context.Context, _ *call, _ *keyholdv1.ListKeyPoliciesRequest) (*keyholdv1.ListKeyPoliciesResponse, error) {
	more := false
	return &keyholdv1.ListKeyPoliciesResponse{PolicyNames: []string{policyName}, Truncated: &more}, nil
}
