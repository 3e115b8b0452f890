package sigv4

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Credentials knows access keys. It may be called concurrently.
type Credentials interface {
	// LookUp finds the active access key of a request. sessionToken is empty
	// when the request has none; a long-term key with a session token, and a
	// temporary one without, are ErrInvalidSessionToken. Neither argument is
	// authenticated yet: up to 128 and 8192 bytes of a stranger's choice, visible
	// ASCII. They are parts of the request: clone them before keeping them.
	//
	// It must return an error that is ErrUnknownAccessKey, ErrInvalidSessionToken
	// or ErrExpiredToken (errors.Is) for what is the caller's fault; any other
	// error is a fault of ours, and passed on. It should take as long for an
	// unknown key as for a known one.
	LookUp(ctx context.Context, accessKeyID, sessionToken string) (Key, error)
}

// Key is an access key, as [Credentials] found it.
type Key interface {
	// Version tells the secrets apart that an access key id has had: when the
	// secret changes, so must the version. Signing keys of other versions are
	// not used.
	Version() uint64
	// SigningKey derives the key that signs in the scope, as [DeriveSigningKey]
	// does with a secret. The result is cached, so this is called about once a
	// day, region and service; then it may take its time. Requests that arrive
	// together each call it.
	SigningKey(ctx context.Context, scope Scope) (SigningKey, error)
}

// What [Credentials.LookUp] found to be wrong.
var (
	ErrUnknownAccessKey    = errors.New("unknown access key")
	ErrInvalidSessionToken = errors.New("invalid session token")
	ErrExpiredToken        = errors.New("expired session token")
)

// Scope is what a signing key is good for: the credential scope without its
// terminator.
type Scope struct {
	Day     string // UTC, YYYYMMDD
	Region  string
	Service string
}

// terminator ends every credential scope of Signature Version 4.
const terminator = "aws4_request"

// SigningKey is kSigning: who has it can sign in its scope for one day. It
// prints itself as "[signing key]".
type SigningKey [sha256.Size]byte

const redacted = "[signing key]"

// Format keeps the key out of all verbs of package fmt.
func (SigningKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue keeps the key out of logs.
func (SigningKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText keeps the key out of JSON and the like.
func (SigningKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// DeriveSigningKey derives the key of a scope from a secret access key ("Create
// a signed request", step 4, "Calculate the signature"). What it makes of the secret
// on the way is wiped; the secret is the caller's.
func DeriveSigningKey(secret []byte, scope Scope) SigningKey {
	// It must neither grow, since it is wiped, nor be on the stack: see macRoom.
	k := make([]byte, 0, max(len("AWS4")+len(secret), macBlockBytes))
	k = append(k, "AWS4"...)
	k = append(k, secret...)

	room := takeRoom()
	defer room.leave()
	room.sum(k, []byte(scope.Day))
	clear(k)
	room.sum(room.out[:], []byte(scope.Region))
	room.sum(room.out[:], []byte(scope.Service))
	room.sum(room.out[:], []byte(terminator))
	return room.out
}

// nobody is the key of everybody who is unknown: deriving and comparing with it
// costs what it costs with a real one, and it signs nothing, since nobody has
// ever seen its secret.
type nobody struct{ secret [sha256.Size]byte }

func (nobody) Version() uint64 { return 0 }

func (n *nobody) SigningKey(_ context.Context, scope Scope) (SigningKey, error) {
	return DeriveSigningKey(n.secret[:], scope), nil
}
