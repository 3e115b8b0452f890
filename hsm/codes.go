package hsm

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// CodeName returns the name that PKCS#11 gives to a return value, such as "CKR_DEVICE_ERROR", and its number when the standard has no name
// for it. It is short and of bounded variety for every library that keeps to the standard, so that it may label a metric.
func CodeName(rv uint) string {
	if name := laterCode(rv); name != "" {
		return name
	}
	if rv > pkcs11.CKR_VENDOR_DEFINED {
		return fmt.Sprintf("CKR_VENDOR_DEFINED+0x%X", rv-pkcs11.CKR_VENDOR_DEFINED)
	}
	// miekg's table ends at v2.20; its text is "pkcs11: 0x5: CKR_GENERAL_ERROR", with nothing after the number for a code it lacks.
	text := pkcs11.Error(rv).Error()
	if at := strings.LastIndex(text, "CKR_"); at >= 0 {
		return text[at:]
	}
	return fmt.Sprintf("CKR_0x%X", rv)
}

// laterCode names the codes that are missing from the binding's table: PKCS#11 v2.30 to v3.1.
func laterCode(rv uint) string {
	switch rv {
	case 0x1B:
		return "CKR_ACTION_PROHIBITED"
	case 0x140:
		return "CKR_CURVE_NOT_SUPPORTED"
	case 0x1B2:
		return "CKR_EXCEEDED_MAX_ITERATIONS"
	case 0x1B3:
		return "CKR_FIPS_SELF_TEST_FAILED"
	case 0x1B4:
		return "CKR_LIBRARY_LOAD_FAILED"
	case 0x1B5:
		return "CKR_PIN_TOO_WEAK"
	case 0x1B6:
		return "CKR_PUBLIC_KEY_INVALID"
	case 0x201:
		return "CKR_TOKEN_RESOURCE_EXCEEDED"
	case 0x202:
		return "CKR_OPERATION_CANCEL_FAILED"
	case 0x203:
		return "CKR_KEY_EXHAUSTED"
	}
	return ""
}
