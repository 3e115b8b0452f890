package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Object is one token object, as far as names go.
type Object struct {
	Class   ObjectClass
	KeyType uint // CKK_; meaningless for objects that are no keys
	ID      []byte
	Label   string
}

// ObjectClass is a CKO_ value.
type ObjectClass uint

// String names the class.
func (c ObjectClass) String() string {
	switch uint(c) {
	case pkcs11.CKO_DATA:
		return "data"
	case pkcs11.CKO_CERTIFICATE:
		return "certificate"
	case pkcs11.CKO_PUBLIC_KEY:
		return "public key"
	case pkcs11.CKO_PRIVATE_KEY:
		return "private key"
	case pkcs11.CKO_SECRET_KEY:
		return "secret key"
	}
	return fmt.Sprintf("class %#x", uint(c))
}

// The classes of keys.
const (
	ClassPublicKey  = ObjectClass(pkcs11.CKO_PUBLIC_KEY)
	ClassPrivateKey = ObjectClass(pkcs11.CKO_PRIVATE_KEY)
	ClassSecretKey  = ObjectClass(pkcs11.CKO_SECRET_KEY)
)

// Capabilities returns what the token has proven. It is empty until the first connection, and what was proven then while the token is away.
func (t *Token) Capabilities() Capabilities {
	if caps := t.caps.Load(); caps != nil {
		return *caps
	}
	return Capabilities{Reasons: map[string]string{"token": "not probed yet"}}
}

// Objects lists all token objects, in one pass. Nothing else creates, finds or destroys token objects meanwhile: about 50 us per object on
// SoftHSM. Objects that another process destroys meanwhile are left out.
func (t *Token) Objects(ctx context.Context) ([]Object, error) {
	return survey(ctx, t, "Objects", (*session).object, pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true))
}

// survey reads every token object that the attributes find, as of one moment of the token's objects. An object that another process destroys
// meanwhile is left out; that there is none is believed only of a token that is well.
func survey[T any](ctx context.Context, t *Token, call string, read func(*session, pkcs11.ObjectHandle) (T, error), find ...*pkcs11.Attribute) ([]T, error) {
	var all []T
	var on *conn
	err := t.search(ctx, call, func(s *session) error {
		handles, err := s.find(find, maxObjects)
		if err != nil {
			return err
		}
		found := make([]T, 0, len(handles))
		for _, h := range handles {
			o, err := read(s, h)
			if isCode(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
				continue
			}
			if err != nil {
				return err
			}
			found = append(found, o)
		}
		all, on = found, s.c
		return nil
	})
	if err == nil {
		err = on.believable(ctx)
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}

// object reads the names of an object. What is no key has no key type, and data objects have no CKA_ID either.
func (s *session) object(h pkcs11.ObjectHandle) (Object, error) {
	names := [...]uint{pkcs11.CKA_CLASS, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_ID, pkcs11.CKA_LABEL}
	query := make([]*pkcs11.Attribute, len(names))
	for i, a := range names {
		query[i] = pkcs11.NewAttribute(a, nil)
	}
	// All at once: SoftHSM opens the object's file for each call.
	got, err := s.p.GetAttributeValue(s.h, h, query)
	if err == nil {
		return s.named(got[0].Value, got[1].Value, got[2].Value, got[3].Value)
	}
	if err := s.fail("C_GetAttributeValue", err); !isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) {
		return Object{}, err
	}
	var values [len(names)][]byte
	for i, a := range names {
		values[i], err = s.attribute(h, a)
		if err != nil && (a == pkcs11.CKA_CLASS || !isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)) {
			return Object{}, err
		}
	}
	return s.named(values[0], values[1], values[2], values[3])
}

// named makes an Object of its attributes' values.
func (s *session) named(class, keyType, id, label []byte) (Object, error) {
	if len(class) != ulongBytes {
		return Object{}, s.fail("C_GetAttributeValue", pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)) // a broken library: who knows what else it tells
	}
	return Object{Class: ObjectClass(ulong(class)), KeyType: ulong(keyType), ID: id, Label: string(label)}, nil
}

// Destroy destroys all token objects that have that CKA_ID and that label, and drops their handles and session copies. The label is a second
// lock against destroying what somebody else keeps under the same id. When it returns nil the objects are gone for good, as far as the
// token lets one know (SoftHSM: its folder is synced). Without such an object the error is ErrKeyNotFound.
//
// Uses of the key that are under way may end with an error that reads like a wrong key.
func (t *Token) Destroy(ctx context.Context, id []byte, label string) error {
	if len(id) == 0 || len(id) > MaxIDBytes || label == "" || len(label) > MaxKeyLabel {
		return fmt.Errorf("%w: CKA_ID of %d bytes and label of %d, want 1 to %d and 1 to %d", ErrInvalidInput, len(id), len(label), MaxIDBytes, MaxKeyLabel)
	}
	id = own(id)
	var on *conn
	err := t.manage(ctx, "Destroy", func(s *session) error {
		on = s.c
		handles, err := s.find([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, id), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		}, maxDestroy+1)
		if err != nil {
			return err
		}
		if len(handles) > maxDestroy {
			return fmt.Errorf("%w: more than %d objects with CKA_ID %x and label %q; none is destroyed", ErrDuplicate, maxDestroy, id, label)
		}
		if len(handles) == 0 {
			return fmt.Errorf("%w: CKA_ID %x, label %q", ErrKeyNotFound, id, label)
		}
		s.forget(id)
		return s.destroy(handles)
	})
	if errors.Is(err, ErrKeyNotFound) { // fn has returned, so on may be read
		if doubt := on.believable(ctx); doubt != nil {
			return doubt
		}
	}
	return err
}

// maxDestroy bounds how many objects one call destroys: a key has two. More are refused, since success says that none is left.
const maxDestroy = 16

// destroy destroys token objects, public ones last: a crash in between must not leave a private object that nobody can name by its public key.
func (s *session) destroy(handles []pkcs11.ObjectHandle) error {
	var public []pkcs11.ObjectHandle
	for _, h := range handles {
		class, err := s.attribute(h, pkcs11.CKA_CLASS)
		if err == nil && ulong(class) == pkcs11.CKO_PUBLIC_KEY {
			public = append(public, h)
			continue
		}
		if err := s.p.DestroyObject(s.h, h); err != nil && !isCode(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
			return s.fail("C_DestroyObject", err)
		}
	}
	for _, h := range public {
		if err := s.p.DestroyObject(s.h, h); err != nil && !isCode(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
			return s.fail("C_DestroyObject", err)
		}
	}
	return nil
}
