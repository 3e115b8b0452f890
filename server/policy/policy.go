// Package policy decides whether a principal may do an action on a resource.
// It is pure: no I/O, no clock, no state.
//
// The rule is one, as the root user of an AWS account has it over keys with
// the default policy: who belongs to the account that owns the resource may
// do everything with it, nobody else may do anything. Key policies, identity
// policies, grants and conditions will be decided here, behind the same
// function.
package policy

// Request is one question.
type Request struct {
	// PrincipalARN and PrincipalAccount say who asks.
	PrincipalARN     string
	PrincipalAccount string
	// Action is the IAM action, such as kms:Encrypt.
	Action string
	// ResourceARN is the key or alias; "*" for the account as a whole.
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
	}
	return Decision{Allowed: true, Reason: "the account owns the resource"}
}
