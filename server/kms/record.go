package kms

import (
	"slices"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// KeyRecord is all that the store knows of one KMS key. A record that the
// keyring hands out is never changed: who wants another one clones it.
type KeyRecord struct {
	ID      KeyID
	Account AccountID
	Region  Region

	// KeyStore names the key store that holds the material; "" is the
	// region's default token.
	KeyStore string

	Spec  keyholdv1.KeySpec
	Usage keyholdv1.KeyUsageType

	// State is CREATING (an intent; the key is in no answer), ENABLED,
	// DISABLED or PENDING_DELETION. UNAVAILABLE is computed, never stored.
	State keyholdv1.KeyState

	Description string
	Tags        []Tag
	Created     time.Time

	// DeletionDate and PendingWindowDays are set in PENDING_DELETION only.
	DeletionDate      time.Time
	PendingWindowDays int

	// Destroying is set, in PENDING_DELETION, before the material is touched.
	// From then on there is no way back, and the work is finished after a
	// crash.
	Destroying bool

	// Versions holds every version of the material, oldest first. The last
	// one encrypts. Never empty but in CREATING.
	Versions []KeyVersion

	// Revision counts the writes of this record; it is the expected value of
	// the next compare-and-swap.
	Revision int64
}

// Clone returns a copy that shares nothing with r.
func (r *KeyRecord) Clone() *KeyRecord {
	c := *r
	c.Tags = slices.Clone(r.Tags)
	c.Versions = make([]KeyVersion, len(r.Versions))
	for i, v := range r.Versions {
		v.Locator.ID = slices.Clone(v.Locator.ID)
		v.PublicKey = slices.Clone(v.PublicKey)
		c.Versions[i] = v
	}
	return &c
}

// ARN returns the key's ARN.
func (r *KeyRecord) ARN() string { return keyARN(r.Region, r.Account, r.ID) }

// Current returns the version that encrypts. The record has one.
func (r *KeyRecord) Current() *KeyVersion { return &r.Versions[len(r.Versions)-1] }

// Version returns the version that ref names, or nil.
func (r *KeyRecord) Version(ref Ref) *KeyVersion {
	for i := range r.Versions {
		if r.Versions[i].Ref == ref {
			return &r.Versions[i]
		}
	}
	return nil
}

// Tag is a label on a key.
type Tag struct{ Key, Value string }

// KeyVersion is one version of a key's material. Three names must not be
// mixed: MaterialID is what the API shows, Ref is what ciphertexts carry,
// Locator is where the object is.
type KeyVersion struct {
	MaterialID KeyMaterialID
	Ref        Ref
	Locator    Locator
	Custody    keyholdv1.KeyCustodyType
	Created    time.Time

	// PublicKey is the DER of the SubjectPublicKeyInfo as the key store proved
	// it when the pair was made; nil for secret keys. What the store says
	// later must be the same, so that neither who can write the store nor who
	// can write the token can slip a key of his own in.
	PublicKey []byte
}

// Locator says where in its key store the material is.
type Locator struct {
	// ID is the CKA_ID, or another store's identifier.
	ID []byte
	// Label is the CKA_LABEL. It names installation and key, so that an
	// operator who looks into a token sees whose object it is.
	Label string
	// Spec and Usage say what the object is: its class and key type follow.
	Spec  keyholdv1.KeySpec
	Usage keyholdv1.KeyUsageType
}

// AliasRecord is one alias. Name begins with "alias/".
type AliasRecord struct {
	Account  AccountID
	Region   Region
	Name     string
	KeyID    KeyID
	Created  time.Time
	Updated  time.Time
	Revision int64
}
