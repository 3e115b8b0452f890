package sigv4

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	defaultMaxSkew        = 5 * time.Minute
	defaultMaxExpires     = 15 * time.Minute
	defaultMaxSigningKeys = 10_000 // about 4 MB
)

// Config is what a [Verifier] is made from.
type Config struct {
	// Credentials finds access keys.
	Credentials Credentials
	// Regions are the regions that a credential scope may name; at least one.
	Regions []string
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
	// MaxSkew is how far the date of a request may be from now, in either
	// direction, inclusive. Optional: 5 minutes, as AWS KMS has it.
	MaxSkew time.Duration
	// MaxExpires is how long after its date a presigned request is accepted, whatever
	// longer time X-Amz-Expires says. The signing keys of all days in it stay in
	// memory: of a day whose keys did not, a stranger without a secret could have one
	// derived by each request. Optional: 15 minutes, as AWS's STS has it; at most 7
	// days.
	MaxExpires time.Duration
	// MaxSigningKeys is how many signing keys are cached: one for each access
	// key, day, region and service in use. Optional: 10,000.
	MaxSigningKeys int
	// AllowQuery accepts the presigned query form. XKS has no use for it.
	AllowQuery bool
	// AllowUnsignedPayload accepts UNSIGNED-PAYLOAD: the body is then not
	// authenticated ([Verified.PayloadUnsigned]).
	AllowUnsignedPayload bool
	// NormalizePath verifies paths with empty or dot segments as AWS does, by
	// their normal form. The door must then route by [Verified.Path].
	NormalizePath bool
}

// Verifier verifies signatures. It may be used concurrently. It prints itself
// without its keys.
type Verifier struct {
	credentials          Credentials
	regions              []string
	now                  func() time.Time
	maxSkew, maxExpires  time.Duration
	allowQuery           bool
	allowUnsignedPayload bool
	normalizePath        bool

	// Both are pointers so that fmt, which cannot call methods of unexported
	// fields, stops at them.
	keys   *keyCache
	nobody *nobody
}

// New makes a Verifier.
func New(c Config) (*Verifier, error) {
	v := &Verifier{
		credentials:          c.Credentials,
		regions:              slices.Clone(c.Regions),
		now:                  c.Now,
		maxSkew:              c.MaxSkew,
		maxExpires:           c.MaxExpires,
		allowQuery:           c.AllowQuery,
		allowUnsignedPayload: c.AllowUnsignedPayload,
		normalizePath:        c.NormalizePath,
		nobody:               new(nobody),
	}
	if v.now == nil {
		v.now = time.Now
	}
	if v.maxSkew == 0 {
		v.maxSkew = defaultMaxSkew
	}
	if v.maxExpires == 0 {
		v.maxExpires = defaultMaxExpires
	}
	if c.MaxSigningKeys == 0 {
		c.MaxSigningKeys = defaultMaxSigningKeys
	}
	switch {
	case c.Credentials == nil:
		return nil, errors.New("sigv4: no Credentials")
	case len(c.Regions) == 0 || slices.Contains(c.Regions, ""):
		return nil, errors.New("sigv4: no region, or an empty one")
	case c.MaxSkew < 0 || c.MaxSkew > time.Hour:
		return nil, fmt.Errorf("sigv4: MaxSkew %s is not between 0 and 1 h", c.MaxSkew)
	case c.MaxExpires < 0 || c.MaxExpires > maxExpiresSeconds*time.Second:
		return nil, fmt.Errorf("sigv4: MaxExpires %s is not between 0 and 7 days", c.MaxExpires)
	case c.MaxSigningKeys < 0:
		return nil, errors.New("sigv4: negative MaxSigningKeys")
	}
	v.keys = newKeyCache(c.MaxSigningKeys)
	_, _ = rand.Read(v.nobody.secret[:]) // it never fails
	return v, nil
}

// Payload is the body of a request.
type Payload struct {
	data   []byte
	sum    [sha256.Size]byte
	size   int64 // bytes; -1: not known
	hashed bool
}

// Body is a payload in memory. It is hashed once the request has passed the
// cheap checks. The door limits its size before it reads it.
func Body(data []byte) Payload { return Payload{data: data, size: int64(len(data))} }

// BodySHA256 is a payload of which the door knows the SHA-256. size is its
// length in bytes, or -1.
func BodySHA256(sum [sha256.Size]byte, size int64) Payload {
	return Payload{sum: sum, size: size, hashed: true}
}

// Verified is what a valid signature vouches for.
type Verified struct {
	AccessKeyID string
	// Key is what [Credentials.LookUp] returned.
	Key Key
	// Scope is the day, region and service that the request was signed for.
	Scope Scope
	// At is the date of the signature.
	At time.Time
	// Presigned says that the signature was in the query.
	Presigned bool
	// PayloadUnsigned says that the body is not covered by the signature; only
	// with [Config.AllowUnsignedPayload].
	PayloadUnsigned bool
	// SignedHeaders are the names of the headers that are covered, in lower case
	// and sorted. They share memory with the request.
	SignedHeaders []string
	// Path is what the signature covers: the path as it was sent, still encoded,
	// in normal form where [Config.NormalizePath] is set.
	Path string
}

// Verify verifies the signature of a request to a service, such as "kms". r is
// as net/http's server made it: its RequestURI, Host and headers are read as
// they were sent, and its body is not touched; body is what was read from it.
//
// It returns an [*Error] if the request is refused, and another error if the
// credentials could not be read. It keeps nothing of the request. r's context
// bounds the look-up.
func (v *Verifier) Verify(r *http.Request, service string, body Payload) (Verified, error) {
	p, path, normal, refusal := v.check(r, service, v.now())
	if refusal != nil {
		return Verified{}, refusal
	}
	if !body.hashed {
		body.sum, body.hashed = sha256.Sum256(body.data), true
	}
	if refusal = v.checkPayload(p, &body); refusal != nil {
		return Verified{}, refusal
	}
	canonical, refusal := canonicalRequest(r, p, path, &body)
	if refusal != nil {
		return Verified{}, refusal
	}
	toSign := stringToSign(p, canonical)

	forgotten := v.keys.forgotten.Load() // before the look-up: see put
	key, refusal, err := v.lookUp(r.Context(), p)
	if err != nil {
		return Verified{}, err
	}
	id := cacheID{accessKeyID: p.accessKeyID, version: key.Version(), scope: p.scope}
	if refusal != nil {
		id.accessKeyID = "" // no access key has this id
	}
	match, err := v.match(r.Context(), key, id, forgotten, p, toSign)
	switch {
	case err != nil:
		return Verified{}, err
	case refusal != nil:
		return Verified{}, refusal
	case !match:
		return Verified{}, &Error{
			Reason: SignatureMismatch, Message: messageMismatch,
			canonicalRequest: string(canonical), stringToSign: string(toSign),
		}
	}
	return Verified{
		AccessKeyID: p.accessKeyID, Key: key, Scope: p.scope, At: p.at,
		Presigned: p.presigned, PayloadUnsigned: p.unsignedPayload,
		SignedHeaders: p.signedHeaders, Path: normal,
	}, nil
}

// CheckHeader returns what Verify refuses whatever the body is: no signature, a
// wrong date or scope, an unknown access key. A door may ask before it reads the
// body of a stranger. It authenticates nobody: Verify does. Errors are as Verify's.
//
// That an access key is unknown takes less time here than that a signature is
// wrong; the answers differ anyway.
func (v *Verifier) CheckHeader(r *http.Request, service string) error {
	p, _, _, refusal := v.check(r, service, v.now())
	if refusal != nil {
		return refusal
	}
	_, refusal, err := v.lookUp(r.Context(), p)
	if refusal != nil {
		return refusal
	}
	return err
}

// check is all that needs neither the key nor the body.
func (v *Verifier) check(r *http.Request, service string, now time.Time) (p *params, path, normal string, refusal *Error) {
	if !methodToken(r.Method) {
		return nil, "", "", incomplete("The method is not a token in upper case.")
	}
	if r.Host == "" || len(r.Host) > maxHostBytes || strings.ContainsAny(r.Host, " \t\r\n\x00,") {
		return nil, "", "", incomplete("The request has no valid Host header.")
	}
	rawPath, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	if path, normal, refusal = canonicalPath(rawPath, v.normalizePath); refusal != nil {
		return nil, "", "", refusal
	}
	if p, refusal = v.parse(r, rawQuery); refusal != nil {
		return nil, "", "", refusal
	}
	if refusal = v.checkTime(p, now); refusal != nil {
		return nil, "", "", refusal
	}
	if refusal = v.checkScope(p, service); refusal != nil {
		return nil, "", "", refusal
	}
	v.keys.expire(v.earliest(now))
	return p, path, normal, nil
}

// methodToken reports whether s is a method that can stand in a canonical
// request: it has no line feed.
func methodToken(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

// checkTime holds the date to the window, and a presigned request to its time.
func (v *Verifier) checkTime(p *params, now time.Time) *Error {
	now = now.UTC()
	window := v.maxSkew
	if p.expires > 0 {
		window = min(p.expires, v.maxExpires)
	}
	if earliest := now.Add(-window); p.at.Before(earliest) {
		return refuse(Expired, fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - %s)",
			p.date, earliest.Format(dateLayout), now.Format(dateLayout), minutes(window)))
	}
	if latest := now.Add(v.maxSkew); p.at.After(latest) {
		return refuse(NotYetCurrent, fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + %s)",
			p.date, latest.Format(dateLayout), now.Format(dateLayout), minutes(v.maxSkew)))
	}
	return nil
}

// earliest is the earliest date that any request may have: nobody can ask for a
// signing key of a day before.
func (v *Verifier) earliest(now time.Time) time.Time {
	if v.allowQuery {
		return now.Add(-max(v.maxSkew, v.maxExpires))
	}
	return now.Add(-v.maxSkew)
}

// minutes writes a time as AWS does: "5 min.".
func minutes(d time.Duration) string {
	if d%time.Minute == 0 {
		return fmt.Sprintf("%d min.", d/time.Minute)
	}
	return fmt.Sprintf("%d sec.", d/time.Second)
}

// checkScope holds the credential scope to this service. AWS names all that is
// wrong at once.
func (v *Verifier) checkScope(p *params, service string) *Error {
	var wrong []string
	if !slices.Contains(v.regions, p.scope.Region) {
		wrong = append(wrong, "Credential should be scoped to a valid region, not "+quote(p.scope.Region)+".")
	}
	if service == "" || p.scope.Service != service {
		wrong = append(wrong, "Credential should be scoped to correct service: "+quote(service)+".")
	}
	if p.scopeEnd != terminator {
		wrong = append(wrong, "Credential should be scoped with a valid terminator: '"+terminator+"', not "+quote(p.scopeEnd)+".")
	}
	if day := p.date[:len(dayLayout)]; p.scope.Day != day {
		wrong = append(wrong, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "+
			quote(p.scope.Day)+" != '"+day+"', from '"+p.date+"'.")
	}
	if wrong != nil {
		return refuse(InvalidScope, strings.Join(wrong, " "))
	}
	return nil
}

// checkPayload compares the declared hash with the body's.
func (v *Verifier) checkPayload(p *params, body *Payload) *Error {
	var sum [2 * sha256.Size]byte
	hex.Encode(sum[:], body.sum[:])
	switch {
	case p.payload == "" || p.payload == string(sum[:]):
		return nil
	case p.payload == unsignedPayload && v.allowUnsignedPayload:
		p.unsignedPayload = true
		return nil
	case p.payload == unsignedPayload || strings.HasPrefix(p.payload, "STREAMING-"):
		return refuse(PayloadMismatch, "This service does not accept "+quote(p.payload)+": the body must be signed.")
	}
	return refuse(PayloadMismatch, messagePayload)
}

// lookUp finds the key of the request. With a refusal it returns the key of
// nobody, so that what follows costs the same.
func (v *Verifier) lookUp(ctx context.Context, p *params) (Key, *Error, error) {
	key, err := v.credentials.LookUp(ctx, p.accessKeyID, p.token)
	switch {
	case errors.Is(err, ErrUnknownAccessKey):
		return v.nobody, refuse(UnknownAccessKey, messageInvalidToken), nil
	case errors.Is(err, ErrInvalidSessionToken):
		return v.nobody, refuse(InvalidSessionToken, messageInvalidToken), nil
	case errors.Is(err, ErrExpiredToken):
		return v.nobody, refuse(ExpiredToken, messageExpiredToken), nil
	case err != nil:
		return nil, nil, fmt.Errorf("look up the access key of a request: %w", err)
	case key == nil:
		return nil, nil, errors.New("look up the access key of a request: neither a key nor an error")
	}
	return key, nil, nil
}

// match computes the signature and compares it in constant time.
func (v *Verifier) match(ctx context.Context, key Key, id cacheID, forgotten uint64, p *params, toSign []byte) (bool, error) {
	var signing SigningKey
	defer func() { clear(signing[:]) }()
	if !v.keys.get(id, &signing) {
		var err error
		if signing, err = key.SigningKey(ctx, p.scope); err != nil {
			return false, fmt.Errorf("derive a signing key: %w", err)
		}
		v.keys.put(id, &signing, forgotten)
	}
	room := takeRoom()
	defer room.leave()
	room.sum(signing[:], toSign)
	return hmac.Equal(room.out[:], p.signature[:]) && !p.badSignature, nil
}

// Forget drops the signing keys of an access key: its secret has changed, or the
// key is gone. A request that is being verified may still use what it has.
func (v *Verifier) Forget(accessKeyID string) {
	v.keys.forget(func(id string) bool { return id == accessKeyID })
}

// ForgetAll drops all signing keys.
func (v *Verifier) ForgetAll() { v.keys.forget(func(string) bool { return true }) }

// Expire drops the signing keys of days that are over. Verify does so too; a
// service that gets no requests may want it.
func (v *Verifier) Expire() { v.keys.expire(v.earliest(v.now())) }

// Format keeps cached keys out of all verbs of package fmt.
func (v Verifier) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "sigv4.Verifier("+strings.Join(v.regions, ",")+")")
}

// LogValue keeps cached keys out of logs.
func (v Verifier) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(v)) }
