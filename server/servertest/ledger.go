package servertest

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// maxBlobs bounds the ciphertexts that are kept: the checker opens each of them,
// over and over.
const maxBlobs = 300

// Ledger is what a daemon has acknowledged. A change that was sent and not
// acknowledged may have happened or not: both are right until the checker has
// looked. It may be used concurrently, one key or alias by one client at a time.
type Ledger struct {
	// Marker is in every plaintext and message, and nowhere else.
	Marker string

	mu      sync.Mutex
	keys    map[string]*Key
	aliases map[string]*aliasEntry
	blobs   []Blob
	seen    int // blobs so far
}

// Key is an acknowledged key.
type Key struct {
	ID     string
	Spec   keyholdv1.KeySpec
	Usage  keyholdv1.KeyUsageType
	states []keyholdv1.KeyState // it is in one of these
	mac    []byte               // of the marker, by a MAC key; once known
	spki   []byte               // of a key pair
	public any                  // the same, parsed
	lost   bool                 // its object was destroyed behind the daemon's back
}

// aliasEntry is where an alias may point; "" is nowhere.
type aliasEntry struct{ targets []string }

// Blob is an acknowledged ciphertext.
type Blob struct {
	Key               string
	Ciphertext, Plain []byte
	Context           map[string]string
}

// NewLedger returns an empty one.
func NewLedger() *Ledger {
	return &Ledger{Marker: "keyhold-marker-" + rand.Text(), keys: make(map[string]*Key), aliases: make(map[string]*aliasEntry)}
}

// Created adds a key.
func (l *Ledger) Created(m *keyholdv1.KeyMetadata) *Key {
	k := &Key{ID: m.GetKeyId(), Spec: m.GetKeySpec(), Usage: m.GetKeyUsage(), states: []keyholdv1.KeyState{keyholdv1.KeyState_KEY_STATE_ENABLED}}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys[k.ID] = k
	return k
}

// Changing says that a key's state is about to be changed.
func (l *Ledger) Changing(k *Key, to keyholdv1.KeyState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(k.states, to) {
		k.states = append(k.states, to)
	}
}

// Changed says that a change of a key's state was acknowledged, or seen.
func (l *Ledger) Changed(k *Key, to keyholdv1.KeyState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k.states = []keyholdv1.KeyState{to}
}

// states returns the states that a key may be in.
func (l *Ledger) statesOf(k *Key) []keyholdv1.KeyState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(k.states)
}

// Lost says that a key's object was destroyed behind the daemon's back: it must
// not do anything any more.
func (l *Ledger) Lost(k *Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k.lost = true
	l.blobs = slices.DeleteFunc(l.blobs, func(b Blob) bool { return b.Key == k.ID })
}

// Deleted says that a key was deleted, when that was due.
func (l *Ledger) Deleted(k *Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.keys, k.ID)
	l.blobs = slices.DeleteFunc(l.blobs, func(b Blob) bool { return b.Key == k.ID })
}

// AliasChanging says that an alias is about to point to a key, or, with "", to
// go.
func (l *Ledger) AliasChanging(name, target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.aliases[name] == nil {
		l.aliases[name] = &aliasEntry{targets: []string{""}}
	}
	l.aliases[name].targets = append(l.aliases[name].targets, target)
}

// AliasChanged says that this was acknowledged, or seen.
func (l *Ledger) AliasChanged(name, target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aliases[name] = &aliasEntry{targets: []string{target}}
}

// Encrypted adds a ciphertext. Of many some are kept, those of each key's first
// days as likely as the latest.
func (l *Ledger) Encrypted(b Blob) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen++
	if len(l.blobs) < maxBlobs {
		l.blobs = append(l.blobs, b)
		return
	}
	if i := pick(l.seen); i < maxBlobs {
		l.blobs[i] = b
	}
}

// SetPublicKey pins a pair's public key.
func (l *Ledger) SetPublicKey(k *Key, spki []byte) error {
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return fmt.Errorf("public key of %s: %w", k.ID, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	k.spki, k.public = spki, public
	return nil
}

// Keys returns the keys.
func (l *Ledger) Keys() []*Key {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.keys))
}

// Blobs returns the ciphertexts.
func (l *Ledger) Blobs() []Blob {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.blobs)
}

// Aliases returns where each alias may point.
func (l *Ledger) Aliases() map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string][]string, len(l.aliases))
	for name, a := range l.aliases {
		out[name] = slices.Clone(a.targets)
	}
	return out
}

// pick returns a random number below n.
func pick(n int) int {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	v := 0
	for _, x := range b[:7] {
		v = v<<8 | int(x)
	}
	return v % n
}
