package hsm

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm/pubkey"
)

// probe finds out what the token can do, by calls whose results the host checks, on session objects only: the token keeps nothing of it.
// What C_GetMechanismInfo says is not believed: SoftHSM 2.6.1 lists OAEP and refuses it with SHA-256, and takes Ed25519ph and signs plain
// Ed25519. No secret is brought in from outside either, since hardware commonly refuses that.
//
// It costs about 0.5 s on SoftHSM, nearly all of it one RSA-2048 key pair, and is skipped when the configured cache knows the token. The
// error is that of a token that went away meanwhile; what the token merely cannot do is in the answer.
//
// s must be a session of the probe's own, to be closed afterwards: what is tried may leave operations behind in it.
func (c *conn) probe(s *session) (*Capabilities, error) {
	name := c.probeName()
	if caps := c.cachedProbe(name); caps != nil {
		return caps, nil
	}
	began := time.Now()
	p := &prober{s: s, caps: &Capabilities{
		Format: capabilitiesFormat, Token: name,
		Specs: map[string]SpecCapability{}, Reasons: map[string]string{},
	}}
	for _, spec := range KeySpecs() {
		p.caps.Specs[spec.String()] = SpecCapability{Operations: map[string]Proof{}}
	}
	// What a token refuses may leave the session unusable, so refusals come last.
	for _, step := range []func() error{p.lock, p.aes, p.macs, p.curves, p.rsa, p.wraps, p.refusals, p.wrapRefusals} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if _, err := s.p.GetSessionInfo(s.h); err != nil {
		return nil, callError("C_GetSessionInfo", err)
	}
	c.t.log.Info("token probed", "duration", time.Since(began), "missing", len(p.caps.Missing()))
	c.keepProbe(name, p.caps)
	return p.caps, nil
}

// probeName names what capabilities depend on: the token, its firmware and the library.
func (c *conn) probeName() string {
	library := "unknown"
	if info, err := c.p.GetInfo(); err == nil {
		library = info.LibraryDescription + " " + version(info.LibraryVersion)
	}
	return fmt.Sprintf("v%d %s/%s/%s firmware %s library %s", capabilitiesFormat, c.info.ManufacturerID, c.info.Model, c.info.SerialNumber, version(c.info.FirmwareVersion), library)
}

func (c *conn) cachedProbe(name string) *Capabilities {
	if c.t.cfg.ProbeCache == nil {
		return nil
	}
	raw, ok := c.t.cfg.ProbeCache.Get(name)
	if !ok {
		return nil
	}
	var caps Capabilities
	if err := json.Unmarshal(raw, &caps); err != nil || caps.Format != capabilitiesFormat || caps.Token != name {
		c.t.log.Warn("cached capabilities are not understood: the token is probed again", "err", err)
		return nil
	}
	return &caps
}

func (c *conn) keepProbe(name string, caps *Capabilities) {
	if c.t.cfg.ProbeCache == nil {
		return
	}
	if raw, err := json.Marshal(caps); err == nil {
		c.t.cfg.ProbeCache.Put(name, raw)
	}
}

// prober is one probe under way.
type prober struct {
	s    *session
	caps *Capabilities

	// Kept until the refusals: keys that work, 0 where there is none.
	aesKey  pkcs11.ObjectHandle
	rsaKey  pkcs11.ObjectHandle
	rsaPub  pkcs11.ObjectHandle
	rsaSPKI *pubkey.Key
}

// gone tells whether the error means that there is nothing left to probe. CKR_GENERAL_ERROR and CKR_FUNCTION_FAILED do not: some libraries say them
// for anything that they do not know.
func gone(err error) bool {
	switch classify(err) {
	case classSession, classLogin, classModule, classFull:
		return !isCode(err, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED)
	case classDevice:
		return !isCode(err, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_HOST_MEMORY)
	}
	return false
}

// verdict turns the outcome of a test into a proof; an error is returned only when the token is gone.
func verdict(how string, err error) (Proof, error) {
	switch {
	case err == nil:
		return Proof{OK: true, How: how}, nil
	case gone(err):
		return Proof{}, err
	}
	return Proof{Why: because(err)}, nil
}

func (p *prober) set(spec KeySpec, operation string, proof Proof) {
	p.caps.Specs[spec.String()].Operations[operation] = proof
}

func (p *prober) setGenerate(spec KeySpec, proof Proof) {
	sc := p.caps.Specs[spec.String()]
	sc.Generate = proof
	p.caps.Specs[spec.String()] = sc
	if !proof.OK {
		for _, purpose := range spec.Purposes() {
			for _, name := range spec.operations(purpose) {
				p.set(spec, name, Proof{Why: proof.Why})
			}
		}
	}
}

// destroy ends a probe's object; one that cannot be destroyed dies with the session.
func (p *prober) destroy(objects ...pkcs11.ObjectHandle) {
	for _, h := range objects {
		_ = p.s.p.DestroyObject(p.s.h, h)
	}
}

// secret generates a session key, in the clear when the host is to know it.
func (p *prober) secret(spec KeySpec, purpose Purpose, clearText bool) (pkcs11.ObjectHandle, error) {
	info, _ := spec.info()
	template, _ := templates(GenerateRequest{Spec: spec, Purpose: purpose, ID: randomBytes(16), Label: "keyhold-probe"}, info, p.caps, false)
	if clearText {
		for _, a := range template {
			switch a.Type {
			case pkcs11.CKA_SENSITIVE:
				a.Value = []byte{0}
			case pkcs11.CKA_EXTRACTABLE:
				a.Value = []byte{1}
			}
		}
	}
	h, err := p.s.p.GenerateKey(p.s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(info.generate, nil)}, template)
	return h, p.s.fail("C_GenerateKey", err)
}

// known generates a session key that the host may read, and reads it; where the token has none, one that the host cannot: value is nil then.
func (p *prober) known(spec KeySpec, purpose Purpose) (h pkcs11.ObjectHandle, value []byte, err error) {
	info, _ := spec.info()
	if h, err = p.secret(spec, purpose, true); err == nil {
		value, err := p.s.direct().attribute(p.s.h, h, pkcs11.CKA_VALUE, info.bytes)
		if err == nil && len(value) == info.bytes {
			return h, value, nil
		}
		p.destroy(h)
	} else if gone(err) {
		return 0, nil, err
	}
	h, err = p.secret(spec, purpose, false)
	return h, nil, err
}

var errWrongAnswer = errors.New("the token's answer is wrong")

// aes probes AES-256-GCM.
func (p *prober) aes() error {
	h, value, err := p.known(AES256, PurposeSeal)
	proof, err := verdict("generated", err)
	if err != nil {
		return err
	}
	p.setGenerate(AES256, proof)
	if !proof.OK {
		p.caps.Reasons["ivSource"] = proof.Why
		return nil
	}
	defer clear(value)
	how := "known answer"
	if value == nil {
		how = "round trip"
	}
	proof, err = verdict(how, p.gcm(h, value))
	if err != nil {
		return err
	}
	p.set(AES256, OpSeal, proof)
	if !proof.OK {
		p.destroy(h)
		p.caps.Reasons["ivSource"] = proof.Why
		return nil
	}
	p.caps.IVSource = "caller"
	p.aesKey = h
	return nil
}

// gcm checks sealing and opening against the host, or where the key is unknown against each other.
func (p *prober) gcm(h pkcs11.ObjectHandle, value []byte) error {
	d, s := p.s.direct(), p.s
	aad, plaintext := []byte("keyhold probe"), randomBytes(48)
	for _, ivBytes := range []int{sealIVBytes, maxOpenIVBytes} {
		iv := randomBytes(ivBytes)
		sealed, call, err := d.gcm(opEncrypt(), s.h, h, iv, aad, plaintext, len(plaintext)+gcmTagBytes)
		if err != nil {
			return callError(call, err)
		}
		if value != nil {
			want, err := hostGCM(value, iv, plaintext, aad)
			if err != nil {
				return err
			}
			if !bytes.Equal(sealed, want) {
				return errWrongAnswer
			}
		} else if again, _, err := d.gcm(opEncrypt(), s.h, h, iv, aad, plaintext, len(plaintext)+gcmTagBytes); err != nil || !bytes.Equal(sealed, again) {
			return errors.New("the token does not encrypt with the IV that it is given")
		}
		opened, call, err := d.gcm(opDecrypt(), s.h, h, iv, aad, sealed, len(sealed))
		if err != nil {
			return callError(call, err)
		}
		if !bytes.Equal(opened, plaintext) {
			return errWrongAnswer
		}
	}
	return nil
}

func hostGCM(key, iv, plaintext, aad []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithNonceSize(block, len(iv))
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, iv, plaintext, aad), nil
}

// macs probes the HMACs.
func (p *prober) macs() error {
	for _, spec := range []KeySpec{HMAC224, HMAC256, HMAC384, HMAC512} {
		info, _ := spec.info()
		h, value, err := p.known(spec, PurposeMAC)
		proof, err := verdict("generated", err)
		if err != nil {
			return err
		}
		p.setGenerate(spec, proof)
		if !proof.OK {
			continue
		}
		how := "known answer"
		if value == nil {
			how = "round trip"
			err = p.s.pairMAC(h, info)
		} else {
			message := randomBytes(100)
			host := hmac.New(map[int]crypto.Hash{28: crypto.SHA224, 32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512}[info.bytes].New, value)
			host.Write(message)
			var code []byte
			if code, err = p.s.mac(h, info, message); err == nil && !hmac.Equal(code, host.Sum(nil)) {
				err = errWrongAnswer
			}
		}
		clear(value)
		p.destroy(h)
		if proof, err = verdict(how, err); err != nil {
			return err
		}
		p.set(spec, hmacName(info.bytes), proof)
	}
	return nil
}

// curves probes key pairs on curves.
func (p *prober) curves() error {
	for _, spec := range []KeySpec{P256, P384, P521, Secp256k1, Ed25519} {
		for _, purpose := range spec.Purposes() {
			if err := p.curve(spec, purpose); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *prober) curve(spec KeySpec, purpose Purpose) error {
	info, _ := spec.info()
	private, public, key, err := p.pair(spec, purpose)
	proof, err := verdict("generated", err)
	if err != nil {
		return err
	}
	if p.setGenerate(spec, proof); !proof.OK {
		return nil
	}
	defer p.destroy(private, public)
	if purpose == PurposeDerive {
		err = p.s.pairDerive(private, info, key, p.caps.DERPoints)
		if err != nil && !gone(err) && !p.caps.DERPoints {
			if p.s.pairDerive(private, info, key, true) == nil {
				p.caps.DERPoints, err = true, nil
			}
		}
		if proof, err = verdict("known answer", err); err != nil {
			return err
		}
		p.set(spec, OpECDH, proof)
		return nil
	}
	for _, alg := range spec.Algorithms() {
		err := p.s.pairSign(private, info, key, alg)
		if alg == algEd25519ph && errors.Is(err, pubkey.ErrSignature) {
			err = errors.New("the token signs plain Ed25519 instead")
		}
		if proof, err = verdict("pairwise", err); err != nil {
			return err
		}
		p.set(spec, alg.String(), proof)
	}
	return nil
}

// pair generates a session key pair as Generate would.
func (p *prober) pair(spec KeySpec, purpose Purpose, more ...*pkcs11.Attribute) (private, public pkcs11.ObjectHandle, key *pubkey.Key, err error) {
	info, _ := spec.info()
	priv, pub := templates(GenerateRequest{Spec: spec, Purpose: purpose, ID: randomBytes(16), Label: "keyhold-probe"}, info, p.caps, false)
	public, private, err = p.s.p.GenerateKeyPair(p.s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(info.generate, nil)}, pub, append(priv, more...))
	if err != nil {
		return 0, 0, nil, p.s.fail("C_GenerateKeyPair", err)
	}
	if key, err = p.s.publicKey(public, info); err != nil {
		p.destroy(private, public)
		return 0, 0, nil, err
	}
	return private, public, key, nil
}
