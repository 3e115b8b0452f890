package awsapi

import (
	"context"
	"encoding/xml"
	"errors"
	"net/http"
	"strconv"

	"github.com/keyhold/keyhold/proto/awsjson"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/sigv4"
)

// failure is an answer that is an error.
type failure struct {
	status  int
	code    string
	message string
}

// internalMessage is what a client learns of a fault that is not the core's to tell.
const internalMessage = "The request was rejected because an internal exception occurred. The request can be retried."

// statusOf is the HTTP status of an exception: 500 for those that AWS's model marks
// as faults of the service, which the SDKs repeat, and 400 for all others.
func statusOf(code kms.Code) int {
	switch code {
	case kms.CodeInternal, kms.CodeKeyUnavailable, kms.CodeDependencyTimeout:
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// failed turns the core's error into an answer and logs, once and in full, what the
// client is not told.
func (s *Server) failed(ctx context.Context, operation, requestID string, err error) *failure {
	var e *kms.Error
	if !errors.As(err, &e) {
		e = &kms.Error{Code: kms.CodeInternal, Message: internalMessage}
	}
	if (e.Code == kms.CodeInternal || e.Unavailable) && !errors.Is(err, context.Canceled) {
		cause := errors.Unwrap(error(e))
		if cause == nil {
			cause = err
		}
		s.faults.Warn(ctx, "request failed", "operation", operation, "request_id", requestID, "code", e.Code, "err", cause)
	}
	return &failure{status: statusOf(e.Code), code: string(e.Code), message: e.Message}
}

// writeFailure answers as the JSON protocol does.
func writeFailure(w http.ResponseWriter, f failure) {
	b := append([]byte(`{"__type":`), awsjson.AppendString(nil, f.code)...)
	if f.message != "" {
		b = awsjson.AppendString(append(b, `,"message":`...), f.message)
	}
	b = append(b, '}')
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(f.status)
	_, _ = w.Write(b) // the client has gone, if anything
}

// queryFailure is an error of the query protocol.
type queryFailure struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

// writeQueryFailure answers as the query protocol does.
func writeQueryFailure(w http.ResponseWriter, requestID string, f failure) {
	of := "Sender"
	if f.status >= http.StatusInternalServerError {
		of = "Receiver"
	}
	writeXML(w, f.status, queryFailure{Type: of, Code: f.code, Message: f.message, RequestID: requestID})
}

func writeXML(w http.ResponseWriter, status int, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, nil // of types that can be encoded
	}
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client has gone, if anything
}

// codes are the names of a refusal in the JSON protocol and in the query protocol,
// and its status in the latter. That of the former is 400.
type codes struct {
	json, query string
	status      int
}

func refusalCodes() map[sigv4.Reason]codes {
	return map[sigv4.Reason]codes{
		sigv4.MissingAuthenticationToken: {"MissingAuthenticationTokenException", "MissingAuthenticationToken", http.StatusForbidden},
		sigv4.IncompleteSignature:        {"IncompleteSignatureException", "IncompleteSignature", http.StatusBadRequest},
		sigv4.InvalidScope:               {"InvalidSignatureException", "SignatureDoesNotMatch", http.StatusForbidden},
		sigv4.Expired:                    {"InvalidSignatureException", "SignatureDoesNotMatch", http.StatusForbidden},
		sigv4.NotYetCurrent:              {"InvalidSignatureException", "SignatureDoesNotMatch", http.StatusForbidden},
		sigv4.UnknownAccessKey:           {"UnrecognizedClientException", "InvalidClientTokenId", http.StatusForbidden},
		sigv4.InvalidSessionToken:        {"UnrecognizedClientException", "InvalidClientTokenId", http.StatusForbidden},
		sigv4.ExpiredToken:               {"ExpiredTokenException", "ExpiredToken", http.StatusForbidden},
		sigv4.SignatureMismatch:          {"InvalidSignatureException", "SignatureDoesNotMatch", http.StatusForbidden},
		sigv4.PayloadMismatch:            {"InvalidSignatureException", "SignatureDoesNotMatch", http.StatusForbidden},
	}
}

// authFailure answers a caller that is not authenticated.
func authFailure(e *sigv4.Error, service string) *failure {
	c, ok := refusalCodes()[e.Reason]
	if !ok {
		c = refusalCodes()[sigv4.SignatureMismatch]
	}
	if service == serviceSTS {
		return &failure{status: c.status, code: c.query, message: e.Explain()}
	}
	return &failure{status: http.StatusBadRequest, code: c.json, message: e.Explain()}
}

// throttled answers a caller that is not authenticated and is not told why: as AWS
// answers those who ask too often.
func throttled(service string) *failure {
	return &failure{status: http.StatusBadRequest, code: codeThrottling(service), message: "Rate exceeded"}
}

func codeThrottling(service string) string {
	if service == serviceSTS {
		return "Throttling"
	}
	return string(kms.CodeThrottling)
}

func codeInternal(service string) string {
	if service == serviceSTS {
		return "InternalFailure"
	}
	return string(kms.CodeInternal)
}
