package kms_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
)

// fakeStore is a key store in memory, for what SoftHSM cannot show: faults at
// a chosen call, IVs of 16 bytes with metadata, hanging, panics. It passes the
// same suite as the token (keystore_test.go).
type fakeStore struct {
	// ivBytes and meta are what Seal uses. Set before use.
	ivBytes int
	meta    []byte

	// before is called at the beginning of each call with its name; an error
	// is the call's answer. May be changed while calls run.
	before atomic.Pointer[func(ctx context.Context, call string) error]
	// after is called when a call has done its work; an error is the call's
	// answer, though its effect stays.
	after atomic.Pointer[func(call string) error]

	calls sync.Map // name -> *atomic.Int64

	mu   sync.Mutex
	keys map[string]*fakeKey // by Locator.ID
}

type fakeKey struct {
	label  string
	spec   keyholdv1.KeySpec
	secret []byte
}

var (
	_ kms.KeyStore     = (*fakeStore)(nil)
	_ kms.Generator    = (*fakeStore)(nil)
	_ kms.MACer        = (*fakeStore)(nil)
	_ kms.RandomSource = (*fakeStore)(nil)
)

func newFakeStore() *fakeStore {
	return &fakeStore{ivBytes: 12, keys: make(map[string]*fakeKey)}
}

// failing makes every call of that name fail.
func (f *fakeStore) failing(call string, err error) {
	fn := func(_ context.Context, c string) error {
		if c == call {
			return err
		}
		return nil
	}
	f.before.Store(&fn)
}

func (f *fakeStore) heal() { f.before.Store(nil); f.after.Store(nil) }

func (f *fakeStore) count(call string) int64 {
	n, _ := f.calls.LoadOrStore(call, new(atomic.Int64))
	return n.(*atomic.Int64).Load()
}

func (f *fakeStore) total() (n int64) {
	f.calls.Range(func(_, v any) bool { n += v.(*atomic.Int64).Load(); return true })
	return n
}

func (f *fakeStore) enter(ctx context.Context, call string) error {
	n, _ := f.calls.LoadOrStore(call, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	if fn := f.before.Load(); fn != nil {
		return (*fn)(ctx, call)
	}
	return ctx.Err()
}

func (f *fakeStore) leave(call string) error {
	if fn := f.after.Load(); fn != nil {
		return (*fn)(call)
	}
	return nil
}

func (f *fakeStore) key(l kms.Locator) (*fakeKey, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.keys[string(l.ID)]
	if k == nil {
		return nil, kms.ErrKeyMissing
	}
	return k, nil
}

func (f *fakeStore) aead(l kms.Locator) (cipher.AEAD, error) {
	k, err := f.key(l)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k.secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithNonceSize(block, f.ivBytes)
}

func (f *fakeStore) Seal(ctx context.Context, l kms.Locator, aad, plaintext []byte) (kms.Sealed, error) {
	if err := f.enter(ctx, "Seal"); err != nil {
		return kms.Sealed{}, err
	}
	a, err := f.aead(l)
	if err != nil {
		return kms.Sealed{}, err
	}
	iv := make([]byte, f.ivBytes)
	rand.Read(iv)
	out := a.Seal(nil, iv, plaintext, slices.Concat(aad, f.meta))
	n := len(out) - 16
	return kms.Sealed{IV: iv, Meta: slices.Clone(f.meta), Ciphertext: out[:n], Tag: out[n:]}, f.leave("Seal")
}

func (f *fakeStore) Open(ctx context.Context, l kms.Locator, aad []byte, s kms.Sealed) ([]byte, error) {
	if err := f.enter(ctx, "Open"); err != nil {
		return nil, err
	}
	a, err := f.aead(l)
	if err != nil {
		return nil, err
	}
	if len(s.IV) != f.ivBytes || !bytes.Equal(s.Meta, f.meta) {
		return nil, kms.ErrNotAuthentic
	}
	out, err := a.Open(nil, s.IV, slices.Concat(s.Ciphertext, s.Tag), slices.Concat(aad, f.meta))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kms.ErrNotAuthentic, err)
	}
	return out, f.leave("Open")
}

func (f *fakeStore) Supports(spec keyholdv1.KeySpec, _ keyholdv1.KeyUsageType) error {
	switch spec {
	case keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT, keyholdv1.KeySpec_KEY_SPEC_HMAC_256:
		return nil
	}
	return fmt.Errorf("%w: CKM_FAKE_KEY_PAIR_GEN", kms.ErrUnsupported)
}

func (f *fakeStore) Health() error { return f.enter(context.Background(), "Health") }

func (f *fakeStore) Generate(ctx context.Context, l kms.Locator, exportable bool) (kms.Generated, error) {
	if err := f.enter(ctx, "Generate"); err != nil {
		return kms.Generated{}, err
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	f.mu.Lock()
	f.keys[string(l.ID)] = &fakeKey{label: l.Label, spec: l.Spec, secret: secret}
	f.mu.Unlock()
	made := kms.Generated{Custody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED}
	if exportable {
		made.Custody = keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_EXPORTABLE
	}
	return made, f.leave("Generate")
}

func (f *fakeStore) Destroy(ctx context.Context, l kms.Locator) error {
	if err := f.enter(ctx, "Destroy"); err != nil {
		return err
	}
	f.mu.Lock()
	k := f.keys[string(l.ID)]
	if k == nil || k.label != l.Label {
		f.mu.Unlock()
		return kms.ErrKeyMissing
	}
	delete(f.keys, string(l.ID))
	f.mu.Unlock()
	return f.leave("Destroy")
}

func (f *fakeStore) Retire(kms.Locator) { f.enter(context.Background(), "Retire") }

func (f *fakeStore) Inventory(ctx context.Context) ([]kms.StoredObject, error) {
	if err := f.enter(ctx, "Inventory"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []kms.StoredObject
	for id, k := range f.keys {
		out = append(out, kms.StoredObject{ID: []byte(id), Label: k.label})
	}
	return out, nil
}

func (f *fakeStore) MAC(ctx context.Context, l kms.Locator, message []byte) ([]byte, error) {
	if err := f.enter(ctx, "MAC"); err != nil {
		return nil, err
	}
	k, err := f.key(l)
	if err != nil {
		return nil, err
	}
	h := hmac.New(sha256.New, k.secret)
	h.Write(message)
	return h.Sum(nil), f.leave("MAC")
}

func (f *fakeStore) Random(ctx context.Context, n int) ([]byte, error) {
	if err := f.enter(ctx, "Random"); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	rand.Read(b)
	return b, f.leave("Random")
}

// add puts an object into the store that no record knows.
func (f *fakeStore) add(id []byte, label string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys[string(id)] = &fakeKey{label: label, secret: make([]byte, 32)}
}

func (f *fakeStore) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.keys)
}

// onlyStore has the methods of kms.KeyStore and no power beside them.
type onlyStore struct{ kms.KeyStore }

// faultyJournal fails appends on demand.
type faultyJournal struct {
	kms.Journal
	// fail decides about each append. May be changed at any time.
	fail atomic.Pointer[func(payload []byte) error]
}

func (j *faultyJournal) Append(ctx context.Context, class audit.Class, d audit.Durability, payloads ...[]byte) (uint64, error) {
	if fn := j.fail.Load(); fn != nil {
		for _, p := range payloads {
			if err := (*fn)(p); err != nil {
				return 0, err
			}
		}
	}
	return j.Journal.Append(ctx, class, d, payloads...)
}

func (j *faultyJournal) failing(f func(payload []byte) error) {
	if f == nil {
		j.fail.Store(nil)
		return
	}
	j.fail.Store(&f)
}

// faultyDB is a kms.Store whose writes fail on demand, before or after they
// took effect.
type faultyDB struct {
	kms.Store
	// before and after get the name of the write.
	before, after atomic.Pointer[func(call string) error]
	calls         sync.Map
}

// fail makes the next n calls of that name fail, after their effect where
// persisted is set.
func (d *faultyDB) fail(call string, n int64, persisted bool, err error) {
	left := new(atomic.Int64)
	left.Store(n)
	fn := func(c string) error {
		if c == call && left.Add(-1) >= 0 {
			return err
		}
		return nil
	}
	if persisted {
		d.after.Store(&fn)
	} else {
		d.before.Store(&fn)
	}
}

func (d *faultyDB) heal() { d.before.Store(nil); d.after.Store(nil) }

func (d *faultyDB) count(call string) int64 {
	n, _ := d.calls.LoadOrStore(call, new(atomic.Int64))
	return n.(*atomic.Int64).Load()
}

func (d *faultyDB) run(call string, f func() error) error {
	n, _ := d.calls.LoadOrStore(call, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	if fn := d.before.Load(); fn != nil {
		if err := (*fn)(call); err != nil {
			return err
		}
	}
	if err := f(); err != nil {
		return err
	}
	if fn := d.after.Load(); fn != nil {
		return (*fn)(call)
	}
	return nil
}

func (d *faultyDB) Snapshot(ctx context.Context) (s *kms.Snapshot, err error) {
	err = d.run("Snapshot", func() error { s, err = d.Store.Snapshot(ctx); return err })
	return s, err
}

func (d *faultyDB) Key(ctx context.Context, id kms.KeyID) (r *kms.KeyRecord, err error) {
	err = d.run("Key", func() error { r, err = d.Store.Key(ctx, id); return err })
	return r, err
}

func (d *faultyDB) InsertKey(ctx context.Context, r *kms.KeyRecord) error {
	return d.run("InsertKey", func() error { return d.Store.InsertKey(ctx, r) })
}

// UpdateKey does not count the caller's revision up when it fails: the caller
// of a real store does not learn it either.
func (d *faultyDB) UpdateKey(ctx context.Context, r *kms.KeyRecord) error {
	c := r.Clone()
	if err := d.run("UpdateKey", func() error { return d.Store.UpdateKey(ctx, c) }); err != nil {
		return err
	}
	r.Revision = c.Revision
	return nil
}

func (d *faultyDB) DeleteKey(ctx context.Context, id kms.KeyID, revision int64) error {
	return d.run("DeleteKey", func() error { return d.Store.DeleteKey(ctx, id, revision) })
}

func (d *faultyDB) InsertAlias(ctx context.Context, a *kms.AliasRecord) error {
	return d.run("InsertAlias", func() error { return d.Store.InsertAlias(ctx, a) })
}

func (d *faultyDB) UpdateAlias(ctx context.Context, a *kms.AliasRecord) error {
	return d.run("UpdateAlias", func() error { return d.Store.UpdateAlias(ctx, a) })
}

func (d *faultyDB) DeleteAlias(ctx context.Context, a *kms.AliasRecord) error {
	return d.run("DeleteAlias", func() error { return d.Store.DeleteAlias(ctx, a) })
}

func (d *faultyDB) LeaseSeals(ctx context.Context, ref kms.Ref, n, limit uint64) (start, granted uint64, err error) {
	err = d.run("LeaseSeals", func() error { start, granted, err = d.Store.LeaseSeals(ctx, ref, n, limit); return err })
	return start, granted, err
}

// fakeSigner adds P-256 to the fake.
type fakeSigner struct{ *fakeStore }

func (f *fakeSigner) Supports(spec keyholdv1.KeySpec, usage keyholdv1.KeyUsageType) error {
	if spec == p256 {
		return nil
	}
	return f.fakeStore.Supports(spec, usage)
}

func (f *fakeSigner) Generate(ctx context.Context, l kms.Locator, exportable bool) (kms.Generated, error) {
	g, err := f.fakeStore.Generate(ctx, l, exportable)
	if err != nil || l.Spec != p256 {
		return g, err
	}
	key, err := f.pair(l)
	if err != nil {
		return kms.Generated{}, err
	}
	g.PublicKey, err = x509.MarshalPKIXPublicKey(&key.PublicKey)
	return g, err
}

// pair is a key pair that follows from the secret.
func (f *fakeSigner) pair(l kms.Locator) (*ecdsa.PrivateKey, error) {
	k, err := f.key(l)
	if err != nil {
		return nil, err
	}
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), k.secret)
}

func (f *fakeSigner) Sign(ctx context.Context, l kms.Locator, _ keyholdv1.SigningAlgorithmSpec, input []byte) ([]byte, error) {
	if err := f.enter(ctx, "Sign"); err != nil {
		return nil, err
	}
	key, err := f.pair(l)
	if err != nil {
		return nil, err
	}
	out, err := ecdsa.SignASN1(rand.Reader, key, input)
	if err != nil {
		return nil, err
	}
	return out, f.leave("Sign")
}

func (f *fakeSigner) CanSign(spec keyholdv1.KeySpec, alg keyholdv1.SigningAlgorithmSpec) error {
	if spec == p256 && alg == ecdsa256 {
		return nil
	}
	return fmt.Errorf("%w: CKM_FAKE", kms.ErrUnsupported)
}

func (f *fakeSigner) PublicKey(ctx context.Context, l kms.Locator) ([]byte, error) {
	if err := f.enter(ctx, "PublicKey"); err != nil {
		return nil, err
	}
	key, err := f.pair(l)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(&key.PublicKey)
}
