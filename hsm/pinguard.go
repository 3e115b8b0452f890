package hsm

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"
)

// pinGuard keeps a PIN that the token rejected from being tried again: three wrong tries lock many tokens for good. It remembers digests under
// a random key, never a PIN.
//
// A PIN is tried again only when the source holds another one, or when somebody else has logged in with success since (the token took back the
// flag that tells of wrong tries).
type pinGuard struct {
	key [32]byte

	mu       sync.Mutex
	rejected map[[32]byte]bool // digests of rejected PINs
	cause    error             // what the token said
	low      bool              // it raised CKF_USER_PIN_COUNT_LOW then
	next     [32]byte          // a new PIN seen once: a file that is being written is not a new PIN
	trust    bool              // Reload was called: the source is complete
}

func newPINGuard() *pinGuard {
	g := &pinGuard{rejected: map[[32]byte]bool{}}
	_, _ = rand.Read(g.key[:]) // never fails (crypto/rand)
	return g
}

func (g *pinGuard) digest(pin []byte) (d [32]byte) {
	h := hmac.New(sha256.New, g.key[:])
	h.Write(pin)
	h.Sum(d[:0])
	return d
}

// allow tells whether the PIN may be tried, given the token's flags now.
func (g *pinGuard) allow(pin []byte, flags uint, source PINSource) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.rejected) == 0 {
		return nil
	}
	if g.low && flags&pkcs11.CKF_USER_PIN_COUNT_LOW == 0 {
		g.forget()
		return nil
	}
	d := g.digest(pin)
	if g.rejected[d] {
		return g.refusal(source, g.cause)
	}
	if g.next != d && !g.trust {
		g.next = d
		return fmt.Errorf("%w, but %s has changed since: the new PIN is tried when it stays the same", errPINRejected, source)
	}
	return nil
}

// reject remembers a PIN that the token refused.
func (g *pinGuard) reject(pin []byte, flagsAfter uint) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.rejected) >= maxRejected {
		clear(g.rejected) // nobody corrects a PIN that often; and forgetting costs one try
	}
	g.rejected[g.digest(pin)] = true
	g.low = flagsAfter&pkcs11.CKF_USER_PIN_COUNT_LOW != 0
	g.next, g.trust = [32]byte{}, false
}

const maxRejected = 1024

// refusal words the rejection. The cause is remembered for the next time.
func (g *pinGuard) refusal(source PINSource, cause error) error {
	g.cause = cause
	return fmt.Errorf("%w; not tried again: put the right PIN into %s (%w)", errPINRejected, source, cause)
}

// accepted forgets the past.
func (g *pinGuard) accepted() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget()
}

func (g *pinGuard) forget() {
	clear(g.rejected)
	g.cause, g.low, g.next, g.trust = nil, false, [32]byte{}, false
}

// reload says that the source is complete as it is now. A rejected PIN stays rejected.
func (g *pinGuard) reload() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trust = true
}
