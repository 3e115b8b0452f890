package kms

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// SealKey is the system key that seals what the store keeps and must not be able
// to tell, such as the secrets of access keys: an AES-256 key in the home token,
// which is the default token of the first region. A copied database gives away
// no secret without that token.
//
// Each installation has its own, by the instance id of its store, and it has
// versions: a sealed value names the version that opens it. There is one so far;
// a second one seals as soon as sealVersion says so, and the first goes on
// opening.
//
// Seals have random IVs of 96 bits, so one version may seal 2^32 times (NIST SP
// 800-38D, 8.3). They are not counted in the store, as those of KMS keys are,
// but bounded in time: whoever seals takes a place at maxSealsPerSecond first
// (see sealRate), and 2^32 of those take 27 years of doing nothing else.
//
// A SealKey may be used concurrently. Errors are those of its key store: while the
// token is down ErrStoreUnavailable, without the key ErrKeyMissing.
type SealKey struct {
	store    KeyStore
	instance string
}

const (
	// sealVersion is the version that seals.
	sealVersion uint32 = 1
	// maxSealsPerSecond and sealBurst bound what one process seals, the others what of
	// that an account may take.
	maxSealsPerSecond     = 5
	sealBurst             = 100
	accountSealsPerSecond = 1
	accountSealBurst      = 10

	// sealFormat is the first byte of a sealed value. Behind it: the version, 4
	// bytes, big endian; the IV, 12; ciphertext and tag.
	sealFormat       = 0x01
	sealHeaderBytes  = 1 + 4
	sealIVBytes      = 12
	sealTagBytes     = 16
	minSealedBytes   = sealHeaderBytes + sealIVBytes + sealTagBytes
	sealProbeBytes   = 32
	sealAADSeparator = "keyhold sealed value\x00"
)

// SealLabelPrefix begins the label of every seal key. It is not LabelPrefix, by
// which objects of KMS keys are known and orphans of them are cleaned up.
const SealLabelPrefix = "keyhold-seal:"

// NewSealKey returns the seal key of an installation. Whether the token holds
// it shows when it is used.
func NewSealKey(home KeyStore, instance string) *SealKey {
	return &SealKey{store: home, instance: instance}
}

// Label returns the label of the version that seals, and its CKA_ID too.
func (k *SealKey) Label() string { return k.locator(sealVersion).Label }

func (k *SealKey) locator(version uint32) Locator {
	label := SealLabelPrefix + k.instance + ":" + strconv.FormatUint(uint64(version), 10)
	return Locator{
		ID: []byte(label), Label: label,
		Spec:  keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
		Usage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT,
	}
}

// Ensure makes the key where the token has none. A caller who knows of values
// that were sealed must not call it without looking first (Check): a new key does
// not open them. Two processes must not do so at once.
func (k *SealKey) Ensure(ctx context.Context) (created bool, err error) {
	if err := k.Check(ctx); !errors.Is(err, ErrKeyMissing) {
		return false, err
	}
	gen, ok := k.store.(Generator)
	if !ok {
		return false, fmt.Errorf("%w: the home token makes no keys", ErrUnsupported)
	}
	if _, err := gen.Generate(ctx, k.locator(sealVersion), false); err != nil {
		return false, fmt.Errorf("make the seal key: %w", err)
	}
	return true, k.Check(ctx)
}

// Check seals and opens with the key, and returns nil where that worked. It counts
// as a seal: it is for starting, and for tools.
func (k *SealKey) Check(ctx context.Context) error {
	probe := make([]byte, sealProbeBytes)
	_, _ = rand.Read(probe) // it never fails
	column := k.Column("", "")
	sealed, err := column.Seal(ctx, "", probe)
	if err != nil {
		return err
	}
	opened, err := column.Open(ctx, "", sealed)
	if err != nil {
		return err
	}
	if string(opened) != string(probe) {
		return fmt.Errorf("%w: the seal key opened something else than it had sealed", ErrStoreUnavailable)
	}
	return nil
}

// Column returns what seals the values of one column of the store. A value opens
// in the row and column that it was sealed for, and nowhere else.
func (k *SealKey) Column(table, column string) *SealedColumn {
	return &SealedColumn{key: k, table: table, column: column}
}

// SealedColumn seals the values of one column. It may be used concurrently.
type SealedColumn struct {
	key           *SealKey
	table, column string
}

// Seal seals a value for a row, by the row's id. The plaintext stays the caller's,
// to wipe.
func (c *SealedColumn) Seal(ctx context.Context, row string, plaintext []byte) ([]byte, error) {
	s, err := c.key.store.Seal(ctx, c.key.locator(sealVersion), c.aad(sealVersion, row), plaintext)
	if err != nil {
		return nil, fmt.Errorf("seal %s of %s: %w", c.column, c.table, err)
	}
	if len(s.IV) != sealIVBytes || len(s.Meta) != 0 || len(s.Tag) != sealTagBytes {
		return nil, fmt.Errorf("%w: the home token seals with an IV of %d bytes and %d of metadata", ErrUnsupported, len(s.IV), len(s.Meta))
	}
	out := binary.BigEndian.AppendUint32([]byte{sealFormat}, sealVersion)
	return append(append(append(out, s.IV...), s.Ciphertext...), s.Tag...), nil
}

// Open opens what Seal returned for the same row. The result is the caller's, to
// wipe. What does not open is ErrNotAuthentic: it was changed, is of another row
// or installation, or another key sealed it.
func (c *SealedColumn) Open(ctx context.Context, row string, sealed []byte) ([]byte, error) {
	if len(sealed) < minSealedBytes || sealed[0] != sealFormat {
		return nil, fmt.Errorf("open %s of %s: %w", c.column, c.table, ErrNotAuthentic)
	}
	version := binary.BigEndian.Uint32(sealed[1:])
	rest := sealed[sealHeaderBytes:]
	text := len(rest) - sealTagBytes
	plaintext, err := c.key.store.Open(ctx, c.key.locator(version), c.aad(version, row), Sealed{
		IV: rest[:sealIVBytes], Ciphertext: rest[sealIVBytes:text], Tag: rest[text:],
	})
	if err != nil {
		return nil, fmt.Errorf("open %s of %s, sealed by version %d: %w", c.column, c.table, version, err)
	}
	return plaintext, nil
}

// aad binds a value to where it is. Its length is fixed, and every part of it
// stands behind its length.
func (c *SealedColumn) aad(version uint32, row string) []byte {
	b := binary.BigEndian.AppendUint32([]byte(sealAADSeparator), version)
	for _, part := range []string{c.key.instance, c.table, row, c.column} {
		b = appendPart(b, part)
	}
	sum := sha256.Sum256(b)
	return sum[:]
}
