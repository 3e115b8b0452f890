package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// MaxWrapBytes is how many bytes can be wrapped at once.
const MaxWrapBytes = 4 << 10

// WrapAlgorithm is a way of AES key wrap; the zero value is none.
type WrapAlgorithm uint8

// The wrap algorithms.
const (
	AESKWP  WrapAlgorithm = iota + 1 // RFC 5649: 1 to MaxWrapBytes
	AESKW                            // RFC 3394: 16 to MaxWrapBytes, multiples of 8
	wrapEnd                          // one past the last
)

const (
	minKWBytes = 16
	wrapBlock  = 8 // what both pad to, and what they add
)

// String returns the name of the operation, as Capabilities lists it.
func (alg WrapAlgorithm) String() string {
	switch alg {
	case AESKWP:
		return OpKWP
	case AESKW:
		return OpKW
	}
	return "unknown"
}

// takes returns nil when n bytes are a plaintext of the algorithm.
func (alg WrapAlgorithm) takes(n int) error {
	switch {
	case alg == 0 || alg >= wrapEnd:
		return fmt.Errorf("%w: no such wrap algorithm", ErrInvalidInput)
	case alg == AESKWP && (n < 1 || n > MaxWrapBytes):
		return fmt.Errorf("%w: %d bytes to wrap by %s, want 1 to %d", ErrInvalidInput, n, alg, MaxWrapBytes)
	case alg == AESKW && (n < minKWBytes || n > MaxWrapBytes || n%wrapBlock != 0):
		return fmt.Errorf("%w: %d bytes to wrap by %s, want a multiple of %d from %d to %d", ErrInvalidInput, n, alg, wrapBlock, minKWBytes, MaxWrapBytes)
	}
	return nil
}

// wrappedBytes is how long n bytes are when they are wrapped.
func wrappedBytes(n int) int { return (n+wrapBlock-1)/wrapBlock*wrapBlock + wrapBlock }

// unwrapsTo tells whether n bytes can come out of so many wrapped ones: RFC 3394 does not pad, RFC 5649 pads by up to 7.
func (alg WrapAlgorithm) unwrapsTo(wrapped, n int) bool {
	return alg.takes(n) == nil && wrappedBytes(n) == wrapped
}

// WrapBytes wraps the caller's bytes, of a length that the algorithm takes and that the token was proven to wrap rightly (see
// [Capabilities.CanWrap]). They are in the token for a moment, as a session object that may only be wrapped.
func (k *Key) WrapBytes(ctx context.Context, alg WrapAlgorithm, plaintext []byte) ([]byte, error) {
	mechanism, err := k.wrapMechanism(ctx, "WrapBytes", alg, len(plaintext))
	if err != nil {
		return nil, err
	}
	plaintext = own(plaintext)
	n := wrappedBytes(len(plaintext))
	var wrapped []byte
	err = k.use(ctx, "WrapBytes", func(s *session, h pkcs11.ObjectHandle) error {
		var err error
		wrapped, err = s.wrapBytes(h, mechanism, plaintext, n)
		return err
	}, plaintext)
	if err != nil {
		return nil, err
	}
	return wrapped, nil
}

// WrapKey wraps the value of another key of the same token, which must be a secret key that was generated to be exportable, else
// ErrNotExtractable. The value does not leave the token in the clear. Key pairs are ErrUnsupported.
func (k *Key) WrapKey(ctx context.Context, alg WrapAlgorithm, target *Key) ([]byte, error) {
	info, _ := target.spec.info()
	switch {
	case target.t != k.t:
		return nil, fmt.Errorf("%w: WrapKey of a key of another token", ErrInvalidInput)
	case k.purpose != PurposeWrap:
		return nil, k.misuse("WrapKey")
	case info.asymmetric():
		return nil, fmt.Errorf("%w: %s of private keys: some tokens' AES-KWP is wrong for lengths that are no multiples of 8, and that of a PKCS #8 is not known before", ErrUnsupported, alg)
	case target.purpose == PurposeWrap || target.purpose == 0:
		return nil, fmt.Errorf("%w: WrapKey of a key that wraps", ErrNotExtractable)
	}
	mechanism, err := k.wrapMechanism(ctx, "WrapKey", alg, info.bytes)
	if err != nil {
		return nil, err
	}
	var wrapped []byte
	err = k.t.useTwo(ctx, "WrapKey", k.object(), k.copyable(), target.object(), func(s *session, h, of pkcs11.ObjectHandle) error {
		// Not every token refuses: NSS softokn wraps keys that are not extractable.
		exportable, err := s.flag(of, pkcs11.CKA_EXTRACTABLE)
		if err != nil {
			return err
		}
		if !exportable {
			return fmt.Errorf("%w: it was not made to be exported", ErrNotExtractable)
		}
		wrapped, err = s.wrap(h, of, mechanism, wrappedBytes(info.bytes))
		return err
	})
	if err != nil {
		return nil, err
	}
	return wrapped, nil
}

// UnwrapBytes returns the bytes that were wrapped, by WrapBytes or by anybody else who has the key. Whatever does not unwrap gives
// ErrAuthentication and nothing else. They are in the token for a moment, as a session object that can be read.
func (k *Key) UnwrapBytes(ctx context.Context, alg WrapAlgorithm, wrapped []byte) ([]byte, error) {
	switch {
	case k.purpose != PurposeWrap:
		return nil, k.misuse("UnwrapBytes")
	case alg == 0 || alg >= wrapEnd:
		return nil, alg.takes(0)
	case len(wrapped) > MaxWrapBytes+wrapBlock:
		return nil, fmt.Errorf("%w: %d bytes to unwrap, at most %d", ErrInvalidInput, len(wrapped), MaxWrapBytes+wrapBlock)
	case !alg.unwrapsTo(len(wrapped), len(wrapped)-wrapBlock):
		return nil, ErrAuthentication
	}
	caps, err := k.t.proven(ctx, "UnwrapBytes")
	if err != nil {
		return nil, err
	}
	mechanism, err := caps.wrapMechanism(alg)
	if err != nil {
		return nil, err
	}
	wrapped = own(wrapped)
	var out handover
	err = k.use(ctx, "UnwrapBytes", func(s *session, h pkcs11.ObjectHandle) error {
		plaintext, err := s.unwrapBytes(h, alg, mechanism, wrapped)
		out.give(plaintext)
		return err
	})
	return out.take(err)
}

// wrapMechanism returns by which mechanism the token wraps n bytes.
func (k *Key) wrapMechanism(ctx context.Context, call string, alg WrapAlgorithm, n int) (uint, error) {
	if k.purpose != PurposeWrap {
		return 0, k.misuse(call)
	}
	caps, err := k.t.proven(ctx, call)
	if err != nil {
		return 0, err
	}
	if err := caps.CanWrap(alg, n); err != nil {
		return 0, err
	}
	return caps.wrapMechanism(alg)
}

// wrapBytes wraps on a session.
func (s *session) wrapBytes(key pkcs11.ObjectHandle, mechanism uint, plaintext []byte, outBytes int) (wrapped []byte, err error) {
	object, err := s.direct().createSecret(s.h, plaintext)
	if err != nil {
		return nil, s.fail("C_CreateObject", err)
	}
	defer func() { err = errors.Join(err, s.destroyAtOnce(object)) }()
	return s.wrap(key, object, mechanism, outBytes)
}

// wrap wraps an object on a session, to exactly outBytes.
func (s *session) wrap(key, object pkcs11.ObjectHandle, mechanism uint, outBytes int) ([]byte, error) {
	wrapped, err := s.direct().wrap(s.h, mechanism, key, object, outBytes+wrapBlock) // some tokens ask for more than they fill
	if err != nil {
		return nil, s.fail("C_WrapKey", err)
	}
	if len(wrapped) != outBytes {
		return nil, s.initDone("C_WrapKey", pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)) // it wrapped something else
	}
	return wrapped, nil
}

// unwrapBytes unwraps on a session. The bytes become a session object that can be read, is read, and is destroyed again.
func (s *session) unwrapBytes(key pkcs11.ObjectHandle, alg WrapAlgorithm, mechanism uint, wrapped []byte) (plaintext []byte, err error) {
	object, err := s.direct().unwrap(s.h, mechanism, key, wrapped, asAllowed)
	if err != nil {
		return nil, s.unwrapFail("C_UnwrapKey", err)
	}
	defer func() {
		if derr := s.destroyAtOnce(object); derr != nil {
			clear(plaintext)
			plaintext, err = nil, derr
		}
	}()
	plaintext, err = s.direct().attribute(s.h, object, pkcs11.CKA_VALUE, len(wrapped))
	if err != nil {
		return nil, s.fail("C_GetAttributeValue", err)
	}
	if err := s.checkLength(object, len(plaintext)); err != nil {
		clear(plaintext[:cap(plaintext)])
		return nil, err
	}
	if !alg.unwrapsTo(len(wrapped), len(plaintext)) {
		clear(plaintext[:cap(plaintext)])
		return nil, ErrAuthentication // RFC 5649, 3: the third check, which the token did not make
	}
	return plaintext, nil
}

// checkLength compares how much of an object's value was read with what the token says it holds, where it says so: the length of what AES-KWP
// unwraps to is known to the token alone, and a key that comes back shorter than it went in would not be noticed by anybody.
func (s *session) checkLength(object pkcs11.ObjectHandle, read int) error {
	value, err := s.attribute(object, pkcs11.CKA_VALUE_LEN)
	switch {
	case isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID):
		return nil
	case err != nil:
		return err
	case len(value) != ulongBytes || ulong(value) != 0 && ulong(value) != uint(read): // 0: it does not say
		return s.fail("C_GetAttributeValue", pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
	}
	return nil
}

// destroyAtOnce ends a session object that holds a caller's bytes. One that cannot be destroyed dies with the session.
func (s *session) destroyAtOnce(object pkcs11.ObjectHandle) error {
	return s.initDone("C_DestroyObject", s.p.DestroyObject(s.h, object))
}

// unwrapFail reports that C_UnwrapKey failed. As with authFail the answer is ErrAuthentication, without detail, unless the code can only be the
// doing of the session, the login, the device, the key or this package: mechanism and template have been proven to be right. Nothing was
// begun that could stay behind in the session; it is closed nevertheless where the probe did not see it go on after a refusal.
func (s *session) unwrapFail(call string, err error) error {
	rv, _ := codeOf(err)
	switch rv {
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, pkcs11.CKR_UNWRAPPING_KEY_SIZE_RANGE,
		pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_SESSION_READ_ONLY,
		pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID,
		pkcs11.CKR_ARGUMENTS_BAD, ckrTokenResourceExceeded:
		return s.fail(call, err)
	}
	switch classOf(rv) {
	case classSession, classLogin, classHandle, classModule, classPIN, classFull:
		return s.fail(call, err)
	case classDevice:
		if rv != pkcs11.CKR_GENERAL_ERROR && rv != pkcs11.CKR_FUNCTION_FAILED {
			return s.fail(call, err)
		}
		s.c.t.suspect() // SoftHSM says so of a blob that was changed, and any token of itself
	}
	if caps := s.c.t.caps.Load(); caps == nil || !caps.Wrapping.SessionSurvives {
		s.spot = call
	}
	return ErrAuthentication
}
