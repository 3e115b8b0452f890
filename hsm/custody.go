package hsm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// ObjectCustody is what a token says about one of its private or secret objects, of whatever origin.
type ObjectCustody struct {
	Object

	// PKCS#11 v2.40, 4.8 to 4.10. An attribute that the token does not tell is false here and named in Untold.
	Sensitive, AlwaysSensitive, Extractable, NeverExtractable, Local, Private, Modifiable bool

	// Untold names the attributes that the token does not have for the object.
	Untold []string
}

// attributes lists the attributes of custody and where each of them goes.
func (c *ObjectCustody) attributes() []custodyAttribute {
	return []custodyAttribute{
		{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", &c.Sensitive, mustBeTrue},
		{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", &c.AlwaysSensitive, mustBeTrue},
		{pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", &c.Extractable, mustBeFalse},
		{pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", &c.NeverExtractable, mustBeTrue},
		{pkcs11.CKA_LOCAL, "CKA_LOCAL", &c.Local, mustBeTrue},
		{pkcs11.CKA_PRIVATE, "CKA_PRIVATE", &c.Private, mustBeTrue},
		{pkcs11.CKA_MODIFIABLE, "CKA_MODIFIABLE", &c.Modifiable, mayBeEither},
	}
}

type custodyAttribute struct {
	number uint
	name   string
	value  *bool
	want   demand
}

// demand is what Proven wants of an attribute.
type demand uint8

const (
	mayBeEither demand = iota
	mustBeTrue
	mustBeFalse
)

// Proven returns nil when the token says that the object was generated inside it, and has never been and can never be taken out in the clear.
// Otherwise the error matches ErrCustody and names every attribute that says otherwise.
func (c *ObjectCustody) Proven() error { return c.proven() }

// ProvenExportable is Proven but for that the object may leave the token wrapped, now or before.
func (c *ObjectCustody) ProvenExportable() error {
	return c.proven(pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_NEVER_EXTRACTABLE)
}

// proven wants all attributes to be as they should, but for those.
func (c *ObjectCustody) proven(but ...uint) error {
	var wrong []string
	for _, a := range c.attributes() {
		switch {
		case a.want == mayBeEither || slices.Contains(but, a.number):
		case slices.Contains(c.Untold, a.name):
			wrong = append(wrong, a.name+" is not told")
		case *a.value != (a.want == mustBeTrue):
			wrong = append(wrong, fmt.Sprintf("%s is %t", a.name, *a.value))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrCustody, strings.Join(wrong, ", "))
}

// Custody reads what the token says about each of its private and secret token objects, Keyhold's or not. It changes nothing. Costs and
// concurrency are those of [Token.Objects].
func (t *Token) Custody(ctx context.Context) ([]ObjectCustody, error) {
	var all []ObjectCustody
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY} {
		found, err := survey(ctx, t, "Custody", (*session).custody, pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_CLASS, class))
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// custody reads one object.
func (s *session) custody(h pkcs11.ObjectHandle) (ObjectCustody, error) {
	var c ObjectCustody
	var err error
	if c.Object, err = s.object(h); err != nil {
		return c, err
	}
	for _, a := range c.attributes() {
		switch *a.value, err = s.flag(h, a.number); {
		case err == nil:
		case isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID):
			c.Untold = append(c.Untold, a.name)
		default:
			return c, err
		}
	}
	return c, nil
}

// CanaryLabel is the label of the canary key.
const CanaryLabel = canaryLabel

// KeyTypeName names the type of a key for people: AES, RSA, EC and so on. It is empty for objects that are no keys.
func (o Object) KeyTypeName() string {
	switch o.Class {
	case ClassPublicKey, ClassPrivateKey, ClassSecretKey:
	default:
		return ""
	}
	switch o.KeyType {
	case pkcs11.CKK_AES:
		return "AES"
	case pkcs11.CKK_GENERIC_SECRET:
		return "generic secret"
	case pkcs11.CKK_SHA224_HMAC, pkcs11.CKK_SHA256_HMAC, pkcs11.CKK_SHA384_HMAC, pkcs11.CKK_SHA512_HMAC:
		return "HMAC"
	case pkcs11.CKK_RSA:
		return "RSA"
	case pkcs11.CKK_EC:
		return "EC"
	case ckkECEdwards:
		return "EdDSA"
	}
	return fmt.Sprintf("CKK %#x", o.KeyType)
}

// SoftHSM tells where a SoftHSM that is initialised now finds its configuration, and the folder of tokens that this names. The path of the
// configuration is returned also with an error.
func SoftHSM() (conf, tokens string, err error) {
	conf = softhsmConfPath()
	tokens, err = softhsmRoot(conf)
	return conf, tokens, err
}

// SoftHSMTokenDir returns the folder below tokens (see SoftHSM) in which SoftHSM keeps the token with that serial number.
func SoftHSMTokenDir(serial string) (string, error) {
	return softhsmTokenDir(softhsmConfPath(), serial)
}
