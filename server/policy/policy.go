// Package policy decides whether a principal may do an action on a resource.
// It is pure: no I/O, no clock, no state.
//
// The rule is one, as the root user of an AWS account has it over keys with
// the default policy: who belongs to the account that owns the resource may
// do everything with it, nobody else may do anything. Except with the access keys of
// others (actions of iam): who makes one for somebody can be that somebody, so
// that is for the account's root. Key policies, identity policies, grants and
// conditions will be decided here, behind the same function.
package policy

import "strings"

// Request is one question.
type Request struct {
	// PrincipalARN and PrincipalAccount say who asks.
	PrincipalARN     string
	PrincipalAccount string
	// PrincipalRoot says that who asks is the root of its account.
	PrincipalRoot bool
	// Action is the IAM action, such as kms:Encrypt.
	Action string
	// ResourceARN is the key or alias, or the principal whose access keys it is
	// about; "*" for the account as a whole.
	ResourceARN string
	// ResourceAccount is the account that owns the resource.
	ResourceAccount string
}

// Decision is the answer.
type Decision struct {
	Allowed bool
	// Reason says why, for operators; clients are not told.
	Reason string
}

// Decide answers r. What is not allowed is denied.
func Decide(r Request) Decision {
	switch {
	case r.PrincipalAccount == "" || r.ResourceAccount == "" || r.Action == "":
		return Decision{Reason: "the request lacks an account or an action"}
	case r.PrincipalAccount != r.ResourceAccount:
		return Decision{Reason: "the resource belongs to another account"}
	case strings.HasPrefix(r.Action, "iam:") && !r.PrincipalRoot && (r.PrincipalARN == "" || r.PrincipalARN != r.ResourceARN):
		return Decision{Reason: "access keys of others are for the account's root"}
	}
	return Decision{Allowed: true, Reason: "the account owns the resource"}
}
