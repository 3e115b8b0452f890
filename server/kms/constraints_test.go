package kms_test

import (
	"errors"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// CheckConstraints says what Do would, records nothing, and gives a door what
// protovalidate found; so does Do.
func TestCheckConstraints(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	for name, req := range map[string]proto.Message{
		"too many":  &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: []byte("x"), GrantTokens: make([]string, 11)},
		"too short": &keyholdv1.EncryptRequest{Plaintext: []byte("x")},
	} {
		var err error
		if events := w.eventsOf(func() { err = w.svc.CheckConstraints("Encrypt", req) }); len(events) > 0 {
			t.Errorf("%s: recorded", name)
		}
		var e *kms.Error
		var cause *protovalidate.ValidationError
		if !errors.As(err, &e) || e.Code != kms.CodeValidation || !errors.As(err, &cause) || len(cause.Violations) != 1 {
			t.Errorf("%s: %v, %v", name, err, cause)
		}
		if got := refuse(w, req, kms.CodeValidation); e == nil || got.Message != e.Message || !errors.As(got, &cause) {
			t.Errorf("%s: Do says %v", name, got)
		}
	}
	if err := w.svc.CheckConstraints("Encrypt", &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: []byte("x")}); err != nil {
		t.Error(err)
	}
	for _, err := range []error{w.svc.CheckConstraints("Nothing", &keyholdv1.EncryptRequest{}), w.svc.CheckConstraints("Encrypt", nil), w.svc.CheckConstraints("Encrypt", &keyholdv1.SignRequest{})} {
		var e *kms.Error
		if !errors.As(err, &e) || e.Code != kms.CodeInternal {
			t.Errorf("%v", err)
		}
	}
}
