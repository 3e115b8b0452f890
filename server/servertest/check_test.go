package servertest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/audit"
)

// complaints is a test that only remembers what it was told.
type complaints struct {
	testing.TB
	said []string
}

func (c *complaints) Errorf(format string, args ...any) {
	c.said = append(c.said, fmt.Sprintf(format, args...))
}

// TestChecker shows that each promise that is broken is found, and nothing else
// is: the daemon is well, what the ledger says of it is not.
func TestChecker(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	l := f.load.Ledger
	f.load.Stop()
	find := func(want string, spoil, mend func()) {
		t.Helper()
		spoil()
		c := &complaints{TB: t}
		f.check.CheckAll(c)
		mend()
		if len(c.said) != 1 || !strings.Contains(c.said[0], want) {
			t.Errorf("the checker says %q, want one complaint with %q", c.said, want)
		}
	}
	aes, hmac, pair := f.load.Base.AES, f.load.Base.HMAC, f.load.Base.P256
	f.check.CheckAll(t)
	f.check.settle = time.Second // nothing heals here

	ghost := &Key{ID: "00000000-0000-0000-0000-000000000000"}
	f.check.created[ghost.ID] = true
	find("NotFound", func() { l.keys[ghost.ID] = ghost }, func() { l.Deleted(ghost) })
	find("acknowledged is [KEY_STATE_DISABLED]", func() { l.Changed(f.load.Base.Other, keyholdv1.KeyState_KEY_STATE_DISABLED) },
		func() { l.Changed(f.load.Base.Other, keyholdv1.KeyState_KEY_STATE_ENABLED) })
	mac := hmac.mac
	find("its MAC is", func() { hmac.mac = make([]byte, 32) }, func() { hmac.mac = mac })
	spki := pair.spki
	find("its public key is", func() { pair.spki = []byte{1} }, func() { pair.spki = spki })
	public := pair.public
	find("its signature does not verify here", func() { pair.public = nil }, func() { pair.public = public })
	blobs := l.Blobs()
	find("opens to something else", func() { l.blobs = append(l.blobs, Blob{Key: aes.ID, Ciphertext: f.blob, Plain: []byte("x")}) }, func() { l.blobs = blobs })
	find("does not open", func() {
		l.blobs = append(l.blobs, Blob{Key: aes.ID, Ciphertext: make([]byte, 100), Plain: []byte("x")})
	}, func() { l.blobs = blobs })
	find("alias/ghost is at", func() { l.AliasChanged("alias/ghost", aes.ID) }, func() { delete(l.aliases, "alias/ghost") })
	find("is not recorded", func() { delete(f.check.created, aes.ID) }, func() { f.check.created[aes.ID] = true })
	goroutines := f.check.goroutines
	find("goroutines", func() { f.check.goroutines = 1 }, func() { f.check.goroutines = goroutines })
	find("a client saw", func() { f.load.finding("a wrong answer") }, func() {})
	find("log shows a plaintext", func() { fmt.Fprintf(f.d.Log, "plaintext=%s\n", l.Marker) }, func() {
		fmt.Fprintln(f.d.Log, strings.Repeat("-", 1000)) // away from the end
		f.check.logged = len(f.d.Log.String())
	})
	for _, shape := range shapesOf(l.Marker) {
		stray := filepath.Join(f.d.Dir, "stray")
		find("holds a plaintext", func() { writeFile(t, stray, shape) }, func() { _ = os.Remove(stray) })
	}
	// What cannot be mended comes last.
	var lost *Key
	find("store and token", func() { lost = f.lose(t) }, func() { l.keys[lost.ID] = lost; l.Lost(lost) })
	segment := lastSegment(t, f.d.Settings.Audit.Dir)
	whole, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	flipped := []byte(strings.Replace(string(whole), `"eventName":"Encrypt"`, `"eventName":"Encrypu"`, 1))
	find("journal", func() { f.check.from = audit.Anchor{}; writeFile(t, segment, flipped) }, func() {})
	f.d.Stop(t)
}

// lose destroys the object of a key that the ledger does not have.
func (f *fixture) lose(t *testing.T) *Key {
	t.Helper()
	key, _ := f.newKey(t)
	if n := f.intruder(t).Destroy(t, f.object(t, key).ID); n != 1 {
		t.Fatalf("%d objects were destroyed", n)
	}
	f.load.Ledger.Deleted(key)
	f.check.created[key.ID] = true
	return key
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// lastSegment is the journal's file that is written to.
func lastSegment(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	newest := ""
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), `"eventName":"Encrypt"`) {
			newest = name
		}
	}
	if newest == "" {
		t.Fatalf("no segment with an event in %q", names)
	}
	return newest
}
