package witness

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/ThalesIgnite/crypto11"
)

// Main is the child: it reads one request and a PIN from stdin, looks at the
// token with crypto11, and writes one answer to stdout. The error is for the
// process's exit; what disagrees is in the answer and not an error. It must be
// alone in its process.
func Main(stdin io.Reader, stdout io.Writer) error {
	// The PIN becomes a string, which cannot be wiped, so no core may hold it. Where
	// this fails the parent's own limit still stands.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	var req request
	if err := readJSON(stdin, &req); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	pin, err := readFrame(stdin)
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	a, err := look(req, pin)
	if err != nil {
		a.Err = err.Error()
	}
	if err := writeJSON(stdout, a); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	return nil
}

func look(req request, pin []byte) (a answer, err error) {
	c, err := crypto11.Configure(&crypto11.Config{
		Path: req.Module, TokenSerial: req.Serial, Pin: string(pin), MaxSessions: 4,
		GCMIVLength: 12, // its default is 16
	})
	clear(pin)
	if err != nil {
		return a, fmt.Errorf("crypto11: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, s := range req.Ours {
		a.Ours = append(a.Ours, safely(func() (finding, error) { return ours(c, s) }))
	}
	for _, s := range req.Theirs {
		a.Theirs = append(a.Theirs, safely(func() (finding, error) { return theirs(c, s) }))
	}
	return a, nil
}

// safely turns crypto11's panics, which its Seal and Sum answer every error
// with, into errors.
func safely(fn func() (finding, error)) (f finding) {
	defer func() {
		if r := recover(); r != nil {
			f.Err = fmt.Sprintf("crypto11 panics: %v", r)
		}
	}()
	f, err := fn()
	if err != nil {
		f.Err = err.Error()
	}
	return f
}

// ours uses a key that keyhold made.
func ours(c *crypto11.Context, s subject) (finding, error) {
	if s.Kind == kindAES {
		key, err := c.FindKey(s.ID, nil)
		if err != nil {
			return finding{}, fmt.Errorf("FindKey: %w", err)
		}
		if key == nil {
			return finding{}, errors.New("FindKey finds no such key")
		}
		return seal(key, s)
	}
	pair, err := c.FindKeyPair(s.ID, nil)
	if err != nil {
		return finding{}, fmt.Errorf("FindKeyPair: %w", err)
	}
	if pair == nil {
		return finding{}, errors.New("FindKeyPair finds no such pair")
	}
	return sign(pair, s)
}

// theirs makes a key, and uses it as if it were keyhold's.
func theirs(c *crypto11.Context, s subject) (finding, error) {
	private, err := attributes(s.ID)
	if err != nil {
		return finding{}, err
	}
	public, err := crypto11.NewAttributeSetWithIDAndLabel(s.ID, []byte(Label))
	if err != nil {
		return finding{}, err
	}
	switch s.Kind {
	case kindAES:
		key, err := c.GenerateSecretKeyWithAttributes(private, 256, crypto11.CipherAES)
		if err != nil {
			return finding{}, fmt.Errorf("GenerateSecretKey: %w", err)
		}
		return seal(key, s)
	case kindRSA:
		pair, err := c.GenerateRSAKeyPairWithAttributes(public, private, 2048)
		if err != nil {
			return finding{}, fmt.Errorf("GenerateRSAKeyPair: %w", err)
		}
		return sign(pair, s)
	case kindP256:
		pair, err := c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
		if err != nil {
			return finding{}, fmt.Errorf("GenerateECDSAKeyPair: %w", err)
		}
		return sign(pair, s)
	}
	return finding{}, fmt.Errorf("unknown kind of key %q", s.Kind)
}

// attributes names a key, and makes it private: crypto11 leaves CKA_PRIVATE to
// the token, and SoftHSM keeps what is not private in the clear.
func attributes(id []byte) (crypto11.AttributeSet, error) {
	set, err := crypto11.NewAttributeSetWithIDAndLabel(id, []byte(Label))
	if err != nil {
		return nil, err
	}
	return set, set.Set(crypto11.CkaPrivate, true)
}

// seal opens what keyhold sealed, if it sealed anything, and seals the same
// under another IV.
func seal(key *crypto11.SecretKey, s subject) (finding, error) {
	aead, err := key.NewGCM()
	if err != nil {
		return finding{}, fmt.Errorf("NewGCM: %w", err)
	}
	var f finding
	if s.Sealed != nil {
		opened, err := aead.Open(nil, s.IV, s.Sealed, s.AAD)
		if err != nil {
			return f, fmt.Errorf("open what keyhold sealed: %w", err)
		}
		f.Opened = bytes.Equal(opened, s.Plaintext)
		_, err = aead.Open(nil, s.IV, s.Sealed, append(bytes.Clone(s.AAD), 0))
		f.Refused = err != nil
	}
	f.Sealed = aead.Seal(nil, s.NextIV, s.Plaintext, s.AAD)
	return f, nil
}

// sign verifies keyhold's signature, if it made one, and signs the same digest.
func sign(pair crypto11.Signer, s subject) (finding, error) {
	var f finding
	var err error
	if f.SPKI, err = x509.MarshalPKIXPublicKey(pair.Public()); err != nil {
		return f, fmt.Errorf("public key: %w", err)
	}
	if s.Signature != nil {
		f.Opened = bytes.Equal(f.SPKI, s.SPKI) && verifies(pair.Public(), s.Digest, s.Signature)
		changed := sha256.Sum256(s.Digest)
		f.Refused = !verifies(pair.Public(), changed[:], s.Signature)
	}
	if f.Signature, err = pair.Sign(rand.Reader, s.Digest, crypto.SHA256); err != nil {
		return f, fmt.Errorf("sign: %w", err)
	}
	return f, nil
}

// verifies uses the standard library, and none of keyhold's code.
func verifies(public crypto.PublicKey, digest, signature []byte) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	}
	return false
}
