package hsm

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"testing"
)

func fromHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	check(t, err)
	return b
}

// TestHostWrap: the vectors of RFC 3394, 4, and RFC 5649, 6. The Wycheproof vectors run through tokens, in hsmtest.
func TestHostWrap(t *testing.T) {
	const kek256 = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	for name, tc := range map[string]struct {
		alg                     WrapAlgorithm
		key, plaintext, wrapped string
	}{
		"RFC 3394, 4.1": {AESKW, kek256[:32], "00112233445566778899aabbccddeeff", "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5"},
		"RFC 3394, 4.3": {AESKW, kek256, "00112233445566778899aabbccddeeff", "64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7"},
		"RFC 3394, 4.6": {AESKW, kek256, "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f", "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"},
		"RFC 5649, 20":  {AESKWP, "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8", "c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"},
		"RFC 5649, 7":   {AESKWP, "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8", "466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"},
	} {
		key, plaintext, wrapped := fromHex(t, tc.key), fromHex(t, tc.plaintext), fromHex(t, tc.wrapped)
		got, err := hostWrap(tc.alg, key, plaintext)
		if err != nil || !bytes.Equal(got, wrapped) {
			t.Errorf("%s: wraps to %x, %v, want %x", name, got, err, wrapped)
		}
		got, err = hostUnwrap(tc.alg, key, wrapped)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%s: unwraps to %x, %v, want %x", name, got, err, plaintext)
		}
		for i := range wrapped {
			bad := bytes.Clone(wrapped)
			bad[i] ^= 1
			if got, err := hostUnwrap(tc.alg, key, bad); err == nil {
				t.Errorf("%s with byte %d changed unwraps to %x", name, i, got)
			}
			if got, err := hostUnwrap(tc.alg, key, wrapped[:i]); err == nil {
				t.Errorf("%d bytes of %s unwrap to %x", i, name, got)
			}
		}
	}
}

// TestHostUnwrapChecks: each check of RFC 5649, 3, alone.
func TestHostUnwrapChecks(t *testing.T) {
	key := make([]byte, 32)
	block, err := aes.NewCipher(key)
	check(t, err)
	for name, tc := range map[string]struct {
		s  string // the initial value and the padded plaintext
		ok bool
	}{
		"20 of 24":           {"a65959a600000014" + "010101010101010101010101010101010101010100000000", true},
		"24 of 24":           {"a65959a600000018" + "010101010101010101010101010101010101010100000001", true},
		"another constant":   {"a65959a700000014" + "010101010101010101010101010101010101010100000000", false},
		"longer than it is":  {"a65959a600000019" + "010101010101010101010101010101010101010100000000", false},
		"a block too short":  {"a65959a600000010" + "010101010101010101010101010101010000000000000000", false},
		"padding not zero":   {"a65959a600000014" + "010101010101010101010101010101010101010100000001", false},
		"nothing at all":     {"a65959a600000000" + "000000000000000000000000000000000000000000000000", false},
		"a negative length":  {"a65959a6ffffffff" + "010101010101010101010101010101010101010100000000", false},
		"RFC 3394's initial": {"a6a6a6a6a6a6a6a6" + "010101010101010101010101010101010101010100000000", false},
	} {
		_, err := hostUnwrap(AESKWP, key, hostW(block, fromHex(t, tc.s)))
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
