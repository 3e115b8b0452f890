package identity

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// Errors of access keys. What a Sealer returns passes through.
var (
	// ErrNoAccessKey: there is no such access key.
	ErrNoAccessKey = errors.New("access key not found")
	// ErrAccessKeyExists: the id is taken.
	ErrAccessKeyExists = errors.New("access key exists")
	// ErrAccessKeyChanged: the record is not at the expected revision any more.
	ErrAccessKeyChanged = errors.New("access key was changed meanwhile")
	// ErrNotBegun: the store did not begin a write, since its ctx ended while it
	// waited for its turn, for one. The cause is beside it in the chain.
	ErrNotBegun = errors.New("write was not begun")
	// ErrTooManyAccessKeys: the principal has as many as it may have.
	ErrTooManyAccessKeys = errors.New("too many access keys")
	// ErrAccessKeyUnusable: the key is unknown, inactive, or its principal is
	// gone. Which of them is not told.
	ErrAccessKeyUnusable = errors.New("access key is not usable")
	// ErrInvalidAccessKey: an id or a secret that is not of the documented form.
	ErrInvalidAccessKey = errors.New("malformed access key")
)

// AccessKeyRecord is all that the store knows of one access key.
type AccessKeyRecord struct {
	// ID is the access key id: 1 to 128 letters, digits and underscores.
	ID string
	// Principal is the ARN of whose it is.
	Principal string
	Active    bool
	Created   time.Time
	// SealedSecret is the secret access key as a Sealer made it.
	SealedSecret []byte
	// LastUse is what was known when it was last written: up to an hour old.
	LastUse AccessKeyUse
	// Revision counts changes of Active; it is the expected value of the next
	// compare-and-swap.
	Revision int64
}

// SealedFor is the row that the secret is sealed for: the key's id, and whose it is,
// so that who may write the store cannot make a key of their own somebody else's. An
// id has no slash.
func (r *AccessKeyRecord) SealedFor() string { return r.ID + "/" + r.Principal }

// AccessKeyUse is when and for what an access key was used. The zero value means
// that it was not.
type AccessKeyUse struct {
	At      time.Time
	Region  string
	Service string
}

// AccessKeyStore keeps access keys. It is trusted for whose a key is and whether
// it is active, not with secrets: what it holds of them is sealed.
//
// Every write is durable when it returns nil, and has had no effect when it returns
// one of this package's errors. After any other error the effect is unknown until
// the record is read again. A write waits for its turn as long as ctx lets it, and
// is ErrNotBegun then; once begun it runs to its end, whatever becomes of ctx. All
// methods may be called concurrently.
type AccessKeyStore interface {
	// AccessKeys returns all records, as of one moment.
	AccessKeys(ctx context.Context) ([]*AccessKeyRecord, error)
	// AccessKey returns one record. ErrNoAccessKey.
	AccessKey(ctx context.Context, id string) (*AccessKeyRecord, error)
	// InsertAccessKey adds a record; its Revision must be 0 and is 1 afterwards.
	// ErrAccessKeyExists.
	InsertAccessKey(ctx context.Context, r *AccessKeyRecord) error
	// UpdateAccessKey replaces Active if the record stands at r.Revision, and
	// counts r.Revision up. ErrAccessKeyChanged, ErrNoAccessKey.
	UpdateAccessKey(ctx context.Context, r *AccessKeyRecord) error
	// DeleteAccessKey removes the record, at whatever revision. ErrNoAccessKey.
	DeleteAccessKey(ctx context.Context, id string) error
	// NoteAccessKeyUses replaces LastUse of each key by id, without a new
	// revision, all of them at once or none. Keys that are gone are left out.
	NoteAccessKeyUses(ctx context.Context, uses map[string]AccessKeyUse) error
}

// Sealer seals the secrets of access keys, each for a row (AccessKeyRecord.SealedFor).
type Sealer interface {
	// Seal returns what Open takes for the same row, and for no other. It keeps
	// nothing of secret.
	Seal(ctx context.Context, row string, secret []byte) ([]byte, error)
	// Open returns a secret, which the caller wipes.
	Open(ctx context.Context, row string, sealed []byte) ([]byte, error)
}

// Secret is a secret access key. It prints itself as "[secret]"; Wipe zeroes it.
type Secret []byte

const redactedSecret = "[secret]"

// Wipe zeroes the secret.
func (s Secret) Wipe() { clear(s) }

// Format keeps the secret out of all verbs of package fmt.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redactedSecret) }

// LogValue keeps the secret out of logs.
func (Secret) LogValue() slog.Value { return slog.StringValue(redactedSecret) }

// MarshalText keeps the secret out of JSON and the like.
func (Secret) MarshalText() ([]byte, error) { return []byte(redactedSecret), nil }

const (
	// accessKeyPrefix begins the id of a long-term access key ("IAM
	// identifiers", "Understanding unique ID prefixes").
	accessKeyPrefix = "AKIA"
	// accessKeyRandomBytes gives 16 characters of base32: 80 bits.
	accessKeyRandomBytes = 10
	// secretRandomBytes gives 40 characters of base64: 240 bits.
	secretRandomBytes = 30

	maxAccessKeyIDBytes = 128 // AWS's limit
	maxSecretBytes      = 256
)

// NewAccessKeyID returns a random id of AWS's form: AKIA and 16 characters of A to
// Z and 2 to 7.
func NewAccessKeyID() string {
	var b [accessKeyRandomBytes]byte
	_, _ = rand.Read(b[:]) // it never fails
	return accessKeyPrefix + base32.StdEncoding.EncodeToString(b[:])
}

// NewSecret returns a random secret of AWS's form: 40 characters of base64.
func NewSecret() Secret {
	var b [secretRandomBytes]byte
	_, _ = rand.Read(b[:]) // it never fails
	defer clear(b[:])
	s := make(Secret, base64.StdEncoding.EncodedLen(len(b)))
	base64.StdEncoding.Encode(s, b[:])
	return s
}

// CheckAccessKeyID refuses what is no access key id: 1 to 128 letters, digits and
// underscores. ErrInvalidAccessKey.
func CheckAccessKeyID(id string) error {
	if id == "" || len(id) > maxAccessKeyIDBytes {
		return fmt.Errorf("%w: an id has 1 to %d characters", ErrInvalidAccessKey, maxAccessKeyIDBytes)
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '_' {
			return fmt.Errorf("%w: an id consists of letters, digits and underscores", ErrInvalidAccessKey)
		}
	}
	return nil
}

// checkSecret refuses what no signer could carry.
func checkSecret(s Secret) error {
	if len(s) == 0 || len(s) > maxSecretBytes {
		return fmt.Errorf("%w: a secret has 1 to %d characters", ErrInvalidAccessKey, maxSecretBytes)
	}
	for _, c := range s { // no conversion to a string, which nobody could wipe
		if c <= ' ' || c > '~' {
			return fmt.Errorf("%w: a secret consists of visible ASCII characters", ErrInvalidAccessKey)
		}
	}
	return nil
}
