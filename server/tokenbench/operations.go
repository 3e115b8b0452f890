package tokenbench

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

// Uncopied is what the names of operations end with that use the token's
// objects and no session copies.
const Uncopied = ":uncopied"

// ivBytes is the length of an IV of AES-GCM here.
const ivBytes = 12

// aad is what the core binds to a ciphertext: as long, and of no other meaning.
func aad() []byte { return make([]byte, 32) }

// seals makes the operations of AES-GCM.
func seals(ctx context.Context, payload int) func(*hsm.Token, []byte, string) ([]*operation, error) {
	return func(t *hsm.Token, id []byte, suffix string) ([]*operation, error) {
		k := t.Key(hsm.AES256, hsm.PurposeSeal, id)
		plaintext, bound := make([]byte, payload), aad()
		// No IV is used twice: the last eight bytes count, the first say who counts.
		iv := func(n uint64) []byte {
			b := make([]byte, ivBytes)
			b[0] = byte(len(suffix))
			binary.BigEndian.PutUint64(b[ivBytes-8:], n)
			return b
		}
		fixed := make([]byte, ivBytes)
		fixed[0], fixed[1] = byte(len(suffix)), 1
		sealed, err := k.Seal(ctx, fixed, bound, plaintext)
		if err != nil {
			return nil, err
		}
		return []*operation{
			{name: opEncrypt + suffix, payload: payload, call: func(ctx context.Context, n uint64) error {
				_, err := k.Seal(ctx, iv(n), bound, plaintext)
				return err
			}},
			{name: opDecrypt + suffix, payload: payload, call: func(ctx context.Context, _ uint64) error {
				_, err := k.Open(ctx, fixed, bound, sealed)
				return err
			}},
		}, nil
	}
}

// macs makes the operation of HMAC.
func macs(payload int) func(*hsm.Token, []byte, string) ([]*operation, error) {
	return func(t *hsm.Token, id []byte, suffix string) ([]*operation, error) {
		k, message := t.Key(hsm.HMAC256, hsm.PurposeMAC, id), make([]byte, payload)
		return []*operation{{name: opMAC + suffix, payload: payload, call: func(ctx context.Context, _ uint64) error {
			_, err := k.MAC(ctx, message)
			return err
		}}}, nil
	}
}

// signs makes the operation of a signature. The digest is made once: the host
// makes it, not the token.
func signs(name string, spec hsm.KeySpec, alg hsm.SignatureAlgorithm, payload int) func(*hsm.Token, []byte, string) ([]*operation, error) {
	return func(t *hsm.Token, id []byte, suffix string) ([]*operation, error) {
		digest := sha256.Sum256(make([]byte, payload))
		k := t.Key(spec, hsm.PurposeSign, id)
		return []*operation{{name: name + suffix, payload: len(digest), call: func(ctx context.Context, _ uint64) error {
			_, err := k.Sign(ctx, alg, digest[:])
			return err
		}}}, nil
	}
}

// Names of operations.
const (
	opEncrypt = "encrypt"
	opDecrypt = "decrypt"
	opMAC     = "mac"
	opP256    = "sign-p256"
	opRSA2048 = "sign-rsa2048"
	opRandom  = "random"
)

// Names returns the names of all operations of a token.
func Names() []string {
	copied := []string{opEncrypt, opDecrypt, opMAC, opP256}
	var all []string
	for _, name := range copied {
		all = append(all, name, name+Uncopied)
	}
	return append(all, opRSA2048, opRandom)
}

// operations makes the keys and what is measured with them, as far as names has
// it. What the token cannot do is left out.
func operations(ctx context.Context, k *keys, uncopied *hsm.Token, payload int, names []string) ([]*operation, error) {
	var all []*operation
	wanted := func(name string) bool { return slices.Contains(names, name) }
	add := func(ops []*operation) {
		all = append(all, slices.DeleteFunc(ops, func(op *operation) bool { return !wanted(op.name) })...)
	}
	for _, kind := range []struct {
		names   []string
		spec    hsm.KeySpec
		purpose hsm.Purpose
		copies  bool // the pool makes session copies of such keys
		make    func(*hsm.Token, []byte, string) ([]*operation, error)
	}{
		{[]string{opEncrypt, opDecrypt}, hsm.AES256, hsm.PurposeSeal, true, seals(ctx, payload)},
		{[]string{opMAC}, hsm.HMAC256, hsm.PurposeMAC, true, macs(payload)},
		{[]string{opP256}, hsm.P256, hsm.PurposeSign, true, signs(opP256, hsm.P256, pubkey.ECDSASHA256, payload)},
		{[]string{opRSA2048}, hsm.RSA2048, hsm.PurposeSign, false, signs(opRSA2048, hsm.RSA2048, pubkey.RSAPKCS1SHA256, payload)},
	} {
		if !slices.ContainsFunc(kind.names, func(name string) bool { return wanted(name) || wanted(name+Uncopied) }) {
			continue
		}
		id, err := k.create(ctx, kind.spec, kind.purpose)
		if errors.Is(err, hsm.ErrUnsupported) {
			k.notify("not measured: %v", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		ops, err := kind.make(k.token, id, "")
		if err != nil {
			return nil, err
		}
		add(ops)
		if !kind.copies {
			continue
		}
		if ops, err = kind.make(uncopied, id, Uncopied); err != nil {
			return nil, err
		}
		add(ops)
	}
	add([]*operation{{name: opRandom, payload: payload, call: func(ctx context.Context, _ uint64) error {
		_, err := k.token.Random(ctx, payload)
		return err
	}}})
	return all, nil
}
