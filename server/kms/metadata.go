package kms

import (
	"encoding/base64"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// metadata describes a key as the API shows it.
func (s *Service) metadata(e *entry) *keyholdv1.KeyMetadata {
	r := e.rec.Load()
	state := e.state(r)
	enabled := state == keyholdv1.KeyState_KEY_STATE_ENABLED
	description, multiRegion := r.Description, false
	m := &keyholdv1.KeyMetadata{
		AwsAccountId: string(r.Account), KeyId: string(r.ID), Arn: e.arn, CreationDate: timestamppb.New(r.Created),
		Enabled: &enabled, Description: &description, KeyUsage: r.Usage, KeyState: state,
		Origin: keyholdv1.OriginType_ORIGIN_TYPE_AWS_KMS, KeyManager: keyholdv1.KeyManagerType_KEY_MANAGER_TYPE_CUSTOMER,
		KeySpec: r.Spec, EncryptionAlgorithms: encryptionAlgorithms(r.Spec, r.Usage), SigningAlgorithms: s.offeredSigning(r),
		KeyAgreementAlgorithms: agreementAlgorithms(r.Usage), MultiRegion: &multiRegion, KeyCustody: r.Current().Custody,
		WrappingAlgorithms: wrappingAlgorithms(r.Usage),
	}
	m.CustomerMasterKeySpec = legacySpec(r.Spec) //nolint:staticcheck // AWS still sends it
	if f := factsOf(r.Spec); f.mac != keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_UNSPECIFIED {
		m.MacAlgorithms = []keyholdv1.MacAlgorithmSpec{f.mac}
	}
	if r.Spec == keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT && r.Usage == keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT {
		m.CurrentKeyMaterialId = string(r.Current().MaterialID)
	}
	if state == keyholdv1.KeyState_KEY_STATE_PENDING_DELETION {
		m.DeletionDate = timestamppb.New(r.DeletionDate)
	}
	return m
}

// state is the key's state as the API shows it: an enabled key whose material
// is known to be missing from the token is unavailable.
func (e *entry) state(r *KeyRecord) keyholdv1.KeyState {
	if r.State == keyholdv1.KeyState_KEY_STATE_ENABLED && e.missing.Load() {
		return keyholdv1.KeyState_KEY_STATE_UNAVAILABLE
	}
	return r.State
}

// Markers of the lists. A marker names what it is for, so that one list's
// marker is refused by another.
const (
	keysMarker    = "keys:"
	aliasesMarker = "aliases:"
	tagsMarker    = "tags:"
)

func formatMarker(kind, last string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(kind + last))
}

// parseMarker returns the last element of the page before, or "".
func parseMarker(marker *string, kind string) (string, error) {
	if marker == nil {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(*marker)
	last, ok := strings.CutPrefix(string(b), kind)
	// Base64 has several spellings of the same bytes; ours is the one accepted.
	if err != nil || !ok || last == "" || formatMarker(kind, last) != *marker {
		return "", errorf(CodeInvalidMarker, "Invalid marker.")
	}
	return last, nil
}

// LabelPrefix begins the label of every object that Keyhold makes.
const LabelPrefix = "keyhold:"

// objectLabel names installation and key.
func objectLabel(instance string, id KeyID) string {
	return LabelPrefix + instance + ":" + string(id)
}
