package sigv4

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// memory counts in this process's writable memory what is given, as it is and as the
// two pads of HMAC have it. What it looks for it holds inverted, so as not to find
// itself.
func memory(t *testing.T, inverted []byte) map[byte]int {
	t.Helper()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found := map[byte]int{}
	const overlap = 256
	buf := make([]byte, 1<<20)
	defer clear(buf)
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var lo, hi uint64
		f := strings.Fields(lines.Text())
		if _, err := fmt.Sscanf(f[0], "%x-%x", &lo, &hi); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(f[1], "rw") || hi-lo > 1<<28 { // the race detector's shadow has terabytes
			continue
		}
		for at := lo; at < hi; at += uint64(len(buf) - overlap) {
			clear(buf) // or it would find what it read before, when it comes to itself
			n, err := mem.ReadAt(buf[:min(uint64(len(buf)), hi-at)], int64(at))
			if err != nil && n == 0 {
				break // nothing is there yet
			}
			for _, pad := range []byte{0, 0x36, 0x5c} {
				found[pad] += occurrences(buf[:n], inverted, pad)
			}
		}
	}
	return found
}

func occurrences(b, inverted []byte, pad byte) (n int) {
	for {
		i := bytes.IndexByte(b, ^inverted[0]^pad)
		if i < 0 || i+len(inverted) > len(b) {
			return n
		}
		k := 1
		for k < len(inverted) && b[i+k] == ^inverted[k]^pad {
			k++
		}
		if k == len(inverted) {
			n++
		}
		b = b[i+1:]
	}
}

// deep calls f with some more of the stack in use.
//
//go:noinline
func deep(depth int, f func()) byte {
	var room [128]byte
	room[depth] = byte(depth)
	if depth == 0 {
		f()
		return room[0]
	}
	return deep(depth-1, f) + room[depth]
}

// TestSecretIsNotOnOldStacks derives on stacks that are filled differently: one of
// them grows within, and leaves its old memory as it was.
func TestSecretIsNotOnOldStacks(t *testing.T) {
	inverted := make([]byte, 40)
	for i := range inverted {
		inverted[i] = ^byte('!' + (i*59+17)%90)
	}
	secret := make([]byte, len(inverted), 256) // on the heap, as what the token opened
	for depth := 0; depth < 64; depth += 4 {
		for i, b := range inverted {
			secret[i] = ^b
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			deep(depth, func() { DeriveSigningKey(secret, Scope{Day: "20310506", Region: "us-east-1", Service: "kms"}) })
		})
		wg.Wait()
		clear(secret)
		if found := memory(t, inverted); found[0]+found[0x36]+found[0x5c] > 0 {
			t.Fatalf("with %d frames on the stack: the secret is in memory, by pad %v", depth, found)
		}
	}
}

// TestSecretIsNotLeftBehind looks for a secret and a signing key in the memory of
// this process, once they were used and wiped. The pads of HMAC count too: they are
// the key, for who knows two constants.
func TestSecretIsNotLeftBehind(t *testing.T) {
	inverted := make([]byte, 40)
	for i := range inverted {
		inverted[i] = ^byte('!' + (i*37+11)%90)
	}
	secret := make([]byte, len(inverted))
	for i, b := range inverted {
		secret[i] = ^b
	}
	// The search finds what is there.
	kept := hmac.New(sha256.New, secret)
	if found := memory(t, inverted); found[0] == 0 || found[0x36] == 0 || found[0x5c] == 0 {
		t.Fatalf("the search is blind: it found %v", found)
	}
	runtime.KeepAlive(kept)
	for range 3 {
		runtime.GC() // what is free is cleared when it is used again, and not before
	}

	inverted = slices.Clone(inverted)
	for i := range inverted { // others, which were never given to crypto/hmac
		inverted[i] = ^byte('!' + (i*53+29)%90)
		secret[i] = ^inverted[i]
	}
	scope := Scope{Day: "20310506", Region: "us-east-1", Service: "kms"}
	used := DeriveSigningKey(secret, scope)
	signing := make([]byte, len(used))
	for i, b := range used {
		signing[i] = ^b
	}
	room := takeRoom()
	room.sum(used[:], []byte("a string to sign"))
	room.sum(secret, make([]byte, 2*macDataBytes)) // in memory of its own
	room.leave()
	clear(used[:])
	clear(secret)
	if found := memory(t, inverted); found[0]+found[0x36]+found[0x5c] > 0 {
		t.Errorf("the secret is in memory: by pad %v", found)
	}
	if found := memory(t, signing); found[0x36]+found[0x5c] > 0 {
		t.Errorf("the pads of the signing key are in memory: by pad %v", found)
	}

	// The same for a whole request, of somebody who lacks the secret: nobody else has
	// the signing key then.
	c := testConfig()
	c.Credentials = testKeys{testKeyID: &testKey{secret: "a secret of this test"}}
	v := newVerifier(t, c)
	r, body := signed(t, "POST", "/", "body")
	_, err := v.Verify(r, "kms", Body(body))
	wantRefusal(t, err, SignatureMismatch, "")
	used = DeriveSigningKey([]byte("a secret of this test"), Scope{testTime.Format(dayLayout), "us-east-1", "kms"})
	for i, b := range used {
		signing[i] = ^b
	}
	clear(used[:])
	// Copies of the key itself may be on stacks, where they are passed by value.
	if found := memory(t, signing); found[0] == 0 || found[0x36]+found[0x5c] > 0 {
		t.Errorf("a signing key that is cached: by pad %v", found)
	}
}
