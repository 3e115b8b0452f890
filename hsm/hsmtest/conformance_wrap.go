package hsmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest/vectors"
)

// wraps tells whether the token can wrap n bytes by the algorithm.
func (s *suite) wraps(alg hsm.WrapAlgorithm, n int) bool {
	if alg == hsm.AESKW {
		return n >= 16 && n%8 == 0 && n <= hsm.MaxWrapBytes
	}
	return n >= 1 && n <= hsm.MaxWrapBytes && (n%8 == 0 || !s.caps.KWPWrapsEights)
}

func (s *suite) wrap(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeWrap)
	for alg, lengths := range map[hsm.WrapAlgorithm][]int{
		hsm.AESKW:  {0, 1, 8, 15, 16, 17, 23, 24, 32, 1000, hsm.MaxWrapBytes - 8, hsm.MaxWrapBytes, hsm.MaxWrapBytes + 1, hsm.MaxWrapBytes + 8},
		hsm.AESKWP: {0, 1, 5, 7, 8, 9, 15, 16, 17, 32, 1000, hsm.MaxWrapBytes - 1, hsm.MaxWrapBytes, hsm.MaxWrapBytes + 1, hsm.MaxWrapBytes + 8},
	} {
		for _, n := range lengths {
			plaintext := bytes.Repeat([]byte{0x5a}, n)
			wrapped, err := key.WrapBytes(t.Context(), alg, plaintext)
			if can := s.token.Capabilities().CanWrap(alg, n); !errors.Is(err, can) && (can == nil || err == nil || err.Error() != can.Error()) {
				t.Errorf("%s of %d bytes: WrapBytes = %v, CanWrap = %v", alg, n, err, can)
			}
			if !s.wraps(alg, n) {
				s.wrapRefused(t, alg, n, err)
				continue
			}
			if err != nil {
				t.Errorf("%s of %d bytes: %v", alg, n, err)
				continue
			}
			if want := (n+7)/8*8 + 8; len(wrapped) != want {
				t.Errorf("%s of %d bytes gives %d, want %d", alg, n, len(wrapped), want)
			}
			got, err := key.UnwrapBytes(t.Context(), alg, wrapped)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s of %d bytes: unwraps to %d bytes, %v", alg, n, len(got), err)
			}
			again, err := key.WrapBytes(t.Context(), alg, plaintext)
			if err != nil || !bytes.Equal(again, wrapped) {
				t.Errorf("%s of %d bytes: wraps to something else the second time (%v)", alg, n, err)
			}
		}
	}
	for _, alg := range []hsm.WrapAlgorithm{0, hsm.AESKW + 1, 200} {
		_, wrapErr := key.WrapBytes(t.Context(), alg, make([]byte, 16))
		_, unwrapErr := key.UnwrapBytes(t.Context(), alg, make([]byte, 24))
		if !errors.Is(wrapErr, hsm.ErrInvalidInput) || !errors.Is(unwrapErr, hsm.ErrInvalidInput) {
			t.Errorf("algorithm %d: WrapBytes = %v, UnwrapBytes = %v, want ErrInvalidInput", alg, wrapErr, unwrapErr)
		}
	}
	missing := s.token.Key(hsm.AES256, hsm.PurposeWrap, ID("there is no such key"))
	if _, err := missing.WrapBytes(t.Context(), hsm.AESKW, make([]byte, 16)); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("missing key: WrapBytes = %v, want ErrKeyNotFound", err)
	}
}

// wrapRefused wants lengths that the algorithm has not to be invalid, and those
// that the token would get wrong to be unsupported, with the mechanism's name.
func (s *suite) wrapRefused(t *testing.T, alg hsm.WrapAlgorithm, n int, err error) {
	t.Helper()
	if alg == hsm.AESKWP && n >= 1 && n <= hsm.MaxWrapBytes {
		if !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), "CKM_AES_KEY_WRAP") {
			t.Errorf("%s of %d bytes: %v, want ErrUnsupported with the mechanism's name", alg, n, err)
		}
		return
	}
	if !errors.Is(err, hsm.ErrInvalidInput) {
		t.Errorf("%s of %d bytes: %v, want ErrInvalidInput", alg, n, err)
	}
}

func (s *suite) unwrapRefuses(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeWrap)
	other, err := s.token.Generate(t.Context(), hsm.GenerateRequest{Spec: hsm.AES256, Purpose: hsm.PurposeWrap, ID: ID(t.Name() + "other"), Label: Label(t.Name())})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.token.Destroy(context.Background(), other.ID, other.Label); err != nil {
			t.Error(err)
		}
	}()
	algs := []hsm.WrapAlgorithm{hsm.AESKWP, hsm.AESKW}
	for i, alg := range algs {
		wrapped, err := key.WrapBytes(t.Context(), alg, []byte("a key of twenty-four, or"))
		if err != nil {
			t.Fatal(err)
		}
		// Twice, so that the session copy, where there is one, is tried as well.
		for range 2 {
			for at := range wrapped {
				changed := bytes.Clone(wrapped)
				changed[at] ^= 0x80
				notUnwrapped(t, key, alg, changed)
				notUnwrapped(t, key, alg, wrapped[:at])
			}
			notUnwrapped(t, key, alg, append(bytes.Clone(wrapped), 0))
			notUnwrapped(t, key, alg, append(bytes.Clone(wrapped), make([]byte, 8)...))
			notUnwrapped(t, key, algs[1-i], wrapped)
			notUnwrapped(t, s.token.Key(hsm.AES256, hsm.PurposeWrap, other.ID), alg, wrapped)
			if _, err := key.UnwrapBytes(t.Context(), alg, wrapped); err != nil {
				t.Fatalf("UnwrapBytes of the good one: %v", err)
			}
		}
		notUnwrapped(t, key, alg, nil)
		notUnwrapped(t, key, alg, make([]byte, hsm.MaxWrapBytes+8))
		if _, err := key.UnwrapBytes(t.Context(), alg, make([]byte, hsm.MaxWrapBytes+9)); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("%s beyond the limit: UnwrapBytes = %v, want ErrInvalidInput", alg, err)
		}
	}
}

// notUnwrapped wants the one error, to the letter.
func notUnwrapped(t *testing.T, key *hsm.Key, alg hsm.WrapAlgorithm, wrapped []byte) {
	t.Helper()
	got, err := key.UnwrapBytes(t.Context(), alg, wrapped)
	if err != hsm.ErrAuthentication || got != nil { // exactly this
		t.Errorf("%s: UnwrapBytes of %d bytes = %x, %v, want ErrAuthentication and nothing else", alg, len(wrapped), got, err)
	}
}

// wrapFlood: bad wrapped keys take no session, no memory and no readiness.
func (s *suite) wrapFlood(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeWrap)
	bad := make([]byte, hsm.MaxWrapBytes)
	const rounds = 1000
	before := s.token.Status()
	for range rounds {
		if _, err := key.UnwrapBytes(t.Context(), hsm.AESKWP, bad); !errors.Is(err, hsm.ErrAuthentication) {
			t.Fatalf("UnwrapBytes = %v, want ErrAuthentication", err)
		}
	}
	if n := s.token.Status().Evicted - before.Evicted; s.caps.SessionSurvivesBadTag && n != 0 {
		t.Errorf("%d sessions were closed", n)
	}
	if err := s.token.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if err := use(t.Context(), key, hsm.AES256, hsm.PurposeWrap); err != nil {
		t.Errorf("use afterwards: %v", err)
	}
}

// wrapConcurrency: many callers of few sessions get their own answers.
func (s *suite) wrapConcurrency(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeWrap)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for round := range 20 {
				plaintext := bytes.Repeat(binary.BigEndian.AppendUint64(nil, uint64(worker<<16|round)), 2+round)
				wrapped, err := key.WrapBytes(ctx, hsm.AESKWP, plaintext)
				if err != nil {
					t.Errorf("WrapBytes: %v", err)
					return
				}
				got, err := key.UnwrapBytes(ctx, hsm.AESKWP, wrapped)
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("UnwrapBytes: %x, %v", got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// wrapKey: keys that were made to be exported leave wrapped, others do not.
func (s *suite) wrapKey(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeWrap)
	for _, spec := range []hsm.KeySpec{hsm.AES256, hsm.HMAC256, hsm.HMAC384, hsm.HMAC512} {
		if !s.has(spec) {
			continue
		}
		purpose := s.purposes(spec)[0]
		for _, exportable := range []bool{true, false} {
			name := ID(t.Name() + spec.String())
			a, err := s.token.Generate(t.Context(), hsm.GenerateRequest{Spec: spec, Purpose: purpose, ID: name, Label: Label(t.Name()), Exportable: exportable})
			if err != nil {
				t.Fatalf("generate %s: %v", spec, err)
			}
			wrapped, err := key.WrapKey(t.Context(), hsm.AESKWP, s.token.Key(spec, purpose, name))
			if exportable {
				if err != nil {
					t.Errorf("%s: WrapKey = %v", spec, err)
				} else if value, err := key.UnwrapBytes(t.Context(), hsm.AESKWP, wrapped); err != nil || len(value) != len(wrapped)-8 {
					t.Errorf("%s: unwraps to %d bytes, %v", spec, len(value), err)
				}
			} else if !errors.Is(err, hsm.ErrNotExtractable) {
				t.Errorf("%s that is not exportable: WrapKey = %x, %v, want ErrNotExtractable", spec, wrapped, err)
			}
			if err := s.token.Destroy(t.Context(), a.ID, a.Label); err != nil {
				t.Error(err)
			}
		}
	}
	if s.has(hsm.P256) {
		pair, _ := s.key(t, hsm.P256, hsm.PurposeSign)
		if _, err := key.WrapKey(t.Context(), hsm.AESKWP, pair); !errors.Is(err, hsm.ErrUnsupported) {
			t.Errorf("of a pair: WrapKey = %v, want ErrUnsupported", err)
		}
	}
}

// exportable: such keys do what others do, hot or not, and say what they are.
func (s *suite) exportable(t *testing.T) {
	name := ID(t.Name())
	a, err := s.token.Generate(t.Context(), hsm.GenerateRequest{Spec: hsm.AES256, Purpose: hsm.PurposeSeal, ID: name, Label: Label(t.Name()), Exportable: true})
	if err != nil {
		t.Fatal(err)
	}
	if !a.Extractable || a.NeverExtractable || !a.Sensitive || !a.AlwaysSensitive || !a.Local || !a.Private {
		t.Errorf("attestation %+v", a)
	}
	key := s.token.Key(hsm.AES256, hsm.PurposeSeal, name)
	for range 50 {
		if err := use(t.Context(), key, hsm.AES256, hsm.PurposeSeal); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.token.Destroy(t.Context(), a.ID, a.Label); err != nil {
		t.Error(err)
	}
}

func (s *suite) vectorsKW(t *testing.T)  { s.vectorsWrap(t, hsm.AESKW, "aes_wrap_test.json") }
func (s *suite) vectorsKWP(t *testing.T) { s.vectorsWrap(t, hsm.AESKWP, "aes_kwp_test.json") }

// vectorsWrap: those of 256-bit keys. RFC 3394 with 8 bytes, which Wycheproof
// calls acceptable, is refused.
func (s *suite) vectorsWrap(t *testing.T, alg hsm.WrapAlgorithm, file string) {
	valid, invalid, wrapped := 0, 0, 0
	for _, group := range vectors.Load[vectors.WrapGroup](t, file) {
		if group.KeyBits != 256 {
			continue
		}
		for _, tc := range group.Tests {
			s.imported(t, hsm.AES256, hsm.PurposeWrap, Material{KEK: tc.Key}, tc.Case.String(), func(key *hsm.Key) {
				got, err := key.UnwrapBytes(t.Context(), alg, tc.Ciphertext)
				if !tc.Valid() {
					if invalid++; err != hsm.ErrAuthentication { // exactly this
						t.Errorf("%v is %s: UnwrapBytes = %x, %v, want ErrAuthentication", tc.Case, tc.Result, got, err)
					}
					return
				}
				if valid++; err != nil || !bytes.Equal(got, tc.Message) {
					t.Errorf("%v: UnwrapBytes = %x, %v, want %x", tc.Case, got, err, tc.Message)
				}
				got, err = key.WrapBytes(t.Context(), alg, tc.Message)
				if !s.wraps(alg, len(tc.Message)) {
					s.wrapRefused(t, alg, len(tc.Message), err)
					return
				}
				if wrapped++; err != nil || !bytes.Equal(got, tc.Ciphertext) {
					t.Errorf("%v: WrapBytes = %x, %v, want %x", tc.Case, got, err, tc.Ciphertext)
				}
			})
		}
	}
	if valid < 10 || invalid < 20 || wrapped < 5 {
		t.Errorf("%d valid vectors, %d others, %d wrapped: too few", valid, invalid, wrapped)
	}
}
