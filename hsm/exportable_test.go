package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"testing"

	"github.com/miekg/pkcs11"
)

// knownWrapKey brings a wrapping key into the token whose value the test knows.
func knownWrapKey(t *testing.T, tok *Token, id string) (*Key, []byte) {
	t.Helper()
	value := randomBytes(32)
	attr := pkcs11.NewAttribute
	manually(t, tok, func(s *session) error {
		_, err := s.p.CreateObject(s.h, []*pkcs11.Attribute{
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true),
			attr(pkcs11.CKA_ID, []byte(id)), attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_VALUE, value),
		})
		return err
	})
	return tok.Key(AES256, PurposeWrap, []byte(id)), value
}

// TestWrapKeyExports: what leaves the token, under a key that the test knows, is the key that sealed and signed in it.
func TestWrapKeyExports(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(quiet(w.token("alpha")))
	kek, value := knownWrapKey(t, tok, "kek")
	export := func(alg WrapAlgorithm, target *Key) []byte {
		t.Helper()
		wrapped, err := kek.WrapKey(ctx(t), alg, target)
		if err != nil {
			t.Fatalf("WrapKey by %s: %v", alg, err)
		}
		key, err := hostUnwrap(alg, value, wrapped)
		check(t, err)
		return key
	}
	sealing := exportableKey(t, tok, AES256, "sealing")
	iv, sealed, err := seal(ctx(t), sealing)
	check(t, err)
	hot(t, tok, sealing) // the object that is wrapped is the token's, not the copy
	for _, alg := range []WrapAlgorithm{AESKWP, AESKW} {
		block, err := aes.NewCipher(export(alg, sealing))
		check(t, err)
		gcm, err := cipher.NewGCM(block)
		check(t, err)
		opened, err := gcm.Open(nil, iv, sealed, testAAD)
		if err != nil || string(opened) != "plaintext" {
			t.Errorf("%s: what the token sealed opens to %q, %v", alg, opened, err)
		}
	}
	for _, spec := range []KeySpec{HMAC256, HMAC384, HMAC512} {
		signing := exportableKey(t, tok, spec, spec.String())
		info, _ := spec.info()
		key := export(AESKWP, signing)
		if len(key) != info.bytes || !bytes.Equal(key, export(AESKW, signing)) {
			t.Errorf("%s: %d bytes", spec, len(key))
		}
		if spec != HMAC256 {
			continue
		}
		code, err := signing.MAC(ctx(t), []byte("message"))
		check(t, err)
		host := hmac.New(sha256.New, key)
		host.Write([]byte("message"))
		if !hmac.Equal(code, host.Sum(nil)) {
			t.Error("the exported HMAC key makes another code")
		}
	}
	// 28 bytes are no multiple of 8: SoftHSM would wrap them wrongly by one algorithm, and the other does not have them.
	short := exportableKey(t, tok, HMAC224, "HMAC_224")
	_, err = kek.WrapKey(ctx(t), AESKWP, short)
	wantErr(t, "28 bytes by AES-KWP", err, ErrUnsupported)
	_, err = kek.WrapKey(ctx(t), AESKW, short)
	wantErr(t, "28 bytes by AES-KW", err, ErrInvalidInput)
}

// TestWrapKeyRefuses: keys that were not made to leave, and what is no secret key.
func TestWrapKeyRefuses(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(quiet(w.token("alpha")))
	other := w.ready(quiet(w.token("beta")))
	kek, target := wrapKey(t, tok, "kek"), exportableKey(t, tok, AES256, "target")
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("pair"), Label: "pair"})
	check(t, err)
	wrapsBefore := w.fault.Calls(t, "C_WrapKey")
	for name, c := range map[string]struct {
		k, target *Key
		alg       WrapAlgorithm
		want      error
	}{
		"a default key":             {kek, aesKey(t, tok, "default"), AESKW, ErrNotExtractable},
		"a wrapping key":            {kek, wrapKey(t, tok, "other"), AESKW, ErrNotExtractable},
		"itself":                    {kek, kek, AESKW, ErrNotExtractable},
		"a pair":                    {kek, tok.Key(P256, PurposeSign, []byte("pair")), AESKWP, ErrUnsupported},
		"another token's":           {kek, exportableKey(t, other, AES256, "target"), AESKW, ErrInvalidInput},
		"no algorithm":              {kek, target, 0, ErrInvalidInput},
		"an unknown one":            {kek, target, wrapEnd, ErrInvalidInput},
		"under a key that seals":    {aesKey(t, tok, "one"), target, AESKW, ErrInvalidInput},
		"named for another use":     {tok.Key(AES256, PurposeWrap, []byte("one")), target, AESKW, nil},
		"a default key, as an HMAC": {kek, tok.Key(HMAC256, PurposeMAC, []byte("default")), AESKW, ErrNotExtractable},
	} {
		wrapped, err := c.k.WrapKey(ctx(t), c.alg, c.target)
		if err == nil || wrapped != nil {
			t.Errorf("%s: %x, %v", name, wrapped, err)
		} else if c.want != nil {
			wantErr(t, name, err, c.want)
		}
	}
	// Four times for the pairwise tests of the other wrapping key, once for the key that is named for another use.
	if n := w.fault.Calls(t, "C_WrapKey") - wrapsBefore; n > 5 {
		t.Errorf("C_WrapKey was called %d times for keys that may not leave", n)
	}
	if _, err := kek.WrapKey(ctx(t), AESKW, target); err != nil {
		t.Errorf("the one that may: %v", err)
	}
}

// TestGenerateExportable: only where that was asked for, and only for secret keys that do not wrap.
func TestGenerateExportable(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(quiet(w.token("alpha")))
	for _, spec := range KeySpecs() {
		info, _ := spec.info()
		for _, purpose := range spec.Purposes() {
			req := GenerateRequest{Spec: spec, Purpose: purpose, ID: []byte(spec.String()), Label: "label", Exportable: true}
			a, err := tok.Generate(ctx(t), req)
			if info.asymmetric() || purpose == PurposeWrap {
				wantErr(t, spec.String()+" for "+purpose.String(), err, ErrInvalidInput)
				continue
			}
			check(t, err)
			if !a.Extractable || a.NeverExtractable || !a.Sensitive || !a.AlwaysSensitive || !a.Local || !a.Private {
				t.Errorf("%s: attested %+v", spec, a)
			}
		}
	}
	all, err := tok.Custody(ctx(t))
	check(t, err)
	for i := range all {
		c := &all[i]
		if c.Label != "label" {
			continue
		}
		wantErr(t, "an exportable key passes for one that cannot leave", c.Proven(), ErrCustody)
		check(t, c.ProvenExportable())
	}
}

// TestCopyOfExportableKey cannot be exported.
func TestCopyOfExportableKey(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(quiet(w.token("alpha")))
	k, kek := exportableKey(t, tok, AES256, "one"), wrapKey(t, tok, "kek")
	hot(t, tok, k)
	c := tok.state.Load().conn
	copied := c.copies.byName[k.object()].h
	wrapping, _, err := c.index.get(kek.object())
	check(t, err)
	manually(t, tok, func(s *session) error {
		extractable, err := s.flag(copied, pkcs11.CKA_EXTRACTABLE)
		if err != nil || extractable {
			t.Errorf("the copy is extractable: %t, %v", extractable, err)
		}
		_, err = s.wrap(wrapping, copied, ckmAESKeyWrap, 40)
		wantErr(t, "wrap the copy", err, ErrNotExtractable)
		return nil
	})
}
