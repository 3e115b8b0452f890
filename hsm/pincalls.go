package hsm

/*
typedef unsigned long (*kh_login_fn)(unsigned long, unsigned long, unsigned char *, unsigned long);

// C_Login is the 19th function of CK_FUNCTION_LIST, after the version.
static unsigned long kh_login(void *functions, unsigned long session, unsigned long user, unsigned char *pin, unsigned long pin_len) {
	struct { unsigned char major, minor; void *fn[19]; } *f = functions;
	return ((kh_login_fn)f->fn[18])(session, user, pin, pin_len);
}

typedef unsigned long (*kh_init_token_fn)(unsigned long, unsigned char *, unsigned long, unsigned char *);
typedef unsigned long (*kh_init_pin_fn)(unsigned long, unsigned char *, unsigned long);

// C_InitToken and C_InitPIN are the 10th and 11th.
static unsigned long kh_init_token(void *functions, unsigned long slot, unsigned char *pin, unsigned long pin_len, unsigned char *label) {
	struct { unsigned char major, minor; void *fn[19]; } *f = functions;
	return ((kh_init_token_fn)f->fn[9])(slot, pin, pin_len, label);
}

static unsigned long kh_init_pin(void *functions, unsigned long session, unsigned char *pin, unsigned long pin_len) {
	struct { unsigned char major, minor; void *fn[19]; } *f = functions;
	return ((kh_init_pin_fn)f->fn[10])(session, pin, pin_len);
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// The calls that carry PINs go past miekg/pkcs11, which leaves a copy of each PIN in freed memory.

// login logs in with the PIN, without leaving copies of it in memory as miekg/pkcs11 does; what the library keeps is its own affair.
func (s *session) login(pin []byte) error { return s.loginAs(pkcs11.CKU_USER, pin) }

func (s *session) loginAs(user uint, pin []byte) error {
	return rvError(C.kh_login(unsafe.Pointer(s.direct().f), C.ulong(s.h), C.ulong(user), (*C.uchar)(unsafe.SliceData(pin)), C.ulong(len(pin))))
}

// initToken sets a new token's label and security officer's PIN.
func (d *direct) initToken(slot uint, so []byte, label string) error {
	padded := []byte(fmt.Sprintf("%-*s", maxLabelBytes, label))
	return rvError(C.kh_init_token(unsafe.Pointer(d.f), C.ulong(slot), (*C.uchar)(unsafe.SliceData(so)), C.ulong(len(so)), (*C.uchar)(&padded[0])))
}

// initPIN sets the user's PIN; the security officer is logged in.
func (d *direct) initPIN(s pkcs11.SessionHandle, pin []byte) error {
	return rvError(C.kh_init_pin(unsafe.Pointer(d.f), C.ulong(s), (*C.uchar)(unsafe.SliceData(pin)), C.ulong(len(pin))))
}

func rvError(rv C.ulong) error {
	if rv != 0 {
		return pkcs11.Error(rv)
	}
	return nil
}
