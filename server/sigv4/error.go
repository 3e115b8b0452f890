package sigv4

import (
	"strings"
)

// Reason says why a request was refused. A door maps each to its protocol's
// code; the comments name the codes of AWS's JSON protocol (KMS) and, where it
// differs, of its query protocol (STS).
type Reason uint8

const (
	// MissingAuthenticationToken means that the request is not signed at all.
	// MissingAuthenticationTokenException; MissingAuthenticationToken.
	MissingAuthenticationToken Reason = iota + 1
	// IncompleteSignature means that what is there is malformed, contradictory or
	// above a limit. IncompleteSignatureException; IncompleteSignature.
	IncompleteSignature
	// InvalidScope means that date, region, service or terminator of the
	// credential scope is not what this request needs. InvalidSignatureException;
	// SignatureDoesNotMatch.
	InvalidScope
	// Expired means that the date is before the window, or a presigned request
	// past its time. InvalidSignatureException; SignatureDoesNotMatch.
	Expired
	// NotYetCurrent means that the date is after the window.
	// InvalidSignatureException; SignatureDoesNotMatch.
	NotYetCurrent
	// UnknownAccessKey means that there is no such access key, or none that is
	// active.
	// UnrecognizedClientException; InvalidClientTokenId.
	UnknownAccessKey
	// InvalidSessionToken means that the session token is missing, not ours, or of
	// another access key. UnrecognizedClientException; InvalidClientTokenId.
	InvalidSessionToken
	// ExpiredToken means that the session is over. ExpiredTokenException; ExpiredToken.
	ExpiredToken
	// SignatureMismatch means that the signature is not this key's for this
	// request, or does not cover a header that it must.
	// InvalidSignatureException; SignatureDoesNotMatch.
	SignatureMismatch
	// PayloadMismatch means that X-Amz-Content-Sha256 is not the body's hash, or a
	// form of payload that is not accepted. InvalidSignatureException;
	// SignatureDoesNotMatch.
	PayloadMismatch
)

var reasonNames = [...]string{
	MissingAuthenticationToken: "missing authentication token",
	IncompleteSignature:        "incomplete signature",
	InvalidScope:               "invalid scope",
	Expired:                    "expired",
	NotYetCurrent:              "not yet current",
	UnknownAccessKey:           "unknown access key",
	InvalidSessionToken:        "invalid session token",
	ExpiredToken:               "expired token",
	SignatureMismatch:          "signature mismatch",
	PayloadMismatch:            "payload mismatch",
}

// Reasons returns every Reason, for tables that must have a row for each.
func Reasons() []Reason {
	all := make([]Reason, 0, len(reasonNames)-1)
	for r := MissingAuthenticationToken; int(r) < len(reasonNames); r++ {
		all = append(all, r)
	}
	return all
}

// String names the reason in a few lower-case words, for logs and metrics.
func (r Reason) String() string {
	if r == 0 || int(r) >= len(reasonNames) {
		return "unknown reason"
	}
	return reasonNames[r]
}

// Error is a refusal: the request was understood, and is not authenticated.
// [Verifier.Verify] returns every refusal as an *Error; any other error of it is
// a fault of ours.
type Error struct {
	Reason Reason
	// Message is for the caller, in AWS's words where they are known: printable
	// ASCII, below 512 bytes. It quotes at most a few bytes of the request, and
	// never a signature, a session token or anything made from a secret.
	Message string

	canonicalRequest, stringToSign string
}

func (e *Error) Error() string { return e.Reason.String() + ": " + e.Message }

// Explain returns the message and, for a SignatureMismatch, what should have
// been signed, as AWS KMS answers it: the canonical request and the string to
// sign. Both consist of what the caller sent and tell nothing about the key. It
// may hold the caller's session token and is as long as the signed part of the
// request: it is for the caller alone, and not for logs.
func (e *Error) Explain() string {
	if e.stringToSign == "" {
		return e.Message
	}
	return e.Message + "\n\nThe Canonical String for this request should have been\n'" + e.canonicalRequest +
		"'\n\nThe String-to-Sign should have been\n'" + e.stringToSign + "'\n"
}

// AWS's words, where one message serves in several places.
const (
	messageMissingToken = "Missing Authentication Token"
	messageInvalidToken = "The security token included in the request is invalid."
	messageExpiredToken = "The security token included in the request is expired"
	messageMismatch     = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
	messagePayload      = "The provided 'x-amz-content-sha256' header does not match what was computed."
)

func refuse(reason Reason, message string) *Error {
	return &Error{Reason: reason, Message: message}
}

func incomplete(message string) *Error { return refuse(IncompleteSignature, message) }

// maxQuotedBytes is how much of one value of a request an error repeats.
const maxQuotedBytes = 40

// quote puts s into single quotes for a message: shortened, printable ASCII.
func quote(s string) string {
	shortened := len(s) > maxQuotedBytes
	if shortened {
		s = s[:maxQuotedBytes]
	}
	var b strings.Builder
	b.WriteByte('\'')
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			c = '?'
		}
		b.WriteByte(c)
	}
	if shortened {
		b.WriteString("...")
	}
	b.WriteByte('\'')
	return b.String()
}
