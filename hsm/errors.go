package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// The errors of this package. Every error that an exported function returns matches exactly one of these with [errors.Is], or
// [context.DeadlineExceeded] or [context.Canceled] when the caller's context ended first, or is an [*Error] that none of them describes.
var (
	// ErrAuthentication means that a ciphertext did not open. It carries no detail, on purpose.
	ErrAuthentication = errors.New("hsm: message authentication failed")
	// ErrUnavailable means that the token cannot serve now: absent, locked, hanging, overloaded or closed. Trying later may help.
	ErrUnavailable = errors.New("hsm: token unavailable")
	// ErrKeyNotFound means that the token has no such object.
	ErrKeyNotFound = errors.New("hsm: key not found in the token")
	// ErrDuplicate means that two objects answer to one name, or would.
	ErrDuplicate = errors.New("hsm: more than one object with this class and CKA_ID")
	// ErrUnsupported means that this token cannot do it, as its probe at start showed.
	ErrUnsupported = errors.New("hsm: not supported by this token")
	// ErrCustody means that the token could not prove that a new key is sensitive, generated inside, and never extractable.
	ErrCustody = errors.New("hsm: the token does not prove the custody of the key")
	// ErrNotExtractable means that the token does not let the key be wrapped: it was not made to be exported.
	ErrNotExtractable = errors.New("hsm: the key cannot leave the token")
	// ErrInvalidInput means that the caller broke a limit of the operation. The token was not asked.
	ErrInvalidInput = errors.New("hsm: invalid input")
)

// Error is a PKCS#11 call that returned something else than CKR_OK.
type Error struct {
	Call string // the function of the standard, such as "C_EncryptInit"
	RV   uint   // its return value
	kind error  // one of the Err values above, or nil
}

// Error names the call and the code, as PKCS#11 writes them.
func (e *Error) Error() string { return "hsm: " + e.Call + ": " + CodeName(e.RV) }

// Unwrap returns the Err value that the code amounts to, if any.
func (e *Error) Unwrap() error { return e.kind }

// callError turns an error that a call of the library returned into an [*Error]. It returns nil for nil, and leaves errors that do not come
// from the library alone.
func callError(call string, err error) error {
	if err == nil {
		return nil
	}
	var rv pkcs11.Error
	if !errors.As(err, &rv) {
		return err
	}
	return &Error{Call: call, RV: uint(rv), kind: kindOf(uint(rv))}
}

// codeOf returns the return value inside err, and whether there is one.
func codeOf(err error) (uint, bool) {
	var e *Error
	if errors.As(err, &e) {
		return e.RV, true
	}
	var rv pkcs11.Error
	if errors.As(err, &rv) {
		return uint(rv), true
	}
	return 0, false
}

// isCode tells whether err carries one of the return values.
func isCode(err error, codes ...uint) bool {
	rv, ok := codeOf(err)
	if !ok {
		return false
	}
	for _, c := range codes {
		if rv == c {
			return true
		}
	}
	return false
}

// class says what a return value means for the session, the login, and the token it came from.
type class uint8

const (
	classNone    class = iota // says nothing about the runtime: the request was refused
	classSession              // this session is dead: use another one
	classHandle               // the object handle is stale: find the object again
	classLogin                // the login is lost: log in again
	classDevice               // the token may be broken: use another session, and ask the canary
	classModule               // the library was finalized under us: initialise again
	classPIN                  // the PIN was refused: never again with this PIN
	classFull                 // the token has no more sessions
)

// classOf classifies a return value. PKCS#11 v2.40, section 5.1; where vendors differ the worst reading wins.
func classOf(rv uint) class {
	switch rv {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED,
		// An operation of an earlier call is still active, or ours was lost: either way this session cannot be trusted any more.
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED:
		return classSession
	case pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID:
		return classHandle
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return classLogin
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY,
		pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_MUTEX_BAD, pkcs11.CKR_MUTEX_NOT_LOCKED:
		return classDevice
	case pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:
		return classModule
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED,
		pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return classPIN
	case pkcs11.CKR_SESSION_COUNT:
		return classFull
	}
	return classNone
}

// classify is classOf for errors. An error without a return value says nothing, and a ciphertext that did not open says nothing about the
// token, whatever code the library chose for it.
func classify(err error) class {
	if err == nil || errors.Is(err, ErrAuthentication) {
		return classNone
	}
	rv, ok := codeOf(err)
	if !ok {
		return classNone
	}
	return classOf(rv)
}

// kindOf says which of the package's errors a return value amounts to. Stale handles have none: they are found again before a caller sees them.
func kindOf(rv uint) error {
	switch classOf(rv) {
	case classSession, classLogin, classDevice, classModule, classPIN, classFull:
		return ErrUnavailable
	}
	switch rv {
	case pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_DOMAIN_PARAMS_INVALID,
		pkcs11.CKR_CURVE_NOT_SUPPORTED:
		return ErrUnsupported
	case pkcs11.CKR_KEY_UNEXTRACTABLE, pkcs11.CKR_KEY_NOT_WRAPPABLE:
		return ErrNotExtractable
	}
	return nil
}

// unavailable makes an ErrUnavailable that says why.
func unavailable(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, fmt.Errorf(format, args...))
}

// asUnavailable makes err an ErrUnavailable, unless it is one.
func asUnavailable(err error) error {
	if errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// ended turns the end of a context into the error of a call.
func ended(ctx context.Context, call string) error {
	return fmt.Errorf("hsm: %s: %w", call, ctx.Err())
}
