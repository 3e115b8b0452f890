package hsm

import (
	"errors"
	"fmt"
	"sort"
)

// capabilitiesFormat is the version of Capabilities as caches keep it, and of the probe that fills it. Change it with either.
const capabilitiesFormat = 2

// Capabilities is what a token has shown that it can do, by known-answer calls and not by its own account. It is read-only and may be kept as
// JSON (see [ProbeCache]).
type Capabilities struct {
	Format int    `json:"format"`
	Token  string `json:"token"` // serial number, firmware and library it was found on

	// Specs says per key spec, by its AWS name, what was proven.
	Specs map[string]SpecCapability `json:"specs"`

	// AllowedMechanismsEnforced: CKA_ALLOWED_MECHANISMS limits a key to what it names. Keys are locked by it then, and by MODIFIABLE=false else.
	AllowedMechanismsEnforced bool `json:"allowedMechanismsEnforced"`
	// SessionCopies: a key can be copied into a session, stays sensitive and locked there, and the copy cannot be modified.
	SessionCopies bool `json:"sessionCopies"`
	// SessionSurvivesBadTag: after a ciphertext that did not open the session works on.
	SessionSurvivesBadTag bool `json:"sessionSurvivesBadTag"`
	// IVSource: "caller" when the token encrypts with the IV that it is given. "" when that was not proven: sealing is not offered then.
	IVSource string `json:"ivSource"`
	// OAEPSHA256 and OAEPSHA1 say where the padding is taken off: "token", "host" (raw RSA in the token, constant-time unpadding here), or "".
	OAEPSHA1   string `json:"oaepSha1"`
	OAEPSHA256 string `json:"oaepSha256"`
	// DERPoints: ECDH takes the peer's point as a DER OCTET STRING, not raw.
	DERPoints bool `json:"derPoints,omitempty"`
	// Wrapping says how the token wraps keys.
	Wrapping WrapCapability `json:"wrapping"`
	// Reasons says why what is not offered is not, by the JSON name of the member.
	Reasons map[string]string `json:"reasons,omitempty"`
}

// SpecCapability is what was proven about one key spec.
type SpecCapability struct {
	// Generate tells whether such keys can be generated. Sizes of RSA beyond 2048 are taken from the mechanism's bounds and proven by the pairwise
	// test of each generation.
	Generate Proof `json:"generate"`
	// Operations tells what keys of the spec can do, by the names of AWS KMS.
	Operations map[string]Proof `json:"operations"`
}

// WrapCapability is what was proven about AES key wrap, by known answers of host code.
type WrapCapability struct {
	// KW: RFC 3394, both ways.
	KW Proof `json:"kw"`
	// KWPMechanism is the number of the mechanism that does RFC 5649 here: CKM_AES_KEY_WRAP_KWP of PKCS#11 v3.0, or CKM_AES_KEY_WRAP_PAD, which is
	// RFC 5649 on some tokens and something else on others. 0 when none does.
	KWPMechanism uint `json:"kwpMechanism,omitempty"`
	// What it does of RFC 5649: wrapping multiples of 8 bytes, wrapping other lengths, unwrapping any length.
	KWPWrapsEights Proof `json:"kwpWrapsEights"`
	KWPWrapsOdd    Proof `json:"kwpWrapsOdd"`
	KWPUnwraps     Proof `json:"kwpUnwraps"`
	// UnwrapTemplate and WrapTemplate: the token takes such templates of a wrapping key, and enforces each attribute in them.
	UnwrapTemplate bool `json:"unwrapTemplate"`
	WrapTemplate   bool `json:"wrapTemplate"`
	// SessionSurvives: after a blob that did not unwrap the session works on.
	SessionSurvives bool `json:"sessionSurvives"`
	// Copies: session copies of wrapping keys are limited as their originals are.
	Copies bool `json:"copies"`
}

// Proof says whether something was proven, how, and why not.
type Proof struct {
	OK  bool   `json:"ok"`
	How string `json:"how,omitempty"` // "known answer": equal to the host's result; "pairwise": the host verifies or decrypts; "round trip": the token undoes it; "declared"
	Why string `json:"why,omitempty"` // the reason when it was not proven
}

// ProbeCache keeps capabilities between starts, for tokens on which probing is slow. Both methods may be called from several goroutines. A
// value that Get returns is believed: keep it where only the operator writes.
type ProbeCache interface {
	// Get returns what Put got for the key, or false.
	Get(key string) ([]byte, bool)
	// Put keeps the value; failing to is no error.
	Put(key string, value []byte)
}

// Operation tells what was proven about an operation of keys of a spec.
func (c Capabilities) Operation(spec KeySpec, name string) Proof {
	sc, ok := c.Specs[spec.String()]
	if !ok {
		return Proof{Why: "the token has not been probed"}
	}
	p, ok := sc.Operations[name]
	if !ok {
		return Proof{Why: "no such operation"}
	}
	return p
}

// CanGenerate tells whether the token can generate and use keys of the spec for the purpose: nil, or an error that matches [ErrUnsupported]
// and says why not. A key for signing needs every algorithm of its spec but Ed25519ph, one for decryption both hashes, one for wrapping either
// algorithm.
func (c Capabilities) CanGenerate(spec KeySpec, purpose Purpose) error {
	info, ok := spec.info()
	if !ok || !info.can(purpose) {
		return fmt.Errorf("%w: there are no keys of spec %s for %s", ErrInvalidInput, spec, purpose)
	}
	sc, ok := c.Specs[spec.String()]
	if !ok {
		return unavailable("the token has not been probed")
	}
	if !sc.Generate.OK {
		return fmt.Errorf("%w: %s: %s", ErrUnsupported, spec, sc.Generate.Why)
	}
	if purpose == PurposeWrap && (sc.Operations[OpKWP].OK || sc.Operations[OpKW].OK) {
		return nil
	}
	for _, name := range spec.operations(purpose) {
		if p := sc.Operations[name]; !p.OK && name != algEd25519ph.String() {
			return fmt.Errorf("%w: %s with %s: %s", ErrUnsupported, name, spec, p.Why)
		}
	}
	return nil
}

// CanWrap tells whether the token can wrap n bytes by the algorithm: nil, ErrInvalidInput for lengths that it does not have, ErrUnavailable when
// that is not known yet, or an error that matches [ErrUnsupported] and says why not.
func (c Capabilities) CanWrap(alg WrapAlgorithm, n int) error {
	if err := alg.takes(n); err != nil {
		return err
	}
	if len(c.Specs) == 0 {
		return unavailable("the token has not been probed")
	}
	if _, err := c.wrapMechanism(alg); err != nil {
		return err
	}
	if odd := c.Wrapping.KWPWrapsOdd; alg == AESKWP && n%wrapBlock != 0 && !odd.OK {
		return fmt.Errorf("%w: %s of %d bytes by %s: %s; wrap a multiple of %d bytes", ErrUnsupported, alg, n, kwpName(c.Wrapping.KWPMechanism), odd.Why, wrapBlock)
	}
	return nil
}

// kwpName names a mechanism that may be RFC 5649.
func kwpName(mechanism uint) string {
	if mechanism == ckmAESKeyWrapPad {
		return "CKM_AES_KEY_WRAP_PAD"
	}
	return "CKM_AES_KEY_WRAP_KWP"
}

// wrapMechanism returns the mechanism by which the token does the algorithm.
func (c Capabilities) wrapMechanism(alg WrapAlgorithm) (uint, error) {
	if p := c.Operation(AES256, alg.String()); !p.OK {
		return 0, fmt.Errorf("%w: %s: %s", ErrUnsupported, alg, p.Why)
	}
	if alg == AESKW {
		return ckmAESKeyWrap, nil
	}
	return c.Wrapping.KWPMechanism, nil
}

// Missing lists what the token was not able to prove, for operators: one line each, sorted.
func (c Capabilities) Missing() []string {
	var lines []string
	for name, sc := range c.Specs {
		if !sc.Generate.OK {
			lines = append(lines, fmt.Sprintf("%s: %s", name, sc.Generate.Why))
			continue
		}
		for op, p := range sc.Operations {
			if !p.OK {
				lines = append(lines, fmt.Sprintf("%s %s: %s", name, op, p.Why))
			}
		}
	}
	for member, why := range c.Reasons {
		lines = append(lines, fmt.Sprintf("%s: %s", member, why))
	}
	sort.Strings(lines)
	return lines
}

// because turns the error of a probe into a short reason without the package's prefix.
func because(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Call + " answers " + CodeName(e.RV)
	}
	return err.Error()
}
