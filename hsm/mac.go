package hsm

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"
)

// MAC returns the HMAC of a message of up to MaxMessageBytes; the hash follows from the key's spec, and the code is never truncated. Compare
// codes with hmac.Equal.
func (k *Key) MAC(ctx context.Context, message []byte) ([]byte, error) {
	info, _ := k.spec.info()
	switch {
	case k.purpose != PurposeMAC:
		return nil, k.misuse("MAC")
	case len(message) > MaxMessageBytes:
		return nil, fmt.Errorf("%w: message of %d bytes, at most %d", ErrInvalidInput, len(message), MaxMessageBytes)
	}
	message = own(message)
	var out handover // whoever has the code can pass the message off as the key's
	err := k.use(ctx, "MAC", func(s *session, h pkcs11.ObjectHandle) error {
		code, err := s.mac(h, info, message)
		out.give(code)
		return err
	}, message)
	return out.take(err)
}

func (s *session) mac(h pkcs11.ObjectHandle, info specInfo, message []byte) ([]byte, error) {
	return s.signature(h, info.hmac, nil, message, info.bytes) // the digest is as long as the key
}
