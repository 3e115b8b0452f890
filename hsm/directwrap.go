package hsm

/*
typedef unsigned long kw_ulong;
typedef unsigned char kw_byte;
typedef struct { kw_ulong type; void *value; kw_ulong len; } kw_attribute;
typedef struct { kw_ulong mechanism; void *param; kw_ulong param_len; } kw_mechanism;
typedef struct { kw_byte major, minor; void *fn[68]; } kw_functions;

// Places in CK_FUNCTION_LIST.
enum { kwCreateObject = 20, kwGetAttributeValue = 24, kwWrapKey = 60, kwUnwrapKey = 61 };

typedef kw_ulong (*kw_create_fn)(kw_ulong, kw_attribute *, kw_ulong, kw_ulong *);
typedef kw_ulong (*kw_get_fn)(kw_ulong, kw_ulong, kw_attribute *, kw_ulong);
typedef kw_ulong (*kw_wrap_fn)(kw_ulong, kw_mechanism *, kw_ulong, kw_ulong, kw_byte *, kw_ulong *);
typedef kw_ulong (*kw_unwrap_fn)(kw_ulong, kw_mechanism *, kw_ulong, kw_byte *, kw_ulong, kw_attribute *, kw_ulong, kw_ulong *);

static kw_byte kw_no = 0, kw_yes = 1;
static kw_ulong kw_secret_key = 4, kw_private_key = 3;      // CKO_
static kw_ulong kw_generic_secret = 0x10, kw_aes_key = 0x1f; // CKK_

#define KW_FLAG(type, flag) { type, &flag, 1 }
#define KW_ULONG(type, number) { type, &number, sizeof(kw_ulong) }
// CKA_ENCRYPT, DECRYPT, WRAP, UNWRAP, SIGN, VERIFY, DERIVE
#define KW_NO_USE KW_FLAG(0x104, kw_no), KW_FLAG(0x105, kw_no), KW_FLAG(0x106, kw_no), KW_FLAG(0x107, kw_no), \
	KW_FLAG(0x108, kw_no), KW_FLAG(0x10a, kw_no), KW_FLAG(0x10c, kw_no)

// What a wrapping key may unwrap to, as CKA_UNWRAP_TEMPLATE of the key and as
// the template of C_UnwrapKey, which must repeat it: bytes for the host, in a
// session object. MODIFIABLE is last: SoftHSM applies attributes in order.
static kw_attribute kw_unwrap_template[] = {
	KW_ULONG(0x0, kw_secret_key), KW_ULONG(0x100, kw_generic_secret), KW_FLAG(0x1, kw_no), KW_FLAG(0x2, kw_yes), // CLASS, KEY_TYPE, TOKEN, PRIVATE
	KW_FLAG(0x103, kw_no), KW_FLAG(0x162, kw_yes), KW_NO_USE, KW_FLAG(0x170, kw_no),                             // SENSITIVE, EXTRACTABLE, MODIFIABLE
};

// What a wrapping key may wrap, as its CKA_WRAP_TEMPLATE: secret keys, and none
// that wraps or unwraps. CLASS, PRIVATE, SENSITIVE, WRAP, UNWRAP.
static kw_attribute kw_wrap_template[] = {
	KW_ULONG(0x0, kw_secret_key), KW_FLAG(0x2, kw_yes), KW_FLAG(0x103, kw_yes), KW_FLAG(0x106, kw_no), KW_FLAG(0x107, kw_no),
};

enum { kw_unwrap_count = sizeof kw_unwrap_template / sizeof(kw_attribute), kw_wrap_count = sizeof kw_wrap_template / sizeof(kw_attribute) };

// The caller's bytes become a session object that fits kw_wrap_template.
static kw_ulong kw_create_secret(void *functions, kw_ulong session, kw_byte *value, kw_ulong len, kw_ulong *object) {
	kw_functions *f = functions;
	kw_attribute t[] = {
		KW_ULONG(0x0, kw_secret_key), KW_ULONG(0x100, kw_generic_secret), KW_FLAG(0x1, kw_no), KW_FLAG(0x2, kw_yes),
		KW_FLAG(0x103, kw_yes), KW_FLAG(0x162, kw_yes), KW_NO_USE, { 0x11, value, len },
	};
	return ((kw_create_fn)f->fn[kwCreateObject])(session, t, sizeof t / sizeof *t, object);
}

static kw_ulong kw_wrap(void *functions, kw_ulong session, kw_ulong mechanism, kw_ulong key, kw_ulong target, kw_byte *out, kw_ulong *out_len) {
	kw_functions *f = functions;
	kw_mechanism m = { mechanism, 0, 0 };
	return ((kw_wrap_fn)f->fn[kwWrapKey])(session, &m, key, target, out, out_len);
}

// altered is the place of an attribute that shall ask for something else than
// the template allows, or -1.
static kw_ulong kw_unwrap(void *functions, kw_ulong session, kw_ulong mechanism, kw_ulong key, kw_byte *in, kw_ulong in_len, int altered, kw_ulong *object) {
	kw_functions *f = functions;
	kw_mechanism m = { mechanism, 0, 0 };
	kw_attribute t[kw_unwrap_count];
	for (int i = 0; i < kw_unwrap_count; i++) t[i] = kw_unwrap_template[i];
	if (altered >= 0) {
		void **value = &t[altered].value;
		if (*value == &kw_secret_key) *value = &kw_private_key;
		else if (*value == &kw_generic_secret) *value = &kw_aes_key;
		else *value = *value == &kw_no ? &kw_yes : &kw_no;
	}
	return ((kw_unwrap_fn)f->fn[kwUnwrapKey])(session, &m, key, in, in_len, t, kw_unwrap_count, object);
}

// An attribute of a template that was read back.
typedef struct { kw_ulong type, len; kw_byte value[sizeof(kw_ulong)]; } kw_item;

static void kw_item_of(kw_item *to, kw_attribute *a) {
	to->type = a->type;
	to->len = a->len;
	for (kw_ulong j = 0; j < a->len; j++) to->value[j] = ((kw_byte *)a->value)[j];
}

// Three steps, as PKCS#11 wants for attributes of attributes: how many, how
// long, and what. Returns CKR_DEVICE_ERROR for what cannot be ours.
static kw_ulong kw_read_template(void *functions, kw_ulong session, kw_ulong object, kw_ulong type, kw_item *items, kw_ulong *count) {
	kw_functions *f = functions;
	kw_attribute inner[32], outer = { type, 0, 0 };
	kw_byte values[32][sizeof(kw_ulong)];
	kw_get_fn get = (kw_get_fn)f->fn[kwGetAttributeValue];
	kw_ulong rv = get(session, object, &outer, 1);
	if (rv != 0) return rv;
	if (outer.len > *count * sizeof *inner || outer.len > sizeof inner || outer.len % sizeof *inner != 0) return 0x30;
	kw_ulong n = outer.len / sizeof *inner;
	for (kw_ulong i = 0; i < n; i++) inner[i] = (kw_attribute){ 0, 0, 0 };
	outer.value = inner;
	rv = get(session, object, &outer, 1);
	if (rv != 0) return rv;
	for (kw_ulong i = 0; i < n; i++) {
		if (inner[i].len > sizeof values[i]) return 0x30;
		inner[i].value = values[i];
	}
	rv = get(session, object, &outer, 1);
	if (rv != 0) return rv;
	for (kw_ulong i = 0; i < n; i++) {
		if (inner[i].len > sizeof values[i] || inner[i].value != values[i]) return 0x30;
		kw_item_of(&items[i], &inner[i]);
	}
	*count = n;
	return 0;
}

// Go cannot name static variables.
static kw_attribute *kw_template(int wrap) { return wrap ? kw_wrap_template : kw_unwrap_template; }

static void kw_template_item(int wrap, int i, kw_item *to) { kw_item_of(to, &kw_template(wrap)[i]); }
*/
import "C"

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// The calls of AES key wrap go past miekg/pkcs11: its C_CreateObject and C_UnwrapKey copy templates, the bytes to be wrapped among them, into
// memory that is freed unwiped, and it knows no attributes that hold attributes. The templates are constants of C, so that the pointers in
// them are good for ever, and that what a key allows and what C_UnwrapKey asks for cannot drift apart.

// unwrapTemplate and wrapTemplate return CKA_UNWRAP_TEMPLATE and CKA_WRAP_TEMPLATE of wrapping keys.
func unwrapTemplate() *pkcs11.Attribute {
	return &pkcs11.Attribute{Type: pkcs11.CKA_UNWRAP_TEMPLATE, Value: templateBytes(0, C.kw_unwrap_count)}
}

func wrapTemplate() *pkcs11.Attribute {
	return &pkcs11.Attribute{Type: pkcs11.CKA_WRAP_TEMPLATE, Value: templateBytes(1, C.kw_wrap_count)}
}

func templateBytes(wrap, count C.int) []byte {
	return C.GoBytes(unsafe.Pointer(C.kw_template(wrap)), count*C.sizeof_kw_attribute)
}

// createSecret makes a session object of the caller's bytes, which may be wrapped and nothing else.
func (d *direct) createSecret(s pkcs11.SessionHandle, value []byte) (pkcs11.ObjectHandle, error) {
	var h C.kw_ulong
	rv := C.kw_create_secret(unsafe.Pointer(d.f), C.kw_ulong(s), (*C.kw_byte)(unsafe.Pointer(ckBytes(value))), C.kw_ulong(len(value)), &h)
	return pkcs11.ObjectHandle(h), rvError(rv)
}

// wrap wraps an object under a key, into a buffer of outBytes.
func (d *direct) wrap(s pkcs11.SessionHandle, mechanism uint, key, target pkcs11.ObjectHandle, outBytes int) ([]byte, error) {
	out := make([]byte, outBytes)
	n := C.kw_ulong(len(out))
	rv := C.kw_wrap(unsafe.Pointer(d.f), C.kw_ulong(s), C.kw_ulong(mechanism), C.kw_ulong(key), C.kw_ulong(target), (*C.kw_byte)(unsafe.Pointer(ckBytes(out))), &n)
	if rv == 0 && n > C.kw_ulong(len(out)) {
		rv = pkcs11.CKR_DEVICE_ERROR
	}
	if rv != 0 {
		clear(out)
		return nil, pkcs11.Error(rv)
	}
	return out[:n], nil
}

// asAllowed unwraps to what the template of wrapping keys allows.
const asAllowed = -1

// unwrap unwraps to a session object that can be read. altered asks for another value of the attribute at that place of the template than the
// key allows, to see whether the token refuses it.
func (d *direct) unwrap(s pkcs11.SessionHandle, mechanism uint, key pkcs11.ObjectHandle, wrapped []byte, altered int) (pkcs11.ObjectHandle, error) {
	var h C.kw_ulong
	rv := C.kw_unwrap(unsafe.Pointer(d.f), C.kw_ulong(s), C.kw_ulong(mechanism), C.kw_ulong(key), (*C.kw_byte)(unsafe.Pointer(ckBytes(wrapped))),
		C.kw_ulong(len(wrapped)), C.int(altered), &h)
	return pkcs11.ObjectHandle(h), rvError(rv)
}

// templateItem is one attribute of a template.
type templateItem struct {
	attribute uint
	value     string
}

func newTemplateItem(i C.kw_item) templateItem {
	return templateItem{uint(i._type), string(unsafe.Slice((*byte)(unsafe.Pointer(&i.value)), i.len))}
}

// unwrapItems and wrapItems list the templates of wrapping keys.
func unwrapItems() []templateItem { return templateItems(0, C.kw_unwrap_count) }
func wrapItems() []templateItem   { return templateItems(1, C.kw_wrap_count) }

func templateItems(wrap C.int, count int) []templateItem {
	items := make([]templateItem, count)
	for i := range items {
		var item C.kw_item
		C.kw_template_item(wrap, C.int(i), &item)
		items[i] = newTemplateItem(item)
	}
	return items
}

// checkTemplate compares a template of an object with what it should be, in any order. It takes want apart.
func (s *session) checkTemplate(h pkcs11.ObjectHandle, attribute uint, want []templateItem) error {
	var items [32]C.kw_item
	n := C.kw_ulong(len(items))
	rv := C.kw_read_template(unsafe.Pointer(s.direct().f), C.kw_ulong(s.h), C.kw_ulong(h), C.kw_ulong(attribute), &items[0], &n)
	if rv != 0 {
		return fmt.Errorf("read attribute %#x: %w", attribute, s.fail("C_GetAttributeValue", pkcs11.Error(rv)))
	}
	if int(n) != len(want) {
		return fmt.Errorf("attribute %#x names %d attributes, want %d", attribute, n, len(want))
	}
	for _, i := range items[:n] {
		got := newTemplateItem(i)
		at := slices.Index(want, got)
		if at < 0 {
			return fmt.Errorf("attribute %#x has %#x for %#x", attribute, got.value, got.attribute)
		}
		want = slices.Delete(want, at, at+1)
	}
	return nil
}
