package hsm

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// rsa probes RSA: the mechanisms with one pair of 2048 bits, the other sizes by what the token says about generating them (a probe of
// 4096 bits costs a second on a fast token and a minute on a slow one; each generated pair is tested anyway).
func (p *prober) rsa() error {
	// One pair for both purposes, which real keys never are.
	caps := *p.caps
	caps.AllowedMechanismsEnforced = false
	saved := p.caps
	p.caps = &caps
	private, public, key, err := p.pair(RSA2048, PurposeSign, pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true))
	p.caps = saved
	proof, err := verdict("generated", err)
	if err != nil {
		return err
	}
	p.setGenerate(RSA2048, proof)
	if !proof.OK {
		for _, spec := range []KeySpec{RSA3072, RSA4096} {
			p.setGenerate(spec, proof)
		}
		return nil
	}
	p.rsaKey, p.rsaPub, p.rsaSPKI = private, public, key
	if err := p.rsaMechanisms(); err != nil {
		return err
	}
	for _, spec := range []KeySpec{RSA3072, RSA4096} {
		p.setGenerate(spec, p.rsaSize(spec))
		if sc := p.caps.Specs[spec.String()]; sc.Generate.OK {
			for name, proof := range p.caps.Specs[RSA2048.String()].Operations {
				p.set(spec, name, proof)
			}
		}
	}
	return nil
}

// rsaSize tells whether the token claims to generate RSA keys of a size. Some tokens count in bytes.
func (p *prober) rsaSize(spec KeySpec) Proof {
	info, _ := spec.info()
	mi, err := p.s.p.GetMechanismInfo(p.s.c.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)})
	if err != nil {
		return Proof{Why: because(callError("C_GetMechanismInfo", err))}
	}
	most := mi.MaxKeySize
	if most <= 1024 {
		most *= 8
	}
	if most < uint(8*info.bytes) {
		return Proof{Why: fmt.Sprintf("the token generates RSA keys of up to %d bits", most)}
	}
	return Proof{OK: true, How: "declared"}
}

func (p *prober) rsaMechanisms() error {
	info, _ := RSA2048.info()
	for _, alg := range RSA2048.Algorithms() {
		proof, err := verdict("pairwise", p.s.pairSign(p.rsaKey, info, p.rsaSPKI, alg))
		if err != nil {
			return err
		}
		p.set(RSA2048, alg.String(), proof)
	}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		where := oaepInToken
		inToken := p.tryOAEP(info, h, where)
		err := inToken
		if err != nil && !gone(err) {
			where = oaepOnHost
			if err = p.tryOAEP(info, h, where); err != nil && !gone(err) {
				err = fmt.Errorf("in the token: %s; by raw RSA: %s", because(inToken), because(err))
			}
		}
		how := "known answer"
		if where == oaepOnHost {
			how = "known answer (raw RSA in the token, padding here)"
		}
		proof, err := verdict(how, err)
		if err != nil {
			return err
		}
		p.set(RSA2048, oaepName(h), proof)
		member, to := "oaepSha1", &p.caps.OAEPSHA1
		if h == crypto.SHA256 {
			member, to = "oaepSha256", &p.caps.OAEPSHA256
		}
		if !proof.OK {
			p.caps.Reasons[member] = proof.Why
			continue
		}
		*to = where
		if where == oaepOnHost {
			p.caps.Reasons[member] = "the padding is taken off here, since in the token " + because(inToken)
		}
	}
	return nil
}

// tryOAEP decrypts what the host encrypted. It goes past Key and authFail, since a refusal here says what the token cannot do.
func (p *prober) tryOAEP(info specInfo, h crypto.Hash, where string) error {
	plaintext := randomBytes(32)
	ciphertext, err := p.rsaSPKI.EncryptOAEP(h, plaintext)
	if err != nil {
		return err
	}
	got, err := p.rawOAEP(info, h, where, ciphertext)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, plaintext) {
		return errWrongAnswer
	}
	return nil
}

func (p *prober) rawOAEP(info specInfo, h crypto.Hash, where string, ciphertext []byte) ([]byte, error) {
	mechanism, param := oaepMechanism(h, where)
	out, call, err := p.s.direct().one(opDecrypt(), p.s.h, p.rsaKey, mechanism, param, ciphertext, info.bytes)
	if err != nil {
		return nil, callError(call, err)
	}
	if where == oaepInToken {
		return out, nil
	}
	return unpadOAEP(h, out, info.bytes)
}

// lock probes whether CKA_ALLOWED_MECHANISMS binds, and whether a key can be copied into a session without becoming weaker.
func (p *prober) lock() error {
	h, err := p.lockedKey()
	if err != nil {
		if gone(err) {
			return err
		}
		p.caps.Reasons["allowedMechanismsEnforced"] = because(err)
		p.caps.Reasons["sessionCopies"] = "keys are not modifiable on this token, and such keys are not copied"
		return nil
	}
	defer p.destroy(h)
	p.caps.AllowedMechanismsEnforced = true
	copied, err := p.s.p.CopyObject(p.s.h, h, copyTemplate(false))
	if err == nil {
		defer p.destroy(copied)
		err = p.checkCopy(h, copied)
	} else {
		err = callError("C_CopyObject", err)
	}
	if err != nil {
		if gone(err) {
			return err
		}
		p.caps.Reasons["sessionCopies"] = because(err)
		return nil
	}
	p.caps.SessionCopies = true
	return nil
}

// lockedKey makes a sensitive key that AES-GCM alone is allowed for, and tries to use it otherwise and to widen it.
func (p *prober) lockedKey() (pkcs11.ObjectHandle, error) {
	caps := *p.caps
	caps.AllowedMechanismsEnforced = true // so that the template asks for it
	saved := p.caps
	p.caps = &caps
	h, err := p.secret(AES256, PurposeSeal, false)
	p.caps = saved
	if err != nil {
		return 0, err
	}
	info, _ := AES256.info()
	err = p.s.checkAllowed(h, allowedMechanisms(info, PurposeSeal, p.caps))
	if err == nil {
		err = p.onlyGCM(h)
	}
	if err == nil {
		// Refused, or taken without effect.
		_ = p.s.p.SetAttributeValue(p.s.h, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, ulongs(pkcs11.CKM_AES_GCM, pkcs11.CKM_AES_ECB))})
		err = p.onlyGCM(h)
	}
	if err != nil {
		p.destroy(h)
		return 0, err
	}
	return h, nil
}

// onlyGCM checks that a key works with AES-GCM and not with AES-ECB.
func (p *prober) onlyGCM(h pkcs11.ObjectHandle) error {
	if err := p.s.pairSeal(h); err != nil {
		return err
	}
	if _, _, err := p.s.direct().one(opEncrypt(), p.s.h, h, pkcs11.CKM_AES_ECB, nil, make([]byte, 16), 16); err == nil {
		return errors.New("the token names the allowed mechanisms of a key and does not enforce them")
	}
	return nil
}

// checkCopy checks that the copy is the same key, as well guarded as the original, and not to be modified.
func (p *prober) checkCopy(original, copied pkcs11.ObjectHandle) error {
	for _, f := range []struct {
		name      string
		attribute uint
		want      bool
	}{
		{"CKA_SENSITIVE", pkcs11.CKA_SENSITIVE, true},
		{"CKA_EXTRACTABLE", pkcs11.CKA_EXTRACTABLE, false},
		{"CKA_PRIVATE", pkcs11.CKA_PRIVATE, true},
		{"CKA_TOKEN", pkcs11.CKA_TOKEN, false},
		{"CKA_MODIFIABLE", pkcs11.CKA_MODIFIABLE, false},
	} {
		got, err := p.s.flag(copied, f.attribute)
		if err != nil {
			return err
		}
		if got != f.want {
			return fmt.Errorf("%s of a session copy is %t", f.name, got)
		}
	}
	info, _ := AES256.info()
	if err := p.s.checkAllowed(copied, allowedMechanisms(info, PurposeSeal, p.caps)); err != nil {
		return err
	}
	if err := p.onlyGCM(copied); err != nil {
		return err
	}
	iv, aad, plaintext := randomBytes(sealIVBytes), []byte("keyhold probe"), randomBytes(32)
	sealed, err := p.s.seal(original, iv, aad, plaintext)
	if err != nil {
		return err
	}
	opened, call, err := p.s.direct().gcm(opDecrypt(), p.s.h, copied, iv, aad, sealed, len(sealed))
	if err != nil {
		return callError(call, err)
	}
	if !bytes.Equal(opened, plaintext) {
		return errors.New("a session copy is another key")
	}
	return nil
}

// refusals checks that what was changed does not open, and whether the session works on afterwards. A token that opens it does not get to seal.
func (p *prober) refusals() error {
	survives := true
	if p.aesKey != 0 {
		defer p.destroy(p.aesKey)
		if err := p.aesRefuses(); errors.Is(err, errOpens) {
			p.set(AES256, OpSeal, Proof{Why: err.Error()})
			p.caps.IVSource, p.caps.Reasons["ivSource"] = "", err.Error()
		} else if err != nil {
			if gone(err) {
				return err
			}
			survives = false
			p.caps.Reasons["sessionSurvivesBadTag"] = because(err)
		}
	}
	if p.rsaKey != 0 {
		defer p.destroy(p.rsaKey, p.rsaPub)
		if survives {
			if err := p.rsaRefuses(); err != nil {
				if gone(err) {
					return err
				}
				survives = false
				p.caps.Reasons["sessionSurvivesBadTag"] = because(err)
			}
		}
	}
	p.caps.SessionSurvivesBadTag = survives
	return nil
}

var errOpens = errors.New("the token opens ciphertexts that were changed")

// aesRefuses: errOpens, or why the session does not go on after a refusal.
func (p *prober) aesRefuses() error {
	d, s := p.s.direct(), p.s
	iv, aad, plaintext := randomBytes(sealIVBytes), []byte("keyhold probe"), randomBytes(48)
	sealed, err := s.seal(p.aesKey, iv, aad, plaintext)
	if err != nil {
		return err
	}
	change := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i] ^= 1
		return b
	}
	for _, bad := range []struct{ iv, aad, sealed []byte }{
		{iv, aad, change(sealed, len(sealed)-1)}, // tag
		{iv, aad, change(sealed, 0)},
		{iv, change(aad, 0), sealed},
		{change(iv, 0), aad, sealed},
		{iv, aad, sealed[:len(sealed)-1]},
	} {
		_, call, err := d.gcm(opDecrypt(), s.h, p.aesKey, bad.iv, bad.aad, bad.sealed, len(bad.sealed))
		if err == nil {
			return errOpens
		}
		if gone(callError(call, err)) {
			return callError(call, err)
		}
		if err := s.pairSeal(p.aesKey); err != nil {
			return fmt.Errorf("after a ciphertext that did not open: %w", err)
		}
	}
	return nil
}

// noOAEP takes back what rsaMechanisms found.
func (p *prober) noOAEP(h crypto.Hash, why string) {
	member, to := "oaepSha1", &p.caps.OAEPSHA1
	if h == crypto.SHA256 {
		member, to = "oaepSha256", &p.caps.OAEPSHA256
	}
	*to, p.caps.Reasons[member] = "", why
	for _, spec := range []KeySpec{RSA2048, RSA3072, RSA4096} {
		p.set(spec, oaepName(h), Proof{Why: why})
	}
}

// rsaRefuses is the same for RSA-OAEP.
func (p *prober) rsaRefuses() error {
	info, _ := RSA2048.info()
	other := bytes.Repeat([]byte{0x5a}, info.bytes) // below the modulus, whose top bit is set
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		where := p.caps.oaep(h)
		if where == "" {
			continue
		}
		if _, err := p.rawOAEP(info, h, where, other); err != nil && gone(err) {
			return err
		}
		// RFC 8017, 5.1.2, step 1: a number above the modulus is no ciphertext. Were it taken, each ciphertext would have a second one.
		mechanism, param := oaepMechanism(h, where)
		above := bytes.Repeat([]byte{0xff}, info.bytes)
		if _, call, err := p.s.direct().one(opDecrypt(), p.s.h, p.rsaKey, mechanism, param, above, info.bytes); err == nil {
			p.noOAEP(h, "the token decrypts numbers above the modulus")
			continue
		} else if gone(callError(call, err)) {
			return callError(call, err)
		}
		if err := p.tryOAEP(info, h, where); err != nil {
			return fmt.Errorf("after a ciphertext that did not decrypt: %w", err)
		}
	}
	return nil
}
