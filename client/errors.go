package client

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrorDomain is the domain of the google.rpc.ErrorInfo that Keyhold sends.
const ErrorDomain = "keyhold"

// requestIDKey is the key of the request id in the ErrorInfo's metadata.
const requestIDKey = "request_id"

// Error is what a failed call says, taken from its gRPC status.
type Error struct {
	// Exception is the name of the AWS exception, such as
	// "NotFoundException". Empty if the failure did not come from the service
	// itself but from the connection, from gRPC, or from something between.
	Exception string

	// Status is the gRPC status code.
	Status codes.Code

	// Message is for people. It may hold text that came from other people.
	Message string

	// RequestID finds the call in the server's audit log. Possibly empty.
	RequestID string

	// Violations are the request's fields at fault, of a ValidationException.
	Violations []FieldViolation

	// RetryAfter is how long the server asks to wait before another attempt.
	// Zero if it did not say.
	RetryAfter time.Duration

	err error
}

// FieldViolation is one field of the request at fault.
type FieldViolation struct {
	// Field is the path in the request, in the names of the proto, such as
	// "tags[3].tag_key".
	Field string

	// Description says what was wrong, and the limit.
	Description string
}

// ErrorFrom reads the error of a call. It returns false if err, or what it
// wraps, is no gRPC status; so it does for nil.
func ErrorFrom(err error) (*Error, bool) {
	var already *Error
	if errors.As(err, &already) {
		return already, true
	}
	var carrier interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &carrier) || carrier.GRPCStatus().Code() == codes.OK {
		return nil, false
	}
	st := carrier.GRPCStatus()
	e := &Error{Status: st.Code(), Message: st.Message(), err: err}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			// Proxies and load balancers add ErrorInfos of their own domains.
			if d.GetDomain() == ErrorDomain {
				e.Exception = d.GetReason()
				if id := d.GetMetadata()[requestIDKey]; id != "" {
					e.RequestID = id
				}
			}
		case *errdetails.RequestInfo:
			if e.RequestID == "" {
				e.RequestID = d.GetRequestId()
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = max(0, d.GetRetryDelay().AsDuration())
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e.Violations = append(e.Violations, FieldViolation{Field: v.GetField(), Description: v.GetDescription()})
			}
		}
	}
	return e, true
}

// Error says the exception's name, or the gRPC code where there is none, the
// message, and the request id if it is known.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Exception != "" {
		b.WriteString(e.Exception)
	} else {
		b.WriteString(e.Status.String())
	}
	if e.Message != "" && e.Message != e.Exception { // the server never sends an empty message
		b.WriteString(": " + e.Message)
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (request id %s)", e.RequestID)
	}
	return b.String()
}

// Unwrap returns the error that ErrorFrom was given.
func (e *Error) Unwrap() error { return e.err }
