package hsmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
)

func (s *suite) seal(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeSeal)
	iv, aad := bytes.Repeat([]byte{1}, 12), []byte("aad")
	for _, n := range []int{0, 1, 15, 16, 17, 4096, hsm.MaxMessageBytes} {
		plaintext := bytes.Repeat([]byte{0x5a}, n)
		sealed, err := key.Seal(t.Context(), iv, aad, plaintext)
		if err != nil {
			t.Fatalf("Seal of %d bytes: %v", n, err)
		}
		if len(sealed) != n+16 {
			t.Errorf("Seal of %d bytes gives %d, want %d", n, len(sealed), n+16)
		}
		opened, err := key.Open(t.Context(), iv, aad, sealed)
		if err != nil || !bytes.Equal(opened, plaintext) {
			t.Errorf("Open of %d bytes: %d bytes, %v", n, len(opened), err)
		}
	}
	longAAD := make([]byte, hsm.MaxAADBytes)
	sealed, err := key.Seal(t.Context(), iv, longAAD, nil)
	if err != nil {
		t.Errorf("AAD of %d bytes: %v", len(longAAD), err)
	} else if _, err := key.Open(t.Context(), iv, longAAD, sealed); err != nil {
		t.Errorf("Open with AAD of %d bytes: %v", len(longAAD), err)
	}
	for name, tc := range map[string]struct{ iv, aad, plaintext []byte }{
		"no IV":              {nil, aad, nil},
		"IV of 11 bytes":     {make([]byte, 11), aad, nil},
		"IV of 13 bytes":     {make([]byte, 13), aad, nil},
		"IV of 16 bytes":     {make([]byte, 16), aad, nil},
		"no AAD":             {iv, nil, nil},
		"AAD too long":       {iv, make([]byte, hsm.MaxAADBytes+1), nil},
		"plaintext too long": {iv, aad, make([]byte, hsm.MaxMessageBytes+1)},
	} {
		if _, err := key.Seal(t.Context(), tc.iv, tc.aad, tc.plaintext); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("%s: Seal = %v, want ErrInvalidInput", name, err)
		}
	}
	missing := s.token.Key(hsm.AES256, hsm.PurposeSeal, ID("there is no such key"))
	if _, err := missing.Seal(t.Context(), iv, aad, nil); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("missing key: Seal = %v, want ErrKeyNotFound", err)
	}
}

func (s *suite) openRefuses(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeSeal)
	iv, aad := bytes.Repeat([]byte{1}, 12), []byte("aad")
	sealed, err := key.Seal(t.Context(), iv, aad, []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	// Twice, so that the session copy, where there is one, is tried as well.
	for range 2 {
		for i := range sealed {
			changed := bytes.Clone(sealed)
			changed[i] ^= 0x80
			s.refuses(t, key, iv, aad, changed)
			s.refuses(t, key, iv, aad, sealed[:i])
		}
		s.refuses(t, key, iv, aad, append(bytes.Clone(sealed), 0))
		s.refuses(t, key, iv, []byte("aaD"), sealed)
		s.refuses(t, key, iv, []byte("aad "), sealed)
		s.refuses(t, key, bytes.Repeat([]byte{2}, 12), aad, sealed)
		s.refuses(t, key, append(bytes.Clone(iv), 0), aad, sealed)
		if _, err := key.Open(t.Context(), iv, aad, sealed); err != nil {
			t.Fatalf("Open of the good one: %v", err)
		}
	}
	for name, tc := range map[string]struct{ iv, aad, sealed []byte }{
		"IV of 11 bytes":      {make([]byte, 11), aad, sealed},
		"IV of 17 bytes":      {make([]byte, 17), aad, sealed},
		"no AAD":              {iv, nil, sealed},
		"ciphertext too long": {iv, aad, make([]byte, hsm.MaxMessageBytes+17)},
	} {
		if _, err := key.Open(t.Context(), tc.iv, tc.aad, tc.sealed); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("%s: Open = %v, want ErrInvalidInput", name, err)
		}
	}
}

// refuses wants the one error, to the letter.
func (s *suite) refuses(t *testing.T, key *hsm.Key, iv, aad, sealed []byte) {
	t.Helper()
	plaintext, err := key.Open(t.Context(), iv, aad, sealed)
	if err != hsm.ErrAuthentication || plaintext != nil { // exactly this: anything wrapped around it would be detail
		t.Errorf("Open = %x, %v, want ErrAuthentication and nothing else", plaintext, err)
	}
}

// flood: bad ciphertexts take no session, no memory and no readiness.
func (s *suite) flood(t *testing.T) {
	key, _ := s.key(t, hsm.AES256, hsm.PurposeSeal)
	iv, aad := make([]byte, 12), []byte("aad")
	bad := make([]byte, 32<<10)
	const rounds = 4000 // a leak of one buffer per refusal would be 125 MB
	before, memory := s.token.Status(), resident(t)
	for range rounds {
		if _, err := key.Open(t.Context(), iv, aad, bad); !errors.Is(err, hsm.ErrAuthentication) {
			t.Fatalf("Open = %v, want ErrAuthentication", err)
		}
	}
	after := s.token.Status()
	if s.caps.SessionSurvivesBadTag && after.Evicted != before.Evicted {
		t.Errorf("%d sessions were closed", after.Evicted-before.Evicted)
	}
	if grown := resident(t) - memory; grown > rounds*int64(len(bad))/2 {
		t.Errorf("%d refusals of %d bytes grew the process by %d MB", rounds, len(bad), grown>>20)
	}
	if err := s.token.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if _, err := key.Seal(t.Context(), iv, aad, nil); err != nil {
		t.Errorf("Seal afterwards: %v", err)
	}
}

// resident returns the process's memory in bytes, 0 where the system does not
// tell in /proc.
func resident(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	return 0
}

// copies: a hot key becomes a session copy where the token allows, works the
// same, and a copy does not outlive its key.
func (s *suite) copies(t *testing.T) {
	key, a := s.key(t, hsm.AES256, hsm.PurposeSeal)
	iv, aad := make([]byte, 12), []byte("aad")
	first, err := key.Seal(t.Context(), iv, aad, []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	before := s.token.Status().Copies
	if s.caps.SessionCopies {
		eventually(t, "the key becomes a session copy", func() bool {
			if _, err := key.Seal(t.Context(), iv, aad, nil); err != nil {
				t.Fatal(err)
			}
			return s.token.Status().Copies > before
		})
	} else if before != 0 {
		t.Errorf("%d session copies on a token that was not proven to make them", before)
	}
	second, err := key.Seal(t.Context(), iv, aad, []byte("plaintext"))
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("the copy seals to %x, the original to %x (%v)", second, first, err)
	}
	s.refuses(t, key, iv, []byte("other"), first)
	if s.caps.SessionCopies {
		key.Release()
		eventually(t, "Release drops the copy", func() bool { return s.token.Status().Copies <= before })
		if _, err := key.Open(t.Context(), iv, aad, first); err != nil {
			t.Errorf("Open after Release: %v", err)
		}
		for range 20 {
			if _, err := key.Seal(t.Context(), iv, aad, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.token.Destroy(t.Context(), a.ID, a.Label); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Seal(t.Context(), iv, aad, nil); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("Seal with a destroyed key = %v, want ErrKeyNotFound", err)
	}
	again := s.token.Key(hsm.AES256, hsm.PurposeSeal, a.ID)
	if _, err := again.Seal(t.Context(), iv, aad, nil); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("Seal with a destroyed key, looked up anew = %v, want ErrKeyNotFound", err)
	}
}

// eventually waits for what happens beside the calls.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come to pass that %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// concurrency: many callers of few sessions get their own answers.
func (s *suite) concurrency(t *testing.T) {
	aes, _ := s.key(t, hsm.AES256, hsm.PurposeSeal)
	var mac *hsm.Key
	if s.has(hsm.HMAC256) {
		mac, _ = s.key(t, hsm.HMAC256, hsm.PurposeMAC)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for worker := range 32 {
		wg.Go(func() {
			for round := range 20 {
				iv := binary.BigEndian.AppendUint32(make([]byte, 8), uint32(worker<<16|round))
				plaintext := bytes.Repeat([]byte{byte(worker)}, 1+round*50)
				sealed, err := aes.Seal(ctx, iv, []byte("aad"), plaintext)
				if err != nil {
					t.Errorf("Seal: %v", err)
					return
				}
				if _, err := aes.Open(ctx, iv, []byte("other"), sealed); !errors.Is(err, hsm.ErrAuthentication) {
					t.Errorf("Open with other AAD: %v", err)
					return
				}
				opened, err := aes.Open(ctx, iv, []byte("aad"), sealed)
				if err != nil || !bytes.Equal(opened, plaintext) {
					t.Errorf("Open: %v", err)
					return
				}
				if mac == nil {
					continue
				}
				one, err1 := mac.MAC(ctx, plaintext)
				two, err2 := mac.MAC(ctx, plaintext)
				if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
					t.Errorf("MAC: %v, %v", err1, err2)
					return
				}
			}
		})
	}
	wg.Wait()
}

func (s *suite) mac(t *testing.T) {
	s.each(t, hsm.PurposeMAC, func(t *testing.T, spec hsm.KeySpec) {
		key, _ := s.key(t, spec, hsm.PurposeMAC)
		seen := map[string]bool{}
		want := map[hsm.KeySpec]int{hsm.HMAC224: 28, hsm.HMAC256: 32, hsm.HMAC384: 48, hsm.HMAC512: 64}[spec]
		for _, n := range []int{0, 1, 4096, hsm.MaxMessageBytes} {
			code, err := key.MAC(t.Context(), make([]byte, n))
			if err != nil || len(code) != want {
				t.Fatalf("MAC of %d bytes = %d bytes, %v, want %d", n, len(code), err, want)
			}
			again, err := key.MAC(t.Context(), make([]byte, n))
			if err != nil || !bytes.Equal(code, again) {
				t.Errorf("second MAC of %d bytes = %x, %v, want %x", n, again, err, code)
			}
			if seen[string(code)] {
				t.Errorf("MAC of %d bytes is that of another message", n)
			}
			seen[string(code)] = true
		}
		if _, err := key.MAC(t.Context(), make([]byte, hsm.MaxMessageBytes+1)); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("MAC beyond the limit = %v, want ErrInvalidInput", err)
		}
	})
}
