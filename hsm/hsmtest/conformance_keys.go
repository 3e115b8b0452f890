package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/pubkey"
)

func (s *suite) generate(t *testing.T) {
	for _, spec := range s.caps.Specs {
		for _, purpose := range s.purposes(spec) {
			t.Run(spec.String()+"/"+purpose.String(), func(t *testing.T) {
				_, got := s.key(t, spec, purpose)
				want := &hsm.Attestation{
					Spec: spec, Purpose: purpose, ID: got.ID, Label: got.Label,
					Sensitive: true, AlwaysSensitive: true, NeverExtractable: true, Local: true, Private: true,
					MechanismsLocked: s.caps.AllowedMechanismsEnforced, Modifiable: s.caps.AllowedMechanismsEnforced,
				}
				if purpose == hsm.PurposeWrap {
					want.UnwrapLimited, want.WrapLimited = s.caps.WrapTemplates, s.caps.WrapTemplates
				}
				ignored := cmpopts.IgnoreFields(hsm.Attestation{}, "PublicKey", "TokenLabel", "TokenSerial", "TokenModel", "TokenManufacturer", "TokenFirmware")
				if diff := cmp.Diff(want, got, ignored); diff != "" {
					t.Errorf("attestation (-want +got):\n%s", diff)
				}
				status := s.token.Status()
				if got.TokenSerial != status.Serial || got.TokenLabel != status.Label || got.TokenSerial == "" {
					t.Errorf("attested by token %q, serial %q, want %q, %q", got.TokenLabel, got.TokenSerial, status.Label, status.Serial)
				}
				pair := len(spec.Algorithms()) > 0
				if pair != (got.PublicKey != nil) {
					t.Errorf("public key %x", got.PublicKey)
				}
				if pair {
					if _, err := pubkey.Parse(got.PublicKey); err != nil {
						t.Errorf("public key: %v", err)
					}
				}
			})
		}
	}
}

func (s *suite) generateRefuses(t *testing.T) {
	spec := s.caps.Specs[0]
	purpose := s.purposes(spec)[0]
	good := hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: ID(t.Name()), Label: Label(t.Name())}
	for name, tc := range map[string]struct {
		change func(*hsm.GenerateRequest)
		want   error
	}{
		"no spec":           {func(r *hsm.GenerateRequest) { r.Spec = 0 }, hsm.ErrInvalidInput},
		"unknown spec":      {func(r *hsm.GenerateRequest) { r.Spec = 200 }, hsm.ErrInvalidInput},
		"no purpose":        {func(r *hsm.GenerateRequest) { r.Purpose = 0 }, hsm.ErrInvalidInput},
		"AES for signing":   {func(r *hsm.GenerateRequest) { r.Spec, r.Purpose = hsm.AES256, hsm.PurposeSign }, hsm.ErrInvalidInput},
		"secp256k1 derives": {func(r *hsm.GenerateRequest) { r.Spec, r.Purpose = hsm.Secp256k1, hsm.PurposeDerive }, hsm.ErrInvalidInput},
		"exportable pair":   {func(r *hsm.GenerateRequest) { r.Spec, r.Purpose, r.Exportable = hsm.P256, hsm.PurposeSign, true }, hsm.ErrInvalidInput},
		"exportable wrap":   {func(r *hsm.GenerateRequest) { r.Spec, r.Purpose, r.Exportable = hsm.AES256, hsm.PurposeWrap, true }, hsm.ErrInvalidInput},
		"no id":             {func(r *hsm.GenerateRequest) { r.ID = nil }, hsm.ErrInvalidInput},
		"id too long":       {func(r *hsm.GenerateRequest) { r.ID = make([]byte, hsm.MaxIDBytes+1) }, hsm.ErrInvalidInput},
		"no label":          {func(r *hsm.GenerateRequest) { r.Label = "" }, hsm.ErrInvalidInput},
		"label too long":    {func(r *hsm.GenerateRequest) { r.Label = strings.Repeat("l", hsm.MaxKeyLabel+1) }, hsm.ErrInvalidInput},
	} {
		req := good
		tc.change(&req)
		if _, err := s.token.Generate(t.Context(), req); !errors.Is(err, tc.want) {
			t.Errorf("%s: Generate = %v, want %v", name, err, tc.want)
		}
	}
	for _, absent := range hsm.KeySpecs() {
		if s.has(absent) {
			continue
		}
		req := good
		req.Spec, req.Purpose = absent, absent.Purposes()[0]
		if _, err := s.token.Generate(t.Context(), req); !errors.Is(err, hsm.ErrUnsupported) {
			t.Errorf("%s: Generate = %v, want ErrUnsupported", absent, err)
		}
	}

	_, _ = s.key(t, spec, purpose)
	taken := ID(t.Name() + "/" + spec.String() + "/" + purpose.String())
	before := s.list(t)
	for _, other := range s.caps.Specs {
		_, err := s.token.Generate(t.Context(), hsm.GenerateRequest{Spec: other, Purpose: s.purposes(other)[0], ID: taken, Label: "another label"})
		if !errors.Is(err, hsm.ErrDuplicate) {
			t.Errorf("%s with an id that is taken: Generate = %v, want ErrDuplicate", other, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.token.Generate(ended, good); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: Generate = %v, want Canceled", err)
	}
	if diff := cmp.Diff(before, s.list(t)); diff != "" {
		t.Errorf("a refusal changed the token (-before +after):\n%s", diff)
	}
}

// list returns the token's objects as sorted text.
func (s *suite) list(t *testing.T) []string {
	t.Helper()
	objects, err := s.token.Objects(t.Context())
	if err != nil {
		t.Fatalf("Objects: %v", err)
	}
	var lines []string
	for _, o := range objects {
		lines = append(lines, o.Class.String()+" "+string(o.ID)+" "+o.Label)
	}
	slices.Sort(lines)
	return lines
}

func (s *suite) objects(t *testing.T) {
	before := s.list(t)
	want := slices.Clone(before)
	for _, spec := range s.caps.Specs {
		if spec == hsm.RSA3072 || spec == hsm.RSA4096 {
			continue // as RSA2048, and slow
		}
		purpose := s.purposes(spec)[0]
		_, a := s.key(t, spec, purpose)
		line := " " + string(a.ID) + " " + a.Label
		if a.PublicKey == nil {
			want = append(want, hsm.ClassSecretKey.String()+line)
		} else {
			want = append(want, hsm.ClassPrivateKey.String()+line, hsm.ClassPublicKey.String()+line)
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, s.list(t)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

func (s *suite) destroy(t *testing.T) {
	for _, spec := range s.caps.Specs {
		if spec == hsm.RSA3072 || spec == hsm.RSA4096 {
			continue
		}
		t.Run(spec.String(), func(t *testing.T) {
			purpose := s.purposes(spec)[0]
			before := s.list(t)
			key, a := s.key(t, spec, purpose)
			if err := use(t.Context(), key, spec, purpose); err != nil {
				t.Fatalf("use before: %v", err)
			}
			for name, try := range map[string]error{
				"another label": s.token.Destroy(t.Context(), a.ID, a.Label+"x"),
				"another id":    s.token.Destroy(t.Context(), append(bytes.Clone(a.ID), 1), a.Label),
			} {
				if !errors.Is(try, hsm.ErrKeyNotFound) {
					t.Errorf("%s: Destroy = %v, want ErrKeyNotFound", name, try)
				}
			}
			if err := use(t.Context(), key, spec, purpose); err != nil {
				t.Fatalf("use after refused destructions: %v", err)
			}
			if err := s.token.Destroy(t.Context(), a.ID, a.Label); err != nil {
				t.Fatalf("Destroy: %v", err)
			}
			if err := use(t.Context(), key, spec, purpose); !errors.Is(err, hsm.ErrKeyNotFound) {
				t.Errorf("use afterwards: %v, want ErrKeyNotFound", err)
			}
			if err := s.token.Destroy(t.Context(), a.ID, a.Label); !errors.Is(err, hsm.ErrKeyNotFound) {
				t.Errorf("second Destroy = %v, want ErrKeyNotFound", err)
			}
			if diff := cmp.Diff(before, s.list(t)); diff != "" {
				t.Errorf("something is left, or too much is gone (-before +after):\n%s", diff)
			}
		})
	}
	for _, bad := range []struct {
		id    []byte
		label string
	}{{nil, "l"}, {make([]byte, hsm.MaxIDBytes+1), "l"}, {[]byte{1}, ""}, {[]byte{1}, strings.Repeat("l", hsm.MaxKeyLabel+1)}} {
		if err := s.token.Destroy(t.Context(), bad.id, bad.label); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("Destroy(%x, %q) = %v, want ErrInvalidInput", bad.id, bad.label, err)
		}
	}
}

// use does with a key whatever it is for.
func use(ctx context.Context, key *hsm.Key, spec hsm.KeySpec, purpose hsm.Purpose) error {
	var err error
	switch purpose {
	case hsm.PurposeSeal:
		_, err = key.Seal(ctx, make([]byte, 12), []byte("aad"), []byte("plaintext"))
	case hsm.PurposeMAC:
		_, err = key.MAC(ctx, []byte("message"))
	case hsm.PurposeSign:
		alg := spec.Algorithms()[0]
		_, err = key.Sign(ctx, alg, make([]byte, max(32, digestBytes(alg))))
	case hsm.PurposeDecrypt:
		_, err = decryptSomething(ctx, key)
	case hsm.PurposeDerive:
		_, err = key.ECDH(ctx, peerOf(spec).SPKI())
	case hsm.PurposeWrap:
		_, err = key.WrapBytes(ctx, hsm.AESKW, make([]byte, 16))
	}
	return err
}

func (s *suite) publicKey(t *testing.T) {
	for _, spec := range s.caps.Specs {
		if len(spec.Algorithms()) == 0 || spec == hsm.RSA3072 || spec == hsm.RSA4096 {
			continue
		}
		t.Run(spec.String(), func(t *testing.T) {
			key, a := s.key(t, spec, s.purposes(spec)[0])
			got, err := key.PublicKey(t.Context())
			if err != nil || !bytes.Equal(got, a.PublicKey) {
				t.Fatalf("PublicKey = %x, %v, want %x", got, err, a.PublicKey)
			}
			clear(got) // the caller's copy
			again, err := key.PublicKey(t.Context())
			if err != nil || !bytes.Equal(again, a.PublicKey) {
				t.Errorf("second PublicKey = %x, %v", again, err)
			}
		})
	}
	if !s.has(hsm.AES256) {
		return
	}
	key, _ := s.key(t, hsm.AES256, hsm.PurposeSeal)
	if _, err := key.PublicKey(t.Context()); !errors.Is(err, hsm.ErrInvalidInput) {
		t.Errorf("of a secret key: %v, want ErrInvalidInput", err)
	}
	missing := s.token.Key(hsm.P256, hsm.PurposeSign, ID("there is no such key"))
	if _, err := missing.PublicKey(t.Context()); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("of a missing key: %v, want ErrKeyNotFound", err)
	}
}

func (s *suite) random(t *testing.T) {
	for _, n := range []int{1, 32, hsm.MaxRandomBytes} {
		got, err := s.token.Random(t.Context(), n)
		if err != nil || len(got) != n {
			t.Errorf("Random(%d) = %d bytes, %v", n, len(got), err)
		}
		if n >= 32 && bytes.Equal(got, make([]byte, n)) {
			t.Errorf("Random(%d) is all zeros", n)
		}
	}
	one, err1 := s.token.Random(t.Context(), 32)
	two, err2 := s.token.Random(t.Context(), 32)
	if err1 != nil || err2 != nil || bytes.Equal(one, two) {
		t.Errorf("twice the same: %x, %v, %v", one, err1, err2)
	}
	for _, n := range []int{-1, 0, hsm.MaxRandomBytes + 1} {
		if _, err := s.token.Random(t.Context(), n); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("Random(%d) = %v, want ErrInvalidInput", n, err)
		}
	}
}

func (s *suite) canary(t *testing.T) {
	if err := s.token.Canary(t.Context()); err != nil {
		t.Errorf("Canary: %v", err)
	}
	if created, err := s.token.EnsureCanary(t.Context()); created || err != nil {
		t.Errorf("EnsureCanary where there is one = %t, %v", created, err)
	}
	if err := s.token.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

// context: a context that has ended stops everything before the token is asked.
func (s *suite) context(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	spec := s.caps.Specs[0]
	purpose := s.purposes(spec)[0]
	key, a := s.key(t, spec, purpose)
	_, randomErr := s.token.Random(ended, 1)
	_, objectsErr := s.token.Objects(ended)
	for name, err := range map[string]error{
		"use":     use(ended, key, spec, purpose),
		"Random":  randomErr,
		"Objects": objectsErr,
		"Destroy": s.token.Destroy(ended, a.ID, a.Label),
		"Canary":  s.token.Canary(ended),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s = %v, want Canceled", name, err)
		}
	}
	if err := use(t.Context(), key, spec, purpose); err != nil {
		t.Errorf("use afterwards: %v", err)
	}
}

// reopen is last: it closes the token.
func (s *suite) reopen(t *testing.T) {
	type made struct {
		spec    hsm.KeySpec
		purpose hsm.Purpose
		*hsm.Attestation
	}
	var keys []made
	for _, spec := range s.caps.Specs {
		if spec == hsm.RSA3072 || spec == hsm.RSA4096 {
			continue
		}
		name := t.Name() + "/" + spec.String()
		purpose := s.purposes(spec)[0]
		a, err := s.token.Generate(t.Context(), hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: ID(name), Label: Label(name)})
		if err != nil {
			t.Fatalf("generate %s: %v", spec, err)
		}
		keys = append(keys, made{spec, purpose, a})
	}
	old := s.token.Key(keys[0].spec, keys[0].purpose, keys[0].ID)
	s.token = s.caps.Reopen(t)
	if err := use(t.Context(), old, keys[0].spec, keys[0].purpose); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("use of a key of the closed token: %v, want ErrUnavailable", err)
	}
	for _, k := range keys {
		key := s.token.Key(k.spec, k.purpose, k.ID)
		if err := use(t.Context(), key, k.spec, k.purpose); err != nil {
			t.Errorf("%s for %s: %v", k.spec, k.purpose, err)
		}
		if k.PublicKey != nil {
			if got, err := key.PublicKey(t.Context()); err != nil || !bytes.Equal(got, k.PublicKey) {
				t.Errorf("%s: public key %x, %v, want %x", k.spec, got, err, k.PublicKey)
			}
		}
		if err := s.token.Destroy(t.Context(), k.ID, k.Label); err != nil {
			t.Errorf("destroy %s: %v", k.spec, err)
		}
	}
}
