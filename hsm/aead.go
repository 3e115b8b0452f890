package hsm

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"
)

// AES-GCM, and nothing about it is left to the caller or the token but the bytes: SoftHSM takes any IV, none at all included, and tags of 0 bits.
const (
	gcmTagBits     = 128
	gcmTagBytes    = gcmTagBits / 8
	sealIVBytes    = 12 // NIST SP 800-38D, 8.2
	maxOpenIVBytes = 16 // external key stores choose 12 to 16
)

// Seal encrypts plaintext (0 to MaxMessageBytes) by AES-256-GCM and returns the ciphertext and its tag of 16 bytes, concatenated. iv has 12
// bytes and must never be used twice with one key: that is the caller's duty. aad has 1 to MaxAADBytes: SoftHSM as some distributions build
// it aborts the process on an empty one.
func (k *Key) Seal(ctx context.Context, iv, aad, plaintext []byte) ([]byte, error) {
	switch {
	case k.purpose != PurposeSeal:
		return nil, k.misuse("Seal")
	case len(iv) != sealIVBytes:
		return nil, fmt.Errorf("%w: IV of %d bytes, want %d", ErrInvalidInput, len(iv), sealIVBytes)
	case len(aad) == 0 || len(aad) > MaxAADBytes:
		return nil, fmt.Errorf("%w: additional data of %d bytes, want 1 to %d", ErrInvalidInput, len(aad), MaxAADBytes)
	case len(plaintext) > MaxMessageBytes:
		return nil, fmt.Errorf("%w: plaintext of %d bytes, at most %d", ErrInvalidInput, len(plaintext), MaxMessageBytes)
	}
	iv, aad, plaintext = ownThree(iv, aad, plaintext)
	var sealed []byte
	err := k.use(ctx, "Seal", func(s *session, h pkcs11.ObjectHandle) error {
		var err error
		sealed, err = s.seal(h, iv, aad, plaintext)
		return err
	}, plaintext)
	if err != nil {
		return nil, err
	}
	return sealed, nil
}

// Open decrypts what Seal returned. iv has 12 to 16 bytes. Whatever does not open gives ErrAuthentication and nothing else.
func (k *Key) Open(ctx context.Context, iv, aad, sealed []byte) ([]byte, error) {
	switch {
	case k.purpose != PurposeSeal:
		return nil, k.misuse("Open")
	case len(iv) < sealIVBytes || len(iv) > maxOpenIVBytes:
		return nil, fmt.Errorf("%w: IV of %d bytes, want %d to %d", ErrInvalidInput, len(iv), sealIVBytes, maxOpenIVBytes)
	case len(aad) == 0 || len(aad) > MaxAADBytes:
		return nil, fmt.Errorf("%w: additional data of %d bytes, want 1 to %d", ErrInvalidInput, len(aad), MaxAADBytes)
	case len(sealed) > MaxMessageBytes+gcmTagBytes:
		return nil, fmt.Errorf("%w: ciphertext of %d bytes, at most %d", ErrInvalidInput, len(sealed), MaxMessageBytes+gcmTagBytes)
	case len(sealed) < gcmTagBytes:
		return nil, ErrAuthentication
	}
	iv, aad, sealed = ownThree(iv, aad, sealed)
	var out handover
	err := k.use(ctx, "Open", func(s *session, h pkcs11.ObjectHandle) error {
		plaintext, err := s.open(h, iv, aad, sealed)
		out.give(plaintext)
		return err
	})
	return out.take(err)
}

// own copies what a job reads: it may outlive its caller.
func own(b []byte) []byte { return append([]byte(nil), b...) }

// ownThree is own for three slices, in one piece of memory.
func ownThree(a, b, c []byte) (ownA, ownB, ownC []byte) {
	all := make([]byte, 0, len(a)+len(b)+len(c))
	all = append(append(append(all, a...), b...), c...)
	n, m := len(a), len(a)+len(b)
	return all[:n:n], all[n:m:m], all[m:]
}

// misuse reports an operation that is not the key's purpose. Callers check that before; here is the last line.
func (k *Key) misuse(operation string) error {
	return fmt.Errorf("%w: %s with a key of spec %s for %s", ErrInvalidInput, operation, k.spec, k.purpose)
}

// seal is AES-GCM encryption on a session.
func (s *session) seal(h pkcs11.ObjectHandle, iv, aad, plaintext []byte) ([]byte, error) {
	sealed, call, err := s.direct().gcm(opEncrypt(), s.h, h, iv, aad, plaintext, len(plaintext)+gcmTagBytes)
	if err != nil {
		return nil, s.failed(opEncrypt(), call, err)
	}
	if len(sealed) != len(plaintext)+gcmTagBytes {
		return nil, s.initDone(opEncrypt().finalName, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
	}
	return sealed, nil
}

// open is AES-GCM decryption on a session.
func (s *session) open(h pkcs11.ObjectHandle, iv, aad, sealed []byte) ([]byte, error) {
	// The buffer is as long as the ciphertext, since some tokens ask for more than they fill.
	plaintext, call, err := s.direct().gcm(opDecrypt(), s.h, h, iv, aad, sealed, len(sealed))
	switch {
	case err == nil && len(plaintext) == len(sealed)-gcmTagBytes:
		return plaintext, nil
	case err == nil:
		clear(plaintext)
		return nil, s.initDone(opDecrypt().finalName, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
	case call == opDecrypt().finalName:
		return nil, s.authFail(call, err)
	}
	return nil, s.fail(call, err)
}

// failed reports the error of a direct operation that is no decryption.
func (s *session) failed(op operation, call string, err error) error {
	if call == op.initName {
		return s.fail(call, err)
	}
	return s.initDone(call, err)
}
