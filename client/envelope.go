package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// ErrDecrypt says that a ciphertext does not open: damaged, made with another
// encryption context or under another key, or no ciphertext at all. Which of
// them is not told.
//
// One thing is not ErrDecrypt. With EnvelopeConfig.AnyKey the service finds the
// KMS key by the id in the message. If that was changed, it answers as for any
// message of such a key: AccessDeniedException if there is no such key or the
// caller may not use it, or what is wrong with it, such as DisabledException.
var ErrDecrypt = errors.New("ciphertext does not open")

// DataKeyService is what an Envelope calls: a Client's Crypto, or a Coalescer.
type DataKeyService interface {
	// GenerateDataKey returns a new data key, in the clear and encrypted. The
	// slices of the answer belong to the caller, who wipes the plaintext.
	GenerateDataKey(ctx context.Context, req *keyholdv1.GenerateDataKeyRequest, opts ...grpc.CallOption) (*keyholdv1.GenerateDataKeyResponse, error)

	// Decrypt opens an encrypted data key. As above.
	Decrypt(ctx context.Context, req *keyholdv1.DecryptRequest, opts ...grpc.CallOption) (*keyholdv1.DecryptResponse, error)
}

// EnvelopeConfig says what an Envelope encrypts under.
type EnvelopeConfig struct {
	// KeyID names the symmetric KMS key: an id, an ARN or an alias. Decrypt
	// opens messages under this key only, unless AnyKey is set. An ARN is best
	// where an alias might be pointed at another key.
	KeyID string

	// AnyKey makes Decrypt open messages under every key that the caller may
	// decrypt with, whichever the message names. Whoever can have something
	// encrypted under one of them can then make a message that opens, and a
	// changed message is not always ErrDecrypt: see there. Optional.
	AnyKey bool

	// EncryptionContext is bound to every message, with the pairs that Encrypt
	// and Decrypt are given. It is not secret and stands in the audit log.
	// Optional.
	EncryptionContext map[string]string

	// Cache lets one data key serve many messages. Optional: without it each
	// message costs a call.
	Cache CacheConfig
}

// Envelope encrypts messages of up to MaxEnvelopePlaintextBytes locally, with
// AES-256-GCM under data keys that the service generates and opens, in the
// format of docs/envelope-format.md. A message carries its encrypted data key.
// It may be used concurrently.
//
// The data key never leaves this process in the clear. Without a cache it is
// wiped before Encrypt or Decrypt returns; what a cache keeps, and for how
// long, is said at CacheConfig.
type Envelope struct {
	service DataKeyService
	cfg     EnvelopeConfig
	keys    *dataKeys
}

// NewEnvelope makes an Envelope. It calls nothing yet: a key that is not there
// shows at the first message. Close it when it is no longer needed.
func NewEnvelope(service DataKeyService, cfg EnvelopeConfig) (*Envelope, error) {
	if cfg.KeyID == "" {
		return nil, errors.New("envelope: KeyID is empty")
	}
	if _, err := canonicalContext(cfg.EncryptionContext); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	keys, err := newDataKeys(cfg.Cache)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	cfg.EncryptionContext = maps.Clone(cfg.EncryptionContext)
	return &Envelope{service: service, cfg: cfg, keys: keys}, nil
}

// Close wipes the data keys of the cache; those in use, as soon as they no
// longer are. Calls that wait for a data key fail, with a cache or without, and
// no call to the service is under way when it returns. The Envelope cannot be
// used afterwards.
func (e *Envelope) Close() { e.keys.close() }

// Encrypt returns plaintext as a message, bound to the pairs of the
// configuration and of ec. Neither argument is kept or changed.
func (e *Envelope) Encrypt(ctx context.Context, plaintext []byte, ec map[string]string) ([]byte, error) {
	if len(plaintext) > MaxEnvelopePlaintextBytes {
		return nil, fmt.Errorf("encrypt: the message has %d bytes; at most %d are possible", len(plaintext), MaxEnvelopePlaintextBytes)
	}
	bound, canonical, err := e.bind(ec)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	slot := slotOf('E', metadataOf(ctx), []byte(e.cfg.KeyID), canonical)
	k, err := e.keys.forSealing(ctx, slot, int64(len(plaintext)), func(ctx context.Context) (dataKey, error) { return e.generate(ctx, bound) })
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	defer k.release()
	message, err := sealMessage(k.dataKey, canonical, plaintext)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return message, nil
}

// Decrypt opens a message. ec holds the pairs that Encrypt was given. What does
// not open is ErrDecrypt; a service that is not there, or that does not let the
// caller use the key, is an error of its own. Neither argument is kept or
// changed.
func (e *Envelope) Decrypt(ctx context.Context, message []byte, ec map[string]string) ([]byte, error) {
	bound, canonical, err := e.bind(ec)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	m, ok := parseMessage(message)
	if !ok {
		return nil, ErrDecrypt
	}
	slot := slotOf('D', metadataOf(ctx), m.edk, canonical)
	edk := bytes.Clone(m.edk) // the call may outlive this one, if others wait for it
	k, err := e.keys.forOpening(ctx, slot, func(ctx context.Context) (dataKey, error) { return e.unwrap(ctx, edk, bound) })
	if err != nil {
		if errors.Is(err, ErrDecrypt) {
			return nil, ErrDecrypt
		}
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	defer k.release()
	return openMessage(k.dataKey, m, canonical)
}

// bind returns all pairs that a message is bound to, in a map of its own, and
// their canonical form.
func (e *Envelope) bind(ec map[string]string) (bound map[string]string, canonical []byte, err error) {
	bound = make(map[string]string, len(ec)+len(e.cfg.EncryptionContext))
	maps.Copy(bound, e.cfg.EncryptionContext)
	for k, v := range ec {
		if fixed, ok := bound[k]; ok && fixed != v {
			return nil, nil, fmt.Errorf("encryption context: the configuration has another value of %q", k)
		}
		bound[k] = v
	}
	canonical, err = canonicalContext(bound)
	return bound, canonical, err
}

func (e *Envelope) generate(ctx context.Context, bound map[string]string) (dataKey, error) {
	resp, err := e.service.GenerateDataKey(ctx, &keyholdv1.GenerateDataKeyRequest{
		KeyId: e.cfg.KeyID, KeySpec: keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256, EncryptionContext: bound,
	})
	if err != nil {
		return dataKey{}, err
	}
	k := dataKey{edk: resp.GetCiphertextBlob(), secret: resp.GetPlaintext()}
	if len(k.secret) != dataKeyBytes || len(k.edk) == 0 || len(k.edk) > maxEDKBytes {
		clear(k.secret)
		return dataKey{}, fmt.Errorf("the service sent a data key of %d bytes, encrypted %d; %d, and 1 to %d, are possible",
			len(k.secret), len(k.edk), dataKeyBytes, maxEDKBytes)
	}
	return k, nil
}

func (e *Envelope) unwrap(ctx context.Context, edk []byte, bound map[string]string) (dataKey, error) {
	req := &keyholdv1.DecryptRequest{CiphertextBlob: edk, EncryptionContext: bound}
	if !e.cfg.AnyKey {
		req.KeyId = &e.cfg.KeyID
	}
	resp, err := e.service.Decrypt(ctx, req)
	if err != nil {
		if doesNotOpen(err) {
			return dataKey{}, ErrDecrypt
		}
		return dataKey{}, err
	}
	k := dataKey{edk: edk, secret: resp.GetPlaintext()}
	if len(k.secret) != dataKeyBytes { // a ciphertext, but not of a data key of ours
		clear(k.secret)
		return dataKey{}, ErrDecrypt
	}
	return k, nil
}

// doesNotOpen tells what the service says of a ciphertext itself.
func doesNotOpen(err error) bool {
	e, ok := ErrorFrom(err)
	return ok && (e.Exception == "InvalidCiphertextException" || e.Exception == "IncorrectKeyException")
}

// metadataOf returns the metadata that calls with the context carry, in one
// form: the same key id means another key in another region, and whoever stands
// between may tell callers apart by the rest.
func metadataOf(ctx context.Context) []byte {
	md, _ := metadata.FromOutgoingContext(ctx)
	var all []byte
	for _, key := range slices.Sorted(maps.Keys(md)) {
		all = appendPart(all, key)
		all = binary.BigEndian.AppendUint32(all, uint32(len(md[key])))
		for _, v := range md[key] {
			all = appendPart(all, v)
		}
	}
	return all
}
