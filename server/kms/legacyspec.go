package kms

import (
	"strings"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// KeySpec was called CustomerMasterKeySpec until 2021. AWS takes either in
// requests and answers with both, and so does Keyhold. The values that both
// have are called the same.
const (
	specPrefix   = "KEY_SPEC_"
	legacyPrefix = "CUSTOMER_MASTER_KEY_SPEC_"
)

// youngSpec returns the key spec of an old name.
func youngSpec(old keyholdv1.CustomerMasterKeySpec) keyholdv1.KeySpec { //nolint:staticcheck // this is what it is for
	return keyholdv1.KeySpec(keyholdv1.KeySpec_value[specPrefix+strings.TrimPrefix(old.String(), legacyPrefix)])
}

// legacySpec returns a key spec under its old name, which the younger ones do
// not have.
func legacySpec(spec keyholdv1.KeySpec) keyholdv1.CustomerMasterKeySpec { //nolint:staticcheck // as above
	n := keyholdv1.CustomerMasterKeySpec_value[legacyPrefix+strings.TrimPrefix(spec.String(), specPrefix)]
	return keyholdv1.CustomerMasterKeySpec(n) //nolint:staticcheck // as above
}
