package sqlite

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/keyhold/keyhold/server/kms"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// Limits of one record. They are far above those of the API, which the core
// enforces; they bound what a fault in the core could write.
const (
	maxTextBytes      = 64 << 10 // of any one text
	maxLocatorIDBytes = 1 << 10
	maxPublicKeyBytes = 8 << 10
	maxTags           = 1_000
	maxVersions       = 10_000
)

// enumName returns the proto name under which a value is stored. Values
// without a name are refused.
func enumName[E ~int32](names map[int32]string, e E) (string, error) {
	name, ok := names[int32(e)]
	if !ok {
		return "", fmt.Errorf("enum value %d has no stored form", e)
	}
	return name, nil
}

// enumValue is the inverse of enumName. An unknown name was written by a newer
// program or by hand: to guess what it allows would be worse than to stop.
func enumValue[E ~int32](values map[string]int32, name string) (E, error) {
	v, ok := values[name]
	if !ok {
		return 0, fmt.Errorf("%q is not known to this version; hint: start the version that wrote it", name)
	}
	return E(v), nil
}

// micros is the stored form of a time: microseconds since the epoch, rounded
// down. It holds all years that Go and RFC 3339 can write, the zero time too.
func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

// checkKey refuses a record that breaks what kms.KeyRecord documents: it is a
// fault of the core, and stored it would be met at the next start.
func checkKey(r *kms.KeyRecord) error {
	switch {
	case r.ID == "":
		return errors.New("no id")
	case !r.Account.Valid():
		return fmt.Errorf("account %q is not 12 digits", r.Account)
	case r.Region == "":
		return errors.New("no region")
	case r.Spec == 0 || r.Usage == 0:
		return errors.New("no spec or no usage")
	case len(r.Tags) > maxTags:
		return fmt.Errorf("%d tags, at most %d", len(r.Tags), maxTags)
	case len(r.Versions) > maxVersions:
		return fmt.Errorf("%d versions, at most %d", len(r.Versions), maxVersions)
	}
	if err := checkTexts(string(r.ID), string(r.Region), r.KeyStore, r.Description); err != nil {
		return err
	}
	if err := checkState(r); err != nil {
		return err
	}
	seen := make(map[string]bool, len(r.Tags))
	for _, t := range r.Tags {
		if seen[t.Key] {
			return fmt.Errorf("two tags %q", t.Key)
		}
		seen[t.Key] = true
		if err := checkTexts(t.Key, t.Value); err != nil {
			return fmt.Errorf("tag: %w", err)
		}
	}
	for i := range r.Versions {
		v := &r.Versions[i]
		if v.Locator.Spec == 0 || v.Locator.Usage == 0 {
			return fmt.Errorf("version %s: no spec or no usage", v.Ref)
		}
		// An intent does not know yet what the token will prove.
		if v.Custody == 0 && r.State != keyholdv1.KeyState_KEY_STATE_CREATING {
			return fmt.Errorf("version %s: no custody", v.Ref)
		}
		if len(v.Locator.ID) > maxLocatorIDBytes {
			return fmt.Errorf("version %s: locator id of %d bytes, at most %d", v.Ref, len(v.Locator.ID), maxLocatorIDBytes)
		}
		if len(v.PublicKey) > maxPublicKeyBytes {
			return fmt.Errorf("version %s: public key of %d bytes, at most %d", v.Ref, len(v.PublicKey), maxPublicKeyBytes)
		}
		if err := checkTexts(string(v.MaterialID), v.Locator.Label); err != nil {
			return fmt.Errorf("version %s: %w", v.Ref, err)
		}
	}
	return nil
}

// checkState holds the documented bonds between the state and other members.
func checkState(r *kms.KeyRecord) error {
	switch r.State {
	case keyholdv1.KeyState_KEY_STATE_CREATING,
		keyholdv1.KeyState_KEY_STATE_ENABLED,
		keyholdv1.KeyState_KEY_STATE_DISABLED,
		keyholdv1.KeyState_KEY_STATE_PENDING_DELETION:
	default:
		return fmt.Errorf("state %s is never stored", r.State)
	}
	pending := r.State == keyholdv1.KeyState_KEY_STATE_PENDING_DELETION
	switch {
	case pending && (r.DeletionDate.IsZero() || r.PendingWindowDays <= 0):
		return fmt.Errorf("state %s without deletion date and window", r.State)
	case !pending && (!r.DeletionDate.IsZero() || r.PendingWindowDays != 0 || r.Destroying):
		return fmt.Errorf("state %s with a deletion date or window, or being destroyed", r.State)
	case len(r.Versions) == 0 && r.State != keyholdv1.KeyState_KEY_STATE_CREATING:
		return fmt.Errorf("state %s without a version", r.State)
	}
	return nil
}

func checkAlias(a *kms.AliasRecord) error {
	switch {
	case a.Name == "":
		return errors.New("no name")
	case !a.Account.Valid():
		return fmt.Errorf("account %q is not 12 digits", a.Account)
	case a.Region == "":
		return errors.New("no region")
	case a.KeyID == "":
		return errors.New("no key id")
	}
	return checkTexts(a.Name, string(a.Region), string(a.KeyID))
}

func checkTexts(texts ...string) error {
	for _, s := range texts {
		if len(s) > maxTextBytes {
			return fmt.Errorf("text of %d bytes, at most %d", len(s), maxTextBytes)
		}
	}
	return nil
}

// parseRef is the inverse of kms.Ref.String.
func parseRef(s string) (kms.Ref, error) {
	var ref kms.Ref
	if len(s) != hex.EncodedLen(len(ref)) {
		return kms.Ref{}, fmt.Errorf("ref %q is not %d hexadecimal digits", s, hex.EncodedLen(len(ref)))
	}
	if _, err := hex.Decode(ref[:], []byte(s)); err != nil {
		return kms.Ref{}, fmt.Errorf("ref %q: %w", s, err)
	}
	return ref, nil
}

// keyNames are the stored forms of a record's enums.
type keyNames struct{ spec, usage, state string }

func namesOfKey(r *kms.KeyRecord) (n keyNames, err error) {
	if n.spec, err = enumName(keyholdv1.KeySpec_name, r.Spec); err != nil {
		return n, fmt.Errorf("spec: %w", err)
	}
	if n.usage, err = enumName(keyholdv1.KeyUsageType_name, r.Usage); err != nil {
		return n, fmt.Errorf("usage: %w", err)
	}
	if n.state, err = enumName(keyholdv1.KeyState_name, r.State); err != nil {
		return n, fmt.Errorf("state: %w", err)
	}
	return n, nil
}

func (n keyNames) into(r *kms.KeyRecord) (err error) {
	if r.Spec, err = enumValue[keyholdv1.KeySpec](keyholdv1.KeySpec_value, n.spec); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	if r.Usage, err = enumValue[keyholdv1.KeyUsageType](keyholdv1.KeyUsageType_value, n.usage); err != nil {
		return fmt.Errorf("usage: %w", err)
	}
	if r.State, err = enumValue[keyholdv1.KeyState](keyholdv1.KeyState_value, n.state); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// versionNames are the stored forms of a version's enums.
type versionNames struct{ spec, usage, custody string }

func namesOfVersion(v *kms.KeyVersion) (n versionNames, err error) {
	if n.spec, err = enumName(keyholdv1.KeySpec_name, v.Locator.Spec); err != nil {
		return n, fmt.Errorf("locator spec: %w", err)
	}
	if n.usage, err = enumName(keyholdv1.KeyUsageType_name, v.Locator.Usage); err != nil {
		return n, fmt.Errorf("locator usage: %w", err)
	}
	if n.custody, err = enumName(keyholdv1.KeyCustodyType_name, v.Custody); err != nil {
		return n, fmt.Errorf("custody: %w", err)
	}
	return n, nil
}

func (n versionNames) into(v *kms.KeyVersion) (err error) {
	if v.Locator.Spec, err = enumValue[keyholdv1.KeySpec](keyholdv1.KeySpec_value, n.spec); err != nil {
		return fmt.Errorf("locator spec: %w", err)
	}
	if v.Locator.Usage, err = enumValue[keyholdv1.KeyUsageType](keyholdv1.KeyUsageType_value, n.usage); err != nil {
		return fmt.Errorf("locator usage: %w", err)
	}
	if v.Custody, err = enumValue[keyholdv1.KeyCustodyType](keyholdv1.KeyCustodyType_value, n.custody); err != nil {
		return fmt.Errorf("custody: %w", err)
	}
	return nil
}
