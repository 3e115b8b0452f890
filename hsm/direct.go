package hsm

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>

// The parts of PKCS#11 v2.40 that this file needs, for unix (natural
// alignment). The order of functions is that of the standard's pkcs11f.h and
// cannot change: it is the ABI.
typedef unsigned long ck_ulong;
typedef unsigned char ck_byte;
typedef struct { ck_byte major, minor; void *fn[68]; } ck_functions;
typedef struct { ck_ulong mechanism; void *param; ck_ulong param_len; } ck_mechanism;
typedef struct { ck_ulong type; void *value; ck_ulong len; } ck_attribute;
typedef struct { ck_byte *iv; ck_ulong iv_len, iv_bits; ck_byte *aad; ck_ulong aad_len, tag_bits; } ck_gcm_params;

enum { fnGetAttributeValue = 24, fnEncryptInit = 29, fnEncrypt = 30, fnDecryptInit = 33, fnDecrypt = 34, fnSignInit = 42, fnSign = 43, fnGenerateRandom = 64 };

typedef ck_ulong (*ck_get_function_list)(ck_functions **);
typedef ck_ulong (*ck_init)(ck_ulong, ck_mechanism *, ck_ulong);
typedef ck_ulong (*ck_one)(ck_ulong, ck_byte *, ck_ulong, ck_byte *, ck_ulong *);
typedef ck_ulong (*ck_get_attribute)(ck_ulong, ck_ulong, ck_attribute *, ck_ulong);
typedef ck_ulong (*ck_random)(ck_ulong, ck_byte *, ck_ulong);

// RTLD_NOLOAD: only the instance that is loaded already will do. A second one
// (the file was replaced on disk) would not know our sessions.
static ck_functions *kh_open(const char *path) {
	ck_functions *f = NULL;
	void *lib = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
	if (lib == NULL) return NULL;
	ck_get_function_list get = (ck_get_function_list)dlsym(lib, "C_GetFunctionList");
	if (get == NULL || get(&f) != 0) return NULL;
	return f;
}

static ck_ulong kh_one(ck_functions *f, int init, ck_ulong session, ck_ulong key, ck_ulong mechanism, void *param, ck_ulong param_len,
		ck_byte *in, ck_ulong in_len, ck_byte *out, ck_ulong *out_len, int *began) {
	ck_mechanism m = { mechanism, param_len == 0 ? NULL : param, param_len };
	ck_ulong rv = ((ck_init)f->fn[init])(session, &m, key);
	if (rv != 0) return rv;
	*began = 1;
	return ((ck_one)f->fn[init + 1])(session, in, in_len, out, out_len);
}

static ck_ulong kh_gcm(ck_functions *f, int init, ck_ulong session, ck_ulong key, ck_byte *iv, ck_ulong iv_len, ck_byte *aad, ck_ulong aad_len,
		ck_ulong tag_bits, ck_byte *in, ck_ulong in_len, ck_byte *out, ck_ulong *out_len, int *began) {
	ck_gcm_params p = { iv, iv_len, 8 * iv_len, aad, aad_len, tag_bits };
	return kh_one(f, init, session, key, 0x1087, &p, sizeof p, in, in_len, out, out_len, began); // CKM_AES_GCM
}

static ck_ulong kh_attribute(ck_functions *f, ck_ulong session, ck_ulong object, ck_ulong type, ck_byte *out, ck_ulong *out_len) {
	ck_attribute a = { type, out, *out_len };
	ck_ulong rv = ((ck_get_attribute)f->fn[fnGetAttributeValue])(session, object, &a, 1);
	*out_len = a.len;
	return rv;
}

static ck_ulong kh_random(ck_functions *f, ck_ulong session, ck_byte *out, ck_ulong len) {
	return ((ck_random)f->fn[fnGenerateRandom])(session, out, len);
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// direct calls the functions of a loaded library that carry secrets, without
// miekg/pkcs11 in between, in whose hands
//
//   - each C_Decrypt that fails leaks its output buffer (v1.1.2 allocates
//     between the size query and the call and frees on success only), so that
//     bad ciphertexts would be a way to exhaust memory;
//   - plaintexts, derived secrets and random bytes stay behind in freed C memory;
//   - the size query asks for the whole operation twice, and breaks GCM on NSS.
//
// Here the output goes to the caller's buffer and one call into C does both
// steps. It is the same instance of the library: sessions and handles are
// miekg's. A direct is immutable and never freed, as libraries are not unloaded.
type direct struct{ f *C.ck_functions }

// newDirect attaches to the library at path, which is loaded already.
func newDirect(path string) (*direct, error) {
	name := append([]byte(path), 0)
	f := C.kh_open((*C.char)(unsafe.Pointer(&name[0])))
	if f == nil {
		return nil, fmt.Errorf("PKCS#11 module %s changed on disk while it was being loaded; restart", path)
	}
	return &direct{f}, nil
}

// operation is a pair of C_*Init and one-shot function.
type operation struct {
	init      C.int
	initName  string
	finalName string
}

// The operations. They are constants in spirit; Go has none of struct type.
func opEncrypt() operation { return operation{C.fnEncryptInit, "C_EncryptInit", "C_Encrypt"} }
func opDecrypt() operation { return operation{C.fnDecryptInit, "C_DecryptInit", "C_Decrypt"} }
func opSign() operation    { return operation{C.fnSignInit, "C_SignInit", "C_Sign"} }

// ckBytes passes a slice to C. Empty input is a pointer to something: NULL
// means other things to C_Encrypt and its like. The slice must not hold Go
// pointers, which byte slices cannot.
func ckBytes(b []byte) *C.ck_byte {
	if len(b) == 0 {
		b = []byte{0}
	}
	return (*C.ck_byte)(unsafe.Pointer(unsafe.SliceData(b)))
}

// result turns the outcome of both steps into out's used part or the error of
// the failed step; began tells whether C_*Init succeeded.
func (op operation) result(rv C.ck_ulong, began C.int, out []byte, n C.ck_ulong) (used []byte, call string, err error) {
	if rv != 0 {
		clear(out)
		if began == 0 {
			return nil, op.initName, pkcs11.Error(rv)
		}
		return nil, op.finalName, pkcs11.Error(rv)
	}
	if n > C.ck_ulong(len(out)) { // a broken library: it has said CKR_OK and a length beyond our buffer
		clear(out)
		return nil, op.finalName, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
	}
	clear(out[n:]) // some libraries decrypt in place and leave padding behind
	return out[:n], "", nil
}

// gcm runs AES-GCM on the session into a buffer of outBytes. The error is what
// the library said in call; call is op.initName when nothing began.
func (d *direct) gcm(op operation, s pkcs11.SessionHandle, key pkcs11.ObjectHandle, iv, aad, in []byte, outBytes int) (out []byte, call string, err error) {
	out = make([]byte, max(outBytes, 1))
	n, began := C.ck_ulong(len(out)), C.int(0)
	rv := C.kh_gcm(d.f, op.init, C.ck_ulong(s), C.ck_ulong(key), ckBytes(iv), C.ck_ulong(len(iv)), ckBytes(aad), C.ck_ulong(len(aad)),
		gcmTagBits, ckBytes(in), C.ck_ulong(len(in)), ckBytes(out), &n, &began)
	return op.result(rv, began, out, n)
}

// one runs any other mechanism, whose parameter holds no pointers but NULL.
func (d *direct) one(op operation, s pkcs11.SessionHandle, key pkcs11.ObjectHandle, mechanism uint, param, in []byte, outBytes int) (out []byte, call string, err error) {
	out = make([]byte, max(outBytes, 1))
	n, began := C.ck_ulong(len(out)), C.int(0)
	rv := C.kh_one(d.f, op.init, C.ck_ulong(s), C.ck_ulong(key), C.ck_ulong(mechanism), unsafe.Pointer(ckBytes(param)), C.ck_ulong(len(param)),
		ckBytes(in), C.ck_ulong(len(in)), ckBytes(out), &n, &began)
	return op.result(rv, began, out, n)
}

// attribute reads one attribute of at most maxBytes.
func (d *direct) attribute(s pkcs11.SessionHandle, object pkcs11.ObjectHandle, attribute uint, maxBytes int) ([]byte, error) {
	out := make([]byte, max(maxBytes, 1))
	n := C.ck_ulong(len(out))
	rv := C.kh_attribute(d.f, C.ck_ulong(s), C.ck_ulong(object), C.ck_ulong(attribute), ckBytes(out), &n)
	if rv == 0 && n > C.ck_ulong(len(out)) {
		rv = pkcs11.CKR_DEVICE_ERROR
	}
	if rv != 0 {
		clear(out)
		return nil, pkcs11.Error(rv)
	}
	return out[:n], nil
}

// random fills out from the token's generator.
func (d *direct) random(s pkcs11.SessionHandle, out []byte) error {
	if rv := C.kh_random(d.f, C.ck_ulong(s), ckBytes(out), C.ck_ulong(len(out))); rv != 0 {
		clear(out)
		return pkcs11.Error(rv)
	}
	return nil
}
