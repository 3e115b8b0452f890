package servertest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// settleTime is how long the daemon may take, after a fault, until its counts
// are those of a daemon at rest.
const settleTime = 20 * time.Second

// goroutineSlack is how many goroutines more than at first are no leak: gRPC's
// and the runtime's come and go.
const goroutineSlack = 12

// Checker verifies that a daemon keeps its promises, all of them, each time it
// is asked:
//
//   - every acknowledged key is there, in an acknowledged state, and does what
//     it is for, and nothing when it is not enabled;
//   - every acknowledged ciphertext opens to its plaintext, every alias points
//     where it was last told to;
//   - store and token agree: no key lacks its object;
//   - the journal verifies from where the last check ended, and has the
//     creation of every key;
//   - no session is leaked: the module counts what the daemon says it has, and
//     nobody waits, hangs, or broke the rules of PKCS#11;
//   - no goroutine is leaked;
//   - no plaintext is in log, journal, database, or anything else on the disk.
//
// The daemon must run and be ready, and the load be paused.
type Checker struct {
	d *Daemon
	l *Load
	c *client.Client

	goroutines int           // of the daemon at rest, at first
	settle     time.Duration // settleTime
	known      map[*Key]bool // keys that were checked once
	from       audit.Anchor  // where the last verification of the journal ended
	created    map[string]bool
	scanned    map[string]time.Time // files by when they were changed
	logged     int                  // bytes of the log that were looked at

	// Leftovers is how many objects and unfinished creations no key owns: what
	// crashes in the middle of a creation leave, harmless and reported.
	Leftovers int
}

// NewChecker remembers the daemon as it is, which is at rest and well.
func NewChecker(tb testing.TB, d *Daemon, l *Load) *Checker {
	tb.Helper()
	k := &Checker{d: d, l: l, c: d.Dial(tb), settle: settleTime, known: map[*Key]bool{}, created: map[string]bool{}, scanned: map[string]time.Time{}}
	k.Restarted(tb)
	return k
}

// Restarted says that the daemon is another process now.
func (k *Checker) Restarted(tb testing.TB) {
	tb.Helper()
	k.goroutines = 0
	k.d.Connected(tb, k.c)
	k.d.Connected(tb, k.l.c)
	k.Check(tb) // connects, so that the connection's goroutines count
	m, err := k.d.Metrics()
	if err != nil {
		tb.Fatal(err)
	}
	k.goroutines = m.Goroutines()
}

// CheckAll is Check without samples.
func (k *Checker) CheckAll(tb testing.TB) {
	tb.Helper()
	clear(k.known)
	k.Check(tb)
}

// sampled is how many keys are looked at again that were well before.
const sampled = 20

// due returns the keys to look at: those that are new or may have changed, and
// some of the others.
func (k *Checker) due() []*Key {
	var due, rest []*Key
	for _, key := range k.l.Ledger.Keys() {
		if k.known[key] && len(k.l.Ledger.statesOf(key)) == 1 {
			rest = append(rest, key)
		} else {
			due = append(due, key)
			k.known[key] = true
		}
	}
	for range min(sampled, len(rest)) {
		i := pick(len(rest))
		due = append(due, rest[i])
		rest = slices.Delete(rest, i, i+1)
	}
	return due
}

// Check verifies everything and reports what is wrong. Of the keys that were well
// before and have not been changed since it takes a sample.
func (k *Checker) Check(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, f := range k.l.Findings() {
		tb.Errorf("a client saw: %s", f)
	}
	for _, key := range k.due() {
		if err := k.key(ctx, key); err != nil {
			tb.Errorf("key %s (%s): %v", key.ID, key.Spec, err)
		}
	}
	if err := k.blobs(ctx); err != nil {
		tb.Errorf("ciphertexts: %v", err)
	}
	if err := k.aliases(ctx); err != nil {
		tb.Errorf("aliases: %v", err)
	}
	if err := k.agreement(ctx); err != nil {
		tb.Errorf("store and token: %v", err)
	}
	if err := k.journal(); err != nil {
		tb.Errorf("journal: %v", err)
	}
	if err := k.rest(); err != nil {
		tb.Errorf("at rest: %v", err)
	}
	if err := k.plaintexts(); err != nil {
		tb.Errorf("secrets: %v", err)
	}
}

// key wants a key in one of its states, and lets it do what it is for.
func (k *Checker) key(ctx context.Context, key *Key) error {
	resp, err := k.c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: key.ID})
	if err != nil {
		return err
	}
	state := resp.GetKeyMetadata().GetKeyState()
	if key.lost {
		return k.unusable(ctx, key)
	}
	if may := k.l.Ledger.statesOf(key); !slices.Contains(may, state) {
		return fmt.Errorf("it is %s, acknowledged is %s", state, may)
	}
	k.l.Ledger.Changed(key, state)
	if state != keyholdv1.KeyState_KEY_STATE_ENABLED {
		return k.unusable(ctx, key)
	}
	switch key.Usage {
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT:
		return k.sealsAndOpens(ctx, key)
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_GENERATE_VERIFY_MAC:
		return k.macs(ctx, key)
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY:
		return k.signs(ctx, key)
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_KEY_AGREEMENT:
		return k.agrees(ctx, key)
	case keyholdv1.KeyUsageType_KEY_USAGE_TYPE_WRAP_UNWRAP:
		return k.wraps(ctx, key)
	}
	return fmt.Errorf("nobody knows how to use it: %s", key.Usage)
}

// unusable wants a key that is not enabled to do nothing.
func (k *Checker) unusable(ctx context.Context, key *Key) error {
	_, err := k.c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: key.ID, Plaintext: []byte("x")})
	if err == nil {
		return fmt.Errorf("it encrypts, and must not")
	}
	if code := status.Code(err); key.lost == (code == codes.FailedPrecondition) {
		return fmt.Errorf("it does not encrypt, with the wrong reason: %w", err)
	}
	return nil
}

func (k *Checker) sealsAndOpens(ctx context.Context, key *Key) error {
	plain := []byte(k.l.Ledger.Marker)
	enc, err := k.c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: key.ID, Plaintext: bytes.Clone(plain)})
	if err != nil {
		return err
	}
	dec, err := k.c.Crypto.Decrypt(ctx, &keyholdv1.DecryptRequest{CiphertextBlob: enc.GetCiphertextBlob()})
	if err == nil && !bytes.Equal(dec.GetPlaintext(), plain) {
		err = fmt.Errorf("it decrypts to %q", dec.GetPlaintext())
	}
	return err
}

func (k *Checker) macs(ctx context.Context, key *Key) error {
	alg := keyholdv1.MacAlgorithmSpec_MAC_ALGORITHM_SPEC_HMAC_SHA_256
	resp, err := k.c.Crypto.GenerateMac(ctx, &keyholdv1.GenerateMacRequest{KeyId: key.ID, Message: []byte(k.l.Ledger.Marker), MacAlgorithm: alg})
	if err != nil {
		return err
	}
	if !k.l.Ledger.sameMAC(key, resp.GetMac()) {
		return fmt.Errorf("its MAC is %x, and was another one", resp.GetMac())
	}
	_, err = k.c.Crypto.VerifyMac(ctx, &keyholdv1.VerifyMacRequest{KeyId: key.ID, Message: []byte(k.l.Ledger.Marker), MacAlgorithm: alg, Mac: resp.GetMac()})
	return err
}

// pin compares a pair's public key with what it was.
func (k *Checker) pin(ctx context.Context, key *Key) error {
	pub, err := k.c.Crypto.GetPublicKey(ctx, &keyholdv1.GetPublicKeyRequest{KeyId: key.ID})
	if err != nil {
		return err
	}
	if key.spki == nil {
		return k.l.Ledger.SetPublicKey(key, pub.GetPublicKey())
	}
	if !bytes.Equal(key.spki, pub.GetPublicKey()) {
		return fmt.Errorf("its public key is %x, and was %x", pub.GetPublicKey(), key.spki)
	}
	return nil
}

func (k *Checker) signs(ctx context.Context, key *Key) error {
	if err := k.pin(ctx, key); err != nil {
		return err
	}
	alg := keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256
	if key.Spec == keyholdv1.KeySpec_KEY_SPEC_RSA_2048 {
		alg = keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_256
	}
	message := []byte(k.l.Ledger.Marker)
	resp, err := k.c.Crypto.Sign(ctx, &keyholdv1.SignRequest{KeyId: key.ID, Message: message, SigningAlgorithm: alg})
	if err != nil {
		return err
	}
	if !k.l.Ledger.verifies(key, message, resp.GetSignature()) {
		return fmt.Errorf("its signature does not verify here")
	}
	_, err = k.c.Crypto.Verify(ctx, &keyholdv1.VerifyRequest{KeyId: key.ID, Message: message, SigningAlgorithm: alg, Signature: resp.GetSignature()})
	return err
}

func (k *Checker) agrees(ctx context.Context, key *Key) error {
	if err := k.pin(ctx, key); err != nil {
		return err
	}
	resp, err := k.c.Crypto.DeriveSharedSecret(ctx, &keyholdv1.DeriveSharedSecretRequest{
		KeyId: key.ID, PublicKey: key.spki, KeyAgreementAlgorithm: keyholdv1.KeyAgreementAlgorithmSpec_KEY_AGREEMENT_ALGORITHM_SPEC_ECDH,
	})
	if err == nil && len(resp.GetSharedSecret()) != 32 {
		err = fmt.Errorf("a shared secret of %d bytes", len(resp.GetSharedSecret()))
	}
	return err
}

func (k *Checker) wraps(ctx context.Context, key *Key) error {
	alg := keyholdv1.WrappingAlgorithmSpec_WRAPPING_ALGORITHM_SPEC_AES_KW
	plain := []byte(k.l.Ledger.Marker)[:32]
	w, err := k.c.Crypto.WrapKey(ctx, &keyholdv1.WrapKeyRequest{KeyId: key.ID, PlaintextKey: bytes.Clone(plain), WrappingAlgorithm: alg})
	if err != nil {
		return err
	}
	u, err := k.c.Crypto.UnwrapKey(ctx, &keyholdv1.UnwrapKeyRequest{KeyId: key.ID, WrappedKey: w.GetWrappedKey(), WrappingAlgorithm: alg})
	if err == nil && !bytes.Equal(u.GetPlaintextKey(), plain) {
		err = fmt.Errorf("it unwraps to something else")
	}
	return err
}

// blobs opens the ciphertexts of keys that are enabled.
func (k *Checker) blobs(ctx context.Context) error {
	enabled := make(map[string]bool)
	for _, key := range k.l.Ledger.Keys() {
		may := k.l.Ledger.statesOf(key)
		enabled[key.ID] = !key.lost && len(may) == 1 && may[0] == keyholdv1.KeyState_KEY_STATE_ENABLED
	}
	all := slices.DeleteFunc(k.l.Ledger.Blobs(), func(b Blob) bool { return !enabled[b.Key] })
	for part := range slices.Chunk(all, 100) {
		req := &keyholdv1.BatchRequest{}
		for _, b := range part {
			req.Items = append(req.Items, &keyholdv1.BatchItem{Request: &keyholdv1.BatchItem_Decrypt{Decrypt: &keyholdv1.DecryptRequest{CiphertextBlob: b.Ciphertext, EncryptionContext: b.Context}}})
		}
		resp, err := k.c.Crypto.Batch(ctx, req)
		if err != nil {
			return err
		}
		for i, r := range resp.GetResults() {
			if e := r.GetError(); e != nil {
				return fmt.Errorf("one of key %s does not open: %s: %s", part[i].Key, e.GetException(), e.GetMessage())
			}
			if !bytes.Equal(r.GetDecrypt().GetPlaintext(), part[i].Plain) {
				return fmt.Errorf("one of key %s opens to something else", part[i].Key)
			}
		}
	}
	return nil
}

// aliases wants each where it may point.
func (k *Checker) aliases(ctx context.Context) error {
	var errs []string
	for name, may := range k.l.Ledger.Aliases() {
		resp, err := k.c.Keys.DescribeKey(ctx, &keyholdv1.DescribeKeyRequest{KeyId: name})
		target := resp.GetKeyMetadata().GetKeyId()
		if err != nil && status.Code(err) != codes.NotFound {
			errs = append(errs, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		if !slices.Contains(may, target) {
			errs = append(errs, fmt.Sprintf("%s is at %q, acknowledged is %q", name, target, may))
		}
		k.l.Ledger.AliasChanged(name, target)
	}
	if errs != nil {
		return fmt.Errorf("%s", strings.Join(errs, "; "))
	}
	return nil
}
