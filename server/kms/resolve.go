package kms

import (
	"strings"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/policy"
)

// resolveKey is step 5 for a key's name in any of its four forms.
//
// What belongs to another account is never told apart from what does not
// exist: both are denied in step 6's words.
func (s *Service) resolveKey(c *call, sub *subject, name string) error {
	if name == "" { // optional filters, such as ListAliases's
		return nil
	}
	n, wrong := parseKeyName(name, c.caller.Principal.Account, c.region)
	if wrong == "" && n.alias != "" && c.op.byIDOnly {
		wrong = "Invalid keyId '" + clip(name) + "'"
	}
	if wrong != "" {
		if c.op.declares(CodeInvalidArn) && strings.HasPrefix(name, "arn:") {
			return errorf(CodeInvalidArn, "%s", wrong)
		}
		return errorf(CodeNotFound, "%s", wrong)
	}
	foreign := n.account != c.caller.Principal.Account
	id := n.id
	if n.alias != "" {
		a := s.keys.alias(n.account, n.region, n.alias)
		switch {
		case foreign && a == nil:
			return s.denied(c, c.permissionOf(sub))
		case a == nil:
			return errorf(CodeNotFound, "Alias %s is not found.", clip(aliasARN(n.region, n.account, n.alias)))
		}
		id, sub.alias = a.KeyID, a
	}
	e := s.keys.key(id)
	if e != nil {
		// An id belongs to one account and region; an ARN must name them.
		if r := e.rec.Load(); r.Account == n.account && r.Region == n.region {
			*sub = subject{arn: e.arn, account: r.Account, entry: e, rec: r, alias: sub.alias}
			return nil
		}
	}
	if foreign {
		return s.denied(c, c.permissionOf(sub))
	}
	return errorf(CodeNotFound, "Key '%s' does not exist", keyARN(n.region, n.account, id))
}

// permissionOf returns the action that the subject is resolved for.
func (c *call) permissionOf(sub *subject) string {
	for i := range c.subjects {
		if &c.subjects[i] == sub {
			return c.op.spec.GetPermissions()[i].GetAction()
		}
	}
	return c.op.spec.GetPermissions()[0].GetAction()
}

// resolveAlias is step 5 for an alias as a resource of its own. The alias
// need not exist for CreateAlias.
func (s *Service) resolveAlias(c *call, sub *subject, name string) error {
	account := c.caller.Principal.Account
	arn := aliasARN(c.region, account, name)
	a := s.keys.alias(account, c.region, name)
	if a == nil && c.op.name != "CreateAlias" {
		return errorf(CodeNotFound, "Alias %s is not found.", arn)
	}
	*sub = subject{arn: arn, account: account, alias: a}
	return nil
}

// ciphertextSource is what Decrypt and ReEncrypt say of their ciphertext.
type ciphertextSource struct {
	blob  []byte
	keyID *string
	alg   keyholdv1.EncryptionAlgorithmSpec
	// keyField names keyID in errors.
	keyField string
}

func sourceOf(req proto.Message) ciphertextSource {
	switch r := req.(type) {
	case *keyholdv1.DecryptRequest:
		return ciphertextSource{r.GetCiphertextBlob(), r.KeyId, defaultAlgorithm(r.GetEncryptionAlgorithm()), "key_id"}
	case *keyholdv1.ReEncryptRequest:
		return ciphertextSource{r.GetCiphertextBlob(), r.SourceKeyId, defaultAlgorithm(r.GetSourceEncryptionAlgorithm()), "source_key_id"}
	}
	return ciphertextSource{}
}

// resolveCiphertext is steps 4 and 5 for a ciphertext: a symmetric one names
// its key, and the name in the request, if any, must agree. An RSA one names
// nothing.
func (s *Service) resolveCiphertext(c *call, sub *subject) error {
	src := sourceOf(c.req)
	if src.keyID != nil {
		if err := s.resolveKey(c, sub, *src.keyID); err != nil {
			return err
		}
		// Step 6 for the key that was named, before anything is said that
		// depends on it: whether a foreign key exists is not told.
		if err := s.allowed(c, c.permissionOf(sub), sub); err != nil {
			return err
		}
	}
	if oaepHash(src.alg) != 0 {
		if src.keyID == nil {
			return invalidField(src.keyField, "must be given for ciphertexts of %s", awsName(src.alg))
		}
		return nil
	}
	if sub.rec != nil && len(encryptionAlgorithms(sub.rec.Spec, sub.rec.Usage)) != 1 {
		return nil // no symmetric key that encrypts: step 8 says what is wrong with it
	}
	b, err := parseBlob(src.blob)
	if err != nil {
		return ErrNotAuthentic
	}
	c.blob = b
	e := s.keys.key(b.keyID)
	switch {
	case e == nil && sub.rec != nil, e != nil && sub.rec != nil && e != sub.entry:
		return errorf(CodeIncorrectKey, "The key ID in the request does not identify a CMK that can perform this operation.")
	case e == nil:
		return errUnknownCiphertext()
	}
	r := e.rec.Load()
	if r.Region != c.region || r.Account != c.caller.Principal.Account {
		return errUnknownCiphertext()
	}
	*sub = subject{arn: e.arn, account: r.Account, entry: e, rec: r, alias: sub.alias}
	return nil
}

// errUnknownCiphertext is AWS's answer to a ciphertext of a key that is not
// there, or that belongs to somebody else: the same for both.
func errUnknownCiphertext() *Error {
	return errorf(CodeAccessDenied, "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
}

// allowed is step 6 for one permission.
func (s *Service) allowed(c *call, action string, sub *subject) error {
	if sub.account == "" { // an optional resource that the request leaves out
		sub.arn, sub.account = "*", c.caller.Principal.Account
	}
	d := policy.Decide(policy.Request{
		PrincipalARN: c.caller.Principal.ARN, PrincipalAccount: string(c.caller.Principal.Account),
		PrincipalRoot: c.caller.Principal.IsRoot(),
		Action:        action, ResourceARN: sub.arn, ResourceAccount: string(sub.account),
	})
	if !d.Allowed {
		return s.denied(c, action)
	}
	return nil
}

// denied is AWS's answer to what is not allowed. It does not tell whether the
// resource exists.
func (s *Service) denied(c *call, action string) *Error {
	return errorf(CodeAccessDenied, "User: %s is not authorized to perform: %s on this resource because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access", c.caller.Principal.ARN, action)
}
