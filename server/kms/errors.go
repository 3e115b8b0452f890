package kms

import (
	"context"
	"errors"
	"fmt"
)

// Code is the name of an exception of the AWS KMS API.
type Code string

// The closed list of codes. Codes lists them; every door maps each of them.
const (
	CodeAccessDenied         Code = "AccessDeniedException"
	CodeAlreadyExists        Code = "AlreadyExistsException"
	CodeDependencyTimeout    Code = "DependencyTimeoutException"
	CodeDisabled             Code = "DisabledException"
	CodeDryRun               Code = "DryRunOperationException"
	CodeIncorrectKey         Code = "IncorrectKeyException"
	CodeInternal             Code = "KMSInternalException"
	CodeInvalidAliasName     Code = "InvalidAliasNameException"
	CodeInvalidArn           Code = "InvalidArnException"
	CodeInvalidCiphertext    Code = "InvalidCiphertextException"
	CodeInvalidKeyUsage      Code = "InvalidKeyUsageException"
	CodeInvalidMac           Code = "KMSInvalidMacException"
	CodeInvalidMarker        Code = "InvalidMarkerException"
	CodeInvalidSignature     Code = "KMSInvalidSignatureException"
	CodeInvalidState         Code = "KMSInvalidStateException"
	CodeKeyUnavailable       Code = "KeyUnavailableException"
	CodeLimitExceeded        Code = "LimitExceededException"
	CodeNotFound             Code = "NotFoundException"
	CodeTag                  Code = "TagException"
	CodeThrottling           Code = "ThrottlingException"
	CodeUnknownOperation     Code = "UnknownOperationException"
	CodeUnsupportedOperation Code = "UnsupportedOperationException"
	CodeValidation           Code = "ValidationException"
)

// DeclaredCodes returns the codes that the proto declares for what is not built
// yet: custom key stores, grants, imports. Nothing answers with them.
func DeclaredCodes() []Code {
	return []Code{
		"CloudHsmClusterInUseException",
		"CloudHsmClusterInvalidConfigurationException",
		"CloudHsmClusterNotActiveException",
		"CloudHsmClusterNotFoundException",
		"CloudHsmClusterNotRelatedException",
		"ConflictException",
		"CustomKeyStoreHasCMKsException",
		"CustomKeyStoreInvalidStateException",
		"CustomKeyStoreNameInUseException",
		"CustomKeyStoreNotFoundException",
		"ExpiredImportTokenException",
		"IncorrectKeyMaterialException",
		"IncorrectTrustAnchorException",
		"InvalidGrantIdException",
		"InvalidGrantTokenException",
		"InvalidImportTokenException",
		"MalformedPolicyDocumentException",
		"XksKeyAlreadyInUseException",
		"XksKeyInvalidConfigurationException",
		"XksKeyNotFoundException",
		"XksProxyIncorrectAuthenticationCredentialException",
		"XksProxyInvalidConfigurationException",
		"XksProxyInvalidResponseException",
		"XksProxyUriEndpointInUseException",
		"XksProxyUriInUseException",
		"XksProxyUriUnreachableException",
		"XksProxyVpcEndpointServiceInUseException",
		"XksProxyVpcEndpointServiceInvalidConfigurationException",
		"XksProxyVpcEndpointServiceNotFoundException",
	}
}

// Codes returns every code that the service answers with, for tables that must
// have a row for each.
func Codes() []Code {
	return []Code{
		CodeAccessDenied, CodeAlreadyExists, CodeDependencyTimeout, CodeDisabled, CodeDryRun, CodeIncorrectKey,
		CodeInternal, CodeInvalidAliasName, CodeInvalidArn, CodeInvalidCiphertext, CodeInvalidKeyUsage, CodeInvalidMac,
		CodeInvalidMarker, CodeInvalidSignature, CodeInvalidState, CodeKeyUnavailable, CodeLimitExceeded, CodeNotFound,
		CodeTag, CodeThrottling, CodeUnknownOperation, CodeUnsupportedOperation, CodeValidation,
	}
}

// Error is what Do answers with. Code, Message, Violations and Cause's kind
// cross the wire; the cause itself stays here, for the log.
type Error struct {
	Code    Code
	Message string
	// Unavailable is true where the same request may succeed later without a
	// change: the token or the audit log is down, or the time ran out.
	Unavailable bool
	// Violations are the fields at fault, of a CodeValidation.
	Violations []Violation

	cause error
}

// Violation is one field at fault.
type Violation struct {
	// Field is the path in the request, such as tags[3].tag_key.
	Field string
	// Description says the constraint, with its limit.
	Description string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Message
}

// Unwrap returns the cause. Doors log it and never send it.
func (e *Error) Unwrap() error { return e.cause }

func errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// internalMessage is all that a client learns of an internal fault.
const internalMessage = "The request was rejected because an internal exception occurred. The request can be retried."

// internalError hides cause from the client.
func internalError(cause error) *Error {
	return &Error{Code: CodeInternal, Message: internalMessage, cause: cause}
}

// invalidField is a validation error of one field.
func invalidField(field, format string, args ...any) *Error {
	v := Violation{Field: field, Description: fmt.Sprintf(format, args...)}
	return &Error{Code: CodeValidation, Message: v.Field + ": " + v.Description, Violations: []Violation{v}}
}

// asError turns what an operation returned into an *Error that the operation
// may answer with.
func asError(op *operation, err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		code := CodeDependencyTimeout
		if !op.declares(code) {
			code = CodeInternal
		}
		return &Error{Code: code, Message: "The system timed out while trying to fulfill the request.", Unavailable: true, cause: err}
	case errors.Is(err, context.Canceled):
		return &Error{Code: CodeInternal, Message: "The request was cancelled by the caller.", Unavailable: true, cause: err}
	case errors.Is(err, ErrNotAuthentic):
		return &Error{Code: CodeInvalidCiphertext, cause: err}
	case errors.Is(err, ErrUnsupported):
		return unsupported(op, err)
	case errors.Is(err, ErrStoreUnavailable), errors.Is(err, ErrKeyMissing):
		return unavailable(op, err)
	}
	return internalError(err)
}

// unsupported is the answer to what the key store cannot do. Operations with a
// key do not declare an exception for that: the key cannot be used so.
func unsupported(op *operation, cause error) *Error {
	for _, code := range []Code{CodeUnsupportedOperation, CodeInvalidKeyUsage} {
		if op.declares(code) {
			return &Error{Code: code, Message: cause.Error(), cause: cause}
		}
	}
	return internalError(cause)
}

// unavailable is the answer where the token or the object is not there.
func unavailable(op *operation, cause error) *Error {
	e := &Error{Code: CodeInternal, Message: internalMessage, Unavailable: true, cause: cause}
	if op.declares(CodeKeyUnavailable) {
		e.Code = CodeKeyUnavailable
		e.Message = "The request was rejected because the specified KMS key was not available. You can retry the request."
	}
	return e
}
